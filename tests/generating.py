"""Generate with an engine without a server: token outputs as an async iterator, for tests and benchmarks."""

import asyncio
from contextlib import aclosing

import numpy as np

from server.admission.queue import RequestContext
from server.generation.stream import TokensPrompt


async def generate(engine, ids, sampling, context=RequestContext()):  # noqa: B008  # it is frozen
    """Its steps as they come. Closing the iterator ends it."""
    async with aclosing(generate_all(engine, {"prompt": ids}, sampling, context)) as steps:
        async for _, step in steps:
            yield step


async def generate_all(engine, prompts, sampling, context=RequestContext()):  # noqa: B008
    """The steps of several prompts of one request, each with the name of its prompt."""
    arrived = asyncio.Queue()

    def reader(name):
        return lambda step: arrived.put_nowait((name, step))

    token_prompts = [TokensPrompt(name, np.asarray(ids, np.int64), reader(name)) for name, ids in prompts.items()]
    with engine.admit(token_prompts, sampling, context):
        running = len(token_prompts)
        while running:
            name, step = await arrived.get()
            if isinstance(step, Exception):
                raise step
            yield name, step
            running -= bool(step.finish_reason)
