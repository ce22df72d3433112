"""Sends requests at their arrival times to a generator of tokens."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

Stream = Callable[[list[int], int], AsyncIterator[list[int]]]  # prompt, new tokens → streamed tokens


async def play(request: dict[str, Any], stream: Stream) -> dict[str, Any]:
    """The tokens of every request, and the seconds from the request to each token."""
    started = time.perf_counter()

    async def one(prompt: list[int], new_tokens: int, arrival: float) -> tuple[list[int], list[float]]:
        await asyncio.sleep(max(0.0, started + arrival - time.perf_counter()))
        sent, tokens, times = time.perf_counter(), [], []
        async for ids in stream(prompt, new_tokens):
            now = time.perf_counter() - sent
            tokens += ids
            times += [now] * len(ids)
        return tokens, times

    requests = zip(request["prompts"], request["new_tokens"], request["arrivals"], strict=True)
    found = await asyncio.gather(*(one(*each) for each in requests))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": [tokens for tokens, _ in found], "times": [times for _, times in found]}
