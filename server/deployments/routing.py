"""Finds the model of a call by its path and its message. Pure: sends nothing.

The message is parsed to find the name of the model. The replica of the model gets it as it came.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError, Message

from protos import affinity_pb2 as pb
from protos import open_inference_pb2 as oip
from server.errors import ModelNotFound
from server.rpc.open_inference.endpoints import RAW
from server.rpc.open_inference.servicer import STREAM, UNARY
from server.rpc.services import OPEN_INFERENCE, TYPED
from server.tasks.registry import TASKS, only_model

METHODS = {  # path of each method of the typed service → its descriptor
    f"/{TYPED}/{method.name}": method for method in pb.DESCRIPTOR.services_by_name["Affinity"].methods
}
STREAM_PATH = f"/{OPEN_INFERENCE}/{STREAM}"
REQUESTS: Mapping[str, type[Message]] = {
    **{path: getattr(pb, method.input_type.name) for path, method in METHODS.items()},
    **{f"/{OPEN_INFERENCE}/{name}": request for name, request in UNARY.items()},
    STREAM_PATH: oip.ModelInferRequest,
}
NAMES = ("model", "model_name", "name")  # fields that name the model, in the messages of both services
READY = f"/{OPEN_INFERENCE}/ModelReady"


class Routes:
    """The models that are deployed, each with its task."""

    def __init__(self, tasks: Mapping[str, str]) -> None:
        self._tasks = tasks
        self._first = min(tasks)

    def model(self, path: str, message: bytes) -> str:
        """The model whose replicas answer a call. Raises ModelNotFound and InvalidRequest.

        Any model can answer calls that concern none, and report messages that cannot be parsed.
        """
        try:
            request: Any = REQUESTS[path].FromString(message)
        except DecodeError:
            return self._first
        field = next((field for field in NAMES if field in request.DESCRIPTOR.fields_by_name), None)
        if field is None:
            return self._first
        return self.named(path, getattr(request, field))

    def named(self, path: str, name: str) -> str:
        """The model of this name; without a name, the only model whose task has the method at `path`."""
        if not name and path in METHODS:
            return self._only(METHODS[path].name)
        model = name if name in self._tasks else name.removesuffix(RAW)
        if model in self._tasks:
            return model
        if path == READY:  # any model answers that this one is not ready
            return self._first
        raise ModelNotFound.unknown(name, self._tasks)

    def is_generator(self, name: str) -> bool:
        """Whether a request on a stream to this name can have several responses."""
        return self._tasks.get(name) == "generate"

    def _only(self, method: str) -> str:
        wanted = [spec.name for spec in TASKS.values() if method in _methods(spec.task_class.__name__, spec.takes_text)]
        return only_model((name for name, task in self._tasks.items() if task in wanted), wanted)


def _methods(own: str, takes_text: bool) -> tuple[str, ...]:
    """The methods of the typed service for a task."""
    return (own, "ModelInfo", "CountTokens") if takes_text else (own, "ModelInfo")
