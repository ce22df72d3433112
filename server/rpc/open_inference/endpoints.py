"""What each model takes and gives over the Open Inference Protocol: one door by task, and a raw one beside it.

An endpoint declares its tensors and has a function that answers. The servicer beside this file does the rest.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from protos.manifest_pb2 import Manifest
from server.admission.queue import RequestContext
from server.arrays import Array
from server.concurrency.offload import offload
from server.errors import InvalidRequest
from server.observability.prometheus import Tokens
from server.repository.repository import Model
from server.rpc.generate import continue_texts
from server.rpc.parameters import Kind, Value
from server.rpc.sampling_params import PARAMETERS as SAMPLING
from server.rpc.sampling_params import from_parameters, strings
from server.tasks.classification import Class
from server.tasks.classify_image import ClassifyImage
from server.tasks.classify_text import ClassifyText
from server.tasks.embed import Embed
from server.tasks.fill_mask import FillMask
from server.tasks.generate import Generate
from server.tasks.text_stream import TextDelta
from server.text.tokenizer import TokenUsage

Arrays = Mapping[str, Array]
ANY = -1
TOKENS_TOLD = ("prompt_tokens", "completion_tokens", "cached_tokens")
RAW = ".raw"  # NAME.raw is the tensor door of NAME


@dataclass(frozen=True)
class Tensor:
    """One declared input or output. ANY stands for a size that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    labels: tuple[str, ...] | None = None  # of an output that can be asked for as a `classification`

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(
            ANY in (found, wanted) or found == wanted for found, wanted in zip(shape, self.shape, strict=True)
        )


@dataclass(frozen=True)
class EndpointRequest:
    """One request, checked against the door it came to."""

    model: Model
    inputs: Arrays
    parameters: Mapping[str, Any]  # the endpoint's own, each of the kind that it declares
    call: RequestContext
    tokens: Tokens  # counts what is generated
    release: Callable[[], None]  # ends the use of the model


@dataclass(frozen=True)
class EndpointResponse:
    """The outputs of a request, or a piece of them, and what is told beside them."""

    outputs: Arrays
    parameters: Mapping[str, Value] = field(default_factory=dict)
    last: bool = True  # of the pieces of a request


Infer = Callable[[EndpointRequest], Awaitable[EndpointResponse]]
Stream = Callable[[EndpointRequest], AsyncGenerator[EndpointResponse, None]]


@dataclass(frozen=True)
class Endpoint:
    """What can be asked of a model, and the function that answers. `stream` only where answers come in pieces."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    infer: Infer
    parameters: Mapping[str, Kind] = field(default_factory=dict)
    stream: Stream | None = None


def endpoint_for(manifest: Manifest, *, raw: bool) -> Endpoint:
    """The door of a model, or of its NAME.raw."""
    return _tensor_endpoint(manifest) if raw else TASKS[manifest.task]


# ---- the tasks


async def _fill_mask(ask: EndpointRequest) -> EndpointResponse:
    texts, own = texts_of("text", ask.inputs["text"]), dict(ask.parameters)
    targets = strings(str(own.pop("targets", "")))
    fill_mask = ask.model.task_as(FillMask)
    filled = await fill_mask(texts, **own, targets=targets, call=ask.call, field="text")
    masks = [(row, mask.candidates) for row, text in enumerate(filled) for mask in text.masks]

    def arrays() -> dict[str, Array]:
        return {
            "token": np.array([[c.token.encode() for c in candidates] for _, candidates in masks], object),
            "token_id": np.array([[c.token_id for c in candidates] for _, candidates in masks], np.int64),
            "score": np.array([[c.score for c in candidates] for _, candidates in masks], np.float32),  # [masks, k]
            "row": np.array([row for row, _ in masks], np.int64),  # [masks]
        }

    outputs = await offload(ask.model.prepare, arrays, items=sum(len(candidates) for _, candidates in masks))
    return EndpointResponse(outputs, _read(ask, [text.usage for text in filled]))


async def _classify_text(ask: EndpointRequest) -> EndpointResponse:
    texts = texts_of("text", ask.inputs["text"])
    pairs = texts_of("text_pair", ask.inputs["text_pair"]) if "text_pair" in ask.inputs else []
    classify = ask.model.task_as(ClassifyText)
    found = await classify(texts, pairs, **ask.parameters, call=ask.call, field="text", pair_field="text_pair")
    return EndpointResponse(
        await _classes(ask, [text.classes for text in found]), _read(ask, [text.usage for text in found])
    )


async def _classify_image(ask: EndpointRequest) -> EndpointResponse:
    classify = ask.model.task_as(ClassifyImage)
    rows = await classify(list(ask.inputs["image"].ravel()), **ask.parameters, call=ask.call, field="image")
    return EndpointResponse(await _classes(ask, rows))


def _read(ask: EndpointRequest, readings: Sequence[TokenUsage]) -> dict[str, Value]:
    """Told to who lets texts be truncated: the tokens that were read of each, and the numbers of those cut, as JSON."""
    if not ask.parameters.get("truncate"):
        return {}
    return {
        "input_tokens": json.dumps([reading.tokens for reading in readings]),
        "truncated_inputs": json.dumps([number for number, reading in enumerate(readings) if reading.truncated]),
    }


async def _classes(ask: EndpointRequest, rows: Sequence[Sequence[Class]]) -> dict[str, Array]:
    """Classes of each input → label, class_id, score, all [n, k]."""

    def arrays() -> dict[str, Array]:
        return {
            "label": np.array([[found.label.encode() for found in row] for row in rows], object),
            "class_id": np.array([[found.class_id for found in row] for row in rows], np.int64),
            "score": np.array([[found.score for found in row] for row in rows], np.float32),
        }

    return await offload(ask.model.prepare, arrays, items=sum(map(len, rows)))


async def _embed(ask: EndpointRequest) -> EndpointResponse:
    embed = ask.model.task_as(Embed)
    found = await embed(texts_of("text", ask.inputs["text"]), **ask.parameters, call=ask.call, field="text")
    return EndpointResponse({"embedding": found.vectors}, _read(ask, found.usages))


async def _generate(ask: EndpointRequest) -> EndpointResponse:
    """The whole continuations at once."""
    prompts = _prompts(ask)
    found: list[list[TextDelta]] = [[] for _ in prompts]
    async with aclosing(_continued(ask, prompts)) as pieces:
        async for number, piece in pieces:
            found[number].append(piece)
    texts = ["".join(piece.text for piece in its) for its in found]
    ends = [its[-1] for its in found]
    outputs = {
        "text_output": np.array([text.encode() for text in texts], object),
        "finish_reason": np.array([end.finish_reason.encode() for end in ends], object),
    }
    return EndpointResponse(outputs, _told(ends))


async def _pieces(ask: EndpointRequest) -> AsyncGenerator[EndpointResponse, None]:
    """What is new of each continuation as it comes, of all but one nothing; each has a finish_reason once.

    The outputs are of one shape throughout, so a piece has an empty text for every other prompt: many prompts are
    cheaper as many requests on the stream, or over the typed door.
    """
    prompts = _prompts(ask)
    ends: dict[int, TextDelta] = {}
    async with aclosing(_continued(ask, prompts)) as pieces:
        async for number, piece in pieces:
            text, reason = np.full((2, len(prompts)), b"", object)
            text[number], reason[number] = piece.text.encode(), piece.finish_reason.encode()
            if piece.finish_reason:
                ends[number] = piece
            last = len(ends) == len(prompts)
            told = _told([ends[number] for number in sorted(ends)]) if last else {}
            yield EndpointResponse({"text_output": text, "finish_reason": reason}, told, last=last)


def _told(ends: Sequence[TextDelta]) -> dict[str, Value]:
    """Told with the last piece of a request, as JSON lists with an item for each text."""
    usages = [asdict(end.usage) for end in ends if end.usage is not None]
    told = {
        "seed": [end.seed for end in ends],  # half of all seeds fit no int64_param, all of them fit JSON
        "stop_reason": [end.stop_reason for end in ends],
        **{name: [usage[name] for usage in usages] for name in TOKENS_TOLD},
    }
    return {name: json.dumps(values) for name, values in told.items()}


def _prompts(ask: EndpointRequest) -> list[str]:
    prompts = texts_of("text_input", ask.inputs["text_input"])
    if not prompts:
        raise InvalidRequest("text_input", "0 texts", "at least one")
    return prompts


def _continued(ask: EndpointRequest, prompts: Sequence[str]) -> AsyncGenerator[tuple[int, TextDelta], None]:
    how = from_parameters(ask.parameters)
    return continue_texts(
        ask.model.task_as(Generate),
        prompts,
        how,
        call=ask.call,
        tokens=ask.tokens,
        field="text_input",
        release=ask.release,
    )


def texts_of(name: str, array: Array) -> list[str]:
    """The texts of a BYTES tensor."""
    texts = []
    elements: list[bytes] = array.ravel().tolist()
    for number, element in enumerate(elements):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{name}[{number}]", f"byte {error.start} that is not UTF-8", "UTF-8") from None
    return texts


TEXT = Tensor("text", "BYTES", (ANY,))
SCORES = Tensor("score", "FP32", (ANY, ANY))
LABELS = Tensor("label", "BYTES", (ANY, ANY))
TOP_K = {"top_k": Kind.INTEGER}
SCORED = {**TOP_K, "function_to_apply": Kind.TEXT}  # softmax, sigmoid, none, default
TRUNCATE = {"truncate": Kind.BOOLEAN}

TASKS = {
    "fill-mask": Endpoint(
        inputs=(TEXT,),
        outputs=(
            Tensor("token", "BYTES", (ANY, ANY)),
            Tensor("token_id", "INT64", (ANY, ANY)),
            SCORES,
            Tensor("row", "INT64", (ANY,)),
        ),
        infer=_fill_mask,
        parameters={**TOP_K, **TRUNCATE, "targets": Kind.TEXT},  # one word, or a JSON list of words
    ),
    "classify-text": Endpoint(
        inputs=(TEXT, Tensor("text_pair", "BYTES", (ANY,), optional=True)),
        outputs=(LABELS, SCORES),
        infer=_classify_text,
        parameters={**SCORED, **TRUNCATE},
    ),
    "classify-image": Endpoint(
        inputs=(Tensor("image", "BYTES", (ANY,)),),
        outputs=(LABELS, Tensor("class_id", "INT64", (ANY, ANY)), SCORES),
        infer=_classify_image,
        parameters=SCORED,
    ),
    "embed": Endpoint(
        inputs=(TEXT,),
        outputs=(Tensor("embedding", "FP32", (ANY, ANY)),),
        infer=_embed,
        parameters={
            **TRUNCATE,
            "normalize": Kind.BOOLEAN,
            "dimensions": Kind.INTEGER,
            "prompt_name": Kind.TEXT,  # of the model's prompts, "" for none
        },
    ),
    "generate": Endpoint(
        inputs=(Tensor("text_input", "BYTES", (ANY,)),),
        outputs=(Tensor("text_output", "BYTES", (ANY,)), Tensor("finish_reason", "BYTES", (ANY,))),
        infer=_generate,
        parameters=SAMPLING,
        stream=_pieces,
    ),
}


# ---- the tensor doors


async def _raw(ask: EndpointRequest) -> EndpointResponse:
    return EndpointResponse(await ask.model.raw(ask.inputs, call=ask.call))


def _tensor_endpoint(manifest: Manifest) -> Endpoint:
    """Token ids or pixels in, what the network gives out: of one signature whatever the exported graph looks like."""
    labels = tuple(manifest.labels)
    if manifest.HasField("image"):
        pixels = Tensor("pixel_values", "FP32", (ANY, 3, manifest.image.height, manifest.image.width))
        return Endpoint((pixels,), (Tensor("logits", "FP32", (ANY, len(labels)), labels=labels),), _raw)
    inputs = [Tensor("input_ids", "INT64", (ANY, ANY)), Tensor("attention_mask", "INT64", (ANY, ANY), optional=True)]
    if manifest.text.segments:
        inputs.append(Tensor("token_type_ids", "INT64", (ANY, ANY), optional=True))
    outputs = {
        "classify-text": Tensor("logits", "FP32", (ANY, len(labels)), labels=labels),
        "embed": Tensor("embedding", "FP32", (ANY, manifest.embedding_width or ANY)),
    }
    vocabulary = Tensor("logits", "FP32", (ANY, ANY, manifest.text.vocabulary), labels=())
    return Endpoint(tuple(inputs), (outputs.get(manifest.task, vocabulary),), _raw)
