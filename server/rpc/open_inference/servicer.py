"""The Open Inference Protocol (KServe v2) with Triton's extensions, for clients such as tritonclient and perf_analyzer.

Our messages are in a package of our own (protos/open_inference.proto says why), so the handlers are registered under
the path that clients call. `add_open_inference_to_server` needs only `add_generic_rpc_handlers`, so other hosts of gRPC
services, such as Ray Serve, can use it.
"""
# ruff: noqa: N802  # methods are called as the protocol calls them

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container, Iterable
from contextlib import AbstractContextManager, ExitStack, aclosing
from functools import partial
from typing import Any

import grpc

from protos import open_inference_pb2 as oip
from server.admission.in_flight import InFlight
from server.concurrency.offload import offload
from server.config.settings import Settings
from server.errors import AffinityError, InvalidRequest, ModelNotFound, NotReady
from server.observability.prometheus import Metrics, Tokens
from server.repository.repository import Model, Repository
from server.rpc.context import Context, request_context
from server.rpc.open_inference import metadata
from server.rpc.open_inference.endpoints import RAW, Endpoint, EndpointRequest, EndpointResponse, endpoint_for
from server.rpc.open_inference.infer import answer, check_inputs, items_of, read_inputs, wanted_outputs
from server.rpc.open_inference.statistics import model_statistics
from server.rpc.open_inference.stream import InferStream
from server.rpc.open_inference.tensors import count_input_items
from server.rpc.parameters import read_parameters
from server.rpc.services import OPEN_INFERENCE
from server.status import error_status

FINAL = "triton_final_response"  # parameter of each response on a stream: whether it is the last one of its request
ERRORS_END_STREAM = "triton_grpc_error"  # metadata key of a stream
UNARY = {
    "ServerLive": oip.ServerLiveRequest,
    "ServerReady": oip.ServerReadyRequest,
    "ModelReady": oip.ModelReadyRequest,
    "ServerMetadata": oip.ServerMetadataRequest,
    "ModelMetadata": oip.ModelMetadataRequest,
    "ModelInfer": oip.ModelInferRequest,
    "ModelConfig": oip.ModelConfigRequest,
    "ModelStatistics": oip.ModelStatisticsRequest,
    "RepositoryIndex": oip.RepositoryIndexRequest,
    "RepositoryModelLoad": oip.RepositoryModelLoadRequest,
    "RepositoryModelUnload": oip.RepositoryModelUnloadRequest,
}
STREAM = "ModelStreamInfer"
METHODS = (*UNARY, STREAM)


def add_open_inference_to_server(servicer: Any, server: Any) -> None:
    """Register the servicer's methods under the path that clients of the protocol call."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, name),
            request_deserializer=request.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
        for name, request in UNARY.items()
    }
    handlers[STREAM] = grpc.stream_stream_rpc_method_handler(
        servicer.ModelStreamInfer,
        request_deserializer=oip.ModelInferRequest.FromString,
        response_serializer=oip.ModelStreamInferResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(OPEN_INFERENCE, handlers),))


class OpenInferenceService:
    """The methods of the protocol. The interceptor converts errors to statuses."""

    def __init__(self, settings: Settings, repository: Repository, metrics: Metrics, in_flight: InFlight) -> None:
        self._settings = settings
        self._repository = repository
        self._metrics = metrics
        self._in_flight = in_flight

    # ---- the server

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._repository.ready and not self._in_flight.closed)

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, context: Context) -> oip.ServerMetadataResponse:
        return metadata.server_metadata()

    # ---- its models

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:
        """False instead of an error for a model that does not exist, as in Triton."""
        try:
            self._find(request.name, request.version)
        except (ModelNotFound, NotReady):
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=not self._in_flight.closed)

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Context) -> oip.ModelMetadataResponse:
        model, door = self._find(request.name, request.version)
        versions = [each.version for each in self._repository.served(model.name, request.version)]
        return metadata.model_metadata(request.name, versions, model, door)

    async def ModelConfig(self, request: oip.ModelConfigRequest, context: Context) -> oip.ModelConfigResponse:
        model, door = self._find(request.name, request.version)
        return metadata.model_config(request.name, model, door, self._settings.of(model.name).max_batch_size)

    async def ModelStatistics(
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        """Of one model, or of all that are served; of all of their versions, or of the one named."""
        name = request.name.removesuffix(RAW)
        models = self._repository.served(name, request.version) if name else self._repository.models()
        totals = self._metrics.statistics
        told = [
            model_statistics(request.name or model.name, model.version, totals[model.name, model.version])
            for model in models
        ]
        return oip.ModelStatisticsResponse(model_stats=told)

    async def RepositoryIndex(
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        response = oip.RepositoryIndexResponse()
        for entry in await asyncio.to_thread(self._repository.index):
            if entry.state == "READY" or not request.ready:
                response.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        return response

    async def RepositoryModelLoad(
        self, request: oip.RepositoryModelLoadRequest, context: Context
    ) -> oip.RepositoryModelLoadResponse:
        _check_parameters(request.parameters, known=(), why="a model is loaded as it was exported")
        await self._repository.load(request.model_name)
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: oip.RepositoryModelUnloadRequest, context: Context
    ) -> oip.RepositoryModelUnloadResponse:
        _check_parameters(request.parameters, known=("unload_dependents",), why="no model depends on another")
        await self._repository.unload(request.model_name)
        return oip.RepositoryModelUnloadResponse()

    # ---- inference

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:
        model, door = self._find(request.model_name, request.model_version)
        with ExitStack() as in_use, self._requested(request, model, context) as tokens:
            in_use.enter_context(model.in_flight.track())
            ask = await _ask(model, door, request, context, tokens, in_use.close)
            wanted = wanted_outputs(door, request)
            return await _answer(door, wanted, await door.infer(ask), request, model)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[oip.ModelInferRequest], context: Context
    ) -> AsyncGenerator[oip.ModelStreamInferResponse, None]:
        """Triton's stream. Errors are messages on the stream, or end it if the client's metadata requests that."""
        errors_end_stream = (ERRORS_END_STREAM, "true") in tuple(context.invocation_metadata() or ())

        async def respond(request: oip.ModelInferRequest) -> AsyncGenerator[oip.ModelStreamInferResponse, None]:
            try:
                with self._in_flight.track():
                    async with aclosing(self._pieces(request, context)) as pieces:
                        async for piece in pieces:
                            yield oip.ModelStreamInferResponse(infer_response=piece)
            except Exception as error:
                if errors_end_stream:
                    raise
                status = error_status(error, path=f"/{OPEN_INFERENCE}/{STREAM}")
                failed = oip.ModelInferResponse(model_name=request.model_name, id=request.id)
                yield oip.ModelStreamInferResponse(error_message=status.text, infer_response=failed)

        async with aclosing(InferStream(respond, self._is_streaming).run(requests)) as messages:
            async for message in messages:
                yield message

    async def _pieces(
        self, request: oip.ModelInferRequest, context: Context
    ) -> AsyncGenerator[oip.ModelInferResponse, None]:
        """The answers to one request of a stream; the last one says that it is."""
        model, door = self._find(request.model_name, request.model_version)
        with ExitStack() as in_use, self._requested(request, model, context) as tokens:
            in_use.enter_context(model.in_flight.track())
            ask = await _ask(model, door, request, context, tokens, in_use.close)
            wanted = wanted_outputs(door, request)
            if door.stream is None:
                response = await _answer(door, wanted, await door.infer(ask), request, model)
                in_use.close()  # a slow reader must not hold up the unloading of a model
                yield _final(response, True)
                return
            async with aclosing(door.stream(ask)) as pieces:
                async for piece in pieces:
                    yield _final(answer(door, wanted, piece, _response(request, model)), piece.last)

    def _requested(
        self, request: oip.ModelInferRequest, model: Model, context: Context
    ) -> AbstractContextManager[Tokens]:
        """Counts a request in the metrics."""
        return self._metrics.request(model.name, model.version, _task(request, model), request_context(context))

    def _is_streaming(self, request: oip.ModelInferRequest) -> bool:
        try:
            return self._find(request.model_name, request.model_version)[1].stream is not None
        except AffinityError:
            return False

    def _find(self, name: str, version: str) -> tuple[Model, Endpoint]:
        """The model and the door that a name stands for: NAME.raw is the tensor door of NAME."""
        model = self._repository.get(name.removesuffix(RAW), version)
        return model, endpoint_for(model.artifact.manifest, raw=name.endswith(RAW))


async def _ask(
    model: Model,
    door: Endpoint,
    request: oip.ModelInferRequest,
    context: Context,
    tokens: Tokens,
    release: Callable[[], None],
) -> EndpointRequest:
    values: dict[str, Any] = read_parameters(request.parameters, door.parameters)
    call = request_context(context, priority=values.get("priority", 0), timeout_us=values.get("timeout", 0))
    own = {name: value for name, value in values.items() if name in door.parameters}
    check_inputs(door, request, model.limits)
    inputs = await offload(model.prepare, partial(read_inputs, door, request), items=count_input_items(request))
    return EndpointRequest(model, inputs, own, call, tokens, release)


async def _answer(
    door: Endpoint, wanted: dict[str, int], reply: EndpointResponse, request: oip.ModelInferRequest, model: Model
) -> oip.ModelInferResponse:
    work = partial(answer, door, wanted, reply, _response(request, model))
    return await offload(model.prepare, work, items=items_of(wanted, reply))


def _check_parameters(names: Iterable[str], *, known: Container[str], why: str) -> None:
    """Refuse what would have no effect, but for what clients always send."""
    for name in names:
        if name not in known:
            raise InvalidRequest(f"parameters[{name!r}]", "a parameter", f"none: {why}")


def _task(request: oip.ModelInferRequest, model: Model) -> str:
    return "raw" if request.model_name.endswith(RAW) else model.artifact.manifest.task


def _response(request: oip.ModelInferRequest, model: Model) -> oip.ModelInferResponse:
    return oip.ModelInferResponse(model_name=request.model_name, model_version=model.version, id=request.id)


def _final(response: oip.ModelInferResponse, last: bool) -> oip.ModelInferResponse:
    response.parameters[FINAL].bool_param = last
    return response
