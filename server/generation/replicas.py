"""Several engines over the same model, one for each device, that look like one: a request goes to the least loaded."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from server.admission.queue import RequestContext
from server.arrays import Floats, Ids
from server.generation.engine import Engine
from server.generation.request import Sampling
from server.generation.stream import Entrant


class EngineReplicas:
    """An engine whose requests run to their end on the device where they began: their keys and values are there."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self._requests = [0] * len(engines)  # under way on each
        self.admission = engines[0].admission  # its limits are those of one request
        self.context_length = min(engine.context_length for engine in engines)
        self.slots = sum(engine.slots for engine in engines)
        self.vocabulary = engines[0].vocabulary
        self.in_flight = engines[0].in_flight  # of the model: all of its engines share it

    @property
    def waiting_inputs(self) -> int:
        return sum(engine.waiting_inputs for engine in self._engines)

    @property
    def waiting_tokens(self) -> int:
        return sum(engine.waiting_tokens for engine in self._engines)

    @property
    def running_inputs(self) -> int:
        return sum(engine.running_inputs for engine in self._engines)

    async def start(self) -> None:
        for engine in self._engines:
            await engine.start()

    async def drain(self) -> None:
        """As `Engine.drain`, of all of them."""
        await asyncio.gather(*(engine.drain() for engine in self._engines))

    def abort(self) -> None:
        """As `Engine.abort`, of all of them."""
        for engine in self._engines:
            engine.abort()

    def check_length(self, field: str, tokens: int) -> None:
        """As `Engine.check_length`."""
        self._engines[0].check_length(field, tokens)

    @contextmanager
    def reserve(self, requests: int, *, field: str) -> Iterator[None]:
        """As `Engine.reserve`."""
        with self._spread(requests) as engines, ExitStack() as stack:
            for engine, share in Counter(engines).items():
                stack.enter_context(engine.reserve(share, field=field))
            yield

    @contextmanager
    def admit(
        self, entrants: Sequence[Entrant], sampling: Sampling, context: RequestContext, *, field: str = "prompts"
    ) -> Iterator[None]:
        """As `Engine.admit`; if one of the engines has no room, what others have begun ends by the next step."""
        with self._spread(len(entrants)) as engines, ExitStack() as stack:
            for engine in dict.fromkeys(engines):
                share = [entrant for entrant, its in zip(entrants, engines, strict=True) if its is engine]
                stack.enter_context(engine.admit(share, sampling, context, field=field))
            yield

    async def logits(self, ids: Ids, lengths: Ids, context: RequestContext) -> Floats:
        """As `Engine.logits`."""
        with self._spread(1) as (engine,):
            return await engine.logits(ids, lengths, context)

    @contextmanager
    def _spread(self, requests: int) -> Iterator[list[Engine]]:
        """An engine for each of so many more requests; they count as theirs until all of them are answered."""
        numbers = []
        for _ in range(requests):
            numbers.append(self._requests.index(min(self._requests)))
            self._requests[numbers[-1]] += 1
        try:
            yield [self._engines[number] for number in numbers]
        finally:
            for number in numbers:
                self._requests[number] -= 1
