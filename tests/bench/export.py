"""`python -m tests.bench.export`: the size, error, time and memory of exports, as a table.

Models of the published sizes with random weights, and the bundled ones, each exported by the command that a user
types: first for CPUs in fp32 and CUDA in fp16, the defaults, then with weights in 8 and in 4 bits.
`--sizes tiny` rehearses it.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export import precisions
from export.artifact import inspection
from models import Mixer
from models.checkpoints import published, published_config, save
from models.config import MIXER_PRESETS
from tests.bench import options
from tests.bench.measure import machine
from tests.checkpoints import write_mixer
from tests.published import SIZES
from tests.serving import ROOT

BUNDLED = ("bert-mini", "gpt-mini", "vit-digits", "mixer-digits")
RUNS = (precisions.DEFAULT, "cpu=int8-weights", "cpu=int4-weights")
PRECISIONS = ("fp32", "fp16", "int8-weights", "int4-weights")
ERROR = {"fp32": "maximum"}  # the error that the tolerance bounds
SEED = 0
GIB, MEGABYTE = 2**30, 1e6
KIB = 2**10  # the unit of Linux for a process's peak memory
# Runs a command and writes its peak memory to a file. It is a separate process because the peak of a child starts at
# the memory of its parent, and this process has held whole models.
WITNESS = """
import pathlib, resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
pathlib.Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)
"""


@dataclass(frozen=True)
class Run:
    """One export: its manifest (`python -m export inspect`), time and memory."""

    account: dict[str, Any]
    seconds: float
    peak_bytes: int


def write_mixer_base(directory: Path) -> None:
    """Mixer-B/16 with random weights, in timm's layout."""
    torch.manual_seed(SEED)
    model = Mixer(MIXER_PRESETS["mixer-b/16"])
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 0.875}
    save(directory, published_config(model) | {"pretrained_cfg": preprocessing}, published(model))


MIXERS: dict[str, Callable[[Path], None]] = {"published": write_mixer_base, "tiny": write_mixer}


def export(source: str, artifacts: Path, targets: str) -> Run:
    """One export in a process of its own; ends the program if it fails."""
    peak = artifacts / ".peak"
    command = [sys.executable, "-m", "export", source, "--artifacts", str(artifacts), "--target", targets]
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", WITNESS, peak, *command], cwd=ROOT, capture_output=True, text=True)
    seconds = time.monotonic() - begun
    if done.returncode:
        sys.exit(f"error: the export of {source} failed:\n{done.stdout}{done.stderr}")
    (directory,) = artifacts.glob("*/1")
    return Run(inspection.inspect(directory), seconds, int(peak.read_text()) * KIB)


def graphs(runs: list[Run]) -> dict[str, tuple[Run, dict[str, Any]]]:
    """The run and the manifest's graph of each precision."""
    return {graph["precision"]: (run, graph) for run in runs for graph in run.account["graphs"]}


def megabytes(run: Run, graph: dict[str, Any]) -> float:
    """The size of a graph with its weights, which may be in other files."""
    files = run.account["files"]
    return sum(file["bytes"] for file in files if file["path"].startswith(graph["file"])) / MEGABYTE


def row(name: str, runs: list[Run]) -> str:
    """The line of one model: its values in the order of `PRECISIONS`."""
    found = graphs(runs)
    made = [found[precision] for precision in PRECISIONS if precision in found]
    nodes = [f"{sum(graph['traced_nodes'].values())} → {sum(graph['nodes'].values())}" for _, graph in made[:1]]
    sizes = [f"{megabytes(run, graph):,.1f}" for run, graph in made]
    errors = [f"{graph['parity'][ERROR.get(graph['precision'], 'root_mean_square')]:.0e}" for _, graph in made]
    choices = [f"{graph['parity']['top1_agreement']:.0%}" for _, graph in made if "top1_agreement" in graph["parity"]]
    scores = [graph["held_out"] for _, graph in made if "held_out" in graph]
    held_out = [f"{score['pytorch']:.4g}" for score in scores[:1]] + [f"{score['graph']:.4g}" for score in scores]
    held_out += [score["measure"] for score in scores[:1]]
    cells = [", ".join(cell) or "–" for cell in (nodes, sizes, errors, choices, held_out)]
    return f"| {' | '.join([name, *cells, f'{runs[0].seconds:.0f}', f'{runs[0].peak_bytes / GIB:.1f}'])} |"


def report(models: dict[str, list[Run]]) -> str:
    """A table in Markdown, a line for each model."""
    kinds = ", ".join(PRECISIONS)
    return "\n".join(
        [
            f"In the order {kinds}, as far as they were made. Nodes as traced → as fused, of the first. Error: the "
            "largest in fp32, else the root mean square, in standard deviations of what PyTorch gives. Seconds and the "
            "most memory are of the first export alone.",
            "",
            "| model | nodes | MB | error | same first choice | held out: PyTorch, then rounded | seconds | GiB |",
            "|---|---|---|---|---|---|---|---|",
            *(row(name, runs) for name, runs in models.items()),
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Write the checkpoints, export them, print the table."""
    parser = options.parser("export", __doc__)
    options.add_sizes(parser, SIZES)
    parser.add_argument("--models", help="only these models, of the published sizes and the bundled ones: a,b")
    parser.add_argument("--target", action="append", help="only this target; can be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a file for all values, as JSON")
    given = parser.parse_args(arguments)
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        sources = {name: str(path) for name, path in SIZES[given.sizes](Path(folder)).items()}
        MIXERS[given.sizes](Path(folder) / "mixer-base")
        sources |= {"mixer-base": str(Path(folder) / "mixer-base")} | {name: name for name in BUNDLED}
        wanted = given.models.split(",") if given.models else list(sources)
        if unknown := set(wanted) - sources.keys():
            parser.error(f"--models: found {', '.join(sorted(unknown))}, expected some of {', '.join(sources)}")
        models: dict[str, list[Run]] = {name: [] for name in wanted}
        for name, runs in models.items():
            for targets in given.target or RUNS:
                print(f"exporting {name} for {targets} …", flush=True)
                with tempfile.TemporaryDirectory(dir=folder) as artifacts:
                    runs.append(export(sources[name], Path(artifacts), targets))
    print(report(models))
    if given.json:
        found = [
            {"seconds": run.seconds, "peak_bytes": run.peak_bytes, **run.account}
            for runs in models.values()
            for run in runs
        ]
        given.json.write_text(json.dumps({"machine": machine(), "exports": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
