"""What Prometheus sees: our own `affinity_*` families, and calls by the `grpc_server_*` convention.

Triton's names stand in server/observability/triton_names.py. The registry holds nothing else of the process. Labels
are names of models that are loaded, never names that a client made up.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from server.admission.queue import RequestContext
from server.observability.observer import Spent, Usage
from server.observability.totals import Statistics
from server.observability.triton_names import TritonNames
from server.status import GONE, code_of

SECONDS = tuple(50e-6 * 2**power for power in range(22))  # 50 µs … 105 s
SIZES = tuple(float(2**power) for power in range(18))  # 1 … 131,072
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

MODEL = ("model", "version")
CALL = ("grpc_type", "grpc_service", "grpc_method")

HISTOGRAMS: dict[str, tuple[str, tuple[float, ...], tuple[str, ...]]] = {  # of one model: text, buckets, more labels
    "affinity_queue_duration_seconds": ("How long an input or a prompt waited to run.", SECONDS, ()),
    "affinity_collate_duration_seconds": ("How long a batch took to put together.", SECONDS, ()),
    "affinity_run_duration_seconds": ("How long a batch ran.", SECONDS, ()),
    "affinity_batch_rows": ("Inputs that ran together.", SIZES[:11], ()),
    "affinity_batch_tokens": ("Tokens that ran together, without padding.", SIZES, ()),
    "affinity_batch_padding_ratio": ("The share of a batch that was padding.", SHARES, ()),
    "affinity_time_to_first_token_seconds": ("From a request to the first token of its answer.", SECONDS, ()),
    "affinity_inter_token_seconds": ("Between one token of a continuation and the next.", SECONDS, ()),
    "affinity_step_duration_seconds": ("How long a step of generation took, by kind.", SECONDS, ("kind",)),
    "affinity_step_rows": ("Continuations that were in a step, by kind.", SIZES[:11], ("kind",)),
}
# Of one model: text, and the reasons that there are, where it has any. Prometheus sees them with `_total` behind.
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "affinity_prompt_tokens": ("Tokens of prompts.", ()),
    "affinity_cached_prompt_tokens": ("Tokens of prompts whose keys and values were at hand.", ()),
    "affinity_generated_tokens": ("Tokens of continuations.", ()),
    "affinity_finished_generations": ("Continuations that ended, by reason.", ("stop", "length", "cancelled")),
    "affinity_padding_tokens": ("Padding that ran beside tokens, in tokens.", ()),
    "affinity_failed_rows": ("Inputs whose run failed.", ()),
    "affinity_dropped_rows": (
        "Inputs that left the queue without running, by reason.",
        ("cancelled", "expired", "failed"),
    ),
    "affinity_refused_requests": ("Requests that were not let in, by reason.", ("overloaded",)),
}
TRITON_REASONS = {  # by status code; anything else is OTHER
    "RESOURCE_EXHAUSTED": "REJECTED",
    "UNAVAILABLE": "REJECTED",
    "DEADLINE_EXCEEDED": "REJECTED",
    "CANCELLED": "CANCELED",
    "INTERNAL": "BACKEND",
}


class NoOpMetric:
    """Counts nothing."""

    def inc(self, amount: float = 1) -> None: ...

    def observe(self, amount: float) -> None: ...


NO_OP_METRIC = NoOpMetric()


class Metrics:
    """All families, in one registry, and the plain totals behind Triton's names."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.statistics: dict[tuple[str, str], Statistics] = {}
        families: dict[str, Any] = {
            name: Histogram(name, text, MODEL + labels, buckets=buckets, registry=self.registry)
            for name, (text, buckets, labels) in HISTOGRAMS.items()
        }
        for name, (text, reasons) in COUNTERS.items():
            families[name] = Counter(name, text, MODEL + ("reason",) * bool(reasons), registry=self.registry)
        self._families = families
        self.registry.register(TritonNames(self.statistics))
        families["affinity_requests"] = Counter(
            "affinity_requests", "Requests, by how they ended.", (*MODEL, "task", "status"), registry=self.registry
        )
        families["affinity_request_duration_seconds"] = Histogram(
            "affinity_request_duration_seconds",
            "How long a request took, from the front door to the last answer.",
            (*MODEL, "task"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._calls_started = Counter("grpc_server_started", "Calls that began.", CALL, registry=self.registry)
        self._calls_ended = Counter(
            "grpc_server_handled", "Calls that ended, by status.", (*CALL, "grpc_code"), registry=self.registry
        )
        self._call_seconds = Histogram(
            "grpc_server_handling_seconds", "How long calls took.", CALL, buckets=SECONDS, registry=self.registry
        )

    def of(self, family: str, model: str, version: str, **labels: str) -> Any:
        """The child of a family for one version of a model; nothing that counts for one that is gone."""
        if (model, version) not in self.statistics:
            return NO_OP_METRIC
        return self._families[family].labels(model=model, version=version, **labels)

    def observe(self, model: str, version: str) -> "ModelObserver":
        """The observer of one version of a model: an `Observe` (server/observability/observer.py)."""
        self.statistics.setdefault((model, version), Statistics())
        self._from_zero(model, version)
        return ModelObserver(self, model, version)

    def forget(self, model: str, version: str) -> None:
        """Let go of what was counted for a version that is gone, or labels would pile up over the versions."""
        self.statistics.pop((model, version), None)
        for family in self._families.values():
            family.remove_by_labels({"model": model, "version": version})

    def _from_zero(self, model: str, version: str) -> None:
        """Make all children of a model whose labels are known, so that Prometheus sees them before they count."""
        for name, (_, _, labels) in HISTOGRAMS.items():
            if not labels:
                self.of(name, model, version)
        for name, (_, reasons) in COUNTERS.items():
            for labelled in [{"reason": reason} for reason in reasons] or [{}]:
                self.of(name, model, version, **labelled)

    @contextmanager
    def request(self, model: str, version: str, task: str, call: RequestContext) -> Iterator["Tokens"]:
        """Count and time one request to a model that exists; however it ends, by its status."""
        started = time.perf_counter()
        status, tokens = "OK", Tokens(self, model, version, started)
        try:
            yield tokens
        except (GeneratorExit, asyncio.CancelledError):
            status = GONE[call.why_gone(time.monotonic())].name
            raise
        except BaseException as error:
            status = code_of(error).name
            raise
        finally:
            seconds = time.perf_counter() - started
            self.of("affinity_requests", model, version, task=task, status=status).inc()
            self.of("affinity_request_duration_seconds", model, version, task=task).observe(seconds)
            if statistics := self.statistics.get((model, version)):
                failure = "" if status == "OK" else TRITON_REASONS.get(status, "OTHER")
                statistics.request(failure=failure, seconds=seconds)
                if tokens.usages and not failure:
                    statistics.generated(tokens.usages)

    # ---- a CallListener of server/rpc/interceptors.py

    def call_started(self, kind: str, service: str, method: str) -> None:
        self._calls_started.labels(kind, service, method).inc()

    def call_ended(self, kind: str, service: str, method: str, code: str, seconds: float) -> None:
        self._calls_ended.labels(kind, service, method, code).inc()
        self._call_seconds.labels(kind, service, method).observe(seconds)


class Tokens:
    """Counts and times the tokens of one request as its answer comes."""

    def __init__(self, metrics: Metrics, model: str, version: str, started: float) -> None:
        self._metrics, self._model, self._version = metrics, model, version
        self._started = started
        self._last: dict[int, float] = {}  # by prompt: when its last piece came
        self.usages: list[Usage] = []  # of the prompts whose continuations have ended

    def came(self, count: int, *, prompt: int = 0) -> None:
        """So many new tokens for one of the request's prompts."""
        if not count:
            return
        now = time.perf_counter()
        first = prompt not in self._last
        if first:
            self._of("affinity_time_to_first_token_seconds").observe(now - self._started)
        between = self._of("affinity_inter_token_seconds")
        for _ in range(count - first):
            between.observe((now - self._last.get(prompt, now)) / count)
        self._last[prompt] = now
        self._of("affinity_generated_tokens").inc(count)

    def _of(self, family: str) -> Any:
        return self._metrics.of(family, self._model, self._version)


class ModelObserver:
    """An Observer (server/observability/observer.py) of one version of one model."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._statistics = metrics.statistics[model, version]
        self._metrics, self._model, self._version = metrics, model, version

    def batch(
        self, *, items: int, tokens: int, padded_tokens: int, queue_seconds: Sequence[float], spent: Spent
    ) -> None:
        self._statistics.batch(items, spent)
        queue = self._of("affinity_queue_duration_seconds")
        for waited in queue_seconds:
            queue.observe(waited)
        self._of("affinity_collate_duration_seconds").observe(spent.collate_seconds)
        self._of("affinity_run_duration_seconds").observe(spent.run_seconds)
        self._of("affinity_batch_rows").observe(items)
        self._of("affinity_batch_tokens").observe(tokens)
        self._of("affinity_padding_tokens").inc(padded_tokens - tokens)
        self._of("affinity_batch_padding_ratio").observe(1 - tokens / padded_tokens if padded_tokens else 0)

    def answered(self, spent: Spent) -> None:
        self._statistics.answered(spent)

    def failed(self, items: int) -> None:
        self._of("affinity_failed_rows").inc(items)

    def dropped(self, reason: str) -> None:
        self._of("affinity_dropped_rows", reason=reason).inc()

    def refused(self, reason: str) -> None:
        self._of("affinity_refused_requests", reason=reason).inc()

    def step(self, *, kind: str, sequences: int, tokens: int, seconds: float) -> None:
        self._of("affinity_step_duration_seconds", kind=kind).observe(seconds)
        self._of("affinity_step_rows", kind=kind).observe(sequences)
        self._statistics.step(sequences, Spent(run_seconds=seconds))

    def finished(self, *, reason: str, usage: Usage) -> None:
        self._of("affinity_finished_generations", reason=reason).inc()
        self._of("affinity_prompt_tokens").inc(usage.prompt_tokens)
        self._of("affinity_cached_prompt_tokens").inc(usage.cached_tokens)
        self._of("affinity_queue_duration_seconds").observe(usage.queue_seconds)

    def _of(self, family: str, **labels: str) -> Any:
        return self._metrics.of(family, self._model, self._version, **labels)
