"""Requests that expire or are cancelled in the queue: they are dropped, and counted once, by reason."""

import grpc
import pytest

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from tests.server.observability.test_prometheus import exposed, found, until
from tests.serving import served

MODEL = {"model": "tiny-classifier", "version": "1"}
WAITING = ("--models", "tiny-classifier", "--set", "tiny-classifier.max_delay_seconds=60")
# A client ends its call at its deadline. gRPC rounds the deadline up that it sends to the server: the second to 1.01 s.
TIMEOUTS_S = (0.4, 1.001)


@pytest.fixture(scope="module")
def metrics(artifacts):
    """The metrics of a server whose batches wait for more items, after requests of two texts each."""
    request = pb.ClassifyTextRequest(inputs=["a list", "a set"])
    with served(artifacts, *WAITING) as running, grpc.insecure_channel(running.target) as channel:
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
def test_a_request_that_expires_in_the_queue_is_counted_as_expired(metrics, name, labels):
    assert found(metrics, name, **labels) == len(TIMEOUTS_S)


def test_the_inputs_of_an_expired_request_are_counted_as_dropped(metrics):
    assert found(metrics, "affinity_dropped_rows_total", **MODEL, reason="expired") == 2 * len(TIMEOUTS_S)


def test_a_request_that_is_cancelled_in_the_queue_is_counted_as_cancelled(metrics):
    assert found(metrics, "affinity_requests_total", status="CANCELLED") == 1
    assert found(metrics, "nv_inference_request_failure", reason="CANCELED") == 1
    assert found(metrics, "affinity_dropped_rows_total", **MODEL, reason="cancelled") == 2


def test_no_dropped_input_ran(metrics):
    assert found(metrics, "affinity_batch_rows_count", **MODEL) == 0
    assert found(metrics, "affinity_queue_tokens", **MODEL) == 0
