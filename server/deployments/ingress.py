"""The ingress before all models: it sends each call to a replica of the model that the call names.

Ray Serve calls the method of this class that has the name of the call's method, with the message as bytes.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from protos import open_inference_pb2 as oip
from server.deployments.proxy import TIME_REMAINING
from server.deployments.routing import METHODS, STREAM_PATH, Routes
from server.errors import AffinityError, InvalidRequest, ModelNotFound, NotReady
from server.rpc.calls.request_reader import FIELD
from server.rpc.health import MODEL_PREFIX, SERVICES
from server.rpc.local_server import IncomingCall, Reply
from server.rpc.open_inference.servicer import ERRORS_END_STREAM, STREAM, UNARY
from server.rpc.open_inference.stream import InferStream
from server.rpc.services import HEALTH, OPEN_INFERENCE
from server.status import ErrorStatus, error_status

CHECK_S = 5.0  # a model that does not answer a question about its state in this time is not ready
HEALTH_PATH = f"/{HEALTH}/Check"

log = logging.getLogger("server")


class Replicas(Protocol):
    """All replicas of one model."""

    async def unary(self, call: IncomingCall, message: bytes) -> Reply: ...

    def stream(self, call: IncomingCall, message: bytes) -> AsyncGenerator[Reply, None]: ...


class RayContext(Protocol):
    """The part of RayServegRPCContext that the ingress uses."""

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]: ...

    def peer(self) -> str: ...

    def set_code(self, code: grpc.StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None: ...


class Serialized:
    """A response that is bytes already. Ray Serve calls SerializeToString on every response."""

    def __init__(self, message: bytes = b"") -> None:
        self._message = message

    def SerializeToString(self) -> bytes:  # noqa: N802  # protobuf's name
        return self._message


class CallFailed(Exception):
    """Ends a call with a status."""

    def __init__(self, status: ErrorStatus) -> None:
        super().__init__(status.text)
        self.status = status


class Ingress:
    """The methods of all services are added to this class at the end of the module."""

    def __init__(self, models: Mapping[str, Replicas], tasks: Mapping[str, str]) -> None:
        """`tasks` has the task of each model."""
        self._models, self._routes = models, Routes(tasks)
        self._special: dict[str, Callable[[IncomingCall, bytes], Awaitable[bytes]]] = {
            HEALTH_PATH: self._check_health,
            f"/{OPEN_INFERENCE}/ServerLive": self._server_live,
            f"/{OPEN_INFERENCE}/ServerReady": self._server_ready,
            f"/{OPEN_INFERENCE}/RepositoryIndex": self._repository_index,
            f"/{OPEN_INFERENCE}/ModelStatistics": self._model_statistics,
        }

    async def respond(self, path: str, message: bytes, context: RayContext) -> Serialized:
        """The response to a unary call. The status of a failed call is in the context."""
        call = _call(path, context)
        try:
            return Serialized(await self._special.get(path, self._forward)(call, message))
        except Exception as error:
            return _failed(_status(error, call), context)

    async def respond_each(self, path: str, message: bytes, context: RayContext) -> AsyncGenerator[Serialized, None]:
        """The responses to one message. An error is the last response, with its status in the context."""
        call = _call(path, context)
        try:
            async with aclosing(self._forward_stream(call, message)) as replies:
                async for reply in replies:
                    yield Serialized(reply)
        except Exception as error:
            yield _failed(_status(error, call), context)

    async def respond_to_stream(
        self, messages: AsyncIterator[bytes], context: RayContext
    ) -> AsyncGenerator[Serialized, None]:
        """The responses to the messages of a ModelStreamInfer call, each of which can name another model."""
        call = _call(STREAM_PATH, context)

        errors_end_stream = (ERRORS_END_STREAM, "true") in call.metadata

        async def answer(request: oip.ModelInferRequest) -> AsyncGenerator[oip.ModelStreamInferResponse, None]:
            try:
                async with aclosing(self._forward_stream(call, request.SerializeToString())) as replies:
                    async for reply in replies:
                        yield oip.ModelStreamInferResponse.FromString(reply)
            except AffinityError as error:
                if errors_end_stream:
                    raise
                failed = oip.ModelInferResponse(model_name=request.model_name, id=request.id)
                yield oip.ModelStreamInferResponse(error_message=_status(error, call).text, infer_response=failed)

        stream = InferStream(answer, lambda request: self._routes.is_generator(request.model_name))
        try:
            async with aclosing(stream.run(_infer_requests(messages))) as responses:
                async for response in responses:
                    yield Serialized(response.SerializeToString())
        except Exception as error:
            yield _failed(_status(error, call), context)

    # ---- calls of one model

    async def _forward(self, call: IncomingCall, message: bytes) -> bytes:
        return _message(await self._models[self._routes.model(call.path, message)].unary(call, message))

    async def _forward_stream(self, call: IncomingCall, message: bytes) -> AsyncGenerator[bytes, None]:
        replicas = self._models[self._routes.model(call.path, message)]
        async with aclosing(replicas.stream(call, message)) as replies:
            async for reply in replies:
                yield _message(reply)

    # ---- calls of all models

    async def _server_live(self, call: IncomingCall, message: bytes) -> bytes:
        return oip.ServerLiveResponse(live=True).SerializeToString()

    async def _server_ready(self, call: IncomingCall, message: bytes) -> bytes:
        replies = await self._each(call, message)
        ready = all(isinstance(reply, bytes) and oip.ServerReadyResponse.FromString(reply).ready for reply in replies)
        return oip.ServerReadyResponse(ready=ready).SerializeToString()

    async def _check_health(self, call: IncomingCall, message: bytes) -> bytes:
        service = HealthCheckRequest.FromString(message).service
        name = service.removeprefix(MODEL_PREFIX)
        if service in SERVICES:
            replies = await self._each(call, message)
        elif service.startswith(MODEL_PREFIX) and name in self._models:
            replies = [await self._ask(name, call, message)]
        else:
            known = ", ".join(map(repr, (*SERVICES, *(MODEL_PREFIX + model for model in sorted(self._models)))))
            raise ModelNotFound(f"service: found {service!r}, expected one of {known}")
        states = {HealthCheckResponse.FromString(reply).status if isinstance(reply, bytes) else 0 for reply in replies}
        serving = states == {HealthCheckResponse.SERVING}
        state = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
        return bytes(HealthCheckResponse(status=state).SerializeToString())

    async def _repository_index(self, call: IncomingCall, message: bytes) -> bytes:
        """The versions of the models that are deployed, each from a replica of its model."""
        merged = oip.RepositoryIndexResponse()
        for name, reply in zip(self._models, await self._each(call, message), strict=True):
            index = oip.RepositoryIndexResponse.FromString(_message(reply))
            merged.models.extend(entry for entry in index.models if entry.name == name)
        return merged.SerializeToString()

    async def _model_statistics(self, call: IncomingCall, message: bytes) -> bytes:
        """Those of one replica of the model, or of one replica of every model."""
        if oip.ModelStatisticsRequest.FromString(message).name:
            return await self._forward(call, message)
        return b"".join(map(_message, await self._each(call, message)))  # protobuf merges what is concatenated

    async def _each(self, call: IncomingCall, message: bytes) -> list[Reply]:
        """The reply of one replica of every model."""
        return await asyncio.gather(*(self._ask(name, call, message) for name in self._models))

    async def _ask(self, name: str, call: IncomingCall, message: bytes) -> Reply:
        try:
            async with asyncio.timeout(CHECK_S):
                return await self._models[name].unary(call, message)
        except TimeoutError:
            return error_status(NotReady(f"model {name} does not answer"), path=call.path)
        except AffinityError as error:
            return error_status(error, path=call.path)


def _call(path: str, context: RayContext) -> IncomingCall:
    metadata = dict(context.invocation_metadata())
    remaining = metadata.pop(TIME_REMAINING, None)
    return IncomingCall(
        path,
        tuple((key, value) for key, value in context.invocation_metadata() if key != TIME_REMAINING),
        context.peer(),
        float(remaining) if remaining is not None else None,
    )


def _message(reply: Reply) -> bytes:
    """The message of a reply. Raises CallFailed if it is an error."""
    if isinstance(reply, ErrorStatus):
        raise CallFailed(reply)
    return reply


def _status(error: Exception, call: IncomingCall) -> ErrorStatus:
    return error.status if isinstance(error, CallFailed) else error_status(error, path=call.path)


def _failed(status: ErrorStatus, context: RayContext) -> Serialized:
    """Put the status in the context. Ray Serve drops the trailing metadata of calls that raise an error."""
    context.set_code(status.code)
    context.set_details(status.text)
    context.set_trailing_metadata(list(status.trailers))
    return Serialized()


async def _infer_requests(messages: AsyncIterator[bytes]) -> AsyncIterator[oip.ModelInferRequest]:
    async for message in messages:
        try:
            yield oip.ModelInferRequest.FromString(message)
        except DecodeError:
            expected = "a message of the method's type; strings have to be UTF-8"
            raise InvalidRequest(FIELD, "bytes that cannot be parsed", expected) from None


# ---- the methods that Ray Serve calls


def _unary(path: str) -> Any:
    async def method(self: Ingress, message: bytes, grpc_context: RayContext) -> Serialized:
        return await self.respond(path, message, grpc_context)

    return method


def _streaming(path: str) -> Any:
    async def method(self: Ingress, message: bytes, grpc_context: RayContext) -> AsyncGenerator[Serialized, None]:
        async with aclosing(self.respond_each(path, message, grpc_context)) as responses:
            async for response in responses:
                yield response

    return method


async def _model_stream_infer(
    self: Ingress, messages: AsyncIterator[bytes], grpc_context: RayContext
) -> AsyncGenerator[Serialized, None]:
    async with aclosing(self.respond_to_stream(messages, grpc_context)) as responses:
        async for response in responses:
            yield response


METHODS_OF_INGRESS = {
    **{method.name: (_streaming if method.server_streaming else _unary)(path) for path, method in METHODS.items()},
    **{name: _unary(f"/{OPEN_INFERENCE}/{name}") for name in UNARY},
    STREAM: _model_stream_infer,
    "Check": _unary(HEALTH_PATH),
}
for _name, _method in METHODS_OF_INGRESS.items():
    setattr(Ingress, _name, _method)
