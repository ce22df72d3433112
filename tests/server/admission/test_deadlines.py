"""Requests that expire or are cancelled in the queue: they are dropped, and counted once, by reason."""

from contextlib import suppress

import grpc
import pytest

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from tests.prometheus import eventually
from tests.server.observability.test_prometheus import exposed, found, until
from tests.serving import served

MODEL = {"model": "tiny-classifier", "version": "1"}
WAITING = ("--models", "tiny-classifier", "--set", "tiny-classifier.max_delay_seconds=60")
# A client ends its call at its deadline. gRPC rounds the deadline up that it sends to the server: of the second call by
# up to 9 ms. On a busy machine a call may take longer to the server than short deadlines allow for.
TIMEOUTS_S = ((0.4, 1.001), (5.0, 5.001), (50.0, 50.01))
EXPIRED = 2  # calls


@pytest.fixture(scope="module")
def metrics(artifacts):
    """The metrics of a server whose batches wait for more items, after requests of two texts each."""
    for timeouts in TIMEOUTS_S:
        if after := metrics_after(artifacts, timeouts):
            return after
    pytest.fail("a call was not counted as expired")


def metrics_after(artifacts, timeouts):
    """The metrics after calls that expire and one that is cancelled; None if not all calls counted as expired."""
    request = pb.ClassifyTextRequest(inputs=["a list", "a set"])
    with served(artifacts, *WAITING) as running, grpc.insecure_channel(running.target) as channel:
        grpc.channel_ready_future(channel).result()
        stub = AffinityStub(channel)
        for timeout in timeouts:
            with pytest.raises(grpc.RpcError) as error:
                stub.ClassifyText(request, timeout=timeout)
            assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with suppress(AssertionError):
            eventually(lambda: sum(ended(running)) == EXPIRED)
        if ended(running) != (EXPIRED, 0):
            return None
        leaving = stub.ClassifyText.future(request)
        until(running, "affinity_queue_rows", MODEL, 2)
        leaving.cancel()
        until(running, "grpc_server_handled_total", {"grpc_method": "ClassifyText", "grpc_code": "CANCELLED"}, 1)
        return exposed(running)


def ended(running):
    """The number of calls that expired, and of those that were cancelled."""
    samples = exposed(running)
    return tuple(
        found(samples, "grpc_server_handled_total", grpc_method="ClassifyText", grpc_code=code) or 0
        for code in ("DEADLINE_EXCEEDED", "CANCELLED")
    )


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("affinity_requests_total", {"status": "DEADLINE_EXCEEDED"}),
        ("nv_inference_request_failure", {"reason": "REJECTED"}),
        ("grpc_server_handled_total", {"grpc_code": "DEADLINE_EXCEEDED"}),
    ],
)
def test_a_request_that_expires_in_the_queue_is_counted_as_expired(metrics, name, labels):
    assert found(metrics, name, **labels) == EXPIRED


def test_the_inputs_of_an_expired_request_are_counted_as_dropped(metrics):
    assert found(metrics, "affinity_dropped_rows_total", **MODEL, reason="expired") == 2 * EXPIRED


def test_a_request_that_is_cancelled_in_the_queue_is_counted_as_cancelled(metrics):
    assert found(metrics, "affinity_requests_total", status="CANCELLED") == 1
    assert found(metrics, "nv_inference_request_failure", reason="CANCELED") == 1
    assert found(metrics, "affinity_dropped_rows_total", **MODEL, reason="cancelled") == 2


def test_no_dropped_input_ran(metrics):
    assert found(metrics, "affinity_batch_rows_count", **MODEL) == 0
    assert found(metrics, "affinity_queue_tokens", **MODEL) == 0
