"""Not a peer: our own tasks, batcher and session without gRPC, `ARTIFACTS MODEL PROVIDER`.

Asked with `texts` (one mask each) or `files` (of images), and the number of `callers`; every input is a request.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from server.admission.queue import RequestContext
from server.config.settings import Settings
from server.repository.repository import Repository
from tests.bench.peers import answering


def open_peer() -> answering.Work:
    folder, name, provider = sys.argv[1:]
    loop = uvloop.new_event_loop()

    async def load() -> Any:
        repository = Repository(Settings(artifacts=Path(folder), models=(name,), provider=provider, tune="off"))
        await repository.load_all()
        return repository.get(name).task

    task = loop.run_until_complete(load())

    async def answer_all(inputs: Sequence[Any], callers: int) -> list[Any]:
        answers, numbers = [None] * len(inputs), iter(range(len(inputs)))

        async def call() -> None:
            for number in numbers:
                (answers[number],) = await task([inputs[number]], context=RequestContext())

        await asyncio.gather(*(call() for _ in range(callers)))
        return answers

    def work(request: dict[str, Any]) -> dict[str, Any]:
        inputs = request.get("texts") or [Path(file).read_bytes() for file in request["files"]]
        started = time.perf_counter()
        answers = loop.run_until_complete(answer_all(inputs, request["callers"]))
        seconds = time.perf_counter() - started
        best = [a.masks[0].candidates[0].token_id if "texts" in request else a[0].class_id for a in answers]
        return {"seconds": seconds, "best": best}

    return work


if __name__ == "__main__":
    answering.answer(open_peer)
