"""A real Prometheus scrapes a real server: all numbers arrive, and promtool accepts our metric names."""

import subprocess
import time
import urllib.request

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tokenizers import Tokenizer

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from server.client import CallFailed, Client
from server.observability.prometheus import Metrics
from server.repository.gauges import ModelMetrics
from tests.prometheus import PATIENCE_S, needs_prometheus, prometheus, scrape
from tests.server.rpc.affinity.test_servicer import TEXT, picture
from tests.serving import served

pytestmark = needs_prometheus

OWN = ("job", "instance")  # labels that Prometheus adds


MODELS = "tiny-bert,tiny-gpt,tiny-vit,tiny-classifier"
WAITING = ("--set", "tiny-classifier.max_delay_seconds=60", "--set", "tiny-classifier.max_queue_requests=1")
PROMPT = "A list is"


@pytest.fixture(scope="module")
def busy(artifacts):
    """A server after some traffic."""
    with served(artifacts, "--models", MODELS, *WAITING) as running, Client(running.target, retries=False) as client:
        client.fill_mask([TEXT, TEXT], model="tiny-bert")
        client.classify_image([picture()])
        list(client.generate(PROMPT, max_tokens=8, ignore_eos=True))
        with pytest.raises(CallFailed):
            client.fill_mask([""], model="tiny-bert")
        fill_the_queue(running, client)
        yield running


def fill_the_queue(server, client):
    """One request waits for a larger batch, another one is refused, and the first one is cancelled."""
    with grpc.insecure_channel(server.target) as channel:
        waiting = AffinityStub(channel).ClassifyText.future(pb.ClassifyTextRequest(inputs=["a list"]))
        until(server, "affinity_queue_rows", {"model": "tiny-classifier"}, 1)
        with pytest.raises(CallFailed, match="the queue of tiny-classifier is full"):
            client.classify_text(["a set"])
        waiting.cancel()
    until(server, "affinity_requests_total", {"model": "tiny-classifier", "status": "CANCELLED"}, 1)


def until(server, name, labels, value):
    """Wait until a metric of the server has this value."""
    deadline = time.monotonic() + PATIENCE_S
    while (current := found(exposed(server), name, **labels)) != value and time.monotonic() < deadline:
        time.sleep(0.01)
    assert current == value


def found(samples, name, **labels):
    """The only sample of that name that has these labels, among others; None if there is none."""
    values = [value for (of, own), value in samples.items() if of == name and labels.items() <= dict(own).items()]
    assert len(values) <= 1, f"several of {name} {labels}"
    return values[0] if values else None


def exposed(server):
    """(name, labels) → value, as the server says."""
    with urllib.request.urlopen(server.url("/metrics")) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }


def stored(monitoring):
    """(name, labels) → value, as Prometheus has it."""
    results = monitoring.get("query", query='{job="affinity"}')["result"]
    found = {}
    for result in results:
        labels = {key: value for key, value in result["metric"].items() if key not in OWN}
        found[labels.pop("__name__"), frozenset(labels.items())] = float(result["value"][1])
    return found


def canonical(samples):
    """Prometheus writes the bounds of buckets in its own way: 1e-05 as 1e-05, 1.0 as 1."""
    return {
        (name, frozenset((key, float(value) if key == "le" else value) for key, value in labels)): number
        for (name, labels), number in samples.items()
    }


def of(model, **labels):
    return {"model": f"tiny-{model}", "version": "1", **labels}


BERT, GPT, VIT, WAITS = of("bert"), of("gpt"), of("vit"), of("classifier")
EXPECTED = [  # what the traffic comes to
    ("affinity_requests_total", of("bert", task="fill-mask", status="OK"), 1),
    ("affinity_requests_total", of("bert", task="fill-mask", status="INVALID_ARGUMENT"), 1),
    ("affinity_requests_total", of("gpt", task="generate", status="OK"), 1),
    ("affinity_requests_total", of("vit", task="classify-image", status="OK"), 1),
    ("affinity_requests_total", of("classifier", task="classify-text", status="RESOURCE_EXHAUSTED"), 1),
    ("affinity_requests_total", of("classifier", task="classify-text", status="CANCELLED"), 1),
    ("affinity_request_duration_seconds_count", of("bert", task="fill-mask"), 2),
    ("affinity_request_duration_seconds_bucket", of("gpt", task="generate", le="+Inf"), 1),
    ("affinity_queue_duration_seconds_count", BERT, 2),
    ("affinity_queue_duration_seconds_count", GPT, 1),
    ("affinity_run_duration_seconds_count", VIT, 1),
    ("affinity_collate_duration_seconds_count", VIT, 1),
    ("affinity_batch_rows_sum", BERT, 2),
    ("affinity_batch_rows_sum", VIT, 1),
    ("affinity_batch_padding_ratio_sum", BERT, 0),  # both are of one length
    ("affinity_batch_padding_ratio_count", VIT, 1),
    ("affinity_time_to_first_token_seconds_count", GPT, 1),
    ("affinity_inter_token_seconds_count", GPT, 7),
    ("affinity_generated_tokens_total", GPT, 8),
    ("affinity_cached_prompt_tokens_total", GPT, 0),
    ("affinity_finished_generations_total", of("gpt", reason="length"), 1),
    ("affinity_finished_generations_total", of("gpt", reason="cancelled"), 0),
    ("affinity_step_duration_seconds_count", of("gpt", kind="decode"), 7),
    ("affinity_step_rows_sum", of("gpt", kind="decode"), 7),
    ("affinity_refused_requests_total", of("classifier", reason="overloaded"), 1),
    ("affinity_dropped_rows_total", of("classifier", reason="cancelled"), 1),
    ("affinity_dropped_rows_total", of("classifier", reason="expired"), 0),
    ("affinity_failed_rows_total", BERT, 0),
    ("affinity_queue_rows", WAITS, 0),
    ("affinity_queue_tokens", WAITS, 0),
    ("affinity_running_rows", BERT, 0),
    ("affinity_slots", GPT, 32),
    ("affinity_slots_used", GPT, 0),
    ("affinity_model_info", of("gpt", task="generate", provider="cpu", precision="fp32"), 1),
    ("affinity_model_parity_tolerance", of("bert", measure="maximum"), 1e-4),
    ("nv_inference_request_success", BERT, 1),
    ("nv_inference_request_failure", of("bert", reason="OTHER"), 1),
    ("nv_inference_request_failure", of("classifier", reason="REJECTED"), 1),
    ("nv_inference_request_failure", of("classifier", reason="CANCELED"), 1),
    ("nv_inference_count", BERT, 2),
    ("nv_inference_count", GPT, 1),
    ("nv_inference_exec_count", VIT, 1),
    ("nv_inference_pending_request_count", WAITS, 0),
]


@pytest.fixture(scope="module")
def samples(busy, tmp_path_factory):
    """The samples of the server, and those of Prometheus when it has scraped all of them."""
    expected = canonical(exposed(busy))
    job = {"job_name": "affinity", "static_configs": [{"targets": [f"127.0.0.1:{busy.http_port}"]}]}
    with prometheus(scrape([job]), tmp_path_factory.mktemp("prometheus")) as monitoring:
        deadline = time.monotonic() + PATIENCE_S
        found: dict = {}
        while not expected.items() <= found.items() and time.monotonic() < deadline:
            found = canonical(stored(monitoring))
    return expected, found


def test_all_samples_arrive(samples):
    expected, found = samples
    assert {key: found.get(key) for key in expected} == expected
    assert len(expected) > 300


@pytest.mark.parametrize(("name", "labels", "value"), EXPECTED, ids=lambda each: each if isinstance(each, str) else "")
def test_the_samples_match_the_traffic(samples, name, labels, value):
    labels = {key: float(text) if key == "le" else text for key, text in labels.items()}
    assert found(samples[1], name, **labels) == value


def test_token_counts_are_those_of_the_tokenizers(samples, artifacts):
    def tokens(model, text):
        return len(Tokenizer.from_file(str(artifacts / model / "1" / "tokenizer.json")).encode(text).ids)

    assert found(samples[1], "affinity_batch_tokens_sum", **BERT) == 2 * tokens("tiny-bert", TEXT)
    assert found(samples[1], "affinity_prompt_tokens_total", **GPT) == tokens("tiny-gpt", PROMPT)


def test_times_add_up(samples):
    """In seconds, and in microseconds under Triton's names, of the only request."""

    def seconds(name, **labels):
        return found(samples[1], f"affinity_{name}_seconds_sum", **VIT, **labels)

    request = seconds("request_duration", task="classify-image")
    assert 0 < seconds("run_duration") <= request
    assert 0 < seconds("queue_duration") <= request
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    spent = {part: found(samples[1], f"nv_inference_{part}_duration_us", **VIT) for part in parts}
    assert spent["compute_infer"] == pytest.approx(seconds("run_duration") * 1e6, abs=1)
    assert sum(spent.values()) <= found(samples[1], "nv_inference_request_duration_us", **VIT) + 4
    assert 0 < found(samples[1], "affinity_model_parity_error", **VIT, measure="maximum") < 1e-4


def test_no_metric_family_is_missing(samples):
    """Prometheus has every metric of the server, also those of events that have not occurred."""
    metrics = Metrics()
    metrics.observe("some", "1")
    families = [*metrics.registry.collect(), *ModelMetrics(lambda: (), lambda: ()).collect()]
    stored = {name for name, _ in samples[1]}
    suffixes = ("", "_total", "_bucket")
    missing = {each.name for each in families if not {each.name + suffix for suffix in suffixes} & stored}
    assert missing == {
        "affinity_authenticated_calls",  # by client
        "affinity_failed_versions",  # by reason and model
        "affinity_tuning_info",  # of models that were tuned
        "affinity_tuning_speedup_ratio",
    }


def promtool(server, path):
    with urllib.request.urlopen(server.url(path)) as answer:
        text = answer.read()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    return done.returncode, sorted((done.stdout + done.stderr).decode().splitlines())


def test_promtool_accepts_our_own_names(busy):
    assert promtool(busy, "/metrics/own") == (0, [])


def test_promtool_rejects_only_the_microseconds_in_tritons_names(busy):
    kinds = ("compute_infer", "compute_input", "compute_output", "queue", "request")
    complaints = [
        f"nv_inference_{kind}_duration_us metric names should not contain abbreviated units" for kind in kinds
    ]
    assert promtool(busy, "/metrics") == (3, complaints)
