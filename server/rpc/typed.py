"""The typed service, affinity.v1: a request's fields → a task → an answer's fields. Errors are for the interceptor."""
# ruff: noqa: N802  # methods are called as the protocol calls them

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import TypeVar

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityServicer
from server.errors import InvalidRequest
from server.metrics import Metrics
from server.repository import Repository
from server.rpc.calls import Context, call_of, interleave
from server.rpc.continuation import continue_text
from server.rpc.sampling import from_request
from server.tasks.classes import Class
from server.tasks.fill_mask import FilledMask
from server.tasks.generate import Piece

Item = TypeVar("Item")


class Typed(AffinityServicer):
    """One method by task."""

    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self._repository = repository
        self._metrics = metrics

    async def FillMask(self, request: pb.FillMaskRequest, context: Context) -> pb.FillMaskResponse:
        model = self._repository.for_task(request.model, request.model_version, "fill-mask")
        with self._metrics.request(model.name, model.version, "fill-mask"):
            options = {"top_k": request.top_k} if request.HasField("top_k") else {}
            texts = await model.task(_some("inputs", request.inputs), **options, call=call_of(context), field="inputs")
            results = [pb.FilledText(masks=[_mask(mask) for mask in masks]) for masks in texts]
            return pb.FillMaskResponse(model=model.name, model_version=model.version, results=results)

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        model = self._repository.for_task(request.model, request.model_version, "generate")
        with self._metrics.request(model.name, model.version, "generate") as tokens:
            how, call = from_request(request), call_of(context)
            streams = [
                continue_text(
                    model,
                    _prompt(number, prompt),
                    how,
                    call=call,
                    tokens=tokens,
                    number=number,
                    field=f"prompts[{number}]",
                )
                for number, prompt in enumerate(_some("prompts", request.prompts))
            ]
            async with aclosing(interleave(streams)) as pieces:
                async for number, piece in pieces:
                    yield _piece(
                        pb.GenerateResponse(model=model.name, model_version=model.version, index=number), piece
                    )

    async def ClassifyImage(self, request: pb.ClassifyImageRequest, context: Context) -> pb.ClassifyResponse:
        model = self._repository.for_task(request.model, request.model_version, "classify-image")
        with self._metrics.request(model.name, model.version, "classify-image"):
            options = {"top_k": request.top_k} if request.HasField("top_k") else {}
            images = await model.task(_some("images", request.images), **options, call=call_of(context), field="images")
            return pb.ClassifyResponse(model=model.name, model_version=model.version, results=_classified(images))

    async def ClassifyText(self, request: pb.ClassifyTextRequest, context: Context) -> pb.ClassifyResponse:
        model = self._repository.for_task(request.model, request.model_version, "classify-text")
        with self._metrics.request(model.name, model.version, "classify-text"):
            options = {"top_k": request.top_k} if request.HasField("top_k") else {}
            texts = await model.task(_some("inputs", request.inputs), **options, call=call_of(context), field="inputs")
            return pb.ClassifyResponse(model=model.name, model_version=model.version, results=_classified(texts))

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        model = self._repository.for_task(request.model, request.model_version, "embed")
        with self._metrics.request(model.name, model.version, "embed"):
            vectors = await model.task(_some("inputs", request.inputs), call=call_of(context), field="inputs")  # [n, d]
            results = [pb.Embedding(values=vector) for vector in vectors]
            return pb.EmbedResponse(model=model.name, model_version=model.version, results=results)


def _some(field: str, values: Sequence[Item]) -> list[Item]:
    if not values:
        raise InvalidRequest(field, "nothing", "at least one")
    return list(values)


def _prompt(number: int, prompt: pb.Prompt) -> str | list[int]:
    kind = prompt.WhichOneof("prompt")
    if kind is None:
        raise InvalidRequest(f"prompts[{number}]", "neither text nor token_ids", "one of them")
    return prompt.text if kind == "text" else list(prompt.token_ids.ids)


def _mask(mask: FilledMask) -> pb.FilledMask:
    candidates = [
        pb.Candidate(score=each.score, token=each.token_id, token_str=each.token, sequence=each.sequence)
        for each in mask.candidates
    ]
    return pb.FilledMask(position=mask.position, candidates=candidates)


def _classified(results: Sequence[Sequence[Class]]) -> list[pb.Classification]:
    return [
        pb.Classification(classes=[pb.Class(label=c.label, class_id=c.class_id, score=c.score) for c in classes])
        for classes in results
    ]


def _piece(response: pb.GenerateResponse, piece: Piece) -> pb.GenerateResponse:
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
