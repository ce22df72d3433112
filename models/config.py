"""The sizes of each model, as frozen dataclasses, with the published ones as presets, one line each.

Every field is checked when a configuration is made: a ValueError names the field, what was found and what was expected.
"""

from dataclasses import dataclass, fields
from math import sqrt
from typing import ClassVar

from models.heads import POOLINGS, Dense
from models.mlp import ACTIVATIONS

BERT_HEADS = ("masked-language", "classifier", "pooling", "pooler")


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """The sizes of every stack: `depth` counts its blocks, `mlp_width` is the hidden width of their MLPs."""

    MAY_BE_ZERO: ClassVar[tuple[str, ...]] = ()

    width: int
    depth: int
    mlp_width: int
    activation: str = "gelu"
    norm_epsilon: float = 1e-12

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name in self.MAY_BE_ZERO else 1
            if field.type is int and (not isinstance(value, int) or value < least):
                found = f"{type(self).__name__}.{field.name} is {value!r}"
                raise ValueError(f"{found}: expected a whole number, at least {least}")
            if field.name.endswith("activation") and value not in ACTIVATIONS and value is not field.default:
                found = f"{type(self).__name__}.{field.name} is {value!r}"
                raise ValueError(f"{found}: expected one of {', '.join(ACTIVATIONS)}")
        if not isinstance(self.norm_epsilon, float) or not self.norm_epsilon > 0:
            found = f"{type(self).__name__}.norm_epsilon is {self.norm_epsilon!r}"
            raise ValueError(f"{found}: expected a number, more than 0")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(StackConfig):
    """A stack with self-attention."""

    heads: int


@dataclass(frozen=True, kw_only=True)
class DenseLayer:
    """A linear layer with an activation on a text's vector; `width` is that of the result."""

    width: int
    activation: str = "tanh"
    bias: bool = True
    residual: bool = False

    def __post_init__(self) -> None:
        if self.activation not in Dense.ACTIVATIONS:
            known = ", ".join(Dense.ACTIVATIONS)
            raise ValueError(f"DenseLayer.activation is {self.activation!r}: expected one of {known}")


@dataclass(frozen=True)
class NormLayer:
    """A layer norm on a text's vector."""


@dataclass(frozen=True)
class NormaliseLayer:
    """A text's vector scaled to length 1."""


@dataclass(frozen=True)
class FirstValuesLayer:
    """The first `width` values of a text's vector."""

    width: int


VectorLayer = DenseLayer | NormLayer | NormaliseLayer | FirstValuesLayer


@dataclass(frozen=True, kw_only=True)
class BertConfig(AttentionConfig):
    """BERT, RoBERTa (one segment, usually) and DistilBERT (no segments, a ReLU in its pooler).

    Options of the head "masked-language": `tied_head` (it shares the matrix of the token embedding) and
    `head_activation` (by default that of the blocks). Of "classifier": `classes`. Of "pooling": `poolings`, whose
    vectors are concatenated. Of both heads that give one vector for a text, "pooling" and "pooler": `vector_layers`,
    which are applied to that vector in order. `pad_position` adds a last row to the position embedding, for padding
    tokens within a text (RoBERTa).
    """

    MAY_BE_ZERO = ("segments",)

    vocabulary: int = 30522
    positions: int = 512
    segments: int = 2
    head: str = "masked-language"
    tied_head: bool = True
    head_activation: str | None = None
    classes: int = 2
    pooler_activation: str = "tanh"
    poolings: tuple[str, ...] = ("mean",)
    vector_layers: tuple[VectorLayer, ...] = ()
    pad_position: bool = False

    @property
    def vector_widths(self) -> tuple[int, ...]:
        """The width of a text's vector after the pooling, and after each of the layers."""
        widths = [self.width * (len(self.poolings) if self.head == "pooling" else 1)]
        for layer in self.vector_layers:
            widths.append(getattr(layer, "width", widths[-1]))
        return tuple(widths)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.poolings or not set(self.poolings) <= set(POOLINGS):
            raise ValueError(f"BertConfig.poolings is {self.poolings!r}: expected some of {', '.join(POOLINGS)}")
        if self.head not in BERT_HEADS:
            raise ValueError(f"BertConfig.head is {self.head!r}: expected one of {', '.join(BERT_HEADS)}")


@dataclass(frozen=True, kw_only=True)
class GptConfig(AttentionConfig):
    """`mlp_width=0` leaves the MLPs out; a `tied_head` shares the matrix of the token embedding.

    Affinities are multiplied by 1/√k if `scale_by_width`, and by 1/n in the nth block if `scale_by_layer`.
    """

    MAY_BE_ZERO = ("mlp_width",)

    vocabulary: int = 50257
    positions: int = 1024
    activation: str = "gelu_new"
    norm_epsilon: float = 1e-5
    tied_head: bool = True
    scale_by_width: bool = True
    scale_by_layer: bool = False

    def attention_scale(self, layer: int) -> float:
        """The factor for the affinities of block `layer`, from 0."""
        by_width = 1 / sqrt(self.width / self.heads) if self.scale_by_width else 1.0
        return by_width / (layer + 1) if self.scale_by_layer else by_width


@dataclass(frozen=True, kw_only=True)
class VitConfig(AttentionConfig):
    """`image_size` and `patch_size` are in pixels, of squares.

    There are `class_tokens` tokens before the patches, and the first `classifiers` of them have a classifier. DeiT has
    two: the second was trained on the output of another network, its teacher (distillation).
    """

    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    classes: int = 1000
    class_tokens: int = 1
    classifiers: int = 1
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classifiers > self.class_tokens:
            found = f"VitConfig.classifiers is {self.classifiers}"
            raise ValueError(f"{found}: expected at most {self.class_tokens}, the number of class tokens")


@dataclass(frozen=True, kw_only=True)
class MixerConfig(StackConfig):
    """`token_mlp_width` is the hidden width of the MLPs across positions, `mlp_width` of those across the width."""

    token_mlp_width: int
    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    classes: int = 1000
    norm_epsilon: float = 1e-6


# fmt: off
BERT_PRESETS = {
    "tiny":       BertConfig(width=64, depth=2, heads=4, mlp_width=256, vocabulary=512, positions=64),
    "bert-base":  BertConfig(width=768, depth=12, heads=12, mlp_width=3072),
    "bert-large": BertConfig(width=1024, depth=24, heads=16, mlp_width=4096),
}
GPT_PRESETS = {
    "tiny":        GptConfig(width=64, depth=2, heads=4, mlp_width=256, vocabulary=512, positions=64),
    "gpt2":        GptConfig(width=768, depth=12, heads=12, mlp_width=3072),   # 124 M
    "gpt2-medium": GptConfig(width=1024, depth=24, heads=16, mlp_width=4096),  # 355 M
    "gpt2-large":  GptConfig(width=1280, depth=36, heads=20, mlp_width=5120),  # 774 M
    "gpt2-xl":     GptConfig(width=1600, depth=48, heads=25, mlp_width=6400),  # 1558 M
}
VIT_PRESETS = {
    "tiny":     VitConfig(width=64, depth=2, heads=4, mlp_width=256, image_size=32, patch_size=8, classes=10),
    "vit-b/16": VitConfig(width=768, depth=12, heads=12, mlp_width=3072),
    "vit-b/32": VitConfig(width=768, depth=12, heads=12, mlp_width=3072, patch_size=32),
    "vit-l/16": VitConfig(width=1024, depth=24, heads=16, mlp_width=4096),
}
MIXER_PRESETS = {
    "tiny":       MixerConfig(width=64, depth=2, token_mlp_width=32, mlp_width=256, image_size=32, patch_size=8, classes=10),  # noqa: E501
    "mixer-b/16": MixerConfig(width=768, depth=12, token_mlp_width=384, mlp_width=3072),
    "mixer-l/16": MixerConfig(width=1024, depth=24, token_mlp_width=512, mlp_width=4096),
}
# fmt: on
