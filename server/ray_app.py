"""Ray Serve: `build` makes the application, `add_services_to_server` the services of its gRPC proxy.

docker/ray/affinity.yaml names both. There is one deployment for each model, and the ingress before them. The classes of
the deployments are in server/deployments/, which know nothing of Ray.
"""

import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

import prometheus_client
import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Gauge

from protos.manifest import ArtifactError, read_manifest
from server.artifact import newest
from server.config import cli
from server.config.settings import EVERY_MODEL, BadSetting, Settings
from server.config.version_policy import Versions
from server.deployments import proxy
from server.deployments.ingress import Ingress
from server.deployments.metrics import mirror
from server.deployments.replica import VERSIONS, ModelReplica
from server.errors import BadArtifact, NotReady
from server.observability import logs
from server.repository.selection import select
from server.rpc.local_server import IncomingCall, Reply

INGRESS = "ingress"  # name of a deployment, and so of no model
MAX_ONGOING = 4096  # calls of a replica: its queue refuses requests before
OPTIONS: dict[str, Any] = {"max_ongoing_requests": MAX_ONGOING, "graceful_shutdown_timeout_s": 30}
SET = "set"  # argument: MODEL.KEY → value
WITHOUT_EFFECT = (
    *("poll_artifacts", "model_control", "host", "port", "http_port", "listen"),
    *("tls_cert", "tls_key", "tls_client_ca", "auth_tokens", "auth_also"),
)


def add_services_to_server(servicer: Any, server: Any) -> None:
    """Register all services. For `grpc_servicer_functions` of Ray Serve."""
    proxy.add_services(server)


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application. The arguments are the settings of the server, by their names: `artifacts`, `models`, …

    Raises BadSetting and AffinityError.
    """
    settings = read_settings(args)
    names = settings.models or tuple(newest(settings.artifacts))
    if not names:
        raise BadArtifact(f"{settings.artifacts}: found no models")
    if INGRESS in names:
        raise BadSetting(f"models: found {INGRESS!r}, expected another name: the deployment before all models has it")
    tasks, models = {}, {}
    for name in names:
        directories = select(settings, name)
        try:
            tasks[name] = read_manifest(list(directories.values())[-1]).task
        except ArtifactError as error:
            raise BadArtifact(str(error)) from error
        versions = str(Versions(named=tuple(directories)))  # all replicas serve the same ones
        options = {**OPTIONS, "name": name, "user_config": {VERSIONS: versions}}
        models[name] = serve.deployment(RayReplica).options(**options).bind(_only(settings, name))
    return serve.deployment(RayIngress).options(name=INGRESS, **OPTIONS).bind(models, tasks)


def read_settings(args: Mapping[str, Any]) -> Settings:
    """The settings of the server. `set` is a mapping. Raises BadSetting."""
    argv = [f"--{key.replace('_', '-')}={value}" for key, value in args.items() if key != SET]
    argv += [f"--set={key}={value}" for key, value in args.get(SET, {}).items()]
    settings = cli.parse(argv, os.environ)
    for name in WITHOUT_EFFECT:
        if getattr(settings, name) != getattr(Settings, name):
            raise BadSetting(f"{name}: found {getattr(settings, name)!r}, expected nothing: Ray Serve decides on it")
    return settings


def _only(settings: Settings, name: str) -> Settings:
    """The settings of one model, so that a change for another does not concern its replicas."""
    overrides = {key: settings.overrides[key] for key in (EVERY_MODEL, name) if key in settings.overrides}
    return replace(settings, models=(name,), overrides=overrides)


class RayReplica(ModelReplica):
    """A replica with as many threads as Ray gives it CPUs, and with the metrics of Ray."""

    def __init__(self, settings: Settings) -> None:
        logs.configure(settings.log_level, settings.log_format)
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # omit the _created series
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        super().__init__(
            replace(settings, threads=settings.threads or max(1, int(cpus))),
            lambda registry: mirror(registry, Gauge),
        )


class RayIngress(Ingress):
    """The ingress, with the handles of Ray."""

    def __init__(self, models: Mapping[str, DeploymentHandle], tasks: Mapping[str, str]) -> None:
        super().__init__({name: RayReplicas(name, handle) for name, handle in models.items()}, tasks)


class RayReplicas:
    """The replicas of one model, through Ray's handle, which chooses the one with the fewest calls."""

    def __init__(self, name: str, handle: DeploymentHandle) -> None:
        self._name = name
        self._unary = handle.options(method_name="unary")
        self._stream = handle.options(method_name="stream", stream=True)

    async def unary(self, call: IncomingCall, message: bytes) -> Reply:
        """The reply of a replica. Raises NotReady if it ended, or there is none."""
        try:
            reply: Reply = await self._unary.remote(call, message)
        except (RayActorError, DeploymentUnavailableError, BackPressureError) as error:
            raise self._not_ready() from error
        return reply

    async def stream(self, call: IncomingCall, message: bytes) -> AsyncGenerator[Reply, None]:
        """The replies of a replica. Raises NotReady if it ended, or there is none."""
        replies = self._stream.remote(call, message)
        try:
            async for reply in replies:
                yield reply
        except (RayActorError, DeploymentUnavailableError, BackPressureError) as error:
            raise self._not_ready() from error
        finally:
            replies.cancel()

    def _not_ready(self) -> NotReady:
        return NotReady(f"model {self._name}: {proxy.ENDED}")
