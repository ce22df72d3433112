"""The typed service, affinity.v1: a request's fields → a task → an answer's fields. Errors are for the interceptor."""
# ruff: noqa: N802  # methods are called as the protocol calls them

from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import Message

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityServicer
from server.concurrency.offload import offload
from server.errors import InvalidRequest
from server.observability.prometheus import Metrics
from server.repository.repository import Model, Repository
from server.rpc.context import Context, request_context
from server.rpc.generate import continue_texts
from server.rpc.model_info import describe
from server.rpc.sampling_params import from_request
from server.tasks.classification import Class
from server.tasks.classify_image import ClassifyImage
from server.tasks.classify_text import ClassifyText
from server.tasks.embed import Embed, Embeddings
from server.tasks.fill_mask import FilledMask, FilledText, FillMask
from server.tasks.generate import Generate, Prompt
from server.tasks.registry import TASKS, TEXT_TASKS
from server.tasks.text_stream import TextDelta
from server.text.tokenizer import TokenUsage

NUMBERS_PER_ITEM = 32  # of a vector: they are put into a message as fast as one object of a class
Item = TypeVar("Item")


class AffinityService(AffinityServicer):
    """One method by task."""

    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self._repository = repository
        self._metrics = metrics

    async def FillMask(self, request: pb.FillMaskRequest, context: Context) -> pb.FillMaskResponse:
        with self._repository.use(request.model, request.model_version, FillMask) as (model, fill_mask):
            call = request_context(context, priority=request.priority)
            with self._metrics.request(model.name, model.version, "fill-mask", call):
                texts = await fill_mask(
                    _some(model, "inputs", request.inputs),
                    **_given(request, "top_k"),
                    targets=request.targets,
                    truncate=request.truncate,
                    call=call,
                    field="inputs",
                )
                response = pb.FillMaskResponse(model=model.name, model_version=model.version)
                candidates = sum(len(mask.candidates) for text in texts for mask in text.masks)
                return await offload(model.prepare, partial(_filled, response, texts), items=candidates)

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        with ExitStack() as in_use:
            model, generate = in_use.enter_context(self._repository.use(request.model, request.model_version, Generate))
            call = request_context(context, priority=request.priority)
            with self._metrics.request(model.name, model.version, "generate", call) as tokens:
                how = from_request(request)
                prompts = [
                    _prompt(number, prompt) for number, prompt in enumerate(_some(model, "prompts", request.prompts))
                ]
                continued = continue_texts(
                    generate, prompts, how, call=call, tokens=tokens, field="prompts", release=in_use.close
                )
                async with aclosing(continued) as pieces:
                    async for number, piece in pieces:
                        yield _piece(
                            pb.GenerateResponse(model=model.name, model_version=model.version, index=number), piece
                        )

    async def ClassifyImage(self, request: pb.ClassifyImageRequest, context: Context) -> pb.ClassifyResponse:
        with self._repository.use(request.model, request.model_version, ClassifyImage) as (model, classify):
            call = request_context(context, priority=request.priority)
            with self._metrics.request(model.name, model.version, "classify-image", call):
                images = await classify(
                    _some(model, "images", request.images),
                    **_given(request, "top_k"),
                    function_to_apply=request.function_to_apply,
                    call=call,
                    field="images",
                )
                response = pb.ClassifyResponse(model=model.name, model_version=model.version)
                return await offload(model.prepare, partial(_classified, response, images), items=sum(map(len, images)))

    async def ClassifyText(self, request: pb.ClassifyTextRequest, context: Context) -> pb.ClassifyResponse:
        with self._repository.use(request.model, request.model_version, ClassifyText) as (model, classify):
            call = request_context(context, priority=request.priority)
            with self._metrics.request(model.name, model.version, "classify-text", call):
                texts = await classify(
                    _some(model, "inputs", request.inputs),
                    request.text_pairs,
                    **_given(request, "top_k"),
                    function_to_apply=request.function_to_apply,
                    truncate=request.truncate,
                    call=call,
                    field="inputs",
                    pair_field="text_pairs",
                )
                classes, tokens = [text.classes for text in texts], [_read(text.usage) for text in texts]
                response = pb.ClassifyResponse(model=model.name, model_version=model.version)
                return await offload(
                    model.prepare, partial(_classified, response, classes, tokens), items=sum(map(len, classes))
                )

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        with self._repository.use(request.model, request.model_version, Embed) as (model, embed):
            call = request_context(context, priority=request.priority)
            with self._metrics.request(model.name, model.version, "embed", call):
                found = await embed(
                    _some(model, "inputs", request.inputs),
                    **_given(request, "normalize", "dimensions", "prompt_name"),
                    truncate=request.truncate,
                    call=call,
                    field="inputs",
                )
                response = pb.EmbedResponse(model=model.name, model_version=model.version)
                items = found.vectors.size // NUMBERS_PER_ITEM
                return await offload(model.prepare, partial(_embedded, response, found), items=items)

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        model = self._repository.for_task(request.model, request.model_version, *TEXT_TASKS)
        counter = model.counter
        assert counter is not None, "a model on text has a tokenizer; this is a bug"
        texts = _some(model, "inputs", request.inputs)
        prompt_name = request.prompt_name if request.HasField("prompt_name") else None
        with model.in_flight.track():
            tokens = await counter(
                texts, request.text_pairs, prompt_name=prompt_name, field="inputs", pair_field="text_pairs"
            )
        return pb.CountTokensResponse(
            model=model.name, model_version=model.version, tokens=tokens, max_tokens=counter.max_tokens
        )

    async def ModelInfo(self, request: pb.ModelInfoRequest, context: Context) -> pb.ModelInfoResponse:
        task_classes = (spec.task_class for spec in TASKS.values())
        return describe(self._repository.for_task(request.model, request.model_version, *task_classes))


def _given(request: Message, *names: str) -> dict[str, Any]:
    """Those of a request's optional fields that are there."""
    return {name: getattr(request, name) for name in names if request.HasField(name)}


def _some(model: Model, field: str, values: Sequence[Item]) -> list[Item]:
    """The inputs of a request, counted before one is looked at: they may be millions."""
    if not values:
        raise InvalidRequest(field, "nothing", "at least one")
    model.limits.check(requests=len(values), field=field)
    return list(values)


def _prompt(number: int, prompt: pb.Prompt) -> Prompt:
    kind = prompt.WhichOneof("prompt")
    if kind is None:
        raise InvalidRequest(f"prompts[{number}]", "neither text nor token_ids", "one of them")
    return prompt.text if kind == "text" else prompt.token_ids.ids


def _filled(response: pb.FillMaskResponse, texts: Sequence[FilledText]) -> pb.FillMaskResponse:
    """Fill the response with the masks of each text."""
    for text in texts:
        response.results.append(pb.FilledText(masks=map(_mask, text.masks), tokens=_read(text.usage)))
    return response


def _embedded(response: pb.EmbedResponse, found: Embeddings) -> pb.EmbedResponse:
    """Fill the response with the vector of each text: as a list, which protobuf reads six times as fast as an array."""
    for vector, reading in zip(found.vectors, found.usages, strict=True):
        response.results.append(pb.Embedding(values=vector.tolist(), tokens=_read(reading)))
    return response


def _mask(mask: FilledMask) -> pb.FilledMask:
    candidates = [
        pb.Candidate(score=each.score, token=each.token_id, token_str=each.token, sequence=each.sequence)
        for each in mask.candidates
    ]
    return pb.FilledMask(position=mask.position, candidates=candidates)


def _classified(
    response: pb.ClassifyResponse, inputs: Sequence[Sequence[Class]], tokens: Sequence[pb.InputTokens | None] = ()
) -> pb.ClassifyResponse:
    """Fill the response with the classes of each input; of texts with what was read of them, too."""
    for classes, read in zip(inputs, tokens or [None] * len(inputs), strict=True):
        found = [pb.Class(label=label, class_id=class_id, score=score) for label, class_id, score in classes]
        response.results.append(pb.Classification(classes=found, tokens=read))
    return response


def _read(reading: TokenUsage) -> pb.InputTokens:
    return pb.InputTokens(used=reading.tokens, truncated=reading.truncated)


def _piece(response: pb.GenerateResponse, piece: TextDelta) -> pb.GenerateResponse:
    """Fill the response of a prompt with what is new; the last piece also has how it ended."""
    response.text = piece.text
    response.token_ids.extend(piece.token_ids)
    for token in piece.logprobs:
        top = [pb.TokenLogprob(token=other, logprob=logprob) for other, logprob in token.top]
        response.logprobs.add(logprob=token.logprob, top=top)
    if piece.finish_reason:
        response.finish_reason, response.stop_reason = piece.finish_reason, piece.stop_reason
    if piece.seed is not None:
        response.seed = piece.seed
    if piece.usage is not None:
        response.usage.CopyFrom(pb.Usage(**asdict(piece.usage)))
    return response
