"""The same numbers under Triton's names, so that its dashboards and autoscalers work.

Their counters do not end in `_total`, which the library would add. Metrics of unknown type keep their names. Five
of them end in `_us`, which `promtool check metrics` finds fault with, whatever their type: `OwnNames` leaves all out.
"""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from server.observability.totals import Statistics

PREFIX = "nv_"
LABELS = ("model", "version")
FAILURES = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
VALUES: dict[str, tuple[str, Callable[[Statistics], float]]] = {
    "nv_inference_request_success": ("Requests that were answered.", lambda of: of.success.count),
    "nv_inference_count": ("Inputs that ran.", lambda of: of.inputs),
    "nv_inference_exec_count": ("Batches that ran.", lambda of: of.executions),
    "nv_inference_request_duration_us": ("Time of requests.", lambda of: _us(of.success.seconds)),
    "nv_inference_queue_duration_us": ("Time that requests waited.", lambda of: _us(of.queue.seconds)),
    "nv_inference_compute_input_duration_us": (
        "Time of requests, to put batches together.",
        lambda of: _us(of.work.collate.seconds),
    ),
    "nv_inference_compute_infer_duration_us": (
        "Time of requests, to run batches.",
        lambda of: _us(of.work.run.seconds),
    ),
    "nv_inference_compute_output_duration_us": (
        "Time of requests, to take batches apart.",
        lambda of: _us(of.work.split.seconds),
    ),
}


class TritonNames(Collector):
    """Collects from the totals when it is scraped."""

    def __init__(self, statistics: Mapping[tuple[str, str], Statistics]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterable[Metric]:
        models = list(self._statistics.items())  # a scrape runs in a thread of its own
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
    """A registry without Triton's names: each number once, and by the rules for names."""

    def __init__(self, everything: CollectorRegistry) -> None:
        super().__init__()
        self._everything = everything

    def collect(self) -> Iterable[Metric]:
        return (family for family in self._everything.collect() if not family.name.startswith(PREFIX))


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
