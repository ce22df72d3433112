"""`python -m tests.bench.generation`: tokens per second of our engine and of peers, side by side in one run.

Makes a GPT-2 with random weights and exports it in fp32, with weights in 8 and in 4 bits, those of the head too, and
with weights in 4 bits and keys and values in 8.
Every side is a process with as many threads, one computes at a time, and all get the same requests, new ones in each
round. Ours is measured without and through gRPC, there with one token in a message and with eight. First one stream and
eight, then requests of all lengths that come when they come, for the sides that were the fastest with eight streams.
Ends with an error if our fp32 continuations are not those of transformers.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.__main__ import main as export_command
from server.host.processor import read_processor
from tests import published
from tests.bench import goals, options, requests
from tests.bench.goals import EIGHT, ONE, POISSON
from tests.bench.measure import Result, Side, in_rounds, in_turns, machine, table, write
from tests.bench.processes import OURS, PEERS, Missing, Peer, peer
from tests.bench.requests import Answers, Workload
from tests.serving import served

PRECISIONS = ("fp32", "int8-weights", "int4-weights", "int4-weights+int8-kv")
ENGINES = {f"{goals.ENGINE}{precision}": precision for precision in PRECISIONS}
SERVICES = {f"{goals.OURS}{precision}": precision for precision in PRECISIONS}  # through gRPC
GROUPED = {f"{name}{goals.GROUPED}": precision for name, precision in SERVICES.items()}  # not for random arrivals
FP32 = f"{goals.ENGINE}fp32"
TRANSFORMERS, TRANSFORMERS_BF16 = goals.STATIC_BATCHES
# Name → environment, module, and the arguments after the checkpoint.
OTHERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    TRANSFORMERS: (OURS, "transformers_generate", ("float32",)),
    TRANSFORMERS_BF16: (OURS, "transformers_generate", ("bfloat16",)),
    "CTranslate2 int8": (PEERS, "translate_int8", ()),
    "OpenVINO bf16": (PEERS, "optimum_openvino", ("bf16", "whole")),
    "OpenVINO int8-weights": (PEERS, "optimum_openvino", ("bf16", "int8")),
}
WORKLOADS = (ONE, EIGHT, POISSON)
LARGEST_SPREAD = 4.0  # of the 99th percentile of the time between tokens over the median


Measure = Callable[[str, Sequence[Side], int], list[Result]]


@dataclass
class Bench:
    """The open processes, and the results."""

    peers: dict[str, Peer]
    skipped: dict[str, str]  # name → reason
    answers: Answers
    results: list[Result]

    def measure(self, measure: Measure, workload: Workload, names: Sequence[str], rounds: int) -> None:
        sides = [self.answers.side(workload, name, self.peers[name]) for name in names if name in self.peers]
        print(f"{workload.name}: {len(sides)} sides, {rounds} rounds …", flush=True)
        self.results += measure(workload.name, sides, rounds)
        self.results += [Result(workload.name, name, (), self.skipped[name]) for name in names if name in self.skipped]


def open_peers(stack: ExitStack, checkpoint: Path, artifacts: Path, others: Sequence[str], threads: int) -> Bench:
    """Every side in a process of its own; a side that cannot run here has a reason."""
    wanted: dict[str, tuple[str, str, tuple[str | Path, ...]]] = {}
    for name, precision in ENGINES.items():
        wanted[name] = (OURS, "own_engine", (artifacts / model(precision) / "1", str(threads)))
    for services, interval in ((SERVICES, 1), (GROUPED, goals.INTERVAL)):
        flags = ["--threads", str(threads), "--models", ",".join(map(model, PRECISIONS))]
        server = stack.enter_context(served(artifacts, *flags, "--set", f"*.stream_interval={interval}"))
        for name, precision in services.items():
            wanted[name] = (OURS, "own_service", (server.target, model(precision)))
    for name in others:
        environment, module, arguments = OTHERS[name]
        wanted[name] = (environment, module, (checkpoint, *arguments, str(threads)))
    bench = Bench({}, {}, Answers(), [])
    for name, (environment, module, arguments) in wanted.items():
        print(f"opening {name} …", flush=True)
        try:
            bench.peers[name] = stack.enter_context(peer(environment, module, *arguments))
        except Missing as reason:
            bench.skipped[name] = f"skipped: {reason}"
    return bench


def model(precision: str) -> str:
    return f"gpt2-{precision.replace('+', '-')}"


def export(checkpoint: Path, artifacts: Path) -> None:
    """Export the checkpoint in each precision."""
    for precision in PRECISIONS:
        options = ["--name", model(precision), "--target", f"cpu={precision}", "--artifacts", str(artifacts)]
        options += ["--head-precision", "int4"] if precision.startswith("int4") else []
        if export_command([str(checkpoint), *options]):
            sys.exit("error: the export failed")


def sides_of_traffic(results: Sequence[Result], everyone: Sequence[str]) -> list[str]:
    """The sides for requests at random: ours in fp32 and in the precision that is fastest with eight streams, and the
    faster transformers, with the one in fp32, which is the reference of all continuations."""
    rates = {r.side: r.rate for r in results if r.workload == EIGHT and r.rates}

    def best(names: Iterable[str]) -> str:
        return max(names, key=lambda name: rates.get(name, 0.0))

    engine = best(ENGINES)
    static = [name for name in goals.STATIC_BATCHES if name in everyone]
    wanted = [FP32, engine, engine.replace(goals.ENGINE, goals.OURS), *static[:1], *([best(static)] if static else [])]
    return list(dict.fromkeys(wanted))


def waits(answers: Answers, sides: Sequence[str]) -> str:
    """Markdown: latencies of the workload in which requests arrive over time."""
    lines = [f"| {POISSON} | first token, median | between tokens, median | 99 % | ratio | target | |", "|---|" * 7]
    lines[1] = "|---" * 7 + "|"
    for side in sides:
        first, between = answers.waits(POISSON, side)
        median, late = np.median(between), np.quantile(between, 0.99)
        said = "reached" if late <= LARGEST_SPREAD * median else "missed"
        found = f"{np.median(first) * 1e3:.0f} ms | {median * 1e3:.1f} ms | {late * 1e3:.1f} ms"
        lines.append(f"| {side} | {found} | {late / median:.1f} × | ≤ {LARGEST_SPREAD:g} × | {said} |")
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = options.parser("generation", __doc__)
    options.add_sizes(parser, requests.SIZES)
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (2)")
    options.add_rounds(parser, 5)
    options.add_choice(parser, "--peers", OTHERS)
    options.add_choice(parser, "--workloads", WORKLOADS)
    options.add_folder(parser)
    options.add_output(parser)
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    rounds, sizes = arguments.rounds, requests.SIZES[arguments.sizes]
    with ExitStack() as stack:
        folder = stack.enter_context(options.folder_of(arguments))
        checkpoint = folder / "gpt2"
        if not checkpoint.exists():
            published.SIZES[arguments.sizes](folder, ["gpt2"])
        vocabulary = requests.name_every_token(checkpoint)
        artifacts = folder / "artifacts"
        export(checkpoint, artifacts)
        bench = open_peers(stack, checkpoint, artifacts, arguments.peers, arguments.threads)
        everyone = [*ENGINES, *SERVICES, *GROUPED, *arguments.peers]
        if ONE in arguments.workloads:
            bench.measure(in_rounds, requests.streams(ONE, 1, sizes, vocabulary), everyone, rounds)
        if EIGHT in arguments.workloads:
            bench.measure(in_rounds, requests.streams(EIGHT, 8, sizes, vocabulary), everyone, rounds)
        if POISSON in arguments.workloads:
            traffic = sides_of_traffic(bench.results, everyone)
            bench.measure(in_turns, requests.poisson(POISSON, sizes, vocabulary), traffic, max(1, rounds // 3))
    different = {
        workload: bench.answers.differing(workload, FP32, TRANSFORMERS)
        for workload in arguments.workloads
        if TRANSFORMERS in bench.peers
    }
    print(f"\n{machine()}; {arguments.threads} threads a side\n")
    print(table(bench.results, "tokens per second"), end="\n\n")
    print(goals.table(bench.results, goals.kind_of(read_processor().instruction_sets), arguments.workloads))
    if POISSON in arguments.workloads:
        print(f"\n{waits(bench.answers, [name for name in traffic if name.startswith((goals.OURS, goals.ENGINE))])}")
    print()
    for workload, (wrong, all_of_them) in different.items():
        print(f"{workload}: {all_of_them - wrong} of {all_of_them} continuations in fp32 are those of transformers")
    if arguments.output:
        write(arguments.output, bench.results)
    if any(wrong for wrong, _ in different.values()):
        sys.exit("error: continuations differ")


if __name__ == "__main__":
    main()
