"""The models of a server, their tasks and their limits, as steps. Shared by both clients."""

from dataclasses import dataclass, replace

import grpc
from grpc_health.v1 import health_pb2

from protos import affinity_pb2 as pb
from protos import open_inference_pb2 as oip
from server.client.calls import HEALTH, OPEN_INFERENCE, TYPED, Call, ChunkLimits, Steps, every, one
from server.client.errors import CallFailed

READY = "READY"
MAX_LISTINGS = 5  # until no version is unloaded between its listing and its description


@dataclass(frozen=True)
class ServedModel:
    """One model as the server lists it. `task`, `provider` and `precision` are empty unless the model is ready."""

    name: str
    version: str
    state: str
    reason: str = ""
    task: str = ""
    provider: str = ""
    precision: str = ""


class Catalogue:
    """The calls that find and describe models. Remembers which models serve a task, and the limits of models."""

    def __init__(self) -> None:
        self._by_task: dict[str, list[str]] = {}
        self._limits: dict[str, ChunkLimits] = {}

    def info(self, model: str = "") -> Steps[pb.ModelInfoResponse]:
        """The task, limits and labels of a model."""
        return one(Call(TYPED + "ModelInfo", pb.ModelInfoRequest(model=model), pb.ModelInfoResponse))

    def models(self) -> Steps[list[ServedModel]]:
        """The models of the server, sorted by name and version."""
        for _ in range(MAX_LISTINGS - 1):
            try:
                return (yield from self._models())
            except CallFailed as error:
                if error.code is not grpc.StatusCode.NOT_FOUND:
                    raise  # otherwise a version was unloaded since it was listed
        return (yield from self._models())

    def _models(self) -> Steps[list[ServedModel]]:
        path = OPEN_INFERENCE + "RepositoryIndex"
        index = yield from one(Call(path, oip.RepositoryIndexRequest(), oip.RepositoryIndexResponse))
        entries = sorted(index.models, key=lambda entry: (entry.name, entry.version))
        ready = [entry for entry in entries if entry.state == READY]
        responses = yield from every(
            [
                Call(
                    OPEN_INFERENCE + "ModelConfig",
                    oip.ModelConfigRequest(name=entry.name, version=entry.version),
                    oip.ModelConfigResponse,
                )
                for entry in ready
            ]
        )
        configs = {
            (entry.name, entry.version): response.config for entry, response in zip(ready, responses, strict=True)
        }
        return [_served_model(entry, configs.get((entry.name, entry.version))) for entry in entries]

    def choose(self, task: str) -> Steps[str]:
        """The model for a call that names none. Empty if no model serves the task; the server then reports that."""
        return next(iter((yield from self.candidates(task))), "")

    def candidates(self, task: str) -> Steps[list[str]]:
        """The names of the models that serve a task. Only the first call contacts the server."""
        if not self._by_task:
            by_task: dict[str, list[str]] = {}
            for model in (yield from self.models()):
                names = by_task.setdefault(model.task, [])
                if model.name not in names:
                    names.append(model.name)
            self._by_task = by_task
        return self._by_task.get(task, [])

    def health(self, service: str = "") -> Steps[str]:
        """SERVING or NOT_SERVING, for the server or for one service such as `model/<name>`."""
        request = health_pb2.HealthCheckRequest(service=service)
        response = yield from one(Call(HEALTH + "Check", request, health_pb2.HealthCheckResponse))
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    def limits_of(self, model: str) -> Steps[ChunkLimits]:
        """The limits of one call to a model. Only the first call for a model contacts the server."""
        if not model:  # none serves the task, or the server chooses
            return ChunkLimits()
        if model not in self._limits:
            self._limits[model] = ChunkLimits.of_model((yield from self.info(model)))
        return self._limits[model]


def _served_model(entry: oip.RepositoryIndexResponse.ModelIndex, config: oip.ModelConfig | None) -> ServedModel:
    model = ServedModel(entry.name, entry.version, entry.state, entry.reason)
    if config is None:
        return model
    return replace(model, **{key: config.parameters[key].string_value for key in ("task", "provider", "precision")})
