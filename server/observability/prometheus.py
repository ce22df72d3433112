"""The Prometheus metrics: the `affinity_*` families, and calls by the `grpc_server_*` convention.

Triton's names are in server/observability/triton_names.py. The registry contains no metrics of the process. Labels
are names of loaded models, never names that a client sent.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from prometheus_client import Counter, Histogram

from server.admission.queue import RequestContext
from server.observability.observer import TimeSpent, Usage
from server.observability.registry import Registry
from server.observability.totals import Statistics
from server.observability.triton_names import TritonNames
from server.status import CANCEL_STATUSES, code_of

SECONDS = tuple(50e-6 * 2**power for power in range(22))  # 50 µs … 105 s
SIZES = tuple(float(2**power) for power in range(18))  # 1 … 131,072
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

MODEL = ("model", "version")
CALL = ("grpc_type", "grpc_service", "grpc_method")

HISTOGRAMS: dict[str, tuple[str, tuple[float, ...], tuple[str, ...]]] = {  # per model: help, buckets, further labels
    "affinity_queue_duration_seconds": ("Time that an input or a prompt waited to run.", SECONDS, ()),
    "affinity_collate_duration_seconds": ("Time to build a batch.", SECONDS, ()),
    "affinity_run_duration_seconds": ("Time to run a batch.", SECONDS, ()),
    "affinity_batch_rows": ("Inputs in a batch.", SIZES[:11], ()),
    "affinity_batch_tokens": ("Tokens in a batch, without padding.", SIZES, ()),
    "affinity_batch_padding_ratio": ("Share of padding in a batch.", SHARES, ()),
    "affinity_time_to_first_token_seconds": ("Time from a request to the first token of its answer.", SECONDS, ()),
    "affinity_inter_token_seconds": ("Time between two tokens of a sequence.", SECONDS, ()),
    "affinity_step_duration_seconds": ("Time of a generation step, by kind.", SECONDS, ("kind",)),
    "affinity_step_rows": ("Sequences in a generation step, by kind.", SIZES[:11], ("kind",)),
}
# Per model: help, and the values of the label `reason`, if any. prometheus_client appends `_total` to the names.
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "affinity_prompt_tokens": ("Prompt tokens.", ()),
    "affinity_cached_prompt_tokens": ("Prompt tokens whose keys and values were in the prefix cache.", ()),
    "affinity_generated_tokens": ("Generated tokens.", ()),
    "affinity_finished_generations": (
        "Sequences that finished, by reason.",
        ("stop", "length", "cancelled", "slow_client"),
    ),
    "affinity_padding_tokens": ("Padding in batches, in tokens.", ()),
    "affinity_failed_rows": ("Inputs whose batch failed.", ()),
    "affinity_dropped_rows": (
        "Inputs that left the queue without running, by reason.",
        ("cancelled", "expired", "slow_client", "failed", "overloaded"),
    ),
    "affinity_refused_requests": ("Requests that were refused, by reason.", ("overloaded",)),
}
TRITON_REASONS = {  # by status code; all others are OTHER
    "RESOURCE_EXHAUSTED": "REJECTED",
    "UNAVAILABLE": "REJECTED",
    "DEADLINE_EXCEEDED": "REJECTED",
    "CANCELLED": "CANCELED",
    "ABORTED": "CANCELED",
    "INTERNAL": "BACKEND",
}


class NoOpMetric:
    """A metric that ignores all values."""

    def inc(self, amount: float = 1) -> None: ...

    def observe(self, amount: float) -> None: ...


NO_OP_METRIC = NoOpMetric()


class Metrics:
    """All metric families in one registry, and the totals behind Triton's names."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.statistics: dict[tuple[str, str], Statistics] = {}
        families: dict[str, Any] = {
            name: Histogram(name, text, MODEL + labels, buckets=buckets, registry=self.registry)
            for name, (text, buckets, labels) in HISTOGRAMS.items()
        }
        for name, (text, reasons) in COUNTERS.items():
            families[name] = Counter(name, text, MODEL + ("reason",) * bool(reasons), registry=self.registry)
        self._families = families
        self._children: dict[tuple[str, ...], Any] = {}  # metrics by family, model, version and further labels
        self.registry.register(TritonNames(self.statistics))
        families["affinity_requests"] = Counter(
            "affinity_requests", "Requests, by status.", (*MODEL, "task", "status"), registry=self.registry
        )
        families["affinity_request_duration_seconds"] = Histogram(
            "affinity_request_duration_seconds",
            "Time of a request, from arrival to the last answer.",
            (*MODEL, "task"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._authenticated = Counter(
            "affinity_authenticated_calls", "Calls with a token, by client.", ("client",), registry=self.registry
        )
        self._clients: frozenset[str] = frozenset()
        started = Counter("grpc_server_started", "Calls that started.", CALL, registry=self.registry)
        ended = Counter(
            "grpc_server_handled", "Calls that finished, by status.", (*CALL, "grpc_code"), registry=self.registry
        )
        seconds = Histogram(
            "grpc_server_handling_seconds", "Time of calls.", CALL, buckets=SECONDS, registry=self.registry
        )
        # The methods of a server are few: their metrics are looked up once.
        self._calls_started, self._calls_ended = cache(started.labels), cache(ended.labels)
        self._call_seconds = cache(seconds.labels)

    def of(self, family: str, model: str, version: str, **labels: str) -> Any:
        """The metric of a family for one version of a model; a no-op metric if that version was unloaded."""
        if (model, version) not in self.statistics:
            return NO_OP_METRIC
        key = family, model, version, *labels.values()  # each family is always called with the same labels
        metric = self._children.get(key)
        if metric is None:
            metric = self._children[key] = self._families[family].labels(model=model, version=version, **labels)
        return metric

    def observe(self, model: str, version: str) -> "ModelObserver":
        """Create the observer for one version of a model."""
        self.statistics.setdefault((model, version), Statistics())
        self._initialise(model, version)
        return ModelObserver(self, model, version)

    def forget(self, model: str, version: str) -> None:
        """Remove all metrics of an unloaded version, so that labels do not accumulate over versions."""
        self.statistics.pop((model, version), None)
        self.registry.update()  # from here on `of` returns no metric of this version
        self._children = {key: metric for key, metric in self._children.items() if key[1:3] != (model, version)}
        for family in self._families.values():
            family.remove_by_labels({"model": model, "version": version})

    def _initialise(self, model: str, version: str) -> None:
        """Create the metrics of a model whose labels are known, so that Prometheus sees them at zero."""
        for name, (_, _, labels) in HISTOGRAMS.items():
            if not labels:
                self.of(name, model, version)
        for name, (_, reasons) in COUNTERS.items():
            for labelled in [{"reason": reason} for reason in reasons] or [{}]:
                self.of(name, model, version, **labelled)

    def request(self, model: str, version: str, task: str, context: RequestContext) -> "MeasuredRequest":
        """Counts and times one request to a loaded model for the duration of the `with` block, by its status."""
        return MeasuredRequest(self, model, version, task, context)

    # ---- a CallListener of server/rpc/calls/interceptors.py

    def set_clients(self, names: Iterable[str]) -> None:
        """The clients that have tokens now: the values of the label `client`."""
        before, self._clients = self._clients, frozenset(names)
        for name in before - self._clients:
            self._authenticated.remove(name)
        for name in self._clients - before:
            self._authenticated.labels(name)

    def call_authenticated(self, client: str) -> None:
        if client in self._clients:
            self._authenticated.labels(client).inc()

    def call_started(self, kind: str, service: str, method: str) -> None:
        self._calls_started(kind, service, method).inc()

    def call_ended(self, kind: str, service: str, method: str, code: str, seconds: float) -> None:
        self._calls_ended(kind, service, method, code).inc()
        self._call_seconds(kind, service, method).observe(seconds)


class MeasuredRequest:
    """Counts and times one request to a model. An error in the `with` block is the status of the request."""

    def __init__(self, metrics: Metrics, model: str, version: str, task: str, context: RequestContext) -> None:
        self._metrics, self._model, self._version, self._task = metrics, model, version, task
        self._context = context
        self._started = time.perf_counter()
        self._token_timer = TokenTimer(metrics, model, version, self._started)

    def __enter__(self) -> "TokenTimer":
        return self._token_timer

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        seconds, status = time.perf_counter() - self._started, self._status(error)
        self._of("affinity_requests", task=self._task, status=status).inc()
        self._of("affinity_request_duration_seconds", task=self._task).observe(seconds)
        if statistics := self._metrics.statistics.get((self._model, self._version)):
            failure = "" if status == "OK" else TRITON_REASONS.get(status, "OTHER")
            statistics.request(failure=failure, seconds=seconds)
            if self._token_timer.usages and not failure:
                statistics.generated(self._token_timer.usages)

    def _status(self, error: BaseException | None) -> str:
        if error is None:
            return "OK"
        if isinstance(error, GeneratorExit | asyncio.CancelledError):
            return CANCEL_STATUSES[self._context.cancel_reason(time.monotonic())].name
        return code_of(error).name

    def _of(self, family: str, **labels: str) -> Any:
        return self._metrics.of(family, self._model, self._version, **labels)


class TokenTimer:
    """Counts and times the tokens of one request while they are generated."""

    def __init__(self, metrics: Metrics, model: str, version: str, started: float) -> None:
        self._metrics, self._model, self._version = metrics, model, version
        self._started = started
        self._last: dict[int, float] = {}  # by prompt: the time of its latest token
        self.usages: list[Usage] = []  # of the sequences that have finished

    def record(self, count: int, *, prompt: int = 0) -> None:
        """Record new tokens of one sequence of the request."""
        if not count:
            return
        now, last = time.perf_counter(), self._last.get(prompt)
        self._last[prompt] = now
        self._metrics.registry.defer(self._record, count, now, last)

    def _record(self, count: int, now: float, last: float | None) -> None:
        if last is None:
            self._of("affinity_time_to_first_token_seconds").observe(now - self._started)
        between = self._of("affinity_inter_token_seconds")
        for _ in range(count - (last is None)):
            between.observe(0.0 if last is None else (now - last) / count)
        self._of("affinity_generated_tokens").inc(count)

    def _of(self, family: str) -> Any:
        return self._metrics.of(family, self._model, self._version)


class ModelObserver:
    """The Observer of one version of a model: turns its events into metrics."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._statistics = metrics.statistics[model, version]
        self._metrics, self._model, self._version = metrics, model, version

    def batch(
        self, *, items: int, tokens: int, padded_tokens: int, queue_seconds: Sequence[float], spent: TimeSpent
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

    def answered(self, spent: TimeSpent) -> None:
        self._statistics.answered(spent)

    def failed(self, items: int) -> None:
        self._of("affinity_failed_rows").inc(items)

    def dropped(self, reason: str) -> None:
        self._of("affinity_dropped_rows", reason=reason).inc()

    def refused(self, reason: str) -> None:
        self._of("affinity_refused_requests", reason=reason).inc()

    def step(self, *, kind: str, sequences: int, tokens: int, seconds: float) -> None:
        self._statistics.step(sequences, TimeSpent(run_seconds=seconds))
        self._metrics.registry.defer(self._observe_step, kind, sequences, seconds)

    def _observe_step(self, kind: str, sequences: int, seconds: float) -> None:
        self._of("affinity_step_duration_seconds", kind=kind).observe(seconds)
        self._of("affinity_step_rows", kind=kind).observe(sequences)

    def finished(self, *, reason: str, usage: Usage) -> None:
        self._of("affinity_finished_generations", reason=reason).inc()
        self._of("affinity_prompt_tokens").inc(usage.prompt_tokens)
        self._of("affinity_cached_prompt_tokens").inc(usage.cached_tokens)
        self._of("affinity_queue_duration_seconds").observe(usage.queue_seconds)

    def _of(self, family: str, **labels: str) -> Any:
        return self._metrics.of(family, self._model, self._version, **labels)
