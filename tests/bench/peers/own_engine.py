"""Not a peer: our own engine without the server, on the event loop that the server uses, `ARTIFACT THREADS`.

Asked with `prompts`, `new_tokens` and `arrivals`.
"""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop

from server.artifact import read_artifact
from server.config.settings import ModelSettings, Settings
from server.generation.open import open_engine
from server.generation.request import Sampling
from server.observability.observer import NoOpObserver
from server.runtime.open import open_session
from server.runtime.providers import ProviderChoice
from tests.bench.peers import answering, traffic
from tests.generating import generate


def open_peer() -> answering.Work:
    folder, threads = sys.argv[1:]
    artifact = read_artifact(Path(folder))
    session = open_session(artifact, ProviderChoice("cpu"), Settings(threads=int(threads)))
    context_length = artifact.manifest.text.max_length
    engine = open_engine(
        session,
        ModelSettings(),
        name=artifact.name,
        context_length=context_length,
        end_ids=(),
        observer=NoOpObserver(),
    )
    loop = uvloop.new_event_loop()
    loop.run_until_complete(engine.start())

    async def stream(prompt: list[int], new_tokens: int) -> AsyncIterator[list[int]]:
        sampling = Sampling(max_tokens=new_tokens, temperature=0)
        async for step in generate(engine, prompt, sampling):
            yield [step.token_id]

    def work(request: dict[str, Any]) -> dict[str, Any]:
        return loop.run_until_complete(traffic.play(request, stream))

    return work


answering.answer(open_peer)
