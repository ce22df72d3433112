"""A server in a container, and the artifacts that it serves."""

import time
from dataclasses import dataclass
from pathlib import Path

from tests.docker.engine import Container, Image

START_S = 120.0


@dataclass(frozen=True)
class Exported:
    """Artifacts for a container, an image for their classifier, and how many tokens their GPT can generate."""

    artifacts: Path
    picture: Path
    tokens: int


class Server:
    """A server in a container, and the results of its health check before and after its start."""

    def __init__(self, container: Container, image: Image) -> None:
        self.container, self._command = container, health_command(image)
        self.grpc, self.http = container.grpc, container.http
        self.health_before = self.health()
        self.health_after = self.health_before

    def health(self) -> int:
        return self.container.execute(self._command).returncode

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while (code := self.health()) != 0:
            assert time.monotonic() < deadline, f"not ready after {START_S:g} s\n{self.container.log()}"
        self.health_after = code


def health_command(image: Image) -> list[str]:
    kind, *words = image.healthcheck
    return ["sh", "-c", *words] if kind == "CMD-SHELL" else words
