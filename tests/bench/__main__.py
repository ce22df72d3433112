"""`python -m tests.bench`: all benchmarks that the targets for speed need, and one table of targets at the end.

Runs the benchmarks one after the other, each as a command of its own; those that fail are named at the end.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from server.host.processor import read_processor
from tests.bench import goals, options
from tests.bench.measure import Result, machine, write
from tests.serving import ROOT

SIZES = ("published", "tiny")


def stages(given: argparse.Namespace) -> dict[str, list[str]]:
    """The arguments of each benchmark, by module."""
    one_round = given.quick or given.sizes == "tiny"
    encoders = ["--rounds", "1" if one_round else "3"]
    encoders += ["--sizes", "quick" if given.quick and given.sizes == "published" else given.sizes]
    generation = ["--sizes", given.sizes, "--rounds", "1" if one_round else "3"]
    calls = ["--sizes", given.sizes, "--workloads", "FillMask", "--callers", "16", "--peers", goals.ECHO]
    return {"encoders": encoders, "generation": generation, "calls": calls}


def measured(module: str, arguments: Sequence[str], folder: Path) -> list[Result] | None:
    """The results of one benchmark, which prints its progress and its own tables; None if it failed."""
    output = folder / f"{module}.json"
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"tests.bench.{module}", *arguments, "--folder", str(folder / module)]
    print(f"\n$ {' '.join(command[1:])}", flush=True)
    ended = subprocess.run([*command, "--output", str(output)], cwd=ROOT)
    if ended.returncode or not output.exists():
        return None
    found = json.loads(output.read_text())["results"]
    return [Result(**{**each, "rates": tuple(each["rates"])}) for each in found]


def main(argv: Sequence[str] | None = None) -> int:
    parser = options.parser("", __doc__)
    options.add_sizes(parser, SIZES)
    parser.add_argument("--quick", action="store_true", help="fewer inputs, one round")
    options.add_folder(parser)
    options.add_output(parser)
    given = parser.parse_args(argv)
    results: list[Result] = []
    failed, started = [], time.monotonic()
    with options.folder_of(given) as folder:
        for module, arguments in stages(given).items():
            found = measured(module, arguments, folder)
            results += found or []
            failed += [module] if found is None else []
    print(f"\n{machine()}; {(time.monotonic() - started) / 60:.0f} minutes\n")
    print(goals.table(results, goals.kind_of(read_processor().instruction_sets)))
    for result in {(result.side, result.note): result for result in results if not result.rates}.values():
        print(f"\n{result.side}: {result.note}")
    if given.output:
        write(given.output, results)
    if failed:
        print(f"\nerror: failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
