"""Build, inspect and run images with Docker, or with buildah if no Docker engine runs. Both have the same interface.

Containers run hardened: with a read-only root, a /tmp in memory and no capabilities. Docker has options for that.
Buildah runs containers on the host's network without such options, so a script inside the container restricts it
before its command starts.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Protocol

from tests.docker.pip_settings import pip_settings

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"
PIP_ARGUMENTS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
GRPC, HTTP = 8001, 8002
WAIT_S = 60.0

Done = subprocess.CompletedProcess[str]


class Unavailable(Exception):
    """This machine cannot build and run images. The text says what is missing."""


class Failed(Exception):
    """A command of the engine failed. The text is the end of its output."""


@dataclass(frozen=True)
class Image:
    """The configuration of an image."""

    user: str
    entrypoint: list[str]
    healthcheck: list[str]
    environment: dict[str, str]
    labels: dict[str, str]


class Container(Protocol):
    """A running server or export."""

    grpc: str  # host:port
    http: str

    def execute(self, command: Sequence[str]) -> Done: ...
    def log(self) -> str: ...
    def terminate(self) -> None: ...
    def wait(self, timeout_s: float = WAIT_S) -> int: ...


class Engine(Protocol):
    """Builds images and runs containers."""

    name: str

    def build(self, target: str, tag: str, base: str | None) -> None: ...
    def image(self, tag: str) -> Image: ...
    def run(self, tag: str, script: str, *, user: str | None = None) -> Done: ...
    def start(
        self, tag: str, artifacts: Path, *arguments: str, writable: bool = False
    ) -> contextlib.AbstractContextManager[Container]: ...


def find() -> Engine:
    """Docker if an engine runs, otherwise buildah. Raises Unavailable if there is neither."""
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
        return Docker()
    if shutil.which("buildah") and os.geteuid() == 0:
        return Buildah()
    raise Unavailable("found no running Docker engine and no buildah, which needs root")


# ---- Docker


class Docker:
    """A Docker engine. Ports are published on the loopback interface only."""

    name = "docker"

    def build(self, target: str, tag: str, base: str | None) -> None:
        command = ["docker", "build", "--file", str(DOCKERFILE), "--target", target, "--tag", tag]
        with pip_settings(of_this_machine=False) as pip:
            call([*command, *arguments(base), "--secret", f"id=pip.conf,src={pip.file}", str(ROOT)])

    def image(self, tag: str) -> Image:
        return image_of(json.loads(call(["docker", "image", "inspect", tag]))[0]["Config"])

    def run(self, tag: str, script: str, *, user: str | None = None) -> Done:
        as_user = ["--user", user] if user else []
        return done(["docker", "run", "--rm", *as_user, "--entrypoint", "sh", tag, "-c", script])

    @contextlib.contextmanager
    def start(self, tag: str, artifacts: Path, *arguments: str, writable: bool = False) -> Iterator[Container]:
        hardened = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        ports = ["--publish", f"127.0.0.1::{GRPC}", "--publish", f"127.0.0.1::{HTTP}"]
        volume = f"{artifacts}:/artifacts:{'rw' if writable else 'ro'}"
        name = call(["docker", "run", "--detach", *hardened, *ports, "--volume", volume, tag, *arguments]).strip()
        try:
            yield DockerContainer(name)
        finally:
            call(["docker", "rm", "--force", "--volumes", name])


class DockerContainer:
    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def grpc(self) -> str:
        return self._address(GRPC)

    @property
    def http(self) -> str:
        return self._address(HTTP)

    def _address(self, port: int) -> str:
        return call(["docker", "port", self._name, f"{port}/tcp"]).split()[0]

    def execute(self, command: Sequence[str]) -> Done:
        return done(["docker", "exec", self._name, *command])

    def log(self) -> str:
        logged = done(["docker", "logs", self._name])
        return logged.stdout + logged.stderr

    def terminate(self) -> None:
        call(["docker", "kill", "--signal", "TERM", self._name])

    def wait(self, timeout_s: float = WAIT_S) -> int:
        return int(call(["timeout", str(timeout_s), "docker", "wait", self._name]))


# ---- buildah


class Buildah:
    """Buildah with chroot isolation, which works as root inside a container, too."""

    name = "buildah"

    def __init__(self) -> None:
        os.environ.setdefault("BUILDAH_ISOLATION", "chroot")

    def build(self, target: str, tag: str, base: str | None) -> None:
        command = ["buildah", "bud", "--layers", "--format", "docker", "--file", str(DOCKERFILE)]
        with pip_settings(of_this_machine=True) as pip:
            volumes = [word for path in pip.folders for word in ("--volume", f"{path}:{path}:ro")]
            named = ["--target", target, "--tag", tag, "--secret", f"id=pip.conf,src={pip.file}"]
            call([*command, *named, *arguments(base), *volumes, str(ROOT)])

    def image(self, tag: str) -> Image:
        return image_of(json.loads(call(["buildah", "inspect", "--type", "image", tag]))["Docker"]["config"])

    def run(self, tag: str, script: str, *, user: str | None = None) -> Done:
        with working_container(tag) as name:
            as_user = ["--user", user] if user else []
            return done(["buildah", "run", *as_user, name, "--", "sh", "-c", script])

    @contextlib.contextmanager
    def start(self, tag: str, artifacts: Path, *arguments: str, writable: bool = False) -> Iterator[Container]:
        ports = dict(zip(("AFFINITY_PORT", "AFFINITY_HTTP_PORT"), map(str, free_ports(2)), strict=True))
        volume, image = f"{artifacts}:/artifacts:{'rw' if writable else 'ro'}", self.image(tag)
        image = replace(image, entrypoint=[*image.entrypoint, *arguments])
        with working_container(tag) as name, tempfile.NamedTemporaryFile("wb") as log:
            container = BuildahContainer(name, image, volume, ports, log)
            try:
                yield container
            finally:
                container.kill()


SANDBOX = """mount -o remount,bind,ro / && user=$1 && shift && exec setpriv --reuid $user --regid $user --clear-groups \
--inh-caps=-all --bounding-set=-all --no-new-privs -- "$@"
"""


class BuildahContainer:
    def __init__(self, name: str, image: Image, volume: str, ports: Mapping[str, str], log: IO[bytes]) -> None:
        self._user = int(image.user.split(":")[0])
        self.grpc, self.http = (f"127.0.0.1:{port}" for port in ports.values())
        mounted = ["--mount", "type=tmpfs,destination=/tmp", "--volume", volume]
        environment = [word for key, value in ports.items() for word in ("--env", f"{key}={value}")]
        self._run = ["buildah", "run", "--user", "root", "--cap-add", "CAP_SYS_ADMIN", *mounted, *environment, name]
        self._log = Path(log.name)
        self._process = subprocess.Popen(self._command(image.entrypoint), stdout=log, stderr=subprocess.STDOUT)

    def execute(self, command: Sequence[str]) -> Done:
        return done(self._command(command))

    def log(self) -> str:
        return self._log.read_text()

    def _command(self, command: Sequence[str]) -> list[str]:
        """Run `command` as the image's user, without capabilities and with a read-only root."""
        return [*self._run, "--", "sh", "-c", SANDBOX, "sh", str(self._user), *command]

    def terminate(self) -> None:
        """Send SIGTERM to the container's first process, as an engine does."""
        os.kill(self._first_process(), signal.SIGTERM)

    def wait(self, timeout_s: float = WAIT_S) -> int:
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, Failed):
                os.kill(self._first_process(), signal.SIGKILL)
            self._process.wait(WAIT_S)

    def _first_process(self) -> int:
        """The first descendant that belongs to the image's user. Buildah's own processes belong to root."""
        descendants = [self._process.pid]
        while descendants:
            process = descendants.pop()
            if os.stat(f"/proc/{process}").st_uid == self._user:
                return process
            for thread in Path(f"/proc/{process}/task").iterdir():
                descendants += map(int, (thread / "children").read_text().split())
        raise Failed(f"no process of user {self._user} runs\n{self.log()}")


@contextlib.contextmanager
def working_container(tag: str) -> Iterator[str]:
    name = call(["buildah", "from", tag]).strip()
    try:
        yield name
    finally:
        call(["buildah", "rm", name])


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


# ---- shared


def arguments(base: str | None) -> list[str]:
    """The build arguments: the base image, and pip's indexes if the environment sets them."""
    given = [f"PYTHON_IMAGE={base}"] if base else []
    given += [name for name in PIP_ARGUMENTS if name in os.environ]  # the engine adds the value from the environment
    return [word for each in given for word in ("--build-arg", each)]


def image_of(config: Mapping[str, object]) -> Image:
    """The image of a configuration in Docker's format, which both engines return."""
    found = json.loads(json.dumps(config))
    return Image(
        user=found.get("User", ""),
        entrypoint=found.get("Entrypoint") or [],
        healthcheck=(found.get("Healthcheck") or {}).get("Test") or [],
        environment=dict(each.split("=", 1) for each in found.get("Env") or []),
        labels=found.get("Labels") or {},
    )


def done(command: Sequence[str]) -> Done:
    return subprocess.run(command, capture_output=True, text=True)


def call(command: Sequence[str]) -> str:
    """The standard output of a command. Raises Failed with the end of its output if it fails."""
    finished = done(command)
    if finished.returncode:
        output = "\n".join((finished.stdout + finished.stderr).splitlines()[-30:])
        raise Failed(f"{shlex.join(command[:3])} … ended with {finished.returncode}\n{output}")
    return finished.stdout
