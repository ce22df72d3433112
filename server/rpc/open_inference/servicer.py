"""The Open Inference Protocol (KServe v2) with Triton's extensions, for clients such as tritonclient and perf_analyzer.

Our messages are in a package of our own (protos/open_inference.proto says why), so the handlers are registered under
the path that clients call. `add_open_inference_to_server` needs only `add_generic_rpc_handlers`, so other hosts of gRPC
services, such as Ray Serve, can use it.
"""
# ruff: noqa: N802  # methods have the names of the protocol

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Container, Iterable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from typing import Any

import grpc

from protos import open_inference_pb2 as oip
from server.admission.in_flight import InFlight
from server.config.settings import Settings
from server.errors import (
    AffinityError,
    InvalidRequest,
    ModelControlOff,
    ModelNotFound,
    NotReady,
    drop_tracebacks,
    hide_directory,
    shorten,
)
from server.observability.prometheus import Metrics
from server.repository.model import Model
from server.repository.repository import Repository
from server.rpc.calls.context import GrpcContext, describe_call, make_request_context
from server.rpc.calls.rates import CallerRates
from server.rpc.open_inference import metadata
from server.rpc.open_inference.call import InferCall
from server.rpc.open_inference.endpoint import Endpoint
from server.rpc.open_inference.endpoints import RAW, endpoint_for
from server.rpc.open_inference.statistics import model_statistics
from server.rpc.open_inference.stream import InferStream
from server.rpc.services import OPEN_INFERENCE
from server.status import error_status

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

log = logging.getLogger("server")


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

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        metrics: Metrics,
        in_flight: InFlight,
        rates: CallerRates | None = None,
    ) -> None:
        """`rates` limits the rate of requests on streams, which the interceptor does not see one by one."""
        self._rates = rates or CallerRates(0)
        self._settings = settings
        self._repository = repository
        self._metrics = metrics
        self._in_flight = in_flight

    # ---- the server

    async def ServerLive(self, request: oip.ServerLiveRequest, context: GrpcContext) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: GrpcContext) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._repository.ready and not self._in_flight.closing)

    async def ServerMetadata(
        self, request: oip.ServerMetadataRequest, context: GrpcContext
    ) -> oip.ServerMetadataResponse:
        return metadata.server_metadata()

    # ---- its models

    async def ModelReady(self, request: oip.ModelReadyRequest, context: GrpcContext) -> oip.ModelReadyResponse:
        """False instead of an error for a model that does not exist, as in Triton."""
        try:
            self._find(request.name, request.version)
        except (ModelNotFound, NotReady):
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=not self._in_flight.closing)

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: GrpcContext) -> oip.ModelMetadataResponse:
        model, endpoint = self._find(request.name, request.version)
        versions = [served.version for served in self._repository.served(model.name, request.version)]
        return metadata.model_metadata(request.name, versions, model, endpoint)

    async def ModelConfig(self, request: oip.ModelConfigRequest, context: GrpcContext) -> oip.ModelConfigResponse:
        model, endpoint = self._find(request.name, request.version)
        return metadata.model_config(request.name, model, endpoint, self._settings.of(model.name).max_batch_size)

    async def ModelStatistics(
        self, request: oip.ModelStatisticsRequest, context: GrpcContext
    ) -> oip.ModelStatisticsResponse:
        """The statistics of one model or of all served models, and of one version or of all served versions."""
        name = request.name.removesuffix(RAW)
        models = self._repository.served(name, request.version) if name else self._repository.models()
        totals = self._metrics.statistics
        statistics = [
            model_statistics(request.name or model.name, model.version, totals[model.name, model.version])
            for model in models
        ]
        return oip.ModelStatisticsResponse(model_stats=statistics)

    async def RepositoryIndex(
        self, request: oip.RepositoryIndexRequest, context: GrpcContext
    ) -> oip.RepositoryIndexResponse:
        response = oip.RepositoryIndexResponse()
        for entry in await asyncio.to_thread(self._repository.index):
            if entry.state == "READY" or not request.ready:
                reason = hide_directory(entry.reason, self._settings.artifacts)
                response.models.add(name=entry.name, version=entry.version, state=entry.state, reason=reason)
        return response

    async def RepositoryModelLoad(
        self, request: oip.RepositoryModelLoadRequest, context: GrpcContext
    ) -> oip.RepositoryModelLoadResponse:
        self._check_control()
        _check_parameters(request.parameters, known=(), why="a model is loaded as it was exported")
        with self._administration("load", request.model_name):
            await self._repository.load(request.model_name)
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: oip.RepositoryModelUnloadRequest, context: GrpcContext
    ) -> oip.RepositoryModelUnloadResponse:
        self._check_control()
        _check_parameters(request.parameters, known=("unload_dependents",), why="no model depends on another")
        with self._administration("unload", request.model_name):
            await self._repository.unload(request.model_name)
        return oip.RepositoryModelUnloadResponse()

    @contextmanager
    def _administration(self, action: str, name: str) -> Iterator[None]:
        """Log a change of the models. The log has the full text of an error, the client that without the root."""
        call = describe_call(f"request to {action} {shorten(name)!r}")
        try:
            yield
        except AffinityError as error:
            log.warning("%s: %s", call, error)
            error.args = (hide_directory(str(error), self._settings.artifacts),)
            raise
        log.info("%s: done", call)

    def _check_control(self) -> None:
        if self._settings.model_control == "none":
            raise ModelControlOff("loading and unloading models is disabled; --model-control explicit enables it")

    # ---- inference

    async def ModelInfer(self, request: oip.ModelInferRequest, context: GrpcContext) -> oip.ModelInferResponse:
        with self._call(request, context) as call:
            return await call.infer()

    async def ModelStreamInfer(
        self, requests: AsyncIterator[oip.ModelInferRequest], context: GrpcContext
    ) -> AsyncGenerator[oip.ModelStreamInferResponse, None]:
        """Triton's stream. Errors are messages on the stream, or end it if the client's metadata requests that."""
        errors_end_stream = (ERRORS_END_STREAM, "true") in tuple(context.invocation_metadata() or ())

        async def respond(request: oip.ModelInferRequest) -> AsyncGenerator[oip.ModelStreamInferResponse, None]:
            try:
                self._rates.check(context)
                with self._in_flight.track(), self._call(request, context) as call:
                    async with aclosing(call.stream()) as responses:
                        async for response in responses:
                            yield oip.ModelStreamInferResponse(infer_response=response)
            except Exception as error:
                if errors_end_stream:
                    raise
                status = error_status(error, path=describe_call(f"/{OPEN_INFERENCE}/{STREAM}"))
                drop_tracebacks(error)
                failed = oip.ModelInferResponse(model_name=request.model_name, id=request.id)
                yield oip.ModelStreamInferResponse(error_message=status.text, infer_response=failed)

        async with aclosing(InferStream(respond, self._is_streaming).run(requests)) as messages:
            async for message in messages:
                yield message

    @contextmanager
    def _call(self, request: oip.ModelInferRequest, context: GrpcContext) -> Iterator[InferCall]:
        """Find the model, measure the request, and keep the model loaded during the call."""
        model, endpoint = self._find(request.model_name, request.model_version)
        task = "raw" if request.model_name.endswith(RAW) else model.artifact.manifest.task
        measured = self._metrics.request(model.name, model.version, task, make_request_context(context))
        with ExitStack() as in_use, measured as token_timer:
            in_use.enter_context(model.in_flight.track())
            yield InferCall(request, model, endpoint, context, token_timer, release=in_use.close)

    def _is_streaming(self, request: oip.ModelInferRequest) -> bool:
        try:
            return self._find(request.model_name, request.model_version)[1].stream is not None
        except AffinityError:
            return False

    def _find(self, name: str, version: str) -> tuple[Model, Endpoint]:
        """The model and the endpoint of a name: NAME.raw is the raw endpoint of NAME."""
        model = self._repository.get(name.removesuffix(RAW), version)
        return model, endpoint_for(model.artifact.manifest, raw=name.endswith(RAW))


def _check_parameters(names: Iterable[str], *, known: Container[str], why: str) -> None:
    """Refuse parameters that would have no effect, except those that clients always send."""
    for name in names:
        if name not in known:
            raise InvalidRequest(f"parameters[{name!r}]", "a parameter", f"none: {why}")
