"""What a model needs: requests per second and core, memory, seconds to ready. `python -m tests.bench.sizing`.

Serves one model at a time in a process of its own, and sends requests of one input each from this process, on the same
CPUs. A rate "per core" is the number of requests for each second of CPU time that the server used, so that the callers
and other processes hardly change it. The peak memory is the server's resident memory; that of a GPU is not in it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from server.client import Client
from tests.bench import options
from tests.bench.measure import machine
from tests.bench.processes import cpu_seconds
from tests.serving import ROOT, served

PRETRAINED = ROOT / "models" / "pretrained"
IMAGE = PRETRAINED / "vit-digits" / "example.png"
MASKED, SENTENCE = "The [MASK] statement raises an exception.", " The statement raises an exception."
PROMPT = "A list is"
WARM_UP = 0.25  # of the measured seconds
CLOCK_S = 1 / os.sysconf("SC_CLK_TCK")  # the resolution of CPU times

Send = Callable[[], object]


@dataclass(frozen=True)
class Sizing:
    """One row of the table. Rates are requests per second; memory is in MiB."""

    model: str
    provider: str
    request: str
    rate: float
    per_core: float
    peak_mib: float
    ready_s: float

    @property
    def row(self) -> str:
        return (
            f"| {self.model} | {self.provider} | {self.request} | {figure(self.rate)} | {figure(self.per_core)} "
            f"| {self.peak_mib:,.0f} MiB | {self.ready_s:.1f} s |"
        )


def figure(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"


HEAD = """\
| model | provider | request | requests/s | requests/s per core | peak memory | ready after |
|---|---|---|---|---|---|---|"""


def request(client: Client, model: str, task: str, given: argparse.Namespace) -> tuple[str, Send]:
    """What a request has, and how to send it. Raises ValueError for an unknown task."""
    text = MASKED + SENTENCE * (given.sentences - 1)
    match task:
        case "generate":
            sampling = {"max_tokens": given.new_tokens, "ignore_eos": True}
            said = f"{given.new_tokens} new tokens"
            return said, lambda: list(client.generate(PROMPT, model=model, **sampling))
        case "classify-image":
            image = given.image.read_bytes()
            return f"image of {len(image):,} bytes", lambda: client.classify_image([image], model=model)
        case "fill-mask" | "classify-text" | "embed":
            method = getattr(client, task.replace("-", "_"))
            [tokens] = client.count_tokens([text], model=model).tokens
            return f"text of {tokens} tokens", lambda: method([text], model=model)
    raise ValueError(f"found the task {task!r} of {model}, for which there are no requests here")


def closed_loop(send: Send, callers: int, seconds: float) -> tuple[int, float]:
    """The number of answers to callers that send again when they have an answer, and the seconds that it took."""
    started = time.monotonic()

    def call(_: int) -> int:
        answered = 0
        while time.monotonic() < started + seconds:
            send()
            answered += 1
        return answered

    with ThreadPoolExecutor(callers) as pool:
        answered = sum(pool.map(call, range(callers)))
    return answered, time.monotonic() - started


def peak_mib(pid: int) -> float:
    """The largest resident memory of a process so far, in MiB (Linux)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024


def measured(artifacts: Path, model: str, provider: str, given: argparse.Namespace) -> Sizing:
    """Serve a model, and measure it."""
    flags = ["--models", model, "--provider", provider, "--threads", str(given.threads)]
    started = time.monotonic()
    with served(artifacts, *flags) as running:
        ready_s, pid = time.monotonic() - started, running.process.pid
        with Client(running.target) as client:
            said, send = request(client, model, client.info(model).task, given)
            closed_loop(send, given.callers, given.seconds * WARM_UP)
            before = cpu_seconds(pid)
            answered, seconds = closed_loop(send, given.callers, given.seconds)
            spent = max(cpu_seconds(pid) - before, CLOCK_S)
        return Sizing(model, provider, said, answered / seconds, answered / spent, peak_mib(pid), ready_s)


def export_bundled(folder: Path, names: Sequence[str] = ()) -> Path:
    """The artifacts of these bundled models, by default of all, exported unless the folder has them already."""
    wanted = names or sorted(path.name for path in PRETRAINED.iterdir())
    if missing := [name for name in wanted if not (folder / name).exists()]:
        command = [sys.executable, "-m", "export", *missing, "--artifacts", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    return folder


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options.parser("sizing", __doc__)
    parser.add_argument("--artifacts", type=Path, help="exported models (default: the bundled ones, exported anew)")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="of these artifacts (all)")
    parser.add_argument("--providers", nargs="+", default=["cpu"], metavar="NAME", help="cpu, openvino, cuda (cpu)")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of the server; 0: all cores (1)")
    parser.add_argument("--callers", type=int, default=16, help="that call at the same time (16)")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement (10)")
    parser.add_argument("--sentences", type=int, default=4, help="of each text, about 8 tokens each (4)")
    parser.add_argument("--new-tokens", type=int, default=32, help="of each generated text (32)")
    parser.add_argument(
        "--image", type=Path, default=IMAGE, help="file to classify (a bundled digit of 28 × 28 pixels)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    given = parsed(argv)
    with ExitStack() as stack:
        artifacts = given.artifacts
        if artifacts is None:
            artifacts = export_bundled(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        models = given.models or sorted(path.name for path in artifacts.iterdir() if path.name[0] != ".")
        print(f"{machine()}; compute threads: {given.threads or 'all'}; {given.callers} callers, {given.seconds:g} s\n")
        print(HEAD, flush=True)
        for model in models:
            for provider in given.providers:
                print(measured(artifacts, model, provider, given).row, flush=True)


if __name__ == "__main__":
    main()
