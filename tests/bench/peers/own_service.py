"""Not a peer: a client of our own server, `ADDRESS MODEL`, in a process of its own as clients are.

Asked with `prompts`, `new_tokens` and `arrivals`; every prompt is a call.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from protos.affinity_pb2 import GenerateRequest, Prompt, TokenIds
from protos.affinity_pb2_grpc import AffinityStub
from tests.bench.peers import answering, traffic


def open_peer() -> answering.Work:
    address, model = sys.argv[1:]
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    stub = AffinityStub(grpc.aio.insecure_channel(address))

    async def stream(prompt: list[int], new_tokens: int) -> AsyncIterator[list[int]]:
        prompts = [Prompt(token_ids=TokenIds(ids=prompt))]
        asked = GenerateRequest(model=model, prompts=prompts, max_tokens=new_tokens, temperature=0, ignore_eos=True)
        async for piece in stub.Generate(asked):
            yield piece.token_ids

    def work(request: dict[str, Any]) -> dict[str, Any]:
        return loop.run_until_complete(traffic.play(request, stream))

    return work


answering.answer(open_peer)
