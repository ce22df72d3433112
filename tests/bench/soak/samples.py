"""Samples of a server process over time, and what their trend is (Linux)."""

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, median

from tests.serving import ROOT

SETTLED = 0.2  # the share of a phase that is left out of its trend


@dataclass(frozen=True)
class Sample:
    """The state of a process at a time."""

    at_s: float
    memory_mb: float
    threads: int
    descriptors: int
    lag_s: float  # median of the calls since the sample before


@dataclass(frozen=True)
class Measure:
    """A column of the samples, and how much of it may be added in a minute without being a leak."""

    name: str
    value: Callable[[Sample], float]
    most_per_minute: float
    form: str


MEASURES = (
    Measure("memory, MB", lambda sample: sample.memory_mb, 3.0, ".1f"),  # reloads make it rise and fall by 25 MB
    Measure("threads", lambda sample: sample.threads, 0.5, ".1f"),
    Measure("descriptors", lambda sample: sample.descriptors, 0.5, ".1f"),
    Measure("event-loop lag, ms", lambda sample: sample.lag_s * 1e3, 100.0, ".2f"),  # of a queue: hundreds of ms
)


def memory_mb(pid: int) -> float:
    """The resident memory of a process."""
    return _status(pid, "VmRSS") / 1024


def _status(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


@asynccontextmanager
async def sampled(pid: int, target: str, *, pause_s: float) -> AsyncIterator[list[Sample]]:
    """A list to which a sample is added every `pause_s` seconds."""
    samples: list[Sample] = []
    command = (sys.executable, "-m", "tests.bench.soak.lag", target)
    probe = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        assert probe.stdout is not None
        lags = [float(await probe.stdout.readline())]
        tasks = [asyncio.create_task(_read(probe.stdout, lags))]
        tasks.append(asyncio.create_task(_sample(pid, samples, lags, pause_s)))
        yield samples
        for task in tasks:
            if task.done():
                task.result()  # raises what ended it
            task.cancel()
    finally:
        with suppress(ProcessLookupError):
            probe.kill()
        await probe.wait()


async def _read(lines: asyncio.StreamReader, lags: list[float]) -> None:
    while line := await lines.readline():
        lags.append(float(line))
    raise RuntimeError("the process that measures the lag has ended: the server does not answer")


async def _sample(pid: int, samples: list[Sample], lags: list[float], pause_s: float) -> None:
    while True:
        await asyncio.sleep(pause_s)
        descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        lag = median(lags) if lags else samples[-1].lag_s if samples else 0.0
        lags.clear()
        samples.append(Sample(time.monotonic(), memory_mb(pid), _status(pid, "Threads"), descriptors, lag))


def trend(samples: Sequence[Sample], value: Callable[[Sample], float]) -> tuple[float, float, float]:
    """The value at the start and at the end of a phase, and what a minute adds, by a line through the samples."""
    samples = samples[int(len(samples) * SETTLED) :]
    if len(samples) < 3:
        return math.nan, math.nan, math.nan
    times = [(sample.at_s - samples[0].at_s) / 60 for sample in samples]
    values = list(map(value, samples))
    few = max(1, len(values) // 10)
    return median(values[:few]), median(values[-few:]), linear_regression(times, values).slope
