"""`python -m tests.bench.overload`: what a server answers in time when more is offered than it can compute.

BERT-base (fill-mask and embeddings), ViT-B/16 and GPT-2 with random weights, served on the CPU in a process of its own;
the calls come from this process, on the same CPUs. The capacity is what 32 callers get answered in a closed loop. Then
calls come at random times, at 0.5 to 5 times that rate, with deadlines of 0.5 to 4 seconds, or none. Prints the calls a
second that are answered in time, and how fast the others are refused. `--sizes tiny` rehearses it.
"""

import argparse
import asyncio
import random
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import grpc

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from tests.bench import options
from tests.bench.inputs import masked_texts, photographs
from tests.bench.measure import machine
from tests.serving import Served, served

CALLERS = 32  # of the closed loop that measures the capacity
DEADLINES_S = (0.5, 1.0, 2.0, 4.0)
GOAL = 0.8  # of the capacity
TOKENS = {"published": (64, 16), "tiny": (16, 8)}  # of each text, and of each continuation
MODELS = {"fill-mask": "bert-base", "embed": "bert-embed", "images": "vit-base", "generation": "gpt2"}

Send = Callable[[float | None], Awaitable[object]]  # with a timeout in seconds


@dataclass
class Load:
    """What became of the calls of one rate."""

    name: str
    offered: float  # calls a second
    seconds: float
    in_time: int = 0
    late: int = 0  # the deadline passed
    refused_s: list[float] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        return self.in_time / self.seconds

    def row(self, capacity: float) -> str:
        refused = f"{len(self.refused_s)} in {1000 * median(self.refused_s):.0f} ms" if self.refused_s else "0"
        share = self.goodput / min(self.offered, capacity)
        said = "reached" if share >= GOAL else "missed"
        return (
            f"| {self.name} | {self.offered:.1f} | {self.goodput:.1f} | {share:.2f} | {self.late} | {refused} "
            f"| {len(self.other)} | ≥ {GOAL} | {said} |"
        )


def senders(stub: AffinityStub, checkpoints: Path, folder: Path, sizes: str) -> dict[str, list[Send]]:
    """For each task calls to send, all of one size."""
    tokens, new_tokens = TOKENS[sizes]
    texts = [each.text for each in masked_texts(checkpoints / "bert-base", [tokens] * 64)]
    (folder / "photographs").mkdir(exist_ok=True)
    files = [file.read_bytes() for file in photographs(folder / "photographs", 16)]

    def unary(method: Callable[..., Awaitable[object]], request: object) -> Send:
        return lambda timeout_s: method(request, timeout=timeout_s)

    def generation(number: int) -> Send:
        ids = random.Random(number).choices(range(1, 300), k=tokens)
        prompt = pb.Prompt(token_ids=pb.TokenIds(ids=ids))
        request = pb.GenerateRequest(model="gpt2", prompts=[prompt], max_tokens=new_tokens, ignore_eos=True)

        async def send(timeout_s: float | None) -> None:
            async for _ in stub.Generate(request, timeout=timeout_s):
                pass

        return send

    return {
        "fill-mask": [unary(stub.FillMask, pb.FillMaskRequest(model="bert-base", inputs=[text])) for text in texts],
        "embed": [unary(stub.Embed, pb.EmbedRequest(model="bert-embed", inputs=[text])) for text in texts],
        "images": [unary(stub.ClassifyImage, pb.ClassifyImageRequest(model="vit-base", images=[f])) for f in files],
        "generation": [generation(number) for number in range(64)],
    }


async def closed_loop(sends: Sequence[Send], seconds: float) -> float:
    """Calls a second that `CALLERS` callers get answered, each of which sends its next call after an answer."""
    started, answered = time.monotonic(), 0

    async def caller(number: int) -> None:
        nonlocal answered
        while time.monotonic() < started + seconds:
            await sends[(number + answered) % len(sends)](None)
            answered += 1

    await asyncio.gather(*map(caller, range(CALLERS)))
    return answered / (time.monotonic() - started)


async def open_loop(
    name: str, sends: Sequence[Send], *, rate: float, seconds: float, deadlines_s: Sequence[float | None]
) -> Load:
    """Send calls at random times, whether earlier ones are answered or not, and wait for all of them."""
    load, rng = Load(name, rate, seconds), random.Random(1)

    async def one(send: Send, deadline_s: float | None) -> None:
        begun = time.monotonic()
        try:
            await send(deadline_s)
        except grpc.aio.AioRpcError as error:
            match error.code():
                case grpc.StatusCode.RESOURCE_EXHAUSTED:
                    load.refused_s.append(time.monotonic() - begun)
                case grpc.StatusCode.DEADLINE_EXCEEDED:
                    load.late += 1
                case code:
                    load.other.append(f"{code.name}: {error.details()}")
        else:
            load.in_time += 1

    begin = due = time.monotonic()
    async with asyncio.TaskGroup() as group:
        while (due := due + rng.expovariate(rate)) < begin + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(one(rng.choice(sends), rng.choice(deadlines_s)))
    load.seconds = max(seconds, time.monotonic() - begin)
    return load


async def measured(server: Served, checkpoints: Path, folder: Path, given: argparse.Namespace) -> list[str]:
    """The rows of the table."""
    rows = []
    async with grpc.aio.insecure_channel(server.target) as channel:
        for task, sends in senders(AffinityStub(channel), checkpoints, folder, given.sizes).items():
            if task not in given.tasks:
                continue
            await closed_loop(sends, given.seconds / 4)  # warm up
            capacity = await closed_loop(sends, given.seconds)
            print(f"{task}: {capacity:.1f} calls a second", flush=True)
            for multiple in given.multiples:
                for name, deadlines_s in (("deadlines", DEADLINES_S), ("no deadline", (None,))):
                    load = await open_loop(
                        f"{task}, {name}, {multiple:g} ×",
                        sends,
                        rate=multiple * capacity,
                        seconds=given.seconds,
                        deadlines_s=deadlines_s,
                    )
                    rows.append(load.row(capacity))
                    print(rows[-1], *load.other[:3], flush=True)
    return rows


def prepared(folder: Path, sizes: str) -> Path:
    """The checkpoints, written and exported unless the folder has them already."""
    from tests.checkpoints import write_pooling  # imports torch
    from tests.published import SIZES, export

    checkpoints = folder / "checkpoints"
    if not (folder / "artifacts").exists():
        checkpoints.mkdir(parents=True, exist_ok=True)
        SIZES[sizes](checkpoints)
        shutil.copytree(checkpoints / "bert-base", checkpoints / "bert-embed")
        write_pooling(checkpoints / "bert-embed", max_tokens=TOKENS[sizes][0])
        export([checkpoints / name for name in MODELS.values()], folder / "artifacts", "cpu=fp32")
    return checkpoints


def main() -> None:
    parser = options.parser("overload", __doc__)
    options.add_sizes(parser, TOKENS)
    options.add_choice(parser, "--tasks", MODELS)
    parser.add_argument("--multiples", type=float, nargs="+", default=[0.5, 1, 1.5, 3, 5], metavar="N")
    parser.add_argument("--seconds", type=float, default=20, help="duration of each load")
    options.add_folder(parser)
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(options.folder_of(given))
        checkpoints = prepared(folder, given.sizes)
        server = stack.enter_context(served(folder / "artifacts", "--threads", "0"))
        rows = asyncio.run(measured(server, checkpoints, folder, given))
    print(f"\n{machine()}; {given.sizes} sizes, {given.seconds:g} s each\n")
    print("| calls | offered per second | answered in time | of the possible | late | refused | other | goal | |")
    print("|---" * 9 + "|", *rows, sep="\n")


if __name__ == "__main__":
    main()
