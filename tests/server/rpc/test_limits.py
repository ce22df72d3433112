"""Every limit on what a client may send, on real servers: what is refused, and that the next request works."""

import asyncio
import contextlib
import json
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import affinity_pb2 as pb
from protos import open_inference_pb2 as oip
from protos.affinity_pb2_grpc import AffinityStub
from server.rpc.calls.rates import CallerRates, caller_of
from server.rpc.services import OPEN_INFERENCE
from server.status import RETRY_AFTER
from tests.frames import PREFACE, SETTINGS, FrameReader, frame
from tests.server.images.files import file_of, picture
from tests.server.rpc.test_server import answered, open_stream, serving
from tests.serving import served

INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
LIMITS = {
    "max_request_inputs": 3,
    "max_request_tokens": 40,
    "max_image_pixels": 2000,
    "max_stop_strings": 2,
    "max_stop_characters": 5,
    "max_logit_bias": 2,
    "max_stop_token_ids": 1,
}
PROMPT = [pb.Prompt(text="A list")]

# ---- what a request may have


@pytest.fixture(scope="module")
def limited(artifacts):
    """A server with low limits."""
    settings = [flag for key, value in LIMITS.items() for flag in ("--set", f"*.{key}={value}")]
    with served(artifacts, "--models", "tiny-bert,tiny-gpt,tiny-vit", "--max-message-mb", "5", *settings) as running:
        yield running


@pytest.fixture(scope="module")
def channel(limited):
    with grpc.insecure_channel(limited.target) as channel:
        yield channel


def texts(count, words=1):
    return pb.FillMaskRequest(inputs=["[MASK]" + " a" * words] * count)


def images(*sizes, kind="PNG"):
    return pb.ClassifyImageRequest(images=[file_of(picture(*size, seed=1), kind) for size in sizes])


def prompt(**options):
    return pb.GenerateRequest(prompts=PROMPT, max_tokens=2, ignore_eos=True, **options)


WITHIN = [
    ("FillMask", texts(3)),
    ("ClassifyImage", images((40, 50))),
    ("ClassifyImage", images((100, 60), kind="JPEG")),
    ("Generate", prompt(stop=["x" * 5, "yy"], logit_bias={1: 1, 2: 1}, stop_token_ids=[1])),
]
BEYOND = [
    ("FillMask", texts(4), "inputs: found 4 inputs, expected at most 3 inputs and 40 tokens in a request"),
    ("FillMask", texts(3, words=12), "tokens together, expected at most 3 inputs and 40 tokens in a request"),
    ("Generate", pb.GenerateRequest(prompts=PROMPT * 4), "prompts: found 4 inputs, expected at most 3 inputs"),
    ("Generate", pb.GenerateRequest(prompts=PROMPT, max_tokens=50), "tokens together, expected at most 3 inputs"),
    ("CountTokens", pb.CountTokensRequest(model="tiny-bert", inputs=["a"] * 4), "inputs: found 4 inputs"),
    ("ClassifyImage", images((40, 51)), "images[0]: found 40 x 51 pixels, expected 1 to 2000 pixels"),
    ("ClassifyImage", images((100, 61), kind="JPEG"), "images[0]: found 100 x 61 pixels, expected 1 to 6000 pixels"),
    ("Generate", prompt(stop=["a", "b", "c"]), "stop: found 3 strings, expected at most 2"),
    ("Generate", prompt(stop=["a", "x" * 6]), "stop[1]: found 6 characters, expected at most 5"),
    ("Generate", prompt(logit_bias={1: 1, 2: 1, 3: 1}), "logit_bias: found 3 tokens, expected at most 2"),
    ("Generate", prompt(stop_token_ids=[1, 2]), "stop_token_ids: found 2 tokens, expected at most 1"),
]


def send(channel, method, request):
    """The response; of a stream the last one."""
    response = getattr(AffinityStub(channel), method)(request)
    return [*response][-1] if method == "Generate" else response


@pytest.mark.parametrize(("method", "request_"), WITHIN)
def test_a_request_within_the_limits_is_answered(channel, method, request_):
    assert send(channel, method, request_)


@pytest.mark.parametrize(("method", "request_", "message"), BEYOND, ids=[message[:50] for *_, message in BEYOND])
def test_a_request_beyond_a_limit_is_refused_with_the_limit(channel, method, request_, message):
    with pytest.raises(grpc.RpcError) as error:
        send(channel, method, request_)
    assert (error.value.code(), message in error.value.details()) == (INVALID, True), error.value.details()


def infer(channel, name, text, **parameters):
    """A ModelInfer request with one text."""
    request = oip.ModelInferRequest(model_name=name)
    input_name = "text_input" if name == "tiny-gpt" else "text"
    request.inputs.add(name=input_name, datatype="BYTES", shape=[len(text)]).contents.bytes_contents.extend(text)
    for key, value in parameters.items():
        request.parameters[key].string_param = value
    return channel.unary_unary(
        f"/{OPEN_INFERENCE}/ModelInfer",
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelInferResponse.FromString,
    )(request)


@pytest.mark.parametrize(
    ("name", "texts", "parameters", "message"),
    [
        ("tiny-bert", [b"[MASK]"] * 4, {}, "text: found 4 inputs, expected at most 3 inputs"),
        ("tiny-bert", [b"[MASK]"], {"targets": " " * 4_194_305}, "targets: found 4194305 characters, expected at most"),
        ("tiny-gpt", [b"a"] * 4, {}, "text_input: found 4 inputs, expected at most 3 inputs"),
        ("tiny-gpt", [b"a"], {"stop": json.dumps(["a", "b", "c"])}, "stop: found 3 strings, expected at most 2"),
        ("tiny-gpt", [b"a"], {"stop": "x" * 6}, "stop[0]: found 6 characters, expected at most 5"),
        ("tiny-gpt", [b"a"], {"stop": "x" * 1000}, "stop: found 'xxxxx"),
        ("tiny-gpt", [b"a"], {"logit_bias": '{"1": 1, "2": 1, "3": 1}'}, "logit_bias: found 3 tokens"),
        ("tiny-gpt", [b"a"], {"logit_bias": " " * 1000 + "{}"}, "expected at most 192 characters"),
        ("tiny-gpt", [b"a"], {"stop_token_ids": "[1, 2]"}, "stop_token_ids: found 2 tokens, expected at most 1"),
    ],
)
def test_both_protocols_have_the_same_limits(channel, name, texts, parameters, message):
    with pytest.raises(grpc.RpcError) as error:
        infer(channel, name, texts, **parameters)
    assert (error.value.code(), message in error.value.details()) == (INVALID, True), error.value.details()
    assert infer(channel, name, [b"a [MASK]"]).outputs


def test_a_message_beyond_the_limit_is_refused(channel):
    with pytest.raises(grpc.RpcError) as error:
        send(channel, "FillMask", pb.FillMaskRequest(inputs=["a" * 5 * 2**20]))
    assert error.value.code() is EXHAUSTED
    assert send(channel, "FillMask", texts(1))


def test_model_info_has_the_limits(channel):
    stub = AffinityStub(channel)
    assert stub.ModelInfo(pb.ModelInfoRequest(model="tiny-bert")).max_inputs == 3
    assert stub.ModelInfo(pb.ModelInfoRequest(model="tiny-vit")).max_image_pixels == 2000


# ---- what a connection and a client may have


async def connected(port):
    """A connection whose server has sent its settings (identifier → value); None if the server has closed it."""
    found: asyncio.Queue[bytes] = asyncio.Queue()
    frames = FrameReader(lambda kind, flags, payload: found.put_nowait(payload) if kind == SETTINGS else None)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        writer.write(PREFACE + frame(SETTINGS))
        while found.empty() and (data := await asyncio.wait_for(reader.read(1 << 16), 30)):
            frames.feed(data)
    if found.empty():
        writer.close()
        return None
    payload = found.get_nowait()
    pairs = (payload[at : at + 6] for at in range(0, len(payload), 6))
    return writer, {int.from_bytes(pair[:2], "big"): int.from_bytes(pair[2:], "big") for pair in pairs}


async def test_connections_beyond_the_limit_are_closed(tmp_path):
    async with serving(tmp_path, max_connections=2) as port:
        first, second = await connected(port), await connected(port)
        assert first
        assert second
        assert await connected(port) is None
        first[0].close()
        async with asyncio.timeout(60):
            while (third := await connected(port)) is None:  # until the server has noticed
                await asyncio.sleep(0.01)
        for writer, _ in (second, third):
            writer.close()


async def test_clients_know_how_many_calls_a_connection_may_have(tmp_path):
    max_concurrent_streams = 3  # the identifier of the setting (RFC 9113, 6.5.2)
    async with serving(tmp_path, max_concurrent_streams=2) as port:
        writer, settings = await connected(port)
        writer.close()
        assert settings[max_concurrent_streams] == 2
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            watched = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
            for each in watched:
                await each.read()
            waiting = asyncio.ensure_future(health.Check(health_pb2.HealthCheckRequest()))
            watched[0].cancel()
            assert (await asyncio.wait_for(waiting, 30)).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watched[1].cancel()


async def test_requests_beyond_the_rate_of_an_address_are_refused_with_a_retry_hint(tmp_path):
    async with (
        serving(tmp_path, max_requests_per_second=1 / 3600) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub, request = AffinityStub(channel), pb.FillMaskRequest(inputs=["[MASK]"])
        with pytest.raises(grpc.aio.AioRpcError) as first:
            await stub.FillMask(request)
        assert first.value.code() is grpc.StatusCode.NOT_FOUND  # there are no models
        with pytest.raises(grpc.aio.AioRpcError) as second:
            await stub.FillMask(request)
        assert second.value.code() is EXHAUSTED
        assert "requests per second from 127.0.0.1; retry in " in second.value.details()
        assert 3_000_000 < int(dict(second.value.trailing_metadata())[RETRY_AFTER]) <= 3_600_000
        stream = open_stream(channel)
        assert not await answered(stream)  # refused as one request; the stream goes on
        await stream.done_writing()
        assert await asyncio.wait_for(stream.code(), 30) is grpc.StatusCode.OK
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())  # has no limit


def test_the_rate_follows_the_clock():
    now, peer = [0.0], SimpleNamespace(peer=lambda: "ipv4:10.0.0.1:5")
    rates = CallerRates(1, clock=lambda: now[0])
    rates.check(peer)
    now[0] = 1.0
    rates.check(peer)


@pytest.mark.parametrize(
    ("peer", "caller"),
    [
        ("ipv4:10.0.0.1:50000", "10.0.0.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50000", "2001:db8:1:2::/64"),
        ("ipv6:[::1]:50000", "::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50000", "fe80::/64"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:50000", "10.0.0.1"),
        ("unix:", "unix socket"),
        ("unix:/run/affinity.sock", "unix socket"),
    ],
)
def test_a_caller_is_an_address_or_a_network(peer, caller):
    assert caller_of(SimpleNamespace(peer=lambda: peer)) == caller
