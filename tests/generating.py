"""Generate with an engine without a server: token outputs as an async iterator, for tests and benchmarks."""

import asyncio
from contextlib import aclosing

import numpy as np

from server.admission.queue import RequestContext
from server.generation.stream import TokensPrompt


async def generate(engine, ids, sampling, context=RequestContext()):  # noqa: B008  # it is frozen
    """The outputs for one prompt. Closing the iterator cancels the request."""
    async with aclosing(generate_all(engine, {"prompt": ids}, sampling, context)) as outputs:
        async for _, output in outputs:
            yield output


async def generate_all(engine, prompts, sampling, context=RequestContext()):  # noqa: B008
    """The outputs for several prompts of one request, each with the name of its prompt."""
    arrived = asyncio.Queue()

    def callback(name):
        return lambda output: arrived.put_nowait((name, output))

    token_prompts = [TokensPrompt(name, np.asarray(ids, np.int64), callback(name)) for name, ids in prompts.items()]
    with engine.admit(token_prompts, sampling, context):
        running = len(token_prompts)
        while running:
            name, output = await arrived.get()
            if isinstance(output, Exception):
                raise output
            yield name, output
            running -= bool(output.finish_reason)
