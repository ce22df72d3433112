"""Copies the metrics of a replica to those of Ray, which each node exports to Prometheus.

Ray's histograms take observations, not counts. Every sample is therefore copied as a gauge with its own name and
labels: `affinity_requests_total`, `affinity_run_duration_seconds_bucket`, and so on. rate() and histogram_quantile()
work on them as on the originals. Ray puts `ray_` before the names, and adds labels such as the replica's.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

PERIOD_S = 5.0  # Ray reports the metrics of a process every 10 s


async def mirror(registry: CollectorRegistry, make_gauge: Callable[..., Any], *, period_s: float = PERIOD_S) -> None:
    """Copy all samples again and again. `make_gauge` is the class of Ray's gauges."""
    gauges: dict[str, Any] = {}
    while True:
        copy_samples(registry, make_gauge, gauges)
        await asyncio.sleep(period_s)


def copy_samples(registry: CollectorRegistry, make_gauge: Callable[..., Any], gauges: dict[str, Any]) -> None:
    """Copy all samples once. A gauge that is missing is made."""
    for metric in registry.collect():
        for sample in metric.samples:
            if sample.name not in gauges:
                gauges[sample.name] = make_gauge(
                    sample.name, description=metric.documentation, tag_keys=tuple(sample.labels)
                )
            gauges[sample.name].set(sample.value, tags=dict(sample.labels))
