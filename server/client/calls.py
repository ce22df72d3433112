"""One call of a method of the server, as a value, and how many inputs become several calls. Sends nothing."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from protos import affinity_pb2 as pb

TYPED = "/affinity.v1.Affinity/"
OPEN_INFERENCE = "/inference.GRPCInferenceService/"
HEALTH = "/grpc.health.v1.Health/"

IN_FLIGHT = 4  # calls of one request of the user at the same time: the server never waits for the next inputs
MAX_INPUTS = 64  # of a call: two batches
MAX_BYTES = 1_000_000  # of the inputs of a call: every server accepts messages of a mebibyte

ResponseT = TypeVar("ResponseT", bound=Message)
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Call(Generic[ResponseT]):
    """A call to be sent: its method and request, and the class of its response or, in a stream, of each response.

    `inputs` are the inputs of the user in this call, and `first` is the number of the first of them.
    """

    path: str
    request: Message
    response_class: type[ResponseT]
    inputs: int = 0
    first: int = 0

    @property
    def serializers(self) -> tuple[Callable[[Message], bytes], Callable[[bytes], ResponseT]]:
        """The functions that write the request and read the response, as gRPC's channels take them."""
        return _serialized, self.response_class.FromString


# Yields calls to send at the same time, takes their responses in the same order, and returns a result. A client runs
# the steps; they know nothing of threads and event loops, and so both clients share them.
Steps = Generator[Sequence[Call[Any]], Sequence[Any], ResultT]


def one(call: Call[ResponseT]) -> Steps[ResponseT]:
    """The response to a call."""
    [response] = yield [call]
    return response  # type: ignore[no-any-return]


def every(calls: Sequence[Call[ResponseT]]) -> Steps[Sequence[ResponseT]]:
    """The responses to calls that are sent at the same time."""
    return (yield calls)


@dataclass(frozen=True)
class ChunkLimits:
    """The largest number of inputs in one call, and the largest sum of their bytes. One input is always allowed."""

    inputs: int = MAX_INPUTS
    size: int = MAX_BYTES

    @classmethod
    def of_model(cls, info: pb.ModelInfoResponse) -> "ChunkLimits":
        """The limits for a model. All calls in flight fit into its queue together, however long their texts are."""
        inputs = info.max_inputs
        if info.max_tokens and info.max_request_tokens:
            inputs = min(inputs, info.max_request_tokens // info.max_tokens)
        return cls(inputs=max(1, min(MAX_INPUTS, inputs // IN_FLIGHT)))


def chunks(sizes: Sequence[int], limits: ChunkLimits) -> Iterator[slice]:
    """Divide inputs of so many bytes each. There is one empty chunk if there are no inputs."""
    start = total = 0
    for number, size in enumerate(sizes):
        if number > start and (number - start == limits.inputs or total + size > limits.size):
            yield slice(start, number)
            start, total = number, 0
        total += size
    yield slice(start, len(sizes))


def size_of(value: str | bytes) -> int:
    """The bytes of an input in a message."""
    return len(value) if isinstance(value, bytes) or value.isascii() else len(value.encode("utf-8", "replace"))


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()
