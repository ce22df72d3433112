"""`python -m tests.bench.export`: what an export makes of each model, and what it takes, as tables.

Models of the published sizes with random weights, and the bundled ones, each exported by the command that a user
types: first for CPUs in fp32 and CUDA in fp16, as it does unless told otherwise, then with weights in 8 and in 4 bits.
`--sizes tiny` rehearses it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export import inspection, precisions
from models import Mixer
from models.checkpoints import published, published_config, save
from models.config import MIXER_PRESETS
from tests.bench.measure import machine
from tests.checkpoints import write_mixer
from tests.published import SIZES
from tests.serving import ROOT

BUNDLED = ("bert-mini", "gpt-mini", "vit-digits", "mixer-digits")
RUNS = (precisions.DEFAULT, "cpu=int8-weights", "cpu=int4-weights")
SEED = 0
GIB, MEGABYTE = 2**30, 1e6
KIB = 2**10  # in which Linux counts a process's largest memory
# Runs a command and writes the most memory it held to a file. A process of its own, for what a child holds counts from
# what its parent holds when it is started, and this one has held whole models.
WITNESS = """
import pathlib, resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
pathlib.Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)
"""


@dataclass(frozen=True)
class Run:
    """One export: what it says of itself (`python -m export inspect`), and what it took."""

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


def rows(run: Run) -> Iterator[str]:
    """The lines of the table of graphs."""
    sizes = {file["path"]: file["bytes"] for file in run.account["files"]}
    for graph in run.account["graphs"]:
        parity = graph["parity"]
        megabytes = sum(size for path, size in sizes.items() if path.startswith(graph["target"])) / MEGABYTE
        nodes = f"{sum(graph['traced_nodes'].values())} → {sum(graph['nodes'].values())}"
        choices = f"{parity['top1_agreement']:.1%}" if "top1_agreement" in parity else "–"
        divergence = f"{parity['kl_divergence']:.1e}" if "kl_divergence" in parity else "–"
        score = graph.get("held_out")
        held_out = f"{score['measure']} {score['pytorch']:.4g} → {score['graph']:.4g}" if score else "–"
        yield (
            f"| {run.account['name']} | {graph['target']} {graph['precision']} | {nodes} | {megabytes:,.1f} | "
            f"{parity['maximum']:.1e} | {parity['root_mean_square']:.1e} | {choices} | {divergence} | {held_out} |"
        )


def report(runs: list[Run]) -> str:
    """Two tables in Markdown: the graphs, and the exports that made them."""
    lines = [
        "| model | graph | nodes | MB | maximum | root mean square | top-1 | KL (nats) | held out |",
        "|---|---|---|---|---|---|---|---|---|",
        *(row for run in runs for row in rows(run)),
        "",
        "| model | exported for | seconds | peak memory (GiB) |",
        "|---|---|---|---|",
    ]
    for run in runs:
        made = ", ".join(f"{graph['target']} {graph['precision']}" for graph in run.account["graphs"])
        lines.append(f"| {run.account['name']} | {made} | {run.seconds:.0f} | {run.peak_bytes / GIB:.1f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Write the checkpoints, export them, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.export", description=__doc__)
    parser.add_argument("--sizes", choices=SIZES, default="published", help="tiny: a rehearsal (default: %(default)s)")
    parser.add_argument("--models", help="of the published sizes and the bundled ones, these only: a,b")
    parser.add_argument("--target", action="append", help="export for this only; can be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all that was found, for machines")
    options = parser.parse_args(arguments)
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        sources = {name: str(path) for name, path in SIZES[options.sizes](Path(folder)).items()}
        MIXERS[options.sizes](Path(folder) / "mixer-base")
        sources |= {"mixer-base": str(Path(folder) / "mixer-base")} | {name: name for name in BUNDLED}
        wanted = options.models.split(",") if options.models else list(sources)
        if unknown := set(wanted) - sources.keys():
            parser.error(f"--models: found {', '.join(sorted(unknown))}, expected some of {', '.join(sources)}")
        runs = []
        for name in wanted:
            for targets in options.target or RUNS:
                print(f"exporting {name} for {targets} …", flush=True)
                with tempfile.TemporaryDirectory(dir=folder) as artifacts:
                    runs.append(export(sources[name], Path(artifacts), targets))
    print(report(runs))
    if options.json:
        found = [{"seconds": run.seconds, "peak_bytes": run.peak_bytes, **run.account} for run in runs]
        options.json.write_text(json.dumps({"machine": machine(), "exports": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
