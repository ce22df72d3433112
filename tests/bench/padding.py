"""The share of padding in the tokens that a server ran, from its metrics."""

import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.serving import Served

TEXT, PADDING = "affinity_batch_tokens_sum", "affinity_padding_tokens_total"


@dataclass(frozen=True)
class BatchResult:
    """The tokens that one model has run so far."""

    text: float
    padding: float

    def share_since(self, before: "BatchResult") -> float:
        """The share of padding in the tokens after `before`."""
        text, padding = self.text - before.text, self.padding - before.padding
        return padding / (text + padding)


def ran(server: Served, model: str) -> BatchResult:
    with urllib.request.urlopen(server.url("/metrics")) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples if sample.labels.get("model") == model]

    def total(name: str) -> float:
        return sum(sample.value for sample in samples if sample.name == name)

    return BatchResult(total(TEXT), total(PADDING))
