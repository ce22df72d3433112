"""Not a peer: our own batcher, session and tasks without gRPC, `ARTIFACTS THREADS`.

Asked with `model`, `inputs` (texts, or image files in base64), `callers` and `seconds`. Answers how many requests were
answered, in how many seconds, and how many of these the session ran.
"""

import asyncio
import base64
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from server.admission.queue import RequestContext
from server.config.settings import Settings
from server.observability.observer import NoOpObserver
from server.repository.listener import RepositoryListener
from server.repository.repository import Repository
from tests.bench.peers import answering


class Runs(NoOpObserver, RepositoryListener):
    """Adds up the time of all batches in the session."""

    seconds = 0.0

    def observer(self, name: str, version: str) -> "Runs":
        return self

    def batch(self, **facts: Any) -> None:
        self.seconds += facts["spent"].run_seconds


def open_peer() -> answering.Work:
    folder, threads = sys.argv[1:]
    loop, runs = uvloop.new_event_loop(), Runs()
    settings = Settings(artifacts=Path(folder), provider="cpu", threads=int(threads), tune="off")

    async def opened() -> Repository:
        repository = Repository(settings, runs)
        await repository.load_all()
        return repository

    repository = loop.run_until_complete(opened())

    async def closed_loop(task: Any, inputs: Sequence[Any], callers: int, seconds: float) -> dict[str, Any]:
        started, ran, answered = time.perf_counter(), runs.seconds, 0

        async def call(number: int) -> None:
            nonlocal answered
            while time.perf_counter() < started + seconds:
                await task([inputs[number % len(inputs)]], context=RequestContext())
                number, answered = number + 1, answered + 1

        await asyncio.gather(*map(call, range(callers)))
        seconds = time.perf_counter() - started
        return {"answered": answered, "seconds": seconds, "session_seconds": runs.seconds - ran}

    def work(request: dict[str, Any]) -> dict[str, Any]:
        model = repository.get(request["model"])
        is_image = model.artifact.manifest.HasField("image")
        inputs = [base64.b64decode(each) for each in request["inputs"]] if is_image else request["inputs"]
        return loop.run_until_complete(closed_loop(model.task, inputs, request["callers"], request["seconds"]))

    return work


answering.answer(open_peer)
