"""`python -m tests.bench.startup`: seconds from `python -m server` until it is ready, and its peak memory.

The bundled models together, and each model of the published sizes alone, with random weights, in fp32 and with weights
in 8 bits. Medians of some rounds in which the servers take turns; the files are in the page cache. The server does not
tune, which only the first start on a machine does; `--tune force` shows its cost.
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench import options
from tests.bench.measure import machine
from tests.bench.processes import cpu_seconds
from tests.bench.sizing import export_bundled, peak_mib
from tests.serving import served

PRECISIONS = ("fp32", "int8-weights")
HEAD = "| served | ready after | CPU time | peak memory |\n|---|---|---|---|"


@dataclass(frozen=True)
class Start:
    """One start of a server: seconds to ready, CPU seconds until then, peak memory in MiB."""

    ready_s: float
    cpu_s: float
    peak_mib: float


def start(artifacts: Path, flags: Sequence[str]) -> Start:
    """Start a server, wait until it is ready, and end it."""
    began = time.monotonic()
    with served(artifacts, *flags) as running:
        ready_s = time.monotonic() - began
        return Start(ready_s, cpu_seconds(running.process.pid), peak_mib(running.process.pid))


def row(name: str, starts: Sequence[Start]) -> str:
    """A row of the table: medians."""
    ready_s, cpu_s, peak = (median(getattr(each, field) for each in starts) for field in Start.__annotations__)
    return f"| {name} | {ready_s:.2f} s | {cpu_s:.2f} s | {peak:,.0f} MiB |"


def published(folder: Path, sizes: str) -> dict[str, Path]:
    """Row of the table → artifacts with that model alone. Exports those that the folder lacks."""
    from tests.published import MODELS, SIZES, export  # imports torch

    missing = [name for name in MODELS if not (folder / "checkpoints" / name).exists()]
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    SIZES[sizes](folder / "checkpoints", missing)
    found = {}
    for name in MODELS:
        for precision in PRECISIONS:
            artifacts = found[f"{name}, {precision}"] = folder / f"{name}-{precision}"
            if not artifacts.exists():
                export([folder / "checkpoints" / name], artifacts, f"cpu={precision}")
    return found


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options.parser("startup", __doc__)
    parser.add_argument("--artifacts", type=Path, nargs="*", help="served as they are, instead of all that is exported")
    options.add_sizes(parser, ("published", "tiny"))
    options.add_rounds(parser, 5)
    parser.add_argument("--provider", default="cpu", help="cpu, openvino, cuda, auto (cpu)")
    parser.add_argument("--tune", default="off", help="off, auto, force (off)")
    options.add_folder(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    given = parsed(argv)
    flags = ["--provider", given.provider, "--threads", "0", "--tune", given.tune]
    with ExitStack() as stack:
        if given.artifacts:
            wanted = {path.name: path for path in given.artifacts}
        else:
            folder = stack.enter_context(options.folder_of(given))
            wanted = {"bundled models": export_bundled(folder / "bundled")}
            wanted |= published(folder, given.sizes)
        starts: dict[str, list[Start]] = {name: [] for name in wanted}
        for _ in range(given.rounds):
            for name, artifacts in wanted.items():
                starts[name].append(start(artifacts, flags))
    print(f"{machine()}; provider {given.provider}, --tune {given.tune}, {given.rounds} rounds\n")
    print(HEAD)
    for name, each in starts.items():
        print(row(name, each))


if __name__ == "__main__":
    main()
