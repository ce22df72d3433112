"""Several engines over the same model, one for each device, that look like one: a request goes to the least loaded."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager

from server.admission import Call
from server.generation.engine import Engine
from server.generation.graph import Floats, Ids
from server.generation.request import Sampling, Step
from server.under_way import UnderWay


class Engines:
    """An engine whose requests run to their end on the device where they began: their keys and values are there."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self._requests = [0] * len(engines)  # under way on each
        self.gate = engines[0].gate  # its limits are those of one request
        self.context = min(engine.context for engine in engines)
        self.slots = sum(engine.slots for engine in engines)
        self.vocabulary = engines[0].vocabulary
        self.under_way = UnderWay(f"{self.gate.name} is being unloaded")

    @property
    def waiting_rows(self) -> int:
        return sum(engine.waiting_rows for engine in self._engines)

    @property
    def waiting_tokens(self) -> int:
        return sum(engine.waiting_tokens for engine in self._engines)

    @property
    def running_rows(self) -> int:
        return sum(engine.running_rows for engine in self._engines)

    async def start(self) -> None:
        for engine in self._engines:
            await engine.start()

    async def drain(self) -> None:
        """As `Engine.drain`, of all of them."""
        self.under_way.close()
        try:
            await self.under_way.finished()
            await asyncio.gather(*(engine.drain() for engine in self._engines))
        except asyncio.CancelledError:
            for engine in self._engines:
                engine.give_up()
            raise

    async def generate(
        self, prompt_ids: Ids, sampling: Sampling, call: Call, *, field: str = "prompt"
    ) -> AsyncGenerator[Step, None]:
        """As `Engine.generate`."""
        with self._least_loaded() as engine:
            async with aclosing(engine.generate(prompt_ids, sampling, call, field=field)) as steps:
                async for step in steps:
                    yield step

    async def logits(self, rows: Sequence[Ids], call: Call) -> list[Floats]:
        """As `Engine.logits`."""
        with self._least_loaded() as engine:
            return await engine.logits(rows, call)

    @contextmanager
    def _least_loaded(self) -> Iterator[Engine]:
        """The engine for one more request, which it has until it is answered."""
        number = self._requests.index(min(self._requests))
        self._requests[number] += 1
        try:
            yield self._engines[number]
        finally:
            self._requests[number] -= 1
