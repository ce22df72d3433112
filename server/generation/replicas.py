"""Engines for the same model on several devices, used as one: each input goes to the least loaded engine."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from server.admission.queue import RequestContext
from server.arrays import Floats, Ids
from server.generation.engine import Engine
from server.generation.request import Sampling
from server.generation.stream import TokensPrompt


class EngineReplicas:
    """Has the interface of an engine. A sequence stays on one device, because its keys and values are there."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self._inputs = [0] * len(engines)  # in flight on each engine
        self.admission = engines[0].admission  # for its limits, which apply to a single request
        self.context_length = min(engine.context_length for engine in engines)
        self.slots = sum(engine.slots for engine in engines)
        self.vocabulary = engines[0].vocabulary
        self.in_flight = engines[0].in_flight  # of the model; all engines share it

    @property
    def waiting_inputs(self) -> int:
        return sum(engine.waiting_inputs for engine in self._engines)

    @property
    def waiting_tokens(self) -> int:
        return sum(engine.waiting_tokens for engine in self._engines)

    @property
    def running_inputs(self) -> int:
        return sum(engine.running_inputs for engine in self._engines)

    @property
    def predicted_wait_s(self) -> float:
        """As `Engine.predicted_wait_s`, of the engine that would be the first."""
        return min(engine.predicted_wait_s for engine in self._engines)

    async def start(self) -> None:
        """Like `Engine.start`, for all engines."""
        for engine in self._engines:
            await engine.start()

    async def drain(self) -> None:
        """Like `Engine.drain`, for all engines."""
        await asyncio.gather(*(engine.drain() for engine in self._engines))

    def abort(self) -> None:
        """Like `Engine.abort`, for all engines."""
        for engine in self._engines:
            engine.abort()

    def check_length(self, field: str, tokens: int) -> None:
        """Like `Engine.check_length`."""
        self._engines[0].check_length(field, tokens)

    @contextmanager
    def reserve(self, inputs: int, *, field: str) -> Iterator[None]:
        """Like `Engine.reserve`."""
        with self._assign(inputs) as engines, ExitStack() as stack:
            for engine, share in Counter(engines).items():
                stack.enter_context(engine.reserve(share, field=field))
            yield

    @contextmanager
    def admit(
        self, prompts: Sequence[TokensPrompt], sampling: Sampling, context: RequestContext, *, field: str = "prompts"
    ) -> Iterator[None]:
        """Like `Engine.admit`. If one engine refuses its share, the prompts on the others are cancelled."""
        with self._assign(len(prompts)) as engines, ExitStack() as stack:
            for engine in dict.fromkeys(engines):
                share = [prompt for prompt, assigned in zip(prompts, engines, strict=True) if assigned is engine]
                stack.enter_context(engine.admit(share, sampling, context, field=field))
            yield

    async def logits(self, ids: Ids, lengths: Ids, context: RequestContext) -> Floats:
        """Like `Engine.logits`."""
        with self._assign(1) as (engine,):
            return await engine.logits(ids, lengths, context)

    @contextmanager
    def _assign(self, inputs: int) -> Iterator[list[Engine]]:
        """The least loaded engine for each input in turn. The inputs count as load until the end of the block."""
        numbers = []
        for _ in range(inputs):
            numbers.append(self._inputs.index(min(self._inputs)))
            self._inputs[numbers[-1]] += 1
        try:
            yield [self._engines[number] for number in numbers]
        finally:
            for number in numbers:
                self._inputs[number] -= 1
