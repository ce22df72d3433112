"""An unloaded model is gone: nothing refers to its sessions, not even objects that wait for the garbage collector.

The collector examines old objects seldom in a server with many of them, and a session holds all weights of its model.
"""

import asyncio
import gc
import logging
import threading
import weakref
from contextlib import asynccontextmanager

import grpc
import pytest

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from server.admission.in_flight import InFlight
from server.config.settings import Settings
from server.errors import BadArtifact
from server.observability.prometheus import Metrics
from server.repository import repository as repository_module
from server.repository.repository import Repository
from server.rpc.connections import Connections
from server.rpc.health import Health
from server.rpc.server import build_server
from server.runtime import sessions
from server.serving import Reporter
from tests.server.conftest import opened
from tests.server.rpc.affinity.test_servicer import picture

TEXT = "A list is a [MASK] sequence."
LONG = {"max_tokens": 60, "ignore_eos": True}
REQUESTS = {  # model → method, a request that is answered, one that is refused
    "tiny-bert": ("FillMask", pb.FillMaskRequest(inputs=[TEXT] * 3), pb.FillMaskRequest(inputs=["no mask"])),
    "tiny-classifier": ("ClassifyText", pb.ClassifyTextRequest(inputs=[TEXT] * 3), pb.ClassifyTextRequest()),
    "tiny-embedder": ("Embed", pb.EmbedRequest(inputs=[TEXT] * 3), pb.EmbedRequest(inputs=["a list " * 100])),
    "tiny-vit": (
        "ClassifyImage",
        pb.ClassifyImageRequest(images=[picture()] * 3),
        pb.ClassifyImageRequest(images=[b"\x89PNG broken"]),
    ),
    "tiny-gpt": (
        "Generate",
        pb.GenerateRequest(prompts=[pb.Prompt(text="A list")] * 3, **LONG),
        pb.GenerateRequest(prompts=[pb.Prompt(text="A list")], top_p=-1),
    ),
}


@pytest.fixture
def without_gc():
    """Only references keep objects alive in the test. Errors are not logged: pytest keeps the records."""
    gc.collect()
    gc.disable()
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


@asynccontextmanager
async def serving(artifacts, name):
    """A client of a server in this process, and the repository behind it."""
    settings = Settings(artifacts=artifacts, models=(name,), provider="cpu", threads=1, tune="off", port=0)
    metrics, health = Metrics(), Health()
    repository = Repository(settings, Reporter(health, metrics))
    server, port = build_server(settings, repository, metrics, health, InFlight("stopping"), Connections())
    await server.start()
    try:
        await repository.load_all()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield AffinityStub(channel), repository
    finally:
        await server.stop(None)
        await repository.drain()


async def responses(call):
    """All responses of a call, unary or not."""
    return [response async for response in call] if hasattr(call, "__aiter__") else [await call]


async def status(call):
    """The name of the status of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await responses(call)
    return failed.value.code().name


async def use(stub, repository, name):
    """Calls that end in every way: answered, refused, cancelled, expired, and with an error of the runtime."""
    method, good, bad = REQUESTS[name]
    send = getattr(stub, method)
    assert await responses(send(good))
    assert await status(send(bad)) == "INVALID_ARGUMENT"
    cancelled = send(good)
    await asyncio.sleep(0)
    cancelled.cancel()
    expired = await status(send(good, timeout=1e-6))
    assert expired in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")  # refused where the cancelled request still runs
    broken = break_session(repository.get(name))
    assert await status(send(good)) == "INTERNAL"
    broken()


def break_session(model):
    """Let the runs of a model fail. Returns what ends that."""
    session = model.session

    def fail(*_):
        raise RuntimeError("the run failed")

    session.run = session.run_bound = fail  # hides the methods

    def mend():
        del session.run, session.run_bound

    return mend


def watched(model):
    """References to what a loaded model consists of that do not keep it alive."""
    parts = [model, model.session, model.session.ort, model.backend, model.task, model.raw, model.in_flight]
    return {type(part).__name__: weakref.ref(part) for part in parts}


async def left(references):
    """The names of the objects that still exist after threads and callbacks had time to return what they held."""
    for _ in range(300):
        if not (names := [name for name, reference in references.items() if reference() is not None]):
            break
        await asyncio.sleep(0.1)
    return names


@pytest.mark.parametrize("name", REQUESTS)
async def test_nothing_refers_to_an_unloaded_model(artifacts, name, without_gc):
    async with serving(artifacts, name) as (stub, repository):
        await use(stub, repository, name)
        references = watched(repository.get(name))
        await repository.unload(name)
        assert await left(references) == []
        await repository.load(name)
        assert await responses(getattr(stub, REQUESTS[name][0])(REQUESTS[name][1]))


async def test_nothing_refers_to_a_model_that_was_not_used(artifacts, without_gc):
    async with opened(artifacts, "tiny-bert") as repository:
        references = watched(repository.get("tiny-bert"))
        await repository.unload("tiny-bert")
        assert await left(references) == []


async def test_nothing_refers_to_a_model_that_failed_its_checks(artifacts, without_gc, monkeypatch):
    references = {}

    def refuse(session, artifact):
        references.update({"Session": weakref.ref(session), "InferenceSession": weakref.ref(session.ort)})
        raise BadArtifact("out of tolerance")

    async with opened(artifacts, "tiny-bert") as repository:
        await repository.unload("tiny-bert")
        monkeypatch.setattr(sessions, "check_parity", refuse)
        with pytest.raises(BadArtifact, match="out of tolerance"):
            await repository.load("tiny-bert")
        assert references
        assert await left(references) == []


async def test_the_memory_of_an_unloaded_model_is_returned_to_the_system(artifacts, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(repository_module, "release_free_memory", released.set)
    monkeypatch.setattr(repository_module, "RELEASE_AFTER_S", 0.0)
    async with opened(artifacts, "tiny-bert") as repository:
        assert not released.is_set()
        await repository.unload("tiny-bert")
        assert await asyncio.to_thread(released.wait, 30)
