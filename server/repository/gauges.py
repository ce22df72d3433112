"""Gauges of the models that are served. They are read at each scrape, so an unloaded model disappears at once."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from protos.artifact import MAXIMUM, ROOT_MEAN_SQUARE
from server.repository.model import Model
from server.repository.states import Entry

MODEL = ("model", "version")
QUEUES: dict[str, tuple[str, Callable[[Model], float]]] = {
    "affinity_queue_rows": ("Inputs waiting to run.", lambda model: model.backend.waiting_inputs),
    "affinity_queue_tokens": (
        "Tokens waiting to run.",
        lambda model: model.backend.waiting_tokens,
    ),
    "affinity_predicted_wait_seconds": (
        "Predicted time until an input that arrives now would run, or a prompt have its first token.",
        lambda model: model.backend.predicted_wait_s,
    ),
    "affinity_running_rows": (
        "Inputs, or continuations, running now.",
        lambda model: model.backend.running_inputs,
    ),
    "affinity_slots_used": (
        "Continuations that hold a slot.",
        lambda model: model.backend.running_inputs if model.backend.slots else 0,
    ),
    "affinity_slots": (
        "Continuations that can run together.",
        lambda model: model.backend.slots,
    ),
}


class ModelMetrics(Collector):
    """Collects the gauges of the models that are served, and of the versions that could not be loaded."""

    def __init__(self, models: Callable[[], Sequence[Model]], failures: Callable[[], Sequence[Entry]]) -> None:
        """Both functions are called from other threads."""
        self._models, self._failures = models, failures

    def collect(self) -> Iterable[Metric]:
        models = self._models()
        for name, (text, value) in QUEUES.items():
            family = GaugeMetricFamily(name, text, labels=MODEL)
            for model in models:
                family.add_metric((model.name, model.version), value(model))
            yield family
        yield _pending(models)
        yield _info(models)
        yield from _tuning(models)
        yield from _parity(models)
        yield from _golden_inputs(models)
        yield _failed_versions(self._failures())


def _pending(models: Sequence[Model]) -> Metric:
    """The queue under Triton's name (server/observability/triton_names.py), untyped: a gauge must not end in _count."""
    pending = UnknownMetricFamily("nv_inference_pending_request_count", "Inputs waiting to run.", labels=MODEL)
    for model in models:
        pending.add_metric((model.name, model.version), model.backend.waiting_inputs)
    return pending


def _info(models: Sequence[Model]) -> Metric:
    info = GaugeMetricFamily(
        "affinity_model_info",
        "Always 1; labels: the task of a model, and the provider and precision that it runs with.",
        labels=(*MODEL, "task", "provider", "precision"),
    )
    for model in models:
        task = model.artifact.manifest.task
        info.add_metric((model.name, model.version, task, model.provider, model.precision), 1)
    return info


def _tuning(models: Sequence[Model]) -> Iterable[Metric]:
    """What was chosen by measuring, and how many times as fast as the default it was."""
    info = GaugeMetricFamily(
        "affinity_tuning_info",
        "Always 1; labels: how the model runs, as chosen by measuring (sizes: 0 is the default), and the source of the "
        "choice: measured when it was loaded, or from the cache.",
        labels=(*MODEL, "provider", "precision", "threads", "max_batch_tokens", "max_prefill_tokens", "source"),
    )
    speedups = GaugeMetricFamily(
        "affinity_tuning_speedup_ratio",
        "How many times as fast as the default the choice was when it was measured; 1: it is the default.",
        labels=MODEL,
    )
    for model in models:
        if model.tuning is None:
            continue
        choice, name = model.tuning.choice, (model.name, model.version)
        sizes, way = choice.sizes, choice.candidate
        numbers = map(str, (way.threads, sizes.max_batch_tokens, sizes.max_prefill_tokens))
        info.add_metric((*name, way.provider, way.precision, *numbers, model.tuning.source), 1)
        speedups.add_metric(name, choice.speedup)
    yield info
    yield speedups


def _parity(models: Sequence[Model]) -> Iterable[Metric]:
    """Both errors of each model, and the tolerance of the one that was checked."""
    errors = GaugeMetricFamily(
        "affinity_model_parity_error",
        "Error against PyTorch on the golden inputs, in standard deviations, measured when the model was loaded.",
        labels=(*MODEL, "measure"),
    )
    tolerances = GaugeMetricFamily(
        "affinity_model_parity_tolerance", "Maximum of affinity_model_parity_error.", labels=(*MODEL, "measure")
    )
    for model in models:
        name, parity = (model.name, model.version), model.parity
        errors.add_metric((*name, MAXIMUM), parity.maximum)
        errors.add_metric((*name, ROOT_MEAN_SQUARE), parity.root_mean_square)
        tolerances.add_metric((*name, parity.measure), parity.tolerance)
    yield errors
    yield tolerances


def _golden_inputs(models: Sequence[Model]) -> Iterable[Metric]:
    """The golden texts or images that each model was checked with when it was loaded."""
    inputs = GaugeMetricFamily(
        "affinity_model_golden_inputs",
        "Golden texts and images that the server encoded as transformers did, checked when the model was loaded.",
        labels=(*MODEL, "kind"),
    )
    errors = GaugeMetricFamily(
        "affinity_model_golden_pixel_error",
        "Largest difference of a pixel of the golden images from that of transformers, in grey levels of 256.",
        labels=MODEL,
    )
    for model in models:
        name, golden = (model.name, model.version), model.preprocessing_parity
        if golden.texts:
            inputs.add_metric((*name, "text"), golden.texts)
        if golden.images:
            inputs.add_metric((*name, "image"), golden.images)
            errors.add_metric(name, golden.pixel_error)
    yield inputs
    yield errors


def _failed_versions(failures: Sequence[Entry]) -> Metric:
    """By model and reason, without the versions, so that the number of labels is bounded."""
    family = GaugeMetricFamily(
        "affinity_failed_versions",
        "Versions that could not be loaded, by reason; RepositoryIndex has the details.",
        labels=("model", "reason"),
    )
    for labels, count in sorted(Counter((entry.name, entry.failure) for entry in failures).items()):
        family.add_metric(labels, count)
    return family
