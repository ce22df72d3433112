"""Where each published tensor goes, and how it must be turned: one table per family, read in both directions.

Knows names and shapes. Knows no files, no configurations in JSON, and changes no model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.config import BertConfig, GptConfig, MixerConfig, StackConfig, VitConfig


@dataclass(frozen=True)
class Transform:
    """How one published tensor becomes one or several of ours, and back. Both work on the meta device too."""

    to_ours: Callable[[Tensor, StackConfig], tuple[Tensor, ...]]
    to_published: Callable[[tuple[Tensor, ...], StackConfig], Tensor]


identity = Transform(
    to_ours=lambda published, config: (published,),
    to_published=lambda ours, config: ours[0],
)
transposed = Transform(  # GPT-2's "Conv1D" is a linear layer whose matrix is stored the other way round
    to_ours=lambda published, config: (published.T,),
    to_published=lambda ours, config: ours[0].T,
)
fused_weight = Transform(  # ... and its queries, keys and values are one such layer
    to_ours=lambda published, config: published.T.chunk(3),
    to_published=lambda ours, config: torch.cat(ours).T,
)
fused_bias = Transform(
    to_ours=lambda published, config: published.chunk(3),
    to_published=lambda ours, config: torch.cat(ours),
)
patches = Transform(  # a convolution whose stride is its kernel is a matrix over flattened patches
    to_ours=lambda published, config: (published.flatten(1),),
    to_published=lambda ours, config: ours[0].unflatten(1, (config.channels, config.patch_size, config.patch_size)),
)


@dataclass(frozen=True)
class Row:
    """One published tensor and ours that it holds. `{n}` stands for the number of the block."""

    ours: tuple[str, ...]
    published: str
    transform: Transform = identity

    def numbered(self, depth: int) -> list["Row"]:
        """This row for each block, or itself where it names none."""
        if "{n}" not in self.published:
            return [self]
        return [
            Row(tuple(name.format(n=n) for name in self.ours), self.published.format(n=n), self.transform)
            for n in range(depth)
        ]


def layer(ours: str, published: str, weight: Transform = identity) -> tuple[Row, Row]:
    """The weight and the bias of a linear layer or of a norm."""
    return (
        Row((f"{ours}.weight",), f"{published}.weight", weight),
        Row((f"{ours}.bias",), f"{published}.bias"),
    )


@dataclass(frozen=True)
class Layout:
    """The published names of one family. In the table they stand without `prefix`: files come with it and without."""

    rows: tuple[Row, ...]
    prefix: str = ""
    unprefixed: tuple[str, ...] = ()  # how the names begin that never have the prefix: those of the heads
    renamed: tuple[tuple[str, str], ...] = ()  # old spellings: the end of a name, and what it is called today
    copies: tuple[tuple[str, str], ...] = ()  # tied tensors that some files store twice: the copy, the original
    unused: tuple[str, ...] = ()  # patterns of what may lie in a file and plays no part in the answer
    bare: bool = False  # whether we publish without the prefix: it says which part of a model with a head this is

    def plain(self, name: str) -> str:
        """A name found in a file, as the table spells it."""
        for old, new in self.renamed:
            if name.endswith(old):
                name = name.removesuffix(old) + new
        return name.removeprefix(self.prefix)

    def full(self, plain: str) -> str:
        """A name of the table, as it is published."""
        return plain if self.bare or plain.startswith(self.unprefixed) else self.prefix + plain

    def is_unused(self, plain: str) -> bool:
        return any(fnmatchcase(plain, pattern) for pattern in self.unused)


# fmt: off
BERT = Layout(
    prefix="bert.",
    unprefixed=("cls.", "classifier."),
    renamed=(("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")),
    copies=(
        ("cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias",   "cls.predictions.bias"),
    ),
    unused=("embeddings.position_ids", "pooler.dense.*", "cls.seq_relationship.*"),
    rows=(
        Row(("embed.words.weight",),     "embeddings.word_embeddings.weight"),
        Row(("embed.positions.weight",), "embeddings.position_embeddings.weight"),
        Row(("embed.segments.weight",),  "embeddings.token_type_embeddings.weight"),
        *layer("embed.norm",                      "embeddings.LayerNorm"),
        *layer("stack.blocks.{n}.mix.to_query",   "encoder.layer.{n}.attention.self.query"),
        *layer("stack.blocks.{n}.mix.to_key",     "encoder.layer.{n}.attention.self.key"),
        *layer("stack.blocks.{n}.mix.to_value",   "encoder.layer.{n}.attention.self.value"),
        *layer("stack.blocks.{n}.mix.to_out",     "encoder.layer.{n}.attention.output.dense"),
        *layer("stack.blocks.{n}.norm_mix",       "encoder.layer.{n}.attention.output.LayerNorm"),
        *layer("stack.blocks.{n}.mlp.widen",      "encoder.layer.{n}.intermediate.dense"),
        *layer("stack.blocks.{n}.mlp.narrow",     "encoder.layer.{n}.output.dense"),
        *layer("stack.blocks.{n}.norm_mlp",       "encoder.layer.{n}.output.LayerNorm"),
    ),
)
BERT_HEADS = {
    "masked-language": (
        *layer("head.transform",                  "cls.predictions.transform.dense"),
        *layer("head.norm",                       "cls.predictions.transform.LayerNorm"),
        Row(("head.bias",),                       "cls.predictions.bias"),
    ),
    "classifier": (
        *layer("head.pooler.dense",               "pooler.dense"),
        *layer("head.classes",                    "classifier"),
    ),
    "pooler":      layer("head.dense",            "pooler.dense"),
    "mean":        (),
    "first-token": (),
}
GPT2 = Layout(
    prefix="transformer.",
    unprefixed=("lm_head.",),
    copies=(("lm_head.weight", "wte.weight"),),
    unused=("h.*.attn.bias", "h.*.attn.masked_bias"),  # the causal mask, stored as a buffer
    rows=(
        Row(("embed.words.weight",),     "wte.weight"),
        Row(("embed.positions.weight",), "wpe.weight"),
        Row(tuple(f"stack.blocks.{{n}}.mix.to_{x}.weight" for x in ("query", "key", "value")),
            "h.{n}.attn.c_attn.weight", fused_weight),
        Row(tuple(f"stack.blocks.{{n}}.mix.to_{x}.bias" for x in ("query", "key", "value")),
            "h.{n}.attn.c_attn.bias", fused_bias),
        *layer("stack.blocks.{n}.mix.to_out",     "h.{n}.attn.c_proj", transposed),
        *layer("stack.blocks.{n}.norm_mix",       "h.{n}.ln_1"),
        *layer("stack.blocks.{n}.mlp.widen",      "h.{n}.mlp.c_fc",    transposed),
        *layer("stack.blocks.{n}.mlp.narrow",     "h.{n}.mlp.c_proj",  transposed),
        *layer("stack.blocks.{n}.norm_mlp",       "h.{n}.ln_2"),
        *layer("stack.norm",                      "ln_f"),
    ),
)
VIT = Layout(
    prefix="vit.",
    unprefixed=("classifier.",),
    unused=("pooler.dense.*",),
    rows=(
        Row(("mark.class_token",),                "embeddings.cls_token"),
        Row(("mark.positions",),                  "embeddings.position_embeddings"),
        *layer("embed.patches",                   "embeddings.patch_embeddings.projection", patches),
        *layer("stack.blocks.{n}.mix.to_query",   "encoder.layer.{n}.attention.attention.query"),
        *layer("stack.blocks.{n}.mix.to_key",     "encoder.layer.{n}.attention.attention.key"),
        *layer("stack.blocks.{n}.mix.to_value",   "encoder.layer.{n}.attention.attention.value"),
        *layer("stack.blocks.{n}.mix.to_out",     "encoder.layer.{n}.attention.output.dense"),
        *layer("stack.blocks.{n}.norm_mix",       "encoder.layer.{n}.layernorm_before"),
        *layer("stack.blocks.{n}.mlp.widen",      "encoder.layer.{n}.intermediate.dense"),
        *layer("stack.blocks.{n}.mlp.narrow",     "encoder.layer.{n}.output.dense"),
        *layer("stack.blocks.{n}.norm_mlp",       "encoder.layer.{n}.layernorm_after"),
        *layer("stack.norm",                      "layernorm"),
        *layer("head",                            "classifier"),
    ),
)
MIXER = Layout(
    rows=(
        *layer("embed.patches",                   "stem.proj", patches),
        *layer("stack.blocks.{n}.norm_mix",       "blocks.{n}.norm1"),
        *layer("stack.blocks.{n}.mix.mlp.widen",  "blocks.{n}.mlp_tokens.fc1"),
        *layer("stack.blocks.{n}.mix.mlp.narrow", "blocks.{n}.mlp_tokens.fc2"),
        *layer("stack.blocks.{n}.norm_mlp",       "blocks.{n}.norm2"),
        *layer("stack.blocks.{n}.mlp.widen",      "blocks.{n}.mlp_channels.fc1"),
        *layer("stack.blocks.{n}.mlp.narrow",     "blocks.{n}.mlp_channels.fc2"),
        *layer("stack.norm",                      "norm"),
        *layer("head",                            "head"),
    ),
)
# fmt: on


def layout(config: StackConfig) -> Layout:
    """The published layout of the model that `config` describes."""
    match config:
        case BertConfig(segments=0) | GptConfig(mlp_width=0):
            raise CheckpointError(f"{config} has no published layout: expected segments, or MLPs")
        case BertConfig(head="mean" | "first-token" | "pooler"):  # the file may have another head: it is not read
            unused = (*BERT.unused, "cls.*", "classifier.*")
            return replace(BERT, rows=BERT.rows + BERT_HEADS[config.head], copies=(), unused=unused, bare=True)
        case BertConfig():
            return replace(BERT, rows=BERT.rows + BERT_HEADS[config.head])
        case GptConfig():
            return GPT2
        case VitConfig():
            return VIT
        case MixerConfig():
            return MIXER
    raise TypeError(f"found {type(config).__name__}, expected one of BertConfig, GptConfig, VitConfig, MixerConfig")
