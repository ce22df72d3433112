"""An endpoint of the Open Inference Protocol: declared tensors and parameters, and a function over arrays."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.admission.queue import RequestContext
from server.arrays import Array
from server.observability.prometheus import TokenTimer
from server.repository.model import Model
from server.rpc.parameters.values import Kind, Value

Arrays = Mapping[str, Array]
ANY = -1  # a size that varies


@dataclass(frozen=True)
class Tensor:
    """The declaration of one input or output."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    labels: tuple[str, ...] | None = None  # of an output that can be requested as a `classification`

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(
            ANY in (found, declared) or found == declared for found, declared in zip(shape, self.shape, strict=True)
        )


@dataclass(frozen=True)
class EndpointRequest:
    """A request whose inputs and parameters fit the endpoint."""

    model: Model
    inputs: Arrays
    parameters: Mapping[str, Any]  # those of the endpoint, each of the declared kind
    context: RequestContext
    token_timer: TokenTimer
    release: Callable[[], None]  # ends the use of the model


@dataclass(frozen=True)
class EndpointResponse:
    """Outputs and parameters of one response to a request."""

    outputs: Arrays
    parameters: Mapping[str, Value] = field(default_factory=dict)
    last: bool = True  # no more responses to the request follow


Infer = Callable[[EndpointRequest], Awaitable[EndpointResponse]]
Stream = Callable[[EndpointRequest], AsyncGenerator[EndpointResponse, None]]


@dataclass(frozen=True)
class Endpoint:
    """The declared interface of a model, and its implementation. Only endpoints with many responses have a `stream`."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    infer: Infer
    parameters: Mapping[str, Kind] = field(default_factory=dict)
    stream: Stream | None = None
