"""The typed service, affinity.v1. Each method reads a request, runs a task and returns its results as messages."""
# ruff: noqa: N802  # methods have the names of the protocol

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityServicer
from server.admission.queue import RequestContext
from server.concurrency.offload import offload
from server.errors import InvalidRequest
from server.observability.prometheus import Metrics, TokenTimer
from server.repository.model import Model
from server.repository.repository import Repository
from server.rpc.affinity.messages import (
    add_classifications,
    add_delta,
    add_filled_texts,
    add_float_embeddings,
    add_packed_embeddings,
    read_prompt,
    wants_packed,
)
from server.rpc.calls.context import GrpcContext, make_request_context
from server.rpc.generate import generate_deltas
from server.rpc.model_info import describe
from server.rpc.parameters.sampling import from_request
from server.tasks.classify_image import ClassifyImage
from server.tasks.classify_text import ClassifyText
from server.tasks.embed import Embed
from server.tasks.fill_mask import FillMask
from server.tasks.generate import Generate
from server.tasks.registry import TASKS, TEXT_TASKS

NUMBERS_PER_ITEM = 32  # numbers of a vector that take as long to add to a message as one class


class TaskRequest(Protocol):
    """The fields that requests of all tasks have."""

    model: str
    model_version: str
    priority: int


class TaskResponse(Protocol):
    """The fields that responses of all tasks have."""

    model: str
    model_version: str


TaskT = TypeVar("TaskT")
ItemT = TypeVar("ItemT")
ResponseT = TypeVar("ResponseT", bound=TaskResponse)


@dataclass(frozen=True)
class TaskCall(Generic[TaskT]):
    """A call of a method of the service: the model and the task that it runs, and the caller's context."""

    model: Model
    task: TaskT
    context: RequestContext
    token_timer: TokenTimer
    release: Callable[[], None]  # ends the use of the model

    async def respond(self, response: ResponseT, add_results: Callable[[ResponseT], None], *, items: int) -> ResponseT:
        """Fill the response, in a thread if there are many items."""
        response.model, response.model_version = self.model.name, self.model.version
        await offload(self.model.threads, partial(add_results, response), items=items)
        return response


class AffinityService(AffinityServicer):
    """One method for each task. The interceptor converts errors to statuses."""

    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self._repository = repository
        self._metrics = metrics

    async def FillMask(self, request: pb.FillMaskRequest, context: GrpcContext) -> pb.FillMaskResponse:
        with self._call(request, context, FillMask) as call:
            texts = await call.task(
                _inputs(call.model, "inputs", request.inputs),
                **_optional(request, "top_k"),
                targets=request.targets,
                truncate=request.truncate,
                context=call.context,
                field="inputs",
            )
            candidates = sum(len(mask.candidates) for text in texts for mask in text.masks)
            return await call.respond(pb.FillMaskResponse(), partial(add_filled_texts, texts=texts), items=candidates)

    async def Generate(
        self, request: pb.GenerateRequest, context: GrpcContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        with self._call(request, context, Generate) as call:
            options = from_request(request, call.task.limits)
            messages = _inputs(call.model, "prompts", request.prompts)
            deltas = generate_deltas(
                call.task,
                [read_prompt(number, message) for number, message in enumerate(messages)],
                options,
                context=call.context,
                token_timer=call.token_timer,
                field="prompts",
                release=call.release,
            )
            name, version = call.model.name, call.model.version
            async with aclosing(deltas):
                async for number, delta in deltas:
                    response = pb.GenerateResponse(model=name, model_version=version, index=number)
                    add_delta(response, delta)
                    yield response

    async def ClassifyImage(self, request: pb.ClassifyImageRequest, context: GrpcContext) -> pb.ClassifyResponse:
        with self._call(request, context, ClassifyImage) as call:
            classes = await call.task(
                _inputs(call.model, "images", request.images),
                **_optional(request, "top_k"),
                function_to_apply=request.function_to_apply,
                context=call.context,
                field="images",
            )
            return await call.respond(
                pb.ClassifyResponse(), partial(add_classifications, classes=classes), items=sum(map(len, classes))
            )

    async def ClassifyText(self, request: pb.ClassifyTextRequest, context: GrpcContext) -> pb.ClassifyResponse:
        with self._call(request, context, ClassifyText) as call:
            texts = await call.task(
                _inputs(call.model, "inputs", request.inputs),
                request.text_pairs,
                **_optional(request, "top_k"),
                function_to_apply=request.function_to_apply,
                truncate=request.truncate,
                context=call.context,
                field="inputs",
                pair_field="text_pairs",
            )
            classes, usages = [text.classes for text in texts], [text.usage for text in texts]
            return await call.respond(
                pb.ClassifyResponse(),
                partial(add_classifications, classes=classes, usages=usages),
                items=sum(map(len, classes)),
            )

    async def Embed(self, request: pb.EmbedRequest, context: GrpcContext) -> pb.EmbedResponse:
        with self._call(request, context, Embed) as call:
            packed = wants_packed(request.encoding_format)
            embeddings = await call.task(
                _inputs(call.model, "inputs", request.inputs),
                **_optional(request, "normalize", "dimensions", "prompt_name"),
                truncate=request.truncate,
                context=call.context,
                field="inputs",
            )
            return await call.respond(
                pb.EmbedResponse(),
                partial(add_packed_embeddings if packed else add_float_embeddings, embeddings=embeddings),
                items=len(embeddings.vectors) if packed else embeddings.vectors.size // NUMBERS_PER_ITEM,
            )

    async def CountTokens(self, request: pb.CountTokensRequest, context: GrpcContext) -> pb.CountTokensResponse:
        with self._repository.use(request.model, request.model_version, *TEXT_TASKS) as (model, _):
            counter = model.counter
            assert counter is not None, "a text model has a tokenizer; this is a bug"
            tokens = await counter(
                _inputs(model, "inputs", request.inputs),
                request.text_pairs,
                **_optional(request, "prompt_name"),
                field="inputs",
                pair_field="text_pairs",
            )
        return pb.CountTokensResponse(
            model=model.name, model_version=model.version, tokens=tokens, max_tokens=counter.max_tokens
        )

    async def ModelInfo(self, request: pb.ModelInfoRequest, context: GrpcContext) -> pb.ModelInfoResponse:
        task_classes = (spec.task_class for spec in TASKS.values())
        return describe(self._repository.for_task(request.model, request.model_version, *task_classes))

    @contextmanager
    def _call(self, request: TaskRequest, context: GrpcContext, task_class: type[TaskT]) -> Iterator[TaskCall[TaskT]]:
        """Find the model, keep it loaded during the call, and measure the request."""
        with ExitStack() as in_use:
            model, task = in_use.enter_context(self._repository.use(request.model, request.model_version, task_class))
            request_context = make_request_context(context, priority=request.priority)
            task_name = model.artifact.manifest.task
            with self._metrics.request(model.name, model.version, task_name, request_context) as token_timer:
                yield TaskCall(model, task, request_context, token_timer, release=in_use.close)


def _optional(request: Message, *names: str) -> dict[str, Any]:
    """The optional fields that the request sets."""
    return {name: getattr(request, name) for name in names if request.HasField(name)}


def _inputs(model: Model, field: str, values: Sequence[ItemT]) -> list[ItemT]:
    """The inputs of a request. Checks their number first, because there may be millions."""
    if not values:
        raise InvalidRequest(field, "nothing", "at least one")
    model.limits.check(inputs=len(values), field=field)
    return list(values)
