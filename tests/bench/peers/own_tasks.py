"""Not a peer: our own batcher, session and tasks without gRPC, `ARTIFACTS THREADS`.

Asked with `model`, `inputs` (texts, or image files in base64), `callers` and `seconds`.
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
from server.repository.listener import RepositoryListener
from server.repository.repository import Repository
from tests.bench.peers import answering


def open_peer() -> answering.Work:
    folder, threads = sys.argv[1:]
    loop = uvloop.new_event_loop()
    settings = Settings(artifacts=Path(folder), provider="cpu", threads=int(threads))

    async def opened() -> Repository:
        repository = Repository(settings, RepositoryListener())
        await repository.load_all()
        return repository

    repository = loop.run_until_complete(opened())

    async def closed_loop(task: Any, inputs: Sequence[Any], callers: int, seconds: float) -> dict[str, Any]:
        """Answered requests, and seconds."""
        started, answered = time.perf_counter(), 0

        async def call(number: int) -> None:
            nonlocal answered
            while time.perf_counter() < started + seconds:
                await task([inputs[number % len(inputs)]], context=RequestContext())
                number, answered = number + 1, answered + 1

        await asyncio.gather(*map(call, range(callers)))
        return {"answered": answered, "seconds": time.perf_counter() - started}

    def work(request: dict[str, Any]) -> dict[str, Any]:
        model = repository.get(request["model"])
        is_image = model.artifact.manifest.HasField("image")
        inputs = [base64.b64decode(each) for each in request["inputs"]] if is_image else request["inputs"]
        return loop.run_until_complete(closed_loop(model.task, inputs, request["callers"], request["seconds"]))

    return work


answering.answer(open_peer)
