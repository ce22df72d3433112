"""Helpers for tests of the engine: requests, an observer that records events, and decoders that wait or record."""

import asyncio
import threading

import numpy as np

from server.admission.queue import RequestContext
from server.generation.decoder import Decoder
from server.generation.engine import Engine
from server.generation.request import Sampling, TokenOutput
from server.observability.observer import NoOpObserver
from tests.generating import generate

GREEDY = {"temperature": 0.0, "ignore_eos": True}


async def outputs_of(engine: Engine, prompt, context=RequestContext(), **sampling) -> list[TokenOutput]:  # noqa: B008  # it is frozen
    return [output async for output in generate(engine, prompt, Sampling(**sampling), context)]


async def tokens_of(engine: Engine, prompt, **sampling) -> list[int]:
    return [output.token_id for output in await outputs_of(engine, prompt, **sampling)]


def padded(texts):
    """Texts as `Engine.logits` takes them: token ids (n, t), padded with 0, and lengths (n,)."""
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    return ids, np.array([len(text) for text in texts])


class EngineEvents(NoOpObserver):
    """Records the events of an engine."""

    def __init__(self):
        self.steps, self.endings, self.failures, self.drops, self.refusals = [], [], [], [], []

    def step(self, **step):
        self.steps.append(step)

    def finished(self, *, reason, usage):
        self.endings.append((reason, usage))

    def failed(self, sequences):
        self.failures.append(sequences)

    def dropped(self, reason):
        self.drops.append(reason)

    def refused(self, reason):
        self.refusals.append(reason)


class HeldDecoder(Decoder):
    """Waits before each decode step until a test releases it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.arrived, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def decode(self, *arguments):
        self.arrived.release()
        self.go.acquire()
        return super().decode(*arguments)

    async def decode_started(self):
        await asyncio.to_thread(self.arrived.acquire)

    def stop_waiting(self):
        self.go.release(1000)


async def engine_with(engine_of, kind=HeldDecoder, **options) -> tuple[Engine, Decoder]:
    """An engine with a decoder of this class, and the decoder."""
    decoders = []

    def make(*arguments):
        decoders.append(kind(*arguments))
        return decoders[0]

    return await engine_of(decoder=make, **options), decoders[0]
