"""Exports the totals under Triton's metric names, so that dashboards and autoscalers for Triton work.

Triton's counters do not end in `_total`, which prometheus_client would append, so the metrics have type unknown. Some
end in `_us`, which `promtool check metrics` rejects for any type; `OwnNames` leaves out all of Triton's names.
"""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric, UnknownMetricFamily
from prometheus_client.registry import Collector, RestrictedRegistry

from server.observability.totals import Statistics

PREFIX = "nv_"
LABELS = ("model", "version")
FAILURES = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
VALUES: dict[str, tuple[str, Callable[[Statistics], float]]] = {
    "nv_inference_request_success": ("Requests that succeeded.", lambda of: of.success.count),
    "nv_inference_count": ("Inputs that ran.", lambda of: of.inputs),
    "nv_inference_exec_count": ("Batches that ran.", lambda of: of.executions),
    "nv_inference_request_duration_us": ("Total time of requests.", lambda of: _us(of.success.seconds)),
    "nv_inference_queue_duration_us": ("Time that requests spent in the queue.", lambda of: _us(of.queue.seconds)),
    "nv_inference_compute_input_duration_us": (
        "Time that requests spent on building batches.",
        lambda of: _us(of.work.collate.seconds),
    ),
    "nv_inference_compute_infer_duration_us": (
        "Time that requests spent on running batches.",
        lambda of: _us(of.work.run.seconds),
    ),
    "nv_inference_compute_output_duration_us": (
        "Time that requests spent on splitting the outputs of batches.",
        lambda of: _us(of.work.split.seconds),
    ),
}


class TritonNames(Collector):
    """Reads the totals at each scrape."""

    def __init__(self, statistics: Mapping[tuple[str, str], Statistics]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterable[Metric]:
        models = list(self._statistics.items())  # a scrape runs in another thread
        for name, (text, value) in VALUES.items():
            family = UnknownMetricFamily(name, text, labels=LABELS)
            for labels, statistics in models:
                family.add_metric(labels, value(statistics))
            yield family
        failures = UnknownMetricFamily(
            "nv_inference_request_failure", "Requests that failed, by reason.", labels=(*LABELS, "reason")
        )
        for labels, statistics in models:
            for reason in FAILURES:
                failures.add_metric((*labels, reason), statistics.failures[reason])
        yield failures


class OwnNames(CollectorRegistry):
    """A view of a registry without Triton's names: each number once, under a valid name."""

    def __init__(self, everything: CollectorRegistry) -> None:
        super().__init__()
        self._everything = everything

    def collect(self) -> Iterable[Metric]:
        return (family for family in self._everything.collect() if not family.name.startswith(PREFIX))

    def restricted_registry(self, names: Iterable[str]) -> RestrictedRegistry:
        """The families with samples of these names, for `name[]` in the query of a scrape."""
        return self._everything.restricted_registry(name for name in names if not name.startswith(PREFIX))


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
