"""The calls of a soak: requests of every task, over both protocols, and their answers as plain values to compare."""

import math
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from protos import affinity_pb2 as pb
from protos import open_inference_pb2 as oip
from protos.affinity_pb2_grpc import AffinityStub
from server.client import ServedModel
from tests.serving import ROOT

OPEN_INFERENCE = "/inference.GRPCInferenceService/"
IMAGE = (ROOT / "models" / "pretrained" / "vit-digits" / "example.png").read_bytes()
WORDS = ("the", "statement", "raises", "an", "exception", "a", "list", "of", "elements", "returns", "none", "set")
ERRORS_END_STREAM = (("triton_grpc_error", "true"),)
TOKENS = 24  # of each text that is generated
TOLERANCE = 1e-3  # of scores: the last bits of a product depend on the number of rows


@dataclass(frozen=True)
class Call:
    """A call that is sent again and again. `send` takes a timeout in seconds or None, and returns plain values."""

    kind: str
    model: str
    send: Callable[[float | None], Awaitable[Any]]


class Stubs:
    """Both services over a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.typed = AffinityStub(channel)
        self.infer = channel.unary_unary(
            f"{OPEN_INFERENCE}ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )
        self.stream = channel.stream_stream(
            f"{OPEN_INFERENCE}ModelStreamInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelStreamInferResponse.FromString,
        )


def calls(stubs: Stubs, models: Sequence[ServedModel]) -> list[Call]:
    """The calls to all models, several for each."""
    return [call for model in models for call in CALLS[model.task](stubs, model.name)]


def same(found: Any, expected: Any) -> bool:
    """Whether an answer is the expected one: scores by id and other numbers within the tolerance, the rest exactly."""
    match expected:
        case float():
            return math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        case dict():  # of two ids with the same score either may be the last
            least = min(found.values(), default=-math.inf)
            return len(found) == len(expected) and all(same(found.get(key, least), expected[key]) for key in expected)
        case list():
            return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


def texts(number: int, mask: str = "") -> list[str]:
    """One to three texts of different lengths."""
    lengths = [2 + (7 * number + 5 * row) % 18 for row in range(1 + number % 3)]
    rows = [
        [WORDS[(number + row + word * (row + 1)) % len(WORDS)] for word in range(n)] for row, n in enumerate(lengths)
    ]
    return [" ".join([*words[:1], *([mask] if mask else []), *words[1:]]) for words in rows]


def fill_mask(stubs: Stubs, model: str) -> list[Call]:
    def call(number: int) -> Call:
        request = pb.FillMaskRequest(model=model, inputs=texts(number, "[MASK]"), top_k=3)

        async def send(timeout_s: float | None) -> Any:
            answer = await stubs.typed.FillMask(request, timeout=timeout_s)
            masks = [mask for result in answer.results for mask in result.masks]
            return [{found.token: found.score for found in mask.candidates} for mask in masks]

        return Call("fill-mask", model, send)

    return [*(call(number) for number in range(6)), tensors(stubs, model)]


def classify_text(stubs: Stubs, model: str) -> list[Call]:
    def call(number: int) -> Call:
        request = pb.ClassifyTextRequest(model=model, inputs=texts(number))

        async def send(timeout_s: float | None) -> Any:
            return _classes(await stubs.typed.ClassifyText(request, timeout=timeout_s))

        return Call("classify-text", model, send)

    return [*(call(number) for number in range(4)), tensors(stubs, model)]


def classify_image(stubs: Stubs, model: str) -> list[Call]:
    def call(count: int) -> Call:
        request = pb.ClassifyImageRequest(model=model, images=[IMAGE] * count)

        async def send(timeout_s: float | None) -> Any:
            return _classes(await stubs.typed.ClassifyImage(request, timeout=timeout_s))

        return Call("classify-image", model, send)

    return [call(count) for count in (1, 2, 4)]


def _classes(answer: pb.ClassifyResponse) -> Any:
    return [{found.class_id: found.score for found in result.classes} for result in answer.results]


def embed(stubs: Stubs, model: str) -> list[Call]:
    def call(number: int) -> Call:
        request = pb.EmbedRequest(model=model, inputs=texts(number))

        async def send(timeout_s: float | None) -> Any:
            answer = await stubs.typed.Embed(request, timeout=timeout_s)
            return [list(result.values) for result in answer.results]

        return Call("embed", model, send)

    return [*(call(number) for number in range(4)), tensors(stubs, model)]


def generate(stubs: Stubs, model: str) -> list[Call]:
    """Streamed by both services, and as a whole; greedy, and with a seed."""
    sampling = ({"temperature": 0.0}, {"temperature": 0.8, "seed": 7})
    prompts = [text for number in range(2) for text in texts(number)]
    return [
        *(streamed_typed(stubs, model, prompts[number:], asked) for number, asked in enumerate(sampling)),
        *(streamed(stubs, model, prompts[number], asked) for number, asked in enumerate(sampling)),
        *(whole(stubs, model, prompts[number], asked) for number, asked in enumerate(sampling)),
        tensors(stubs, model),
    ]


def streamed_typed(stubs: Stubs, model: str, prompts: Sequence[str], asked: dict[str, Any]) -> Call:
    request = pb.GenerateRequest(
        model=model, prompts=[pb.Prompt(text=text) for text in prompts], max_tokens=TOKENS, ignore_eos=True, **asked
    )

    async def send(timeout_s: float | None) -> Any:
        tokens: list[list[int]] = [[] for _ in prompts]
        async for piece in stubs.typed.Generate(request, timeout=timeout_s):
            tokens[piece.index].extend(piece.token_ids)
        return tokens

    return Call("generate, streamed", model, send)


def streamed(stubs: Stubs, model: str, prompt: str, asked: dict[str, Any]) -> Call:
    request = generate_request(model, prompt, asked)

    async def send(timeout_s: float | None) -> Any:
        async def requests() -> AsyncIterator[oip.ModelInferRequest]:
            yield request

        text = b""
        async for message in stubs.stream(requests(), timeout=timeout_s, metadata=ERRORS_END_STREAM):
            text += _bytes(message.infer_response.raw_output_contents[0])
        return text

    return Call("generate, ModelStreamInfer", model, send)


def whole(stubs: Stubs, model: str, prompt: str, asked: dict[str, Any]) -> Call:
    request = generate_request(model, prompt, asked)

    async def send(timeout_s: float | None) -> Any:
        return _bytes((await stubs.infer(request, timeout=timeout_s)).raw_output_contents[0])

    return Call("generate, whole", model, send)


def generate_request(model: str, prompt: str, asked: dict[str, Any]) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(prompt.encode())
    request.parameters["max_tokens"].int64_param = TOKENS
    request.parameters["ignore_eos"].bool_param = True
    request.parameters["temperature"].double_param = asked["temperature"]
    if "seed" in asked:
        request.parameters["seed"].int64_param = asked["seed"]
    return request


def _bytes(raw: bytes) -> bytes:
    """The single element of a BYTES tensor."""
    (length,) = struct.unpack_from("<I", raw)
    return raw[4 : 4 + length]


def tensors(stubs: Stubs, model: str) -> Call:
    """Token ids in, the last numbers of the output."""
    request = oip.ModelInferRequest(model_name=f"{model}.raw")
    ids = request.inputs.add(name="input_ids", datatype="INT64", shape=[2, 12])
    ids.contents.int64_contents.extend(range(5, 29))

    async def send(timeout_s: float | None) -> Any:
        (output,) = (await stubs.infer(request, timeout=timeout_s)).raw_output_contents
        return [number for (number,) in struct.iter_unpack("<f", output[-256:])]

    return Call("raw tensors", model, send)


CALLS: dict[str, Callable[[Stubs, str], list[Call]]] = {
    "fill-mask": fill_mask,
    "classify-text": classify_text,
    "classify-image": classify_image,
    "embed": embed,
    "generate": generate,
}
