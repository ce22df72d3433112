"""Metrics after known traffic, and responses to probes."""

import urllib.error
import urllib.request

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from protos.affinity_pb2_grpc import AffinityStub
from server.client import CallFailed, Client
from server.observability.http import HttpServer
from server.observability.prometheus import Metrics
from tests.server.generation.test_failures import NARROW, large_request
from tests.server.observability.test_prometheus import until
from tests.server.rpc.affinity.test_servicer import TEXT, picture
from tests.serving import served

ABORTED = 40  # prompts of the call that is cancelled


def read(url):
    with urllib.request.urlopen(url) as answer:
        return answer.read().decode()


@pytest.fixture(scope="module")
def scraped(artifacts):
    """The samples (name, labels) → value after known traffic."""
    with served(artifacts, "--models", "tiny-bert,tiny-gpt,tiny-vit") as running, Client(running.target) as client:
        for _ in range(3):
            client.fill_mask([TEXT, TEXT + " The statement."], model="tiny-bert")
        client.classify_image([picture()])
        list(client.generate("A list is", model="tiny-gpt", max_tokens=8, ignore_eos=True))
        for model in ("missing", "tiny-gpt"):
            with pytest.raises(CallFailed):
                client.fill_mask([TEXT], model=model)
        with pytest.raises(CallFailed):
            client.fill_mask(["no mask"], model="tiny-bert")
        abort(running)
        text = read(running.url("/metrics"))
        families = list(text_string_to_metric_families(text))
        yield {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }


def abort(running):
    """Start a generation of several texts and cancel it; returns when the server has counted it."""
    with grpc.insecure_channel(running.target, NARROW) as channel:
        call = AffinityStub(channel).Generate(large_request(ABORTED))  # does not end before it is read
        next(call)
        call.cancel()
        until(running, "grpc_server_handled_total", {"grpc_method": "Generate", "grpc_code": "CANCELLED"}, 1)
    with Client(running.target) as client:
        list(client.generate("A list is", model="tiny-gpt", max_tokens=8, ignore_eos=True))


def value(scraped, name, **labels):
    return scraped.get((name, tuple(sorted(labels.items()))))


BERT = {"model": "tiny-bert", "version": "1"}
GPT = {"model": "tiny-gpt", "version": "1"}


def test_requests_are_counted_by_status(scraped):
    assert value(scraped, "affinity_requests_total", **BERT, task="fill-mask", status="OK") == 3
    assert value(scraped, "affinity_requests_total", **BERT, task="fill-mask", status="INVALID_ARGUMENT") == 1
    assert value(scraped, "affinity_requests_total", **GPT, task="generate", status="OK") == 2
    assert value(scraped, "affinity_requests_total", **GPT, task="generate", status="CANCELLED") == 1
    assert value(scraped, "affinity_request_duration_seconds_count", **BERT, task="fill-mask") == 4


def test_names_from_clients_are_not_labels(scraped):
    assert {dict(labels)["model"] for _, labels in scraped if "model" in dict(labels)} == {
        "tiny-bert",
        "tiny-gpt",
        "tiny-vit",
    }


def test_batches_are_measured(scraped):
    assert value(scraped, "affinity_batch_rows_sum", **BERT) == 6
    assert value(scraped, "affinity_queue_duration_seconds_count", **BERT) == 6
    batches = value(scraped, "affinity_run_duration_seconds_count", **BERT)
    assert 3 <= batches <= 6
    assert value(scraped, "affinity_batch_padding_ratio_count", **BERT) == batches


def test_tokens_are_counted_and_timed(scraped):
    begun = value(scraped, "affinity_time_to_first_token_seconds_count", **GPT)
    assert 2 < begun <= 2 + ABORTED
    generated = value(scraped, "affinity_generated_tokens_total", **GPT)
    assert 16 < generated <= 16 + 60 * ABORTED
    assert value(scraped, "affinity_inter_token_seconds_count", **GPT) == generated - begun
    ended = [
        value(scraped, "affinity_finished_generations_total", **GPT, reason=each) for each in ("length", "cancelled")
    ]
    assert ended[0] >= 2
    assert begun <= sum(ended) <= 2 + ABORTED
    assert value(scraped, "affinity_slots_used", **GPT) == 0


def test_models_have_provider_and_parity_metrics(scraped):
    labels = {**BERT, "task": "fill-mask", "provider": "cpu", "precision": "fp32"}
    assert value(scraped, "affinity_model_info", **labels) == 1
    assert 0 < value(scraped, "affinity_model_parity_error", **BERT, measure="maximum") < 1e-4
    assert value(scraped, "affinity_model_parity_tolerance", **BERT, measure="maximum") == 1e-4


def test_calls_are_counted_by_the_convention(scraped):
    method = {"grpc_service": "affinity.v1.Affinity", "grpc_method": "FillMask", "grpc_type": "unary"}
    assert value(scraped, "grpc_server_started_total", **method) == 6
    assert value(scraped, "grpc_server_handled_total", **method, grpc_code="OK") == 3
    assert value(scraped, "grpc_server_handled_total", **method, grpc_code="NOT_FOUND") == 1
    assert value(scraped, "grpc_server_handled_total", **method, grpc_code="FAILED_PRECONDITION") == 1
    assert value(scraped, "grpc_server_handling_seconds_count", **method) == 6
    stream = {"grpc_service": "affinity.v1.Affinity", "grpc_method": "Generate", "grpc_type": "server_stream"}
    assert value(scraped, "grpc_server_handled_total", **stream, grpc_code="CANCELLED") == 1


def test_the_numbers_are_also_exported_under_tritons_names(scraped):
    assert value(scraped, "nv_inference_request_success", **BERT) == 3
    assert value(scraped, "nv_inference_request_failure", **BERT, reason="OTHER") == 1
    assert value(scraped, "nv_inference_request_failure", **GPT, reason="CANCELED") == 1
    assert value(scraped, "nv_inference_count", **BERT) == 6
    assert value(scraped, "nv_inference_exec_count", **BERT) == value(
        scraped, "affinity_run_duration_seconds_count", **BERT
    )
    assert value(scraped, "nv_inference_compute_infer_duration_us", **BERT) > 0
    assert value(scraped, "nv_inference_pending_request_count", **BERT) == 0


def test_probes_are_answered(server):
    assert read(server.url("/livez")) == "alive\n"
    assert read(server.url("/readyz")) == "ready\n"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        read(server.url("/nowhere"))


def test_a_server_that_is_not_ready_says_503():
    http = HttpServer("127.0.0.1", 0, Metrics().registry, lambda: False)
    try:
        assert read(f"http://127.0.0.1:{http.port}/livez") == "alive\n"
        with pytest.raises(urllib.error.HTTPError, match="503"):
            read(f"http://127.0.0.1:{http.port}/readyz")
    finally:
        http.stop()
