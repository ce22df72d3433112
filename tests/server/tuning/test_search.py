"""The decisions, with measurements made up: what replaces what, and what a search finds."""

import pytest

from server.tuning.search import Measurement, is_clear, replaces, search, speedup

ROUNDS = 5


def measured(*ratios):
    """Measurements of a challenger that is so many times as fast in the workloads."""
    return [Measurement(f"workload {number}", ((ratio, 1.0),) * ROUNDS) for number, ratio in enumerate(ratios)]


@pytest.mark.parametrize(
    ("ratios", "better"),
    [
        ((2.0, 2.0), True),
        ((1.06, 1.05), True),
        ((1.04, 1.04), False),  # within the noise
        ((1.0, 1.0), False),
        ((0.5, 0.5), False),
        ((1.5, 0.99), True),  # as fast within the noise
        ((1.5, 0.9), False),  # slower in one workload
        ((3.0, 0.97), False),
        ((1.05,), True),
    ],
)
def test_a_challenger_has_to_be_clearly_faster_and_nowhere_slower(ratios, better):
    assert replaces(measured(*ratios)) == better


def test_the_speedup_is_the_geometric_mean_of_the_workloads():
    assert speedup(measured(4.0, 1.0)) == pytest.approx(2.0)


def test_a_round_that_was_disturbed_does_not_count():
    pairs = ((1.0, 1.0), (9.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 9.0))
    assert Measurement("disturbed", pairs).speedup == 1.0


def test_rounds_that_are_slow_for_both_do_not_count_more():
    pairs = ((1.1, 1.0), (11.0, 10.0), (1.1, 1.0))
    assert Measurement("busy machine", pairs).speedup == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("ratios", "clear"),
    [((0.5, 1.0), True), ((0.95, 0.95), False), ((1.1, 1.1), False), ((2.0, 2.0), True), ((2.0, 0.9), False)],
)
def test_a_challenger_that_is_much_slower_or_faster_needs_no_more_rounds(ratios, clear):
    assert is_clear(measured(*ratios)) == clear


def searched(default, stages, *, seconds):
    """The result of a search, in which the choices take so many seconds; None: cannot be measured."""

    def compare(best, challenger):
        compared.append((best, challenger))
        return [] if seconds[challenger] is None else measured(seconds[best] / seconds[challenger])

    compared = []
    return search(default, stages, compare), compared


def test_the_default_stays_if_nothing_is_faster():
    found, _ = searched("default", [lambda best: ["a", "b"]], seconds={"default": 1, "a": 1.2, "b": 0.98})
    assert (found.best, found.speedup, found.compared) == ("default", 1.0, 2)


def test_the_fastest_is_found_and_its_speedup_is_that_over_the_default():
    found, compared = searched(
        "default", [lambda best: ["a", "b", "c"]], seconds={"default": 4, "a": 2, "b": 3, "c": 1}
    )
    assert (found.best, found.speedup) == ("c", pytest.approx(4.0))
    assert compared == [("default", "a"), ("a", "b"), ("a", "c")]  # each against the best one so far


def test_a_challenger_that_cannot_be_measured_is_left_out():
    found, _ = searched("default", [lambda best: ["broken", "a"]], seconds={"default": 2, "broken": None, "a": 1})
    assert (found.best, found.compared) == ("a", 1)


def test_each_stage_starts_from_the_best_of_the_stages_before():
    stages = [lambda best: ["graph"], lambda best: [best + " with fewer threads"]]
    found, _ = searched("default", stages, seconds={"default": 3, "graph": 2, "graph with fewer threads": 1})
    assert (found.best, found.speedup) == ("graph with fewer threads", pytest.approx(3.0))


def test_without_challengers_nothing_is_compared():
    found, compared = searched("default", [lambda best: [], lambda best: [best]], seconds={"default": 1})
    assert (found.best, compared) == ("default", [])
