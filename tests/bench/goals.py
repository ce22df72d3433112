"""The targets for speed on each kind of machine, and how far the results of the benchmarks reach them. Pure.

A side is ours through gRPC (`ours, …`), ours without it (`engine alone, …`), or a peer; its name has its precision.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from tests.bench.measure import Result, judged

AMX, VNNI, AVX2 = "AMX", "AVX512-VNNI", "AVX2 without VNNI"
KINDS = (AVX2, VNNI, AMX)  # of machines, in the order of `Goal.at_least`
OURS, ENGINE = "ours, ", "engine alone, "
TRANSFORMERS = "transformers fp32"
STATIC_BATCHES = ("transformers fp32", "transformers bf16")
BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4}
FILL_MASK, VISION, LENGTHS = "fill-mask", "images", "lengths"
ONE, EIGHT, POISSON = "one stream", "eight streams", "Poisson arrivals"
INTERVAL = 8  # --set MODEL.stream_interval, as an operator may set it
GROUPED = f", {INTERVAL} tokens a message"  # ends the names of sides with this setting; without it: one token
CALLS, AFFINITY, ECHO = "FillMask, 16 callers", "Affinity", "bare grpc.aio"  # of tests.bench.calls

Pair = tuple[Result, Result] | None  # the two sides whose rates are compared; None if one was not measured
Choose = Callable[[Sequence[Result]], Pair]


@dataclass(frozen=True)
class Goal:
    """A ratio of two sides of a workload, and the least that it should be on each kind of machine."""

    work: str
    workload: str
    at_least: tuple[float, float, float]
    choose: Choose


def kind_of(flags: Iterable[str]) -> str | None:
    """The kind of an x86 machine, from the flags of /proc/cpuinfo; None for others, which have no targets."""
    found = set(flags)
    if {"amx_int8", "amx_bf16"} & found:
        return AMX
    if {"avx512_vnni", "avx_vnni"} & found:
        return VNNI
    return AVX2 if "avx2" in found else None


def bits(side: str) -> int:
    """The bits of the numbers that a side multiplies, or of its weights; 0 if its name has no precision."""
    found = re.search("|".join(BITS), side)
    return BITS[found[0]] if found else 0


def fastest(results: Iterable[Result]) -> Result | None:
    return max(results, key=lambda result: result.rate, default=None)


def beginning(results: Sequence[Result], *prefixes: str) -> list[Result]:
    return [result for result in results if result.side.startswith(prefixes)]


def best_peer(own: str) -> Choose:
    """The best of our sides whose names begin with `own`, and the best peer of the same or higher precision."""

    def choose(results: Sequence[Result]) -> Pair:
        ours = fastest(beginning(results, own))
        theirs = [result for result in results if not result.side.startswith((OURS, ENGINE))]
        peer = fastest(result for result in theirs if ours and bits(result.side) >= bits(ours.side))
        return (ours, peer) if ours and peer else None

    return choose


def against(own: str, *peers: str) -> Choose:
    """The best of our sides whose names begin with `own`, and the best of these peers."""

    def choose(results: Sequence[Result]) -> Pair:
        ours, peer = fastest(beginning(results, own)), fastest(r for r in results if r.side in peers)
        return (ours, peer) if ours and peer else None

    return choose


def through_grpc(results: Sequence[Result], *, how: str = "") -> Pair:
    """The fastest engine that was also measured through gRPC: the same model and precision with and without it.

    `how` ends the name of the side through gRPC.
    """
    served = {result.side: result for result in beginning(results, OURS)}
    pairs = [
        (served[name], engine)
        for engine in beginning(results, ENGINE)
        if (name := f"{OURS}{engine.side.removeprefix(ENGINE)}{how}") in served
    ]
    return max(pairs, key=lambda pair: pair[1].rate, default=None)


grouped_through_grpc = partial(through_grpc, how=GROUPED)


PEER, GRPC = "best peer, same or higher precision", "engine alone"
GOALS = (
    Goal(f"BERT-base, 128 tokens / {PEER}", FILL_MASK, (1.1, 1.2, 1.1), best_peer(OURS)),
    Goal(f"BERT-base, mixed lengths / {PEER}", LENGTHS, (1.1, 1.2, 1.1), best_peer(OURS)),
    Goal("BERT-base, 128 tokens / transformers fp32", FILL_MASK, (2, 4, 4), against(OURS, TRANSFORMERS)),
    Goal("BERT-base, mixed lengths / transformers fp32", LENGTHS, (2, 4, 4), against(OURS, TRANSFORMERS)),
    Goal("ViT-B/16 from JPEG / transformers fp32", VISION, (1.7, 2.5, 3.5), against(OURS, TRANSFORMERS)),
    Goal("GPT-2, one stream / best peer", ONE, (1.5, 1.4, 1.4), best_peer(ENGINE)),
    Goal("GPT-2, eight streams / best peer", EIGHT, (1.15, 1.15, 1.15), best_peer(ENGINE)),
    Goal("GPT-2, requests at random / static batches", POISSON, (3, 3, 3), against(ENGINE, *STATIC_BATCHES)),
    Goal(f"gRPC, BERT-base, 128 tokens / {GRPC}", FILL_MASK, (0.95, 0.95, 0.95), through_grpc),
    Goal(f"gRPC, BERT-base, mixed lengths / {GRPC}", LENGTHS, (0.95, 0.95, 0.95), through_grpc),
    Goal(f"gRPC, ViT-B/16 from JPEG / {GRPC}", VISION, (0.95, 0.95, 0.95), through_grpc),
    Goal(f"gRPC, GPT-2, one stream / {GRPC}", ONE, (0.95, 0.95, 0.95), through_grpc),
    Goal(f"gRPC, GPT-2, one stream{GROUPED} / {GRPC}", ONE, (0.95, 0.95, 0.95), grouped_through_grpc),
    Goal(f"gRPC, GPT-2, eight streams / {GRPC}", EIGHT, (0.95, 0.95, 0.95), through_grpc),
    Goal(f"gRPC, GPT-2, eight streams{GROUPED} / {GRPC}", EIGHT, (0.95, 0.95, 0.95), grouped_through_grpc),
    Goal(f"gRPC, GPT-2, requests at random / {GRPC}", POISSON, (0.95, 0.95, 0.95), through_grpc),
    Goal("bert-mini, calls of 16 callers / bare grpc.aio", CALLS, (0.5, 0.5, 0.5), against(AFFINITY, ECHO)),
)


def table(results: Sequence[Result], kind: str | None, workloads: Iterable[str] | None = None) -> str:
    """Markdown: each goal (of these workloads) with the ratio found, the target for this kind of machine, the sides."""
    lines = [f"| work | found | target, {kind or 'this kind of machine has none'} | | sides |", "|---|---|---|---|---|"]
    wanted = None if workloads is None else set(workloads)
    return "\n".join([*lines, *(_line(g, results, kind) for g in GOALS if wanted is None or g.workload in wanted)])


def _line(goal: Goal, results: Sequence[Result], kind: str | None) -> str:
    pair = goal.choose([result for result in results if result.workload == goal.workload and result.rates])
    found = pair[0].rate / pair[1].rate if pair else None
    least = goal.at_least[KINDS.index(kind)] if kind else None
    return "| {} | {} | {} | {} | {} |".format(
        goal.work,
        "–" if found is None else f"{found:.2f} ×",
        "–" if least is None else f"≥ {least:g} ×",
        "" if least is None else judged(found, lambda ratio: ratio >= least),
        f"{pair[0].side} {pair[0].rate:,.1f}, {pair[1].side} {pair[1].rate:,.1f}" if pair else "",
    )
