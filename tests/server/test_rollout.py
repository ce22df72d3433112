"""New versions that a real server finds by polling, under traffic: no request fails."""

import asyncio
import re
import shutil
import urllib.request
from collections import defaultdict

import grpc
import pytest

from protos import affinity_pb2 as pb
from protos import open_inference_pb2 as oip
from protos.affinity_pb2_grpc import AffinityStub
from server.rpc.services import OPEN_INFERENCE
from tests.artifacts import next_version
from tests.serving import served

MODELS = ("tiny-bert", "tiny-gpt")
POLLING = ("--poll-artifacts", "0.05", "--set", "*.max_queue_seconds=600")
TIMEOUT_S = 120


@pytest.fixture
def root(artifacts, tmp_path):
    """A directory of artifacts that the test may change."""
    for name in MODELS:
        shutil.copytree(artifacts / name, tmp_path / name)
    return tmp_path


class Traffic:
    """Callers that send requests of both models without a pause. An error of a single one fails the test."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel, self._stub = channel, AffinityStub(channel)
        self._stop = asyncio.Event()
        self._seen: dict[tuple[str, str], asyncio.Event] = defaultdict(asyncio.Event)

    def stop(self):
        self._stop.set()

    async def wait_for(self, model, version):
        """Wait for an answer of a version."""
        await asyncio.wait_for(self._seen[model, str(version)].wait(), TIMEOUT_S)

    async def call(self):
        while not self._stop.is_set():
            await self._fill_mask()
            await self._generate()
            await self._infer()

    async def _fill_mask(self):
        response = await self._stub.FillMask(pb.FillMaskRequest(model="tiny-bert", inputs=["A [MASK] is a list."]))
        assert len(response.results) == 1
        self._seen[response.model, response.model_version].set()

    async def _generate(self):
        request = pb.GenerateRequest(
            model="tiny-gpt", prompts=[pb.Prompt(text="A list is")], max_tokens=20, ignore_eos=True
        )
        pieces = [piece async for piece in self._stub.Generate(request)]
        assert pieces[-1].finish_reason == "length"
        assert {piece.model_version for piece in pieces} == {pieces[0].model_version}
        self._seen["tiny-gpt", pieces[0].model_version].set()

    async def _infer(self):
        request = oip.ModelInferRequest(model_name="tiny-bert")
        request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"A [MASK].")
        response = await _call(self._channel, "ModelInfer", request, oip.ModelInferResponse)
        assert response.outputs


async def _call(channel, method, request, response_class):
    call = channel.unary_unary(
        f"/{OPEN_INFERENCE}/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response_class.FromString,
    )
    return await call(request)


async def states(channel, model):
    """Version → state and reason, as RepositoryIndex has them."""
    index = await _call(channel, "RepositoryIndex", oip.RepositoryIndexRequest(), oip.RepositoryIndexResponse)
    return {entry.version: (entry.state, entry.reason) for entry in index.models if entry.name == model}


async def until(condition):
    """Wait until an asynchronous condition holds."""
    async with asyncio.timeout(TIMEOUT_S):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_versions_that_are_rolled_out_by_polling_lose_no_request(root):
    with served(root, *POLLING) as running:
        async with grpc.aio.insecure_channel(running.target) as channel, asyncio.TaskGroup() as tasks:
            traffic = Traffic(channel)
            for _ in range(6):
                tasks.create_task(traffic.call())
            for model in MODELS:
                await traffic.wait_for(model, 1)
            for model in MODELS:  # a new version of each
                next_version(root, model)
            for model in MODELS:
                await traffic.wait_for(model, 2)

            bad = next_version(root, "tiny-bert", task="translate")  # one that fails

            async def has_failed():
                state, reason = (await states(channel, "tiny-bert")).get("3", ("", ""))
                return state == "UNAVAILABLE" and "task: found 'translate'" in reason

            await until(has_failed)
            metrics = await asyncio.to_thread(lambda: urllib.request.urlopen(running.url("/metrics")).read().decode())
            assert re.search(r'^affinity_failed_versions\{model="tiny-bert",reason="artifact"\} 1.0$', metrics, re.M)

            shutil.rmtree(bad)
            next_version(root, "tiny-bert")  # and a good one with the same number
            await traffic.wait_for("tiny-bert", 3)
            for version in ("3", "2"):  # back to the first one
                shutil.rmtree(root / "tiny-bert" / version)

            async def is_first():
                return (await states(channel, "tiny-bert"))["1"][0] == "READY"

            await until(is_first)
            traffic.stop()
        assert running.process.poll() is None
