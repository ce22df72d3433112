"""A stand-in for the server, on a real gRPC server with the real interceptor, and both clients behind one interface."""
# ruff: noqa: N802  # methods have the names of the protocol

import asyncio
import struct
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer, add_HealthServicer_to_server

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityServicer, add_AffinityServicer_to_server
from server.admission.in_flight import InFlight
from server.client import AsyncClient, Client
from server.errors import InvalidRequest
from server.rpc.calls.interceptors import CallInterceptor
from server.rpc.connections import Connections
from tests.server.rpc.calls.test_interceptors import Listener

WAIT_S = 30  # for events, on a slow machine


class StandIn(AffinityServicer, HealthServicer):
    """Answers Embed with the length of each text, and Generate with one part after another until it is cancelled.

    Each call of them takes one of `errors` first, and raises it.
    """

    def __init__(self):
        self.requests = []
        self.times = []
        self.metadata = []
        self.errors = []
        self.refuse = lambda request: False  # whether a request has an input "bad"
        self.max_inputs, self.max_tokens, self.max_request_tokens = 1024, 0, 0
        self.answering = asyncio.Event()  # Embed waits for it
        self.answering.set()
        self.running = self.most_running = 0
        self.cancelled = asyncio.Event()  # Generate was cancelled
        self.status = HealthCheckResponse.SERVING
        self.watched = asyncio.Event()

    def _begin(self, request, context):
        self.requests.append(request)
        self.times.append(asyncio.get_running_loop().time())
        self.metadata.append(dict(context.invocation_metadata()))
        if self.errors:
            raise self.errors.pop(0)
        if self.refuse(request):
            position = list(request.inputs).index("bad")
            raise InvalidRequest(f"inputs[{position}]", "refused", "inputs[7] or a text")

    async def Embed(self, request, context):
        self._begin(request, context)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.answering.wait()
        finally:
            self.running -= 1
        vectors = [struct.pack("<2f", len(text), 1) for text in request.inputs]
        return pb.EmbedResponse(results=[pb.Embedding(embedding_bytes=vector) for vector in vectors])

    async def ClassifyText(self, request, context):
        self._begin(request, context)
        pairs = zip(request.inputs, request.text_pairs, strict=True)
        return pb.ClassifyResponse(
            results=[pb.Classification(classes=[pb.Class(label=f"{text} {pair}")]) for text, pair in pairs]
        )

    async def CountTokens(self, request, context):
        self._begin(request, context)
        return pb.CountTokensResponse(tokens=map(len, request.inputs), max_tokens=9)

    async def Generate(self, request, context):
        self._begin(request, context)
        try:
            while True:
                yield pb.GenerateResponse(text="part ")
                await self.answering.wait()
                await asyncio.sleep(0)
        finally:
            self.cancelled.set()

    async def ModelInfo(self, request, context):
        return pb.ModelInfoResponse(
            max_inputs=self.max_inputs, max_tokens=self.max_tokens, max_request_tokens=self.max_request_tokens
        )

    async def Check(self, request, context):
        return HealthCheckResponse(status=self.status)

    async def Watch(self, request, context):
        self.watched.set()
        yield HealthCheckResponse(status=self.status)
        await asyncio.Event().wait()


@asynccontextmanager
async def serving(stand_in, *, credentials=None, address="127.0.0.1:0"):
    """The port of a server that is the stand-in."""
    interceptor = CallInterceptor(Listener(), InFlight("stopping"), Connections(), tracked_paths=frozenset())
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
    server = grpc.aio.server(interceptors=[interceptor], options=options)
    add_AffinityServicer_to_server(stand_in, server)
    add_HealthServicer_to_server(stand_in, server)
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


class SyncCalls:
    """A Client, which runs in threads."""

    def __init__(self, *arguments, **options):
        self._client = Client(*arguments, **options)

    async def run(self, method, *arguments, **options):
        async with asyncio.timeout(WAIT_S):
            return await asyncio.to_thread(getattr(self._client, method), *arguments, **options)

    async def parts(self, count):
        """The stream, of which so many parts were read."""
        stream = self._client.generate("a", model="m")
        async with asyncio.timeout(WAIT_S):
            for _ in range(count):
                assert (await asyncio.to_thread(next, stream)).text == "part "
        return stream

    async def leave(self):
        """Leave a loop over a stream by `break`."""

        def loop():
            for part in self._client.generate("a", model="m"):
                assert part.text == "part "
                break

        await asyncio.to_thread(loop)

    async def end(self, stream):
        await asyncio.to_thread(stream.close)
        assert list(stream) == []

    async def close(self):
        await asyncio.to_thread(self._client.close)


class AsyncCalls:
    """An AsyncClient."""

    def __init__(self, *arguments, **options):
        self._client = AsyncClient(*arguments, **options)

    async def run(self, method, *arguments, **options):
        async with asyncio.timeout(WAIT_S):
            return await getattr(self._client, method)(*arguments, **options)

    async def parts(self, count):
        stream = self._client.generate("a", model="m")
        async with asyncio.timeout(WAIT_S):
            for _ in range(count):
                assert (await anext(stream)).text == "part "
        return stream

    async def leave(self):
        async for part in self._client.generate("a", model="m"):
            assert part.text == "part "
            break

    async def end(self, stream):
        await stream.aclose()
        assert [part async for part in stream] == []

    async def close(self):
        await self._client.close()


BOTH = {"sync": SyncCalls, "asyncio": AsyncCalls}


@asynccontextmanager
async def connected(kind, *arguments, **options):
    """One of both clients. A deadline of `WAIT_S` unless there is another."""
    client = BOTH[kind](*arguments, **{"timeout_s": WAIT_S, **options})
    try:
        yield client
    finally:
        await client.close()
