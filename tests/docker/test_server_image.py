"""The image of the CPU server, built and run: its contents, its responses and its shutdown.

`make docker-test` runs these tests. PYTHON_IMAGE names another base, as for the Dockerfile.
"""

import os
import platform
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from server.client import Client
from server.runtime.providers import OPENVINO_MACHINES, OPENVINO_PACKAGE
from tests.docker import engine as engines
from tests.docker.engine import DOCKERFILE, ROOT, Engine, Image
from tests.docker.running import Exported, Server

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
USER = 10001
MAX_MEGABYTES = 600
BASE_MEGABYTES = 150  # python:slim, unpacked, with a margin
TAG = "affinity-test:cpu"


@pytest.fixture(scope="module")
def tag(engine: Engine, facts: list[str]) -> str:
    """The image, built from the checkout."""
    started = time.monotonic()
    engine.build("server-cpu", TAG, os.environ.get("PYTHON_IMAGE"))
    facts.append(f"built server-cpu with {engine.name} in {time.monotonic() - started:.0f} s")
    return TAG


@pytest.fixture(scope="module")
def image(engine: Engine, tag: str) -> Image:
    return engine.image(tag)


@pytest.fixture(scope="module")
def inside(engine: Engine, tag: str) -> Callable[[str], str]:
    """Runs a script in the image and returns its output."""

    def run(script: str) -> str:
        done = engine.run(tag, script)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
def start(engine: Engine, tag: str, image: Image, exported: Exported) -> Iterator[Server]:
    """A ready server for a single test."""
    with engine.start(tag, exported.artifacts) as container:
        server = Server(container, image)
        server.wait_until_ready()
        yield server


@pytest.fixture(scope="module")
def server(engine: Engine, tag: str, image: Image, exported: Exported, facts: list[str]) -> Iterator[Server]:
    """A ready server that the tests share."""
    started = time.monotonic()
    with engine.start(tag, exported.artifacts) as container:
        server = Server(container, image)
        server.wait_until_ready()
        facts.append(f"healthy {time.monotonic() - started:.1f} s after the start of the container")
        yield server


def default_base() -> str:
    [line] = [line for line in DOCKERFILE.read_text().splitlines() if line.startswith("ARG PYTHON_IMAGE=")]
    return line.partition("=")[2]


# ---- contents


def test_it_is_small(engine: Engine, tag: str, facts: list[str]) -> None:
    """The unpacked size, with the size of python:slim in place of a larger base."""
    megabytes, base = (
        int(engine.run(each, "du -sxm / | cut -f1", user="root").stdout)
        for each in (tag, os.environ.get("PYTHON_IMAGE") or default_base())
    )
    facts.append(f"{megabytes} MB unpacked; the base is {base} of them")
    assert megabytes - base + min(base, BASE_MEGABYTES) <= MAX_MEGABYTES


def test_it_runs_as_an_unprivileged_user(image: Image, inside: Callable[[str], str]) -> None:
    assert image.user == f"{USER}:{USER}"  # a number, so that Kubernetes can verify that it is not root
    assert inside("id -u; id -g").split() == [str(USER)] * 2


def test_it_contains_only_the_packages_server_and_protos(inside: Callable[[str], str]) -> None:
    assert inside("ls /app").split() == [f"affinity-{PROJECT['version']}.dist-info", "protos", "server"]
    others = inside("find /app/server /app/protos -type f ! -name '*.py' ! -name '*.pyc'")
    assert others == ""


def test_it_cannot_install_compile_or_train(inside: Callable[[str], str]) -> None:
    assert inside("for tool in pip pip3 gcc cc g++ c++ ld make; do command -v $tool; done; true") == ""
    script = "import importlib.util, sys; print(*filter(importlib.util.find_spec, sys.argv[1:]))"
    assert inside(f"python -c '{script}' pip setuptools torch onnx models export") == ""


def test_it_has_labels_and_a_version(image: Image, inside: Callable[[str], str]) -> None:
    assert image.labels["org.opencontainers.image.version"] == PROJECT["version"]
    assert image.labels["org.opencontainers.image.licenses"] == PROJECT["license"]
    assert inside("python -m server --version") == f"affinity {PROJECT['version']}"


def test_its_packages_are_those_of_make_install(inside: Callable[[str], str], facts: list[str]) -> None:
    script = "from importlib.metadata import distributions as d; print(*{f'{i.name}=={i.version}' for i in d()})"
    here = set(engines.call([sys.executable, "-c", script]).split())
    there = set(inside(f'python -c "{script}"').split())
    plain = {each for each in there if each.startswith("onnxruntime")}
    plugins = {OPENVINO_PACKAGE} if platform.machine() in OPENVINO_MACHINES else set()
    assert {each.split("==")[0] for each in plain} == {"onnxruntime", *plugins}
    differing = sorted(each for each in there - plain - here if not each.startswith("affinity=="))
    facts.append(f"{len(there)} packages; versions unlike those of .venv: {', '.join(differing) or 'none'}")


# ---- behaviour


def test_its_health_check_waits_until_it_is_ready(server: Server) -> None:
    assert server.health_before == 1
    assert server.health_after == 0


def test_it_answers_the_three_requests(server: Server, exported: Exported, facts: list[str]) -> None:
    with Client(server.grpc) as client:
        [text] = client.fill_mask(["The [MASK] statement raises an exception."])
        responses = list(client.generate("A list is", max_tokens=40))
        [classification] = client.classify_image([exported.picture.read_bytes()])
        running = sorted(f"{model.name} on {model.provider}" for model in client.models() if model.provider)
    assert len(text.masks[0].candidates) == 5
    assert responses[-1].finish_reason in {"length", "stop"}
    assert 0 < classification.classes[0].score <= 1
    facts.append(
        f"[MASK] = {text.masks[0].candidates[0].token_str.strip()}; the picture is {classification.classes[0].label}; "
        f"A list is{''.join(response.text for response in responses)!r}"
    )
    facts.append(", ".join(running))


def test_its_metrics_can_be_scraped(server: Server) -> None:
    with urllib.request.urlopen(f"http://{server.http}/metrics", timeout=10) as answer:
        assert "affinity_" in answer.read().decode()


def test_its_root_is_read_only(server: Server) -> None:
    written = server.container.execute(["sh", "-c", "touch /app/x; touch /artifacts/x; touch /tmp/x && echo /tmp"])
    assert written.stdout.split() == ["/tmp"]
    assert written.stderr.count("Read-only file system") == 2


def test_it_finishes_a_stream_after_sigterm(start: Server, exported: Exported, facts: list[str]) -> None:
    with Client(start.grpc) as client:
        responses = client.generate("A list is", max_tokens=exported.tokens, ignore_eos=True)
        first = next(responses)
        start.container.terminate()
        rest = list(responses)
    code = start.container.wait()
    assert code == 0, start.container.log()
    assert "1 requests in flight" in start.container.log()
    assert rest[-1].finish_reason == "length"
    tokens = len(first.token_ids) + sum(len(response.token_ids) for response in rest)
    facts.append(f"SIGTERM after the first of {tokens} tokens: all of them came, exit code {code}")
