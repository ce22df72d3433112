"""Tokens on a real gRPC server and over HTTP: which calls need one, and what is said and counted."""

import http.client
import logging
from contextlib import asynccontextmanager

import grpc
import pytest
import tritonclient.grpc.aio as triton
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client import generate_latest
from tritonclient.utils import InferenceServerException

from protos import affinity_pb2 as pb
from protos import open_inference_pb2 as oip
from protos.affinity_pb2_grpc import AffinityStub
from server.admission.in_flight import InFlight
from server.auth.access import Access
from server.auth.security import Security
from server.auth.tokens import Tokens
from server.config.settings import Settings
from server.observability.http import HttpServer
from server.observability.prometheus import Metrics
from server.repository.repository import Repository
from server.rpc import reflection
from server.rpc.calls.authentication import Authentication
from server.rpc.calls.context import client_of_call
from server.rpc.calls.interceptors import CallInterceptor
from server.rpc.connections import Connections
from server.rpc.health import Health
from server.rpc.server import build_server
from server.rpc.services import HEALTH, OPEN_INFERENCE, REFLECTION, TYPED

FILE = b"alice: token-of-alice\nroot: token-of-root admin\n"
ALICE, ROOT, WRONG = (("authorization", f"Bearer token-of-{name}") for name in ("alice", "root", "mallory"))
SAID = "authorization: expected `Bearer` and a valid token"


class Server:
    """A server without models, whose tokens the tests may change."""

    def __init__(self, settings, *, with_reflection=False):
        self.tokens, self.metrics = Tokens.parse(FILE), Metrics()
        self.metrics.set_clients(self.tokens.names)
        self.repository = Repository(settings)
        security = Security(access=Access(lambda: self.tokens), with_reflection=with_reflection)
        self.grpc, self.port = build_server(
            settings,
            self.repository,
            self.metrics,
            Health(),
            InFlight("stopping"),
            Connections(),
            security,
        )
        self.target = f"127.0.0.1:{self.port}"

    def replace(self, file):
        self.tokens = Tokens.parse(file)
        self.metrics.set_clients(self.tokens.names)


@asynccontextmanager
async def serving(tmp_path, *, with_reflection=False, **settings):
    settings = Settings(artifacts=tmp_path, port=0, **settings)
    server = Server(settings, with_reflection=with_reflection)
    await server.grpc.start()
    try:
        async with grpc.aio.insecure_channel(server.target) as channel:
            yield server, channel
    finally:
        await server.grpc.stop(None)
        await server.repository.drain()


async def end(call):
    """The status and the text that a call ends with, after its responses."""
    try:
        if hasattr(call, "read"):
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()
    return await call.code(), await call.details()


def call(channel, path, *tokens, message=b""):
    """A call of a method of any kind, with one message: nothing is left to write when the server refuses it."""
    return channel.unary_stream(path)(message, metadata=tokens)


def paths():
    """Every method of every service, and one that does not exist."""
    pool: DescriptorPool = reflection.descriptors()
    for name in (TYPED, OPEN_INFERENCE, HEALTH, REFLECTION):
        yield from (f"/{name}/{method.name}" for method in pool.FindServiceByName(name).methods)
    yield f"/{TYPED}/NoSuchMethod"
    yield "/no.such.Service/Method"


async def test_every_call_but_health_and_reflection_needs_a_token(tmp_path):
    """Health and reflection are the only services whose methods may be called without one."""
    public = [path for path in paths() if path.split("/")[1] in (HEALTH, REFLECTION)]
    assert len(public) == 3
    async with serving(tmp_path) as (_, channel):
        for path in paths():
            if path in public:
                continue
            for tokens in ((), (WRONG,), (("authorization", ""),), (ALICE, ALICE), (("authorization-bin", b"x"),)):
                assert await end(call(channel, path, *tokens)) == (grpc.StatusCode.UNAUTHENTICATED, SAID), path
            code, _ = await end(call(channel, path, ROOT))
            assert code is not grpc.StatusCode.UNAUTHENTICATED
            assert ("NoSuch" in path or "no.such" in path) == (code is grpc.StatusCode.UNIMPLEMENTED), path


@pytest.mark.parametrize(
    "path",
    [
        f"/{HEALTH}/../{OPEN_INFERENCE}/RepositoryModelLoad",
        f"/{HEALTH}/{OPEN_INFERENCE}/RepositoryModelLoad",
        f"//{OPEN_INFERENCE}/RepositoryModelLoad",
        f"/{OPEN_INFERENCE}//RepositoryModelLoad",
        f"/{OPEN_INFERENCE}/RepositoryModelLoad/",
        f"/{OPEN_INFERENCE}/RepositoryModelLoad?{HEALTH}",
        f"/{OPEN_INFERENCE}/repositorymodelload",
        f"/{OPEN_INFERENCE.lower()}/RepositoryModelLoad",
        f"/{OPEN_INFERENCE}/%52epositoryModelLoad",
    ],
)
async def test_no_other_spelling_of_a_path_leads_to_a_method(tmp_path, path):
    async with serving(tmp_path, model_control="explicit") as (_, channel):
        for tokens in ((), (ALICE,), (ROOT,)):
            code, _ = await end(call(channel, path, *tokens))
            assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)


@pytest.mark.parametrize("with_reflection", [False, True])
async def test_reflection_needs_a_token_if_a_setting_says_so_and_health_never(tmp_path, with_reflection):
    async with serving(tmp_path, with_reflection=with_reflection) as (_, channel):
        health = health_pb2_grpc.HealthStub(channel)
        for tokens in ((), (WRONG,), (ALICE,)):
            await health.Check(health_pb2.HealthCheckRequest(), metadata=tokens)
            watch = health.Watch(health_pb2.HealthCheckRequest(), metadata=tokens)
            await watch.read()
            watch.cancel()
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            path = f"/{REFLECTION}/ServerReflectionInfo"
            listed = call(channel, path, *tokens, message=request.SerializeToString())
            refused = with_reflection and tokens != (ALICE,)
            assert (await end(listed))[0] is (grpc.StatusCode.UNAUTHENTICATED if refused else grpc.StatusCode.OK)


async def test_a_message_without_a_token_is_refused_before_it_has_arrived(tmp_path):
    """The message is larger than the server accepts: with a token, the status is that of a large message."""
    async with serving(tmp_path, max_message_mb=1) as (_, channel):
        path, message = f"/{OPEN_INFERENCE}/ModelInfer", bytes(8 << 20)
        method = channel.unary_unary(path)
        assert await end(method(message)) == (grpc.StatusCode.UNAUTHENTICATED, SAID)
        assert (await end(method(message, metadata=[ALICE])))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_only_administrators_load_and_unload_models(tmp_path):
    async with (
        serving(tmp_path, model_control="explicit") as (server, _),
        triton.InferenceServerClient(server.target) as client,
    ):
        for request in (client.load_model, client.unload_model):
            statuses = {}
            for name, headers in (("none", {}), ("alice", dict([ALICE])), ("root", dict([ROOT]))):
                with pytest.raises(InferenceServerException) as error:
                    await request("no-such-model", headers=headers)
                statuses[name] = error.value.status()
            assert statuses == {
                "none": "StatusCode.UNAUTHENTICATED",
                "alice": "StatusCode.PERMISSION_DENIED",
                "root": "StatusCode.NOT_FOUND",
            }


async def test_administrators_need_the_flag_for_model_control(tmp_path):
    async with serving(tmp_path) as (_, channel):
        path = f"/{OPEN_INFERENCE}/RepositoryModelLoad"
        assert (await end(call(channel, path, ALICE)))[0] is grpc.StatusCode.PERMISSION_DENIED
        code, text = await end(call(channel, path, ROOT))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "--model-control explicit" in text


def samples(server, family):
    lines = generate_latest(server.metrics.registry).decode().splitlines()
    return sorted(line for line in lines if line.startswith(family))


async def test_calls_are_counted_by_client_and_refused_ones_by_status(tmp_path):
    async with serving(tmp_path) as (server, channel):
        path = f"/{OPEN_INFERENCE}/ServerLive"
        for tokens in ((ALICE,), (ALICE,), (WRONG,), ()):
            await end(call(channel, path, *tokens))
        await end(call(channel, "/no.such/Method", WRONG))
        assert samples(server, "affinity_authenticated_calls_total") == [
            'affinity_authenticated_calls_total{client="alice"} 2.0',
            'affinity_authenticated_calls_total{client="root"} 0.0',
        ]
        counted = [line for line in samples(server, "grpc_server_handled_total") if "UNAUTHENTICATED" in line]
        assert counted == [
            'grpc_server_handled_total{grpc_code="UNAUTHENTICATED",grpc_method="ServerLive",'
            f'grpc_service="{OPEN_INFERENCE}",grpc_type="unary"}} 2.0'
        ]
        assert not samples(server, 'grpc_server_started_total{grpc_method="Method"')
        server.replace(b"alice: another-token\nbob: token-of-bob")
        assert (await end(call(channel, path, ALICE)))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert samples(server, "affinity_authenticated_calls_total") == [
            'affinity_authenticated_calls_total{client="alice"} 2.0',
            'affinity_authenticated_calls_total{client="bob"} 0.0',
        ]


async def test_a_stream_ends_at_its_next_message_after_its_token_was_revoked(tmp_path):
    async with serving(tmp_path) as (server, channel):
        method = channel.stream_stream(
            f"/{OPEN_INFERENCE}/ModelStreamInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelStreamInferResponse.FromString,
        )
        stream = method(metadata=[ALICE])
        for _ in range(2):
            await stream.write(oip.ModelInferRequest(model_name="no-such-model"))
            assert "no-such-model" in (await stream.read()).error_message
        server.replace(b"alice: another-token")
        await stream.write(oip.ModelInferRequest(model_name="no-such-model"))
        assert await end(stream) == (grpc.StatusCode.UNAUTHENTICATED, SAID)


async def test_each_client_has_its_own_rate_whatever_its_address(tmp_path):
    async with serving(tmp_path, max_requests_per_second=1 / 3600) as (_, channel):
        stub = AffinityStub(channel)

        async def fill_mask(*tokens):
            return await end(stub.FillMask(pb.FillMaskRequest(model="any", inputs=["[MASK]"]), metadata=tokens))

        for token, name in ((ALICE, "alice"), (ROOT, "root")):
            assert (await fill_mask(token))[0] is grpc.StatusCode.NOT_FOUND
            code, text = await fill_mask(token)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert f"requests per second from client {name}; retry in " in text
        for _ in range(2):
            assert (await fill_mask(WRONG))[0] is grpc.StatusCode.UNAUTHENTICATED  # no caller, and so no rate


async def test_each_request_on_a_stream_counts_for_the_rate_of_its_client(tmp_path):
    async with serving(tmp_path, max_requests_per_second=1 / 3600) as (_, channel):
        stream = channel.stream_stream(
            f"/{OPEN_INFERENCE}/ModelStreamInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelStreamInferResponse.FromString,
        )(metadata=[ALICE])
        errors = []
        for _ in range(2):
            await stream.write(oip.ModelInferRequest(model_name="no-such-model"))
            errors.append((await stream.read()).error_message)
        assert "no-such-model" in errors[0]
        assert "requests per second from client alice" in errors[1]
        await stream.done_writing()
        assert (await end(stream))[0] is grpc.StatusCode.OK


async def test_logs_have_the_name_of_the_client_and_never_a_token(tmp_path, caplog, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    caplog.set_level(logging.DEBUG)
    async with serving(tmp_path) as (server, channel):
        monkeypatch.setattr(server.repository, "get", fail)
        stub = AffinityStub(channel)
        for tokens in ([ALICE], [WRONG], []):
            await end(stub.FillMask(pb.FillMaskRequest(model="any", inputs=["[MASK]"]), metadata=tokens))
    assert "/affinity.v1.Affinity/FillMask (client alice) failed" in caplog.text
    assert "/affinity.v1.Affinity/FillMask (client alice): INTERNAL after" in caplog.text
    assert "/affinity.v1.Affinity/FillMask: UNAUTHENTICATED after" in caplog.text
    assert "token-of" not in caplog.text


async def test_the_client_is_known_to_handlers_of_every_kind_and_to_further_interceptors():
    known = []

    class Further(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):
            known.append(("interceptor", client_of_call().name))
            return await continuation(details)

    class Listener:
        def call_authenticated(self, client): ...
        def call_started(self, kind, service, method): ...
        def call_ended(self, kind, service, method, code, seconds): ...

    async def respond(request, context):
        known.append(("handler", client_of_call().name))
        return b""

    async def respond_to_each(requests, context):
        async for request in requests:
            response = await respond(request, context)
        return response

    async def stream(request, context):
        yield await respond(request, context)

    async def stream_to_each(requests, context):
        async for request in requests:
            yield await respond(request, context)

    authentication = Authentication(Access(lambda: Tokens.parse(FILE)))
    server = grpc.aio.server(
        interceptors=[
            CallInterceptor(
                Listener(),
                InFlight("stopping"),
                Connections(),
                tracked_paths=frozenset(),
                authentication=authentication,
            ),
            Further(),
        ]
    )
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(respond),
        "ClientStream": grpc.stream_unary_rpc_method_handler(respond_to_each),
        "ServerStream": grpc.unary_stream_rpc_method_handler(stream),
        "BothStream": grpc.stream_stream_rpc_method_handler(stream_to_each),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("s", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method in handlers:
            for token, name in ((ALICE, "alice"), (ROOT, "root")):
                assert (await end(call(channel, f"/s/{method}", token)))[0] is grpc.StatusCode.OK
                assert known == [("interceptor", name), ("handler", name)]
                known.clear()
    await server.stop(None)


# ---- over HTTP


@pytest.mark.parametrize("with_metrics", [False, True])
def test_metrics_need_a_token_if_a_setting_says_so_and_probes_never(with_metrics):
    tokens = Tokens.parse(FILE)
    security = Security(access=Access(lambda: tokens), with_metrics=with_metrics)
    server = HttpServer("127.0.0.1", 0, Metrics().registry, lambda: True, security=security)
    try:
        for path in ("/livez", "/readyz", "/metrics", "/metrics/own"):
            for token, valid in ((None, False), (WRONG, False), (ALICE, True), (ROOT, True)):
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
                connection.request("GET", path, headers=dict([token]) if token else {})
                response = connection.getresponse()
                text, challenge = response.read().decode(), response.getheader("www-authenticate")
                connection.close()
                if with_metrics and "metrics" in path and not valid:
                    assert (response.status, text, challenge) == (401, f"{SAID}\n", "Bearer")
                else:
                    assert (response.status, challenge) == (200, None)
    finally:
        server.stop()
