"""The functions behind the endpoints of all tasks except generate."""

import json
from collections.abc import Sequence

import numpy as np

from server.arrays import Array
from server.concurrency.offload import offload
from server.errors import InvalidRequest
from server.rpc.open_inference.endpoint import EndpointRequest, EndpointResponse
from server.rpc.open_inference.tensors import decode_texts
from server.rpc.parameters.sampling import read_strings
from server.rpc.parameters.values import Value
from server.tasks.classification import Class
from server.tasks.classify_image import ClassifyImage
from server.tasks.classify_text import ClassifyText
from server.tasks.embed import Embed
from server.tasks.fill_mask import FillMask
from server.text.tokenizer import TokenUsage

MAX_TARGETS_CHARACTERS = 1 << 22  # a whole vocabulary; parsing as many as a message can have would block the event loop


async def fill_mask(request: EndpointRequest) -> EndpointResponse:
    task = request.model.task_as(FillMask)
    texts, parameters = decode_texts("text", request.inputs["text"]), dict(request.parameters)
    words = str(parameters.pop("targets", ""))
    if len(words) > MAX_TARGETS_CHARACTERS:
        raise InvalidRequest("targets", f"{len(words)} characters", f"at most {MAX_TARGETS_CHARACTERS}")
    targets = read_strings(words)
    filled = await task(texts, **parameters, targets=targets, context=request.context, field="text")
    masks = [(row, mask.candidates) for row, text in enumerate(filled) for mask in text.masks]

    def arrays() -> dict[str, Array]:
        return {
            "token": np.array([[c.token.encode() for c in candidates] for _, candidates in masks], object),
            "token_id": np.array([[c.token_id for c in candidates] for _, candidates in masks], np.int64),
            "score": np.array([[c.score for c in candidates] for _, candidates in masks], np.float32),  # [masks, k]
            "row": np.array([row for row, _ in masks], np.int64),  # [masks]
        }

    outputs = await offload(request.model.threads, arrays, items=sum(len(candidates) for _, candidates in masks))
    return EndpointResponse(outputs, _usage_parameters(request, [text.usage for text in filled]))


async def classify_text(request: EndpointRequest) -> EndpointResponse:
    task, inputs = request.model.task_as(ClassifyText), request.inputs
    texts = decode_texts("text", inputs["text"])
    pairs = decode_texts("text_pair", inputs["text_pair"]) if "text_pair" in inputs else []
    classified = await task(
        texts, pairs, **request.parameters, context=request.context, field="text", pair_field="text_pair"
    )
    outputs = await _class_arrays(request, [text.classes for text in classified])
    return EndpointResponse(outputs, _usage_parameters(request, [text.usage for text in classified]))


async def classify_image(request: EndpointRequest) -> EndpointResponse:
    task, images = request.model.task_as(ClassifyImage), list(request.inputs["image"].ravel())
    classes = await task(images, **request.parameters, context=request.context, field="image")
    return EndpointResponse(await _class_arrays(request, classes))


async def embed(request: EndpointRequest) -> EndpointResponse:
    task, texts = request.model.task_as(Embed), decode_texts("text", request.inputs["text"])
    embeddings = await task(texts, **request.parameters, context=request.context, field="text")
    return EndpointResponse({"embedding": embeddings.vectors}, _usage_parameters(request, embeddings.usages))


async def infer_tensors(request: EndpointRequest) -> EndpointResponse:
    """The raw endpoint of every task."""
    return EndpointResponse(await request.model.raw(request.inputs, context=request.context))


def _usage_parameters(request: EndpointRequest, usages: Sequence[TokenUsage]) -> dict[str, Value]:
    """If the request sets `truncate`: the tokens of each text and the indices of the truncated texts, as JSON."""
    if not request.parameters.get("truncate"):
        return {}
    return {
        "input_tokens": json.dumps([usage.tokens for usage in usages]),
        "truncated_inputs": json.dumps([number for number, usage in enumerate(usages) if usage.truncated]),
    }


async def _class_arrays(request: EndpointRequest, classes: Sequence[Sequence[Class]]) -> dict[str, Array]:
    """The classes of each input as label, class_id and score, each of shape [n, k]."""

    def arrays() -> dict[str, Array]:
        return {
            "label": np.array([[found.label.encode() for found in row] for row in classes], object),
            "class_id": np.array([[found.class_id for found in row] for row in classes], np.int64),
            "score": np.array([[found.score for found in row] for row in classes], np.float32),
        }

    return await offload(request.model.threads, arrays, items=sum(map(len, classes)))
