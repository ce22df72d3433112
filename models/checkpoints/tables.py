"""The parameters for each published tensor: one table per published family.

`configs` says which configurations the tables are for.
"""

from collections.abc import Mapping
from dataclasses import replace

from models.checkpoints.errors import CheckpointError
from models.checkpoints.layout import (
    Layout,
    Row,
    after_padding,
    fused,
    fused_weight,
    identity,
    layer,
    patches,
    transposed,
)
from models.checkpoints.leftovers import leftovers
from models.config import BertConfig, DenseLayer, GptConfig, NormLayer, StackConfig, VitConfig

# fmt: off
BERT = Layout(
    prefix="bert.",
    unprefixed=("cls.", "classifier."),
    renamed=(("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")),
    copies=(
        ("cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias",   "cls.predictions.bias"),
    ),
    rows=(
        Row(("embed.tokens.weight",),    "embeddings.word_embeddings.weight"),
        Row(("embed.positions.weight",), "embeddings.position_embeddings.weight"),
        Row(("embed.segments.weight",),  "embeddings.token_type_embeddings.weight"),
        *layer("embed.norm",                      "embeddings.LayerNorm"),
        *layer("stack.blocks.{n}.mix.q_proj",     "encoder.layer.{n}.attention.self.query"),
        *layer("stack.blocks.{n}.mix.k_proj",     "encoder.layer.{n}.attention.self.key"),
        *layer("stack.blocks.{n}.mix.v_proj",     "encoder.layer.{n}.attention.self.value"),
        *layer("stack.blocks.{n}.mix.out_proj",   "encoder.layer.{n}.attention.output.dense"),
        *layer("stack.blocks.{n}.norm_mix",       "encoder.layer.{n}.attention.output.LayerNorm"),
        *layer("stack.blocks.{n}.mlp.fc1",        "encoder.layer.{n}.intermediate.dense"),
        *layer("stack.blocks.{n}.mlp.fc2",        "encoder.layer.{n}.output.dense"),
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
    "pooling":     (),
}
ROBERTA = replace(  # BERT with other names and positions in the embedding and the head
    BERT,
    prefix="roberta.",
    unprefixed=("lm_head.", "classifier."),
    copies=(
        ("lm_head.decoder.weight", "embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias",   "lm_head.bias"),
    ),
    rows=tuple(replace(row, transform=after_padding) if row.ours == ("embed.positions.weight",) else row
               for row in BERT.rows),
)
ROBERTA_HEADS = {
    **BERT_HEADS,
    "masked-language": (
        *layer("head.transform",                  "lm_head.dense"),
        *layer("head.norm",                       "lm_head.layer_norm"),
        Row(("head.bias",),                       "lm_head.bias"),
    ),
    "classifier": (
        *layer("head.pooler.dense",               "classifier.dense"),
        *layer("head.classes",                    "classifier.out_proj"),
    ),
}
DISTILBERT = Layout(
    prefix="distilbert.",
    unprefixed=("vocab_", "pre_classifier.", "classifier."),
    renamed=BERT.renamed,
    copies=(("vocab_projector.weight", "embeddings.word_embeddings.weight"),),
    rows=(
        Row(("embed.tokens.weight",),    "embeddings.word_embeddings.weight"),
        Row(("embed.positions.weight",), "embeddings.position_embeddings.weight"),
        *layer("embed.norm",                      "embeddings.LayerNorm"),
        *layer("stack.blocks.{n}.mix.q_proj",     "transformer.layer.{n}.attention.q_lin"),
        *layer("stack.blocks.{n}.mix.k_proj",     "transformer.layer.{n}.attention.k_lin"),
        *layer("stack.blocks.{n}.mix.v_proj",     "transformer.layer.{n}.attention.v_lin"),
        *layer("stack.blocks.{n}.mix.out_proj",   "transformer.layer.{n}.attention.out_lin"),
        *layer("stack.blocks.{n}.norm_mix",       "transformer.layer.{n}.sa_layer_norm"),
        *layer("stack.blocks.{n}.mlp.fc1",        "transformer.layer.{n}.ffn.lin1"),
        *layer("stack.blocks.{n}.mlp.fc2",        "transformer.layer.{n}.ffn.lin2"),
        *layer("stack.blocks.{n}.norm_mlp",       "transformer.layer.{n}.output_layer_norm"),
    ),
)
DISTILBERT_HEADS = {
    "masked-language": (
        *layer("head.transform",                  "vocab_transform"),
        *layer("head.norm",                       "vocab_layer_norm"),
        Row(("head.bias",),                       "vocab_projector.bias"),
    ),
    "classifier": (
        *layer("head.pooler.dense",               "pre_classifier"),
        *layer("head.classes",                    "classifier"),
    ),
    "pooling":     (),
}
GPT2 = Layout(
    prefix="transformer.",
    unprefixed=("lm_head.",),
    copies=(("lm_head.weight", "wte.weight"),),
    rows=(
        Row(("embed.tokens.weight",),    "wte.weight"),
        Row(("embed.positions.weight",), "wpe.weight"),
        Row(tuple(f"stack.blocks.{{n}}.mix.{x}_proj.weight" for x in "qkv"),
            "h.{n}.attn.c_attn.weight", fused_weight),
        Row(tuple(f"stack.blocks.{{n}}.mix.{x}_proj.bias" for x in "qkv"),
            "h.{n}.attn.c_attn.bias", fused),
        *layer("stack.blocks.{n}.mix.out_proj",   "h.{n}.attn.c_proj", transposed),
        *layer("stack.blocks.{n}.norm_mix",       "h.{n}.ln_1"),
        *layer("stack.blocks.{n}.mlp.fc1",        "h.{n}.mlp.c_fc",    transposed),
        *layer("stack.blocks.{n}.mlp.fc2",        "h.{n}.mlp.c_proj",  transposed),
        *layer("stack.blocks.{n}.norm_mlp",       "h.{n}.ln_2"),
        *layer("stack.norm",                      "ln_f"),
    ),
)
NANOGPT = replace(  # GPT-2 with linear layers
    GPT2,
    rows=tuple(replace(row, transform={transposed: identity, fused_weight: fused}.get(row.transform, row.transform))
               for row in GPT2.rows),
)
VIT = Layout(
    prefix="vit.",
    unprefixed=("classifier.",),
    rows=(
        Row(("class_tokens.tokens.0",),           "embeddings.cls_token"),
        Row(("class_tokens.positions",),          "embeddings.position_embeddings"),
        *layer("embed.patches",                   "embeddings.patch_embeddings.projection", patches),
        *layer("stack.blocks.{n}.mix.q_proj",     "encoder.layer.{n}.attention.attention.query"),
        *layer("stack.blocks.{n}.mix.k_proj",     "encoder.layer.{n}.attention.attention.key"),
        *layer("stack.blocks.{n}.mix.v_proj",     "encoder.layer.{n}.attention.attention.value"),
        *layer("stack.blocks.{n}.mix.out_proj",   "encoder.layer.{n}.attention.output.dense"),
        *layer("stack.blocks.{n}.norm_mix",       "encoder.layer.{n}.layernorm_before"),
        *layer("stack.blocks.{n}.mlp.fc1",        "encoder.layer.{n}.intermediate.dense"),
        *layer("stack.blocks.{n}.mlp.fc2",        "encoder.layer.{n}.output.dense"),
        *layer("stack.blocks.{n}.norm_mlp",       "encoder.layer.{n}.layernorm_after"),
        *layer("stack.norm",                      "layernorm"),
    ),
)
VIT_HEADS = {1: layer("head.classifiers.0",       "classifier")}
DEIT = replace(  # ViT with a second token before the patches
    VIT,
    prefix="deit.",
    unprefixed=("classifier.", "cls_classifier.", "distillation_classifier."),
    rows=(*VIT.rows, Row(("class_tokens.tokens.1",), "embeddings.distillation_token")),
)
DEIT_HEADS = {
    **VIT_HEADS,
    2: (
        *layer("head.classifiers.0",              "cls_classifier"),
        *layer("head.classifiers.1",              "distillation_classifier"),
    ),
}
MIXER = Layout(
    rows=(
        *layer("embed.patches",                   "stem.proj", patches),
        *layer("stack.blocks.{n}.norm_mix",       "blocks.{n}.norm1"),
        *layer("stack.blocks.{n}.mix.mlp.fc1",    "blocks.{n}.mlp_tokens.fc1"),
        *layer("stack.blocks.{n}.mix.mlp.fc2",    "blocks.{n}.mlp_tokens.fc2"),
        *layer("stack.blocks.{n}.norm_mlp",       "blocks.{n}.norm2"),
        *layer("stack.blocks.{n}.mlp.fc1",        "blocks.{n}.mlp_channels.fc1"),
        *layer("stack.blocks.{n}.mlp.fc2",        "blocks.{n}.mlp_channels.fc2"),
        *layer("stack.norm",                      "norm"),
        *layer("head",                            "head"),
    ),
)
# fmt: on

# The published family: its tensors, and those of each head that it comes with.
LAYOUTS: dict[str, tuple[Layout, Mapping[object, tuple[Row, ...]]]] = {
    "bert": (BERT, BERT_HEADS),
    "roberta": (ROBERTA, ROBERTA_HEADS),
    "distilbert": (DISTILBERT, DISTILBERT_HEADS),
    "gpt": (GPT2, {}),
    "nanogpt": (NANOGPT, {}),
    "vit": (VIT, VIT_HEADS),
    "deit": (DEIT, DEIT_HEADS),
    "mixer": (MIXER, {}),
}


def vector_rows(config: BertConfig) -> tuple[Row, ...]:
    """The tensors of the layers on a text's vector: they have files of their own, and the names of the parameters."""
    names: list[str] = []
    for number, (found, width) in enumerate(zip(config.vector_layers, config.vector_widths, strict=False)):
        prefix = f"vector_layers.{number}"
        match found:
            case DenseLayer():
                names += [f"{prefix}.linear.weight", *([f"{prefix}.linear.bias"] * found.bias)]
                names += [f"{prefix}.residual.weight"] * (found.residual and found.width != width)
            case NormLayer():
                names += [f"{prefix}.norm.weight", f"{prefix}.norm.bias"]
    return tuple(Row((name,), name) for name in names)


def untied(names: Layout) -> Layout:
    """The layout if the head's matrix, and in BERT and RoBERTa its bias, are not tied."""
    (copy, _), *others = names.copies
    rows = (*names.rows, Row(("head.embedding.weight",), copy))
    if others:
        ((copy, original),) = others
        rows = tuple(replace(row, published=copy) if row.published == original else row for row in rows)
    return replace(names, rows=rows, copies=())


def layout(family: str, config: StackConfig) -> Layout:
    """The layout in which `family` publishes the model that `config` describes."""
    names = with_head(family, config)
    if isinstance(config, BertConfig | GptConfig) and not config.tied_head:
        names = untied(names)
    if isinstance(config, VitConfig) and not config.qkv_bias:
        without = tuple(f".mix.{x}_proj.bias" for x in "qkv")
        names = replace(names, rows=tuple(row for row in names.rows if not row.ours[0].endswith(without)))
    return replace(names, unused=leftovers(family, [row.published for row in names.rows]))


def with_head(family: str, config: StackConfig) -> Layout:
    """The tensors of a family and of the head that `config` describes."""
    names, heads = LAYOUTS[family]
    match config:
        case BertConfig(segments=0) if family == "bert":
            raise CheckpointError(f"{config} has no published layout: expected segments")
        case VitConfig(class_tokens=2) if family == "vit":
            raise CheckpointError(f"{config} has no published layout: expected one class token")
        case GptConfig(mlp_width=0):
            raise CheckpointError(f"{config} has no published layout: expected MLPs")
        case BertConfig(head="pooling" | "pooler"):  # the file may have another head, which is not read
            rows = names.rows + heads[config.head] + vector_rows(config)
            return replace(names, rows=rows, copies=(), bare=True)
        case BertConfig(head="classifier"):  # a language head in the file is a leftover
            return replace(names, rows=names.rows + heads[config.head], copies=())
        case BertConfig():
            return replace(names, rows=names.rows + heads[config.head])
        case VitConfig():
            return replace(names, rows=names.rows + heads[config.classifiers])
    return names
