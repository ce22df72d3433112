"""Recipes: models with named inputs and outputs, which are the names that the exporter and the server share.

A recipe takes and returns dictionaries of tensors. `forward` is traced, with the runtime's attention operators;
`reference` is the model as it is written.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.graph import attention_ops
from export.precisions import PRECISIONS
from models import Bert, BertConfig, Gpt, GptConfig, Mixer, Vit, VitConfig

TOP = 64  # tokens with the highest scores that a graph returns beside the logits
DTYPES = {"INT64": torch.int64, "INT32": torch.int32, "FP32": torch.float32, "FP16": torch.float16}
Tensors = dict[str, Tensor]
Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Port:
    """One tensor of a graph: its datatype as the Open Inference Protocol spells it, and its sizes or names of axes."""

    datatype: str
    shape: tuple[int | str, ...]

    def sized(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """The shape, with `sizes` for the named axes."""
        return tuple(size if isinstance(size, int) else sizes[size] for size in self.shape)


Ports = dict[str, Port]
TOKENS = Port("INT64", ("batch", "sequence"))
LENGTHS = Port("INT32", ("batch",))
SELECTED = Port("INT64", ("selected",))


class Recipe(nn.Module):
    """A model with named inputs and outputs. `result` is the output that is compared with PyTorch."""

    architecture: str
    task: str
    result: str
    unsupported_heads: str | None = None  # the head width, if CUDA's operators do not take it

    def inputs(self, precision: str) -> Ports:
        """The inputs of the graph, in order."""
        raise NotImplementedError

    def outputs(self, precision: str) -> Ports:
        """The outputs of the graph, in order."""
        raise NotImplementedError

    def forward(self, inputs: Tensors) -> Tensors:
        """The computation that is traced."""
        raise NotImplementedError

    def reference(self, inputs: Tensors) -> Tensor:
        """PyTorch's `result` for the same inputs, without caches."""
        raise NotImplementedError

    def prepared(self) -> AbstractContextManager[None]:
        """Within the block, the model has its weights in the form that the graph needs."""
        return nullcontext()

    def infeasible_reason(self, target: str, precision: str) -> str | None:
        """Why this model cannot be exported for `target` in `precision`; None if it can."""
        if PRECISIONS[precision].cache and self.task != "generate":
            return f"only models for generate keep keys and values; take {target}={precision.partition('+')[0]}"
        if target != "cuda" or self.unsupported_heads is None:
            return None
        return (
            f"config.json: found heads {self.unsupported_heads}, expected a multiple of "
            f"{attention_ops.HEAD_WIDTH_MULTIPLE}: the fused attention operators of CUDA take no other; "
            "take --target cpu"
        )


class BertRecipe(Recipe):
    """BERT with any of its heads: fill-mask, classify-text or embed."""

    architecture = "bert"

    def __init__(self, model: Bert) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        heads = {"masked-language": ("fill-mask", "logits"), "classifier": ("classify-text", "logits")}
        self.task, self.result = heads.get(model.config.head, ("embed", "embedding"))
        self.unsupported_heads = unsupported_heads(model.config)

    def inputs(self, precision: str) -> Ports:
        ports = {"input_ids": TOKENS, "position_ids": TOKENS, "lengths": LENGTHS}
        if self.config.segments:
            ports["token_type_ids"] = TOKENS
        if self.task == "fill-mask":
            ports["selected"] = SELECTED
        return ports

    def outputs(self, precision: str) -> Ports:
        if self.task == "fill-mask":
            return token_ports(self.config.vocabulary)
        width = self.config.classes if self.task == "classify-text" else self.config.vector_widths[-1]
        return {self.result: Port("FP32", ("batch", width))}

    def forward(self, inputs: Tensors) -> Tensors:
        with attention_ops.replaced_attention(self.model, attention_ops.EncoderAttention(inputs["lengths"])):
            result = self.model(**inputs).float()
        return token_outputs(result) if self.task == "fill-mask" else {self.result: result}

    def reference(self, inputs: Tensors) -> Tensor:
        result: Tensor = self.model(**inputs)
        return result


class GptRecipe(Recipe):
    """GPT over a cache: inputs `past_key.N` and `past_value.N`, outputs `present_key.N` and `present_value.N`."""

    architecture, task, result = "gpt", "generate", "logits"

    def __init__(self, model: Gpt) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.head_width = attention_ops.padded_width(model.config.width // model.config.heads)
        self.unsupported_heads = unsupported_heads(model.config)

    def cache(self, tense: str, precision: str) -> Ports:
        """The ports of the cache, keys and values of each layer in turn; `tense` is past or present."""
        shape = ("batch", self.config.heads, "capacity", self.head_width)
        datatype = PRECISIONS[precision].cache.upper() or PRECISIONS[precision].datatype
        names = (f"{tense}_{part}.{layer}" for layer in range(self.config.depth) for part in ("key", "value"))
        return {name: Port(datatype, shape) for name in names}

    def inputs(self, precision: str) -> Ports:
        ports = {"input_ids": TOKENS, "position_ids": TOKENS, "lengths": LENGTHS}
        ports |= {"total_sequence_length": Port("INT32", (1,)), "selected": SELECTED}
        return ports | self.cache("past", precision)

    def outputs(self, precision: str) -> Ports:
        return token_ports(self.config.vocabulary) | self.cache("present", precision)

    def forward(self, inputs: Tensors) -> Tensors:
        past = [tensor for name, tensor in inputs.items() if name.startswith("past_")]
        decoder = attention_ops.DecoderAttention(inputs["lengths"], inputs["total_sequence_length"], past)
        with attention_ops.replaced_attention(self.model, decoder):
            logits = self.model(inputs["input_ids"], inputs["position_ids"], inputs["selected"]).float()
        return token_outputs(logits) | dict(zip(self.cache("present", "fp32"), decoder.present, strict=True))

    def reference(self, inputs: Tensors) -> Tensor:
        result: Tensor = self.model(inputs["input_ids"], inputs["position_ids"], inputs["selected"])
        return result

    def prepared(self) -> AbstractContextManager[None]:
        return attention_ops.packed_projections(self.model)

    def infeasible_reason(self, target: str, precision: str) -> str | None:
        if (target, precision) == ("cuda", "fp32"):
            return "GroupQueryAttention has no fp32 kernel on CUDA and would run on the CPU in silence; take cuda=fp16"
        return super().infeasible_reason(target, precision)


class ImageRecipe(Recipe):
    """ViT and MLP-Mixer, which have the same inputs and outputs."""

    task, result = "classify-image", "logits"

    def __init__(self, model: Vit | Mixer) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.architecture = "vit" if isinstance(model, Vit) else "mixer"
        self.unsupported_heads = unsupported_heads(model.config) if isinstance(model, Vit) else None

    def inputs(self, precision: str) -> Ports:
        side = self.config.image_size
        return {"pixel_values": Port("FP32", ("batch", self.config.channels, side, side))}

    def outputs(self, precision: str) -> Ports:
        return {"logits": Port("FP32", ("batch", self.config.classes))}

    def forward(self, inputs: Tensors) -> Tensors:
        with attention_ops.replaced_attention(self.model, attention_ops.EncoderAttention(None)):
            return {"logits": self.reference(inputs).float()}

    def reference(self, inputs: Tensors) -> Tensor:
        result: Tensor = self.model(inputs["pixel_values"].to(next(self.model.parameters()).dtype))
        return result


def token_ports(vocabulary: int) -> Ports:
    """The outputs of both language heads."""
    top = min(TOP, vocabulary)
    return {
        "logits": Port("FP32", ("selected", vocabulary)),
        "top_scores": Port("FP32", ("selected", top)),
        "top_ids": Port("INT64", ("selected", top)),
        "logsumexp": Port("FP32", ("selected",)),
    }


def token_outputs(logits: Tensor) -> Tensors:
    """The logits, and the tokens with the highest. The log-probability of a token is its score minus `logsumexp`.

    `logsumexp` is computed from one token's log-probability: for 50,257 tokens the runtime's ReduceLogSumExp is ten
    times slower than its LogSoftmax, and its error is 5e-5 instead of 2e-6.
    """
    log_probabilities = torch.log_softmax(logits, dim=-1)  # (n, v)
    top_scores, top_ids = torch.topk(logits, min(TOP, logits.shape[-1]))  # (n, top), sorted
    return {
        "logits": logits,  # (n, v)
        "top_scores": top_scores,
        "top_ids": top_ids,
        "logsumexp": logits[:, 0] - log_probabilities[:, 0],  # (n)
    }


def unsupported_heads(config: BertConfig | GptConfig | VitConfig) -> str | None:
    """The head width and how it is computed, if the fused operators on CUDA do not take it; else None."""
    width = config.width // config.heads
    return f"{width} wide ({config.width} / {config.heads})" if width % attention_ops.HEAD_WIDTH_MULTIPLE else None


def recipe_for(model: nn.Module) -> Recipe:
    """The recipe of a loaded model."""
    match model:
        case Bert():
            return BertRecipe(model)
        case Gpt():
            return GptRecipe(model)
        case Vit() | Mixer():
            return ImageRecipe(model)
    raise AssertionError(f"no recipe for {type(model).__name__}: this is a bug")
