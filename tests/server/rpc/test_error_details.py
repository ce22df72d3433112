"""The details of errors, as clients of gRPC's richer error model read them, on a real gRPC server."""

import asyncio

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from server import errors
from server.status import INTERNAL_TEXT, STATUS, error_status, reason_of
from tests.server.rpc.calls.test_interceptors import raising, serving

LARGEST = 8 * 1024
OF_AN_ENTRY = 32  # bytes that count for each entry of the metadata (RFC 7541, 4.1)
OWN = {":status": "200", "content-type": "application/grpc", "grpc-status": "13"}  # metadata that gRPC itself sends

SPECIAL = {  # errors with arguments of their own
    errors.InvalidRequest: errors.InvalidRequest("top_k", "0", "1 or more"),
    errors.Overloaded: errors.Overloaded("the queue is full", retry_after_s=1.5),
}
ERRORS = [SPECIAL.get(kind) or kind("the reason") for kind in STATUS] + [ZeroDivisionError("the secret")]


async def failed(served, *, streaming, timeout=60):
    """The error of a call."""
    call = served.stream(b"", timeout=timeout).read() if streaming else served.unary(b"", timeout=timeout)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


def details(error):
    """Name → the unpacked detail. Checks that the status is that of the call."""
    status = rpc_status.from_call(error)
    found = {}
    for packed in status.details:
        for kind in (ErrorInfo, BadRequest, RetryInfo):
            if packed.Unpack(detail := kind()):
                found[kind.__name__] = detail
    assert len(found) == len(status.details)
    return found


@pytest.mark.parametrize("streaming", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("error", ERRORS, ids=reason_of)
async def test_every_error_has_its_reason(error, streaming):
    async with serving(raising(error)) as served:
        found = await failed(served, streaming=streaming)
        assert details(found)["ErrorInfo"] == ErrorInfo(reason=reason_of(error), domain="affinity")
        assert rpc_status.from_call(found).message == found.details()
        assert (await rpc_status.aio.from_call(served.unary(b""))).code == found.code().value[0]


def test_reasons_are_the_names_of_the_errors():
    assert [reason_of(error) for error in ERRORS[:3]] == ["INVALID_REQUEST", "MODEL_NOT_FOUND", "WRONG_TASK"]
    assert reason_of(ZeroDivisionError()) == "INTERNAL"


async def test_an_invalid_request_names_its_field():
    async with serving(raising(errors.InvalidRequest("inputs[3]", "''", "a text: any"))) as served:
        found = details(await failed(served, streaming=False))
    [violation] = found["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("inputs[3]", "found '', expected a text: any")


@pytest.mark.parametrize(
    ("retry_after_s", "timeout", "pushback"),
    [(1.5, 60, "1500"), (1.5, None, "1500"), (99, None, "99000"), (99, 60, "-1")],
)
async def test_an_overloaded_server_says_when_to_retry_unless_that_is_too_late(retry_after_s, timeout, pushback):
    async with serving(raising(errors.Overloaded("full", retry_after_s=retry_after_s))) as served:
        found = await failed(served, streaming=False, timeout=timeout)
        milliseconds = details(found)["RetryInfo"].retry_delay.ToMilliseconds()
        assert milliseconds == 1000 * retry_after_s
        trailers = dict(found.trailing_metadata())
        assert (trailers["retry-after-ms"], trailers["grpc-retry-pushback-ms"]) == (str(milliseconds), pushback)


async def test_the_retries_of_grpc_obey():
    config = """{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 2, "initialBackoff": "0.01s",
        "maxBackoff": "0.01s", "backoffMultiplier": 1, "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]}"""
    times, delays = [], [0.5, 0.5, 3600]

    async def behave():
        times.append(asyncio.get_running_loop().time())
        raise errors.Overloaded("full", retry_after_s=delays[len(times) - 1])
        yield b""

    async with serving(behave, channel_options=[("grpc.service_config", config)]) as served:
        await failed(served, streaming=False)
        assert times[1] - times[0] > 0.4
        found = await failed(served, streaming=False, timeout=60)
        assert (found.code(), len(times)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 3)


async def test_a_server_without_model_control_is_not_to_be_tried_again():
    async with serving(raising(errors.ModelControlOff("disabled"))) as served:
        found = await failed(served, streaming=False)
    assert dict(found.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"


async def test_an_unknown_error_does_not_show_its_text_in_the_details():
    async with serving(raising(ZeroDivisionError("the secret"))) as served:
        found = await failed(served, streaming=False)
    assert rpc_status.from_call(found).message == INTERNAL_TEXT
    assert b"secret" not in dict(found.trailing_metadata())["grpc-status-details-bin"]


@pytest.mark.parametrize("letter", ["a", "é", "\n", "😀", "%", "\ud800"], ids=ascii)
async def test_all_metadata_of_an_error_fits(letter):
    """The names of fields, values and descriptions can be anything: models and parameters are named by users."""
    for error in (
        errors.InvalidRequest(letter * 9000, letter * 9000, letter * 9000),
        errors.InvalidRequest(letter * 150, letter * 9000, letter * 9000),
        errors.ModelNotFound(letter * 9000),
        errors.Overloaded(letter * 9000, retry_after_s=1e6),
    ):
        status = error_status(error, path="/s/M")
        entries = {**OWN, "grpc-message": percent_encoded(status.text), **dict(status.trailers)}
        sizes = [len(name) + OF_AN_ENTRY + size_of(value) for name, value in entries.items()]
        assert sum(sizes) <= LARGEST
        async with serving(raising(error)) as served:
            found = await failed(served, streaming=False)
            assert (found.code(), found.details()) == (status.code, status.text)
            assert "ErrorInfo" in details(found)


def percent_encoded(text):
    return "".join(chr(byte) if 32 <= byte < 127 and byte != 37 else f"%{byte:02X}" for byte in text.encode())


def size_of(value):
    """The bytes of a value; binary ones are sent in base64."""
    return (len(value) * 4 + 2) // 3 if isinstance(value, bytes) else len(value)


def test_the_service_names_the_field_of_a_bad_request(server):
    with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError) as error:
        AffinityStub(channel).FillMask(pb.FillMaskRequest(inputs=["[MASK]", "no mask"]), timeout=60)
    found = details(error.value)
    assert found["ErrorInfo"].reason == "INVALID_REQUEST"
    [violation] = found["BadRequest"].field_violations
    assert violation.field == "inputs[1]"
    assert error.value.details() == f"{violation.field}: {violation.description}"


def test_calls_of_other_services_have_details_too(server):
    with grpc.insecure_channel(server.target) as channel:
        for path, message, reason in (
            ("/grpc.health.v1.Health/Check", b"\x0a\x07missing", "MODEL_NOT_FOUND"),
            ("/inference.GRPCInferenceService/ModelReady", b"\x0a\x7f", "INVALID_REQUEST"),
            ("/inference.GRPCInferenceService/ModelMetadata", b"\x0a\x07missing", "MODEL_NOT_FOUND"),
        ):
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(path)(message, timeout=60)
            assert details(error.value)["ErrorInfo"].reason == reason


def test_tritonclient_shows_the_text_and_the_code(server):
    text = triton.InferInput("text", [1], "BYTES").set_data_from_numpy(np.array([b"no mask"], object))
    with triton.InferenceServerClient(server.target) as client:
        with pytest.raises(triton.InferenceServerException) as error:
            client.get_model_metadata("missing")
        assert error.value.status() == "StatusCode.NOT_FOUND"
        assert error.value.message().startswith("model: found 'missing'")
        with pytest.raises(triton.InferenceServerException) as error:
            client.infer("tiny-bert", [text])
        assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert error.value.message().startswith("text[0]: found no [MASK]")
