"""`python -m tests.bench.soak`: a server under mixed traffic and disturbances, at 1 and 3 times its capacity.

Serves the bundled models, a tiny embedder and a tiny classifier in a process of its own. Calls of every task over both
protocols arrive at random times, with and without deadlines, while models are reloaded, clients cancel, die, stop, do
not read or send bad input. Prints the outcome of the calls and the trends of memory, threads, descriptors and
event-loop lag. Ends with an error if an answer differs from that of the idle server, if a call fails with an unexpected
status, or if something is still queued or running in the end.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import grpc
from prometheus_client.parser import text_string_to_metric_families

from server.client import Client, ServedModel
from tests.bench import options
from tests.bench.measure import machine
from tests.bench.soak import disturbances
from tests.bench.soak.calls import Stubs, calls
from tests.bench.soak.samples import MEASURES, Sample, sampled, trend
from tests.bench.soak.traffic import WRONG, Tally, Traffic
from tests.serving import ROOT, Served, served

MULTIPLES = (1.0, 3.0)  # of the capacity
TINY = ("embedder", "classifier")  # of tests/checkpoints.py, for tasks that no bundled model has
SLOW_CLIENT_S = 2.0
JUDGED_S = 120  # a trend of a shorter phase says nothing
GAUGES = ("affinity_queue_rows", "affinity_queue_tokens", "affinity_running_rows", "affinity_slots_used")


@dataclass
class Phase:
    """One part of the soak: what the server was offered, and the samples meanwhile."""

    name: str
    seconds: float
    samples: list[Sample]


@dataclass
class Soak:
    """What was found."""

    tally: Tally = field(default_factory=Tally)
    phases: list[Phase] = field(default_factory=list)
    left: dict[str, float] = field(default_factory=dict)  # gauges that are not 0 in the end
    capacity: float = 0.0

    def faults(self) -> list[str]:
        """Everything that must not happen."""
        left = [f"{name} is {value:g} after the last call" for name, value in self.left.items()]
        return [*self.tally.faults, *left]

    def trends(self) -> str:
        """Markdown: a row for each measure of each phase."""
        lines = ["| load | | at first | in the end | a minute adds | at most | |", "|---|---|---|---|---|---|---|"]
        for phase in self.phases:
            for measure in MEASURES:
                first, last, slope = trend(phase.samples, measure.value)
                said = "reached" if slope <= measure.most_per_minute else "missed"
                said = said if phase.seconds >= JUDGED_S else "too short to judge"
                found = " | ".join(f"{value:{measure.form}}" for value in (first, last, slope))
                lines.append(f"| {phase.name} | {measure.name} | {found} | {measure.most_per_minute:g} | {said} |")
        return "\n".join(lines)


def exported(folder: Path) -> Path:
    """The artifacts of the bundled models and of the tiny ones."""
    from tests.checkpoints import WRITERS  # imports transformers, which takes seconds

    sources = sorted((ROOT / "models" / "pretrained").iterdir())
    for name in TINY:
        sources.append(folder / f"tiny-{name}")
        sources[-1].mkdir()
        WRITERS[name](sources[-1])
    command = [sys.executable, "-m", "export", *map(str, sources), "--artifacts", str(folder / "artifacts")]
    if subprocess.run([*command, "--target", "cpu=fp32"], cwd=ROOT).returncode:
        sys.exit("error: the export failed")
    return folder / "artifacts"


async def soak(server: Served, models: Sequence[ServedModel], seconds: float) -> Soak:
    """References, capacity, then each multiple of the capacity for half of the time, with disturbances."""
    found, channel = Soak(), grpc.aio.insecure_channel(server.target)
    async with channel, sampled(server.process.pid, server.target, pause_s=max(0.2, seconds / 600)) as samples:
        traffic = Traffic(calls(Stubs(channel), models), found.tally)
        await traffic.take_references()
        found.capacity = await traffic.capacity(max(2.0, seconds / 20))
        print(f"{found.capacity:.0f} calls a second when {len(models)} models are not disturbed", flush=True)
        disturbing = disturb(server, Stubs(channel), models, found.tally, seconds)
        for multiple in MULTIPLES:
            first = len(samples)
            await traffic.send_at(multiple * found.capacity, seconds / len(MULTIPLES))
            found.phases.append(Phase(f"{multiple:g} ×", seconds / len(MULTIPLES), samples[first:]))
            print(f"{multiple:g} ×: {seconds / len(MULTIPLES):.0f} s are over", flush=True)
        for task in disturbing:
            task.cancel()
        for result in await asyncio.gather(*disturbing, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
    found.left = await idle(server)
    return found


def disturb(
    server: Served, stubs: Stubs, models: Sequence[ServedModel], tally: Tally, seconds: float
) -> list[asyncio.Task[None]]:
    """Start the disturbances. The rare ones occur about forty times in ten minutes, and a few times in a short soak."""
    target, rare_s = server.target, min(10.0, seconds / 10)
    begun = {
        "reload": (disturbances.reload(target, models), min(2.0, seconds / 20)),
        "bad input": (disturbances.bad_input(stubs, models), 0.1),
    }
    for name in (model.name for model in models if model.task == "generate"):
        begun[f"{name}: cancels"] = disturbances.leave(stubs, name), 0.5
        begun[f"{name}: reads late"] = disturbances.read_late(target, name, SLOW_CLIENT_S * 1.5), rare_s
        begun[f"{name}: dies"] = disturbances.die(target, name, stop_s=SLOW_CLIENT_S * 1.5), rare_s
    return [
        asyncio.create_task(disturbances.repeat(disturb, kind, tally, pause_s=pause_s))
        for kind, (disturb, pause_s) in begun.items()
    ]


async def idle(server: Served) -> dict[str, float]:
    """The gauges that are not 0 a minute after the last call."""
    end = time.monotonic() + 60
    while (left := await asyncio.to_thread(_busy, server)) and time.monotonic() < end:
        await asyncio.sleep(0.2)
    return left


def _busy(server: Served) -> dict[str, float]:
    with urllib.request.urlopen(server.url("/metrics"), timeout=60) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return {f"{s.name} of {s.labels['model']}": s.value for s in samples if s.name in GAUGES and s.value}


def main() -> None:
    parser = options.parser("soak", __doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the load (60)")
    parser.add_argument("--artifacts", type=Path, help="serve these instead of the bundled and the tiny models")
    parser.add_argument("--threads", default="2", help="threads of each model (2)")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        artifacts = arguments.artifacts or exported(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        flags = (
            "--threads",
            arguments.threads,
            "--model-control",
            "explicit",
            "--slow-client-seconds",
            str(SLOW_CLIENT_S),
        )
        server = stack.enter_context(served(artifacts, "--model-control", "explicit", *flags))
        Thread(target=server.process.stdout.read, daemon=True).start()  # else the server waits for its log to be read
        with Client(server.target) as client:
            models = client.models()
        found = asyncio.run(soak(server, models, arguments.seconds))
    print(f"\n{machine()}; {arguments.seconds:g} s\n")
    print(found.tally.table(), found.trends(), sep="\n\n")
    print(
        f"\nwrong answers: {found.tally.total(WRONG)}; other faults: {len(found.faults()) - found.tally.total(WRONG)}"
    )
    if faults := found.faults():
        sys.exit("\n".join(("error:", *faults)))


if __name__ == "__main__":
    main()
