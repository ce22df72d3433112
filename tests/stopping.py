"""A client process for tests that stop the server: `python -m tests.stopping TARGET CHANNELS CALLERS [AUTHORITY]`.

The callers of each channel send calls without a pause until one of them finds the server unavailable. The process
prints a line when every channel has had an answer and goes on, and in the end how many calls ended with each status.
"""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

import grpc

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


async def fill_mask(stub: AffinityStub) -> None:
    await stub.FillMask(pb.FillMaskRequest(model="tiny-bert", inputs=["The [MASK] is red."]))


async def generate(stub: AffinityStub) -> None:
    prompts = [pb.Prompt(token_ids=pb.TokenIds(ids=[1, 2, 3]))]
    request = pb.GenerateRequest(model="tiny-gpt", prompts=prompts, max_tokens=8, ignore_eos=True)
    pieces = [piece async for piece in stub.Generate(request)]
    assert pieces[-1].finish_reason in ("length", "cancelled")


async def call_until_unavailable(stub: AffinityStub, ended: Counter[str]) -> None:
    while not ended["UNAVAILABLE"]:
        try:
            await (generate if ended["OK"] % 3 == 2 else fill_mask)(stub)
            ended["OK"] += 1
        except grpc.aio.AioRpcError as error:
            ended[error.code().name] += 1


def connect(target: str, authority: str | None) -> grpc.aio.Channel:
    """A connection of its own, with TLS if there is a file with an authority to trust."""
    if authority is None:
        return grpc.aio.insecure_channel(target, options=OWN_CONNECTION)
    credentials = grpc.ssl_channel_credentials(Path(authority).read_bytes())
    return grpc.aio.secure_channel(target, credentials, options=OWN_CONNECTION)


async def main(target: str, channels: int, callers: int, authority: str | None = None) -> None:
    ended: list[Counter[str]] = [Counter() for _ in range(channels)]
    stubs = [AffinityStub(connect(target, authority)) for _ in range(channels)]
    async with asyncio.TaskGroup() as tasks:
        for stub, statuses in zip(stubs, ended, strict=True):
            for _ in range(callers):
                tasks.create_task(call_until_unavailable(stub, statuses))
        while not all(statuses["OK"] for statuses in ended):
            await asyncio.sleep(0.01)
        print("sending", flush=True)
    print(json.dumps(sum(ended, Counter())), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]))
