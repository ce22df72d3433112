"""What each model takes and gives over the Open Inference Protocol: one door by task, and a raw one beside it.

A door declares its tensors and has a function that answers. server/rpc/open_inference/servicer.py does the rest for all of them.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field

import numpy as np

from protos.manifest_pb2 import Manifest
from server.admission.queue import Call
from server.arrays import Array
from server.concurrency.offload import off_loop
from server.errors import InvalidRequest
from server.observability.prometheus import Tokens
from server.repository.repository import Model
from server.rpc.generate import continue_texts
from server.rpc.parameters import Kind, Value
from server.rpc.sampling_params import PARAMETERS as SAMPLING
from server.rpc.sampling_params import from_parameters, strings
from server.tasks.classification import Class
from server.tasks.text_stream import Piece
from server.text.tokenizer import Reading

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
class Ask:
    """One request, checked against the door it came to."""

    model: Model
    inputs: Arrays
    parameters: Mapping[str, Value]  # the door's own
    call: Call
    tokens: Tokens  # counts what is generated


@dataclass(frozen=True)
class Reply:
    """The outputs of a request, or a piece of them, and what is told beside them."""

    outputs: Arrays
    parameters: Mapping[str, Value] = field(default_factory=dict)
    last: bool = True  # of the pieces of a request


Infer = Callable[[Ask], Awaitable[Reply]]
Stream = Callable[[Ask], AsyncGenerator[Reply, None]]


@dataclass(frozen=True)
class Door:
    """What can be asked of a model, and the function that answers. `stream` only where answers come in pieces."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    infer: Infer
    parameters: Mapping[str, Kind] = field(default_factory=dict)
    stream: Stream | None = None


def door_of(manifest: Manifest, *, raw: bool) -> Door:
    """The door of a model, or of its NAME.raw."""
    return _raw_door(manifest) if raw else TASKS[manifest.task]


# ---- the tasks


async def _fill_mask(ask: Ask) -> Reply:
    texts, own = texts_of("text", ask.inputs["text"]), dict(ask.parameters)
    targets = strings(str(own.pop("targets", "")))
    filled = await ask.model.task(texts, **own, targets=targets, call=ask.call, field="text")
    masks = [(row, mask.candidates) for row, text in enumerate(filled) for mask in text.masks]

    def arrays() -> dict[str, Array]:
        return {
            "token": np.array([[c.token.encode() for c in candidates] for _, candidates in masks], object),
            "token_id": np.array([[c.token_id for c in candidates] for _, candidates in masks], np.int64),
            "score": np.array([[c.score for c in candidates] for _, candidates in masks], np.float32),  # [masks, k]
            "row": np.array([row for row, _ in masks], np.int64),  # [masks]
        }

    outputs = await off_loop(ask.model.prepare, arrays, items=sum(len(candidates) for _, candidates in masks))
    return Reply(outputs, _read(ask, [text.reading for text in filled]))


async def _classify_text(ask: Ask) -> Reply:
    texts = texts_of("text", ask.inputs["text"])
    pairs = texts_of("text_pair", ask.inputs["text_pair"]) if "text_pair" in ask.inputs else []
    found = await ask.model.task(texts, pairs, **ask.parameters, call=ask.call, field="text", pair_field="text_pair")
    return Reply(await _classes(ask, [text.classes for text in found]), _read(ask, [text.reading for text in found]))


async def _classify_image(ask: Ask) -> Reply:
    rows = await ask.model.task(list(ask.inputs["image"].ravel()), **ask.parameters, call=ask.call, field="image")
    return Reply(await _classes(ask, rows))


def _read(ask: Ask, readings: Sequence[Reading]) -> dict[str, Value]:
    """Told to who lets texts be truncated: the tokens that were read of each, and the numbers of those cut, as JSON."""
    if not ask.parameters.get("truncate"):
        return {}
    return {
        "input_tokens": json.dumps([reading.tokens for reading in readings]),
        "truncated_inputs": json.dumps([number for number, reading in enumerate(readings) if reading.truncated]),
    }


async def _classes(ask: Ask, rows: Sequence[Sequence[Class]]) -> dict[str, Array]:
    """Classes of each input → label, class_id, score, all [n, k]."""

    def arrays() -> dict[str, Array]:
        return {
            "label": np.array([[found.label.encode() for found in row] for row in rows], object),
            "class_id": np.array([[found.class_id for found in row] for row in rows], np.int64),
            "score": np.array([[found.score for found in row] for row in rows], np.float32),
        }

    return await off_loop(ask.model.prepare, arrays, items=sum(map(len, rows)))


async def _embed(ask: Ask) -> Reply:
    found = await ask.model.task(texts_of("text", ask.inputs["text"]), **ask.parameters, call=ask.call, field="text")
    return Reply({"embedding": found.vectors}, _read(ask, found.readings))


async def _generate(ask: Ask) -> Reply:
    """The whole continuations at once."""
    prompts = _prompts(ask)
    found: list[list[Piece]] = [[] for _ in prompts]
    async with aclosing(_continued(ask, prompts)) as pieces:
        async for number, piece in pieces:
            found[number].append(piece)
    texts = ["".join(piece.text for piece in its) for its in found]
    ends = [its[-1] for its in found]
    outputs = {
        "text_output": np.array([text.encode() for text in texts], object),
        "finish_reason": np.array([end.finish_reason.encode() for end in ends], object),
    }
    return Reply(outputs, _told(ends))


async def _pieces(ask: Ask) -> AsyncGenerator[Reply, None]:
    """What is new of each continuation as it comes, of all but one nothing; each has a finish_reason once.

    The outputs are of one shape throughout, so a piece has an empty text for every other prompt: many prompts are
    cheaper as many requests on the stream, or over the typed door.
    """
    prompts = _prompts(ask)
    ends: dict[int, Piece] = {}
    async with aclosing(_continued(ask, prompts)) as pieces:
        async for number, piece in pieces:
            text, reason = np.full((2, len(prompts)), b"", object)
            text[number], reason[number] = piece.text.encode(), piece.finish_reason.encode()
            if piece.finish_reason:
                ends[number] = piece
            last = len(ends) == len(prompts)
            told = _told([ends[number] for number in sorted(ends)]) if last else {}
            yield Reply({"text_output": text, "finish_reason": reason}, told, last=last)


def _told(ends: Sequence[Piece]) -> dict[str, Value]:
    """Told with the last piece of a request, as JSON lists with an item for each text."""
    usages = [asdict(end.usage) for end in ends if end.usage is not None]
    told = {
        "seed": [end.seed for end in ends],  # half of all seeds fit no int64_param, all of them fit JSON
        "stop_reason": [end.stop_reason for end in ends],
        **{name: [usage[name] for usage in usages] for name in TOKENS_TOLD},
    }
    return {name: json.dumps(values) for name, values in told.items()}


def _prompts(ask: Ask) -> list[str]:
    prompts = texts_of("text_input", ask.inputs["text_input"])
    if not prompts:
        raise InvalidRequest("text_input", "0 texts", "at least one")
    return prompts


def _continued(ask: Ask, prompts: Sequence[str]) -> AsyncGenerator[tuple[int, Piece], None]:
    how = from_parameters(ask.parameters)
    return continue_texts(ask.model, prompts, how, call=ask.call, tokens=ask.tokens, field="text_input")


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
    "fill-mask": Door(
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
    "classify-text": Door(
        inputs=(TEXT, Tensor("text_pair", "BYTES", (ANY,), optional=True)),
        outputs=(LABELS, SCORES),
        infer=_classify_text,
        parameters={**SCORED, **TRUNCATE},
    ),
    "classify-image": Door(
        inputs=(Tensor("image", "BYTES", (ANY,)),),
        outputs=(LABELS, Tensor("class_id", "INT64", (ANY, ANY)), SCORES),
        infer=_classify_image,
        parameters=SCORED,
    ),
    "embed": Door(
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
    "generate": Door(
        inputs=(Tensor("text_input", "BYTES", (ANY,)),),
        outputs=(Tensor("text_output", "BYTES", (ANY,)), Tensor("finish_reason", "BYTES", (ANY,))),
        infer=_generate,
        parameters=SAMPLING,
        stream=_pieces,
    ),
}


# ---- the tensor doors


async def _raw(ask: Ask) -> Reply:
    return Reply(await ask.model.raw(ask.inputs, call=ask.call))


def _raw_door(manifest: Manifest) -> Door:
    """Token ids or pixels in, what the network gives out: of one signature whatever the exported graph looks like."""
    labels = tuple(manifest.labels)
    if manifest.HasField("image"):
        pixels = Tensor("pixel_values", "FP32", (ANY, 3, manifest.image.height, manifest.image.width))
        return Door((pixels,), (Tensor("logits", "FP32", (ANY, len(labels)), labels=labels),), _raw)
    inputs = [Tensor("input_ids", "INT64", (ANY, ANY)), Tensor("attention_mask", "INT64", (ANY, ANY), optional=True)]
    if manifest.text.segments:
        inputs.append(Tensor("token_type_ids", "INT64", (ANY, ANY), optional=True))
    outputs = {
        "classify-text": Tensor("logits", "FP32", (ANY, len(labels)), labels=labels),
        "embed": Tensor("embedding", "FP32", (ANY, manifest.embedding_width or ANY)),
    }
    vocabulary = Tensor("logits", "FP32", (ANY, ANY, manifest.text.vocabulary), labels=())
    return Door(tuple(inputs), (outputs.get(manifest.task, vocabulary),), _raw)
