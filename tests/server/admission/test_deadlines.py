"""Requests whose callers are gone before it was their turn: dropped from the queue, and counted once, by the reason."""

import grpc
import pytest

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from tests.server.observability.test_prometheus import exposed, found, until
from tests.serving import served

MODEL = {"model": "tiny-classifier", "version": "1"}
PATIENT = ("--models", "tiny-classifier", "--set", "tiny-classifier.max_delay_seconds=60")
# A client leaves at its own deadline, and gRPC rounds the one that it tells the server up: this one to 1.01 s.
TIMEOUTS_S = (0.4, 1.001)


@pytest.fixture(scope="module")
def told(artifacts):
    """What a server counts that lets everything wait for company, of requests of two texts each."""
    request = pb.ClassifyTextRequest(inputs=["a list", "a set"])
    with served(artifacts, *PATIENT) as running, grpc.insecure_channel(running.target) as channel:
        grpc.channel_ready_future(channel).result()
        stub = AffinityStub(channel)
        for timeout in TIMEOUTS_S:
            with pytest.raises(grpc.RpcError) as error:
                stub.ClassifyText(request, timeout=timeout)
            assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        until(running, "affinity_queue_rows", MODEL, 0)
        leaving = stub.ClassifyText.future(request)
        until(running, "affinity_queue_rows", MODEL, 2)
        leaving.cancel()
        until(running, "grpc_server_handled_total", {"grpc_method": "ClassifyText", "grpc_code": "CANCELLED"}, 1)
        yield exposed(running)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("affinity_requests_total", {"status": "DEADLINE_EXCEEDED"}),
        ("nv_inference_request_failure", {"reason": "REJECTED"}),
        ("grpc_server_handled_total", {"grpc_code": "DEADLINE_EXCEEDED"}),
    ],
)
def test_a_request_whose_deadline_passes_in_the_queue_is_counted_as_that(told, name, labels):
    assert found(told, name, **labels) == len(TIMEOUTS_S)


def test_its_inputs_expired_in_the_queue(told):
    assert found(told, "affinity_dropped_rows_total", **MODEL, reason="expired") == 2 * len(TIMEOUTS_S)


def test_who_leaves_earlier_is_counted_as_gone(told):
    assert found(told, "affinity_requests_total", status="CANCELLED") == 1
    assert found(told, "nv_inference_request_failure", reason="CANCELED") == 1
    assert found(told, "affinity_dropped_rows_total", **MODEL, reason="cancelled") == 2


def test_nothing_of_it_ran(told):
    assert found(told, "affinity_batch_rows_count", **MODEL) == 0
    assert found(told, "affinity_queue_tokens", **MODEL) == 0
