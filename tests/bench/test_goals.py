"""The table of targets chooses the right sides, and judges them by the kind of machine."""

import pytest

from tests.bench import goals
from tests.bench.goals import AMX, AVX2, VNNI, kind_of
from tests.bench.measure import Result


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_bf16 amx_int8", AMX),
        ("avx2 avx512f avx512_vnni", VNNI),
        ("avx2 avx_vnni", VNNI),
        ("avx2 fma", AVX2),
        ("avx2 avx512f", AVX2),
        ("sse4_2", None),
        ("asimd asimddp i8mm", None),
    ],
)
def test_the_kind_of_a_machine_is_found_from_its_instruction_sets(flags: str, kind: str | None) -> None:
    assert kind_of(flags.split()) == kind


def rows(workload: str, rates: dict[str, float], kind: str | None = VNNI) -> list[list[str]]:
    """The cells of the table of one workload."""
    results = [Result(workload, side, (rate,) if rate else ()) for side, rate in rates.items()]
    lines = goals.table(results, kind, [workload]).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


ENCODERS = {
    "transformers fp32": 5,
    "OpenVINO bf16, ready tensors": 20,
    "Triton core, ONNX Runtime fp32": 4,
    "first come, first served": 100,
    "ours, cpu fp32": 10,
    "ours, cpu int8-dynamic": 30,
    "engine alone, cpu int8-dynamic": 40,
}


def test_the_best_of_ours_is_compared_with_the_best_peer_of_the_same_or_higher_precision() -> None:
    best_peer, transformers, grpc = rows(goals.FILL_MASK, ENCODERS)
    assert best_peer[1:4] == ["1.50 ×", "≥ 1.2 ×", "reached"]
    assert best_peer[4] == "ours, cpu int8-dynamic 30.0, OpenVINO bf16, ready tensors 20.0"
    assert transformers[1:4] == ["6.00 ×", "≥ 4 ×", "reached"]
    assert grpc[1:4] == ["0.75 ×", "≥ 0.95 ×", "missed"]


def test_a_peer_of_lower_precision_does_not_count() -> None:
    exact = {"ours, cpu fp32": 10, "transformers fp32": 5, "OpenVINO bf16, ready tensors": 20}
    assert rows(goals.FILL_MASK, exact)[0][1] == "2.00 ×"


def test_grpc_is_compared_with_the_engine_in_the_same_precision() -> None:
    rates = {"engine alone, int4-weights": 200, "engine alone, fp32": 40, "ours, fp32": 36, "transformers fp32": 20}
    best_peer, grpc, grouped = rows(goals.ONE, rates | {"ours, fp32, 8 tokens a message": 39})
    assert best_peer[1] == "10.00 ×"
    assert (grpc[1], grouped[1]) == ("0.90 ×", "0.97 ×")
    assert rows(goals.ONE, rates)[2][1:4] == ["–", "≥ 0.95 ×", "not measured"]


def test_sides_that_did_not_run_are_not_measured() -> None:
    assert rows(goals.ONE, {"engine alone, fp32": 40, "transformers fp32": 0})[0][1:] == [
        "–",
        "≥ 1.4 ×",
        "not measured",
        "",
    ]


def test_a_machine_of_no_kind_has_results_and_no_targets() -> None:
    assert rows(goals.FILL_MASK, ENCODERS, None)[0][1:4] == ["1.50 ×", "–", ""]


def test_every_goal_has_a_row() -> None:
    assert len(goals.table([], AMX).splitlines()) == 2 + len(goals.GOALS)
