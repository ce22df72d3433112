"""What a request never reaches, and what no other client and no log ever sees (server/README.md, Security)."""

import json
import logging
import os
import pickle
import shutil
import socket

import grpc
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from protos import affinity_pb2 as pb
from protos import open_inference_pb2 as oip
from protos.affinity_pb2_grpc import AffinityStub
from server.rpc.services import OPEN_INFERENCE
from tests.server.generation.test_failures import listening

HERE = __file__

# ---- files, URLs and pickles


class Trap:
    """Makes a directory when it is unpickled."""

    def __init__(self, directory):
        self._directory = str(directory)

    def __reduce__(self):
        return os.mkdir, (self._directory,)


@pytest.fixture
def typed(server):
    with grpc.insecure_channel(server.target) as channel:
        yield AffinityStub(channel)


@pytest.fixture
def infer(server):
    with grpc.insecure_channel(server.target) as channel:
        yield channel.unary_unary(
            f"/{OPEN_INFERENCE}/ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )


def code_of(call, request):
    with pytest.raises(grpc.RpcError) as error:
        call(request)
    return error.value.code().name


def test_an_image_is_never_a_file_a_url_or_a_pickle(typed, infer, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as site:
        url = f"http://127.0.0.1:{site.getsockname()[1]}/image.png"
        trap = pickle.dumps(Trap(tmp_path / "sprung"))
        for image in (HERE.encode(), f"file://{HERE}".encode(), url.encode(), b"data:image/png;base64,AAAA", trap):
            assert code_of(typed.ClassifyImage, pb.ClassifyImageRequest(images=[image], model="tiny-vit")) == (
                "INVALID_ARGUMENT"
            )
            request = oip.ModelInferRequest(model_name="tiny-vit")
            request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(image)
            assert code_of(infer, request) == "INVALID_ARGUMENT"
        site.setblocking(False)
        with pytest.raises(BlockingIOError):
            site.accept()
    assert list(tmp_path.iterdir()) == []


def test_a_text_is_never_a_file_a_url_or_a_pickle(typed, tmp_path):
    """A text is a text: it counts as many tokens as it has."""
    with socket.create_server(("127.0.0.1", 0)) as site:
        url = f"http://127.0.0.1:{site.getsockname()[1]}/text"
        trap = pickle.dumps(Trap(tmp_path / "sprung"), protocol=0).decode("latin-1")
        for text in (HERE, f"file://{HERE}", url, trap):
            request = pb.ClassifyTextRequest(model="tiny-classifier", inputs=[text], truncate=True)
            response = typed.ClassifyText(request)
            assert len(response.results) == 1
        site.setblocking(False)
        with pytest.raises(BlockingIOError):
            site.accept()
    assert list(tmp_path.iterdir()) == []


NAMES = (
    "..",
    ".",
    "/",
    "/etc",
    "../artifacts",
    "../../etc/passwd",
    "tiny-gpt/1",
    "tiny-gpt/../tiny-gpt",
    "*",
    "t*",
    "",
)
NAMES += ("file:///etc/passwd", "http://127.0.0.1/", "tiny-gpt\n", "%2e%2e", "~", "$HOME", "tiny-gpt.raw")


async def test_the_name_of_a_model_is_never_a_path(exported):
    root = exported("tiny-gpt").parents[1]
    async with (
        listening(root, model_control="explicit") as (address, _),
        triton.InferenceServerClient(address) as client,
    ):
        for name in NAMES:
            for request in (client.load_model, client.unload_model, client.get_model_metadata):
                if name.endswith(".raw") and request == client.get_model_metadata:
                    continue
                with pytest.raises(InferenceServerException) as error:
                    await request(name)
                assert error.value.status() in ("StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT"), name
                assert str(root) not in str(error.value)
            assert name.endswith(".raw") or not await client.is_model_ready(name)
        for version in ("..", "../1", "1/", "/1", "*", "-1"):
            assert not await client.is_model_ready("tiny-gpt", version)


# ---- paths and other clients' texts


def damage(artifact, kind):
    manifest = artifact / "manifest.json"
    match kind:
        case "a graph is missing":
            next(artifact.glob("*.onnx")).unlink()
        case "a graph has changed":
            next(artifact.glob("*.onnx")).write_bytes(b"no graph")
        case "the manifest is no JSON":
            manifest.write_text("{")
        case "another format":
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 1}))
        case "no digest":
            (artifact / "manifest.json.sha256").unlink()


@pytest.mark.parametrize(
    "kind", ["a graph is missing", "a graph has changed", "the manifest is no JSON", "another format", "no digest"]
)
async def test_clients_never_see_where_the_artifacts_are(exported, tmp_path, caplog, kind):
    caplog.set_level(logging.INFO, "server")
    root = tmp_path / "the-secret-place"
    shutil.copytree(exported("tiny-gpt").parent, root / "tiny-gpt")
    async with (
        listening(root, model_control="explicit") as (address, _),
        triton.InferenceServerClient(address) as client,
    ):
        shutil.copytree(root / "tiny-gpt" / "1", root / "tiny-gpt" / "2")
        damage(root / "tiny-gpt" / "2", kind)
        with pytest.raises(InferenceServerException) as error:
            await client.load_model("tiny-gpt")
        seen = [str(error.value), str(await client.get_model_repository_index())]
        for version in ("2", "3"):
            with pytest.raises(InferenceServerException) as error:
                await client.get_model_metadata("tiny-gpt", version)
            seen.append(str(error.value))
    assert "tiny-gpt/2" in seen[0]
    assert not any("secret-place" in text or str(tmp_path) in text for text in seen), seen
    assert f"{root}/tiny-gpt/2" in caplog.text  # the operator sees it


SECRET = "xyzzy plugh"


async def test_a_text_is_neither_in_the_log_nor_in_the_errors_of_others(exported, caplog, monkeypatch):
    """Not even at the level debug, and not if the server fails over it."""
    caplog.set_level(logging.DEBUG)
    async with (
        listening(exported("tiny-gpt").parents[1]) as (address, engine),
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = AffinityStub(channel)

        def generate(text, **options):
            request = pb.GenerateRequest(prompts=[pb.Prompt(text=text)], max_tokens=4, **options)
            return stub.Generate(request)

        async def outcome(call):
            try:
                return str([response async for response in call])
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name}: {error.details()} {error.trailing_metadata()}"

        await outcome(generate(SECRET))
        await outcome(generate(SECRET * 1000))
        await outcome(generate(SECRET, top_p=-1))
        await outcome(generate(SECRET, stop=[SECRET] * 10))
        await outcome(generate(SECRET, model=SECRET))
        others = [await outcome(generate("A list is", **options)) for options in ({}, {"top_p": -1}, {"model": "x"})]
        monkeypatch.setattr(engine._worker._runner, "decoder", None)
        failed = await outcome(generate(SECRET))
        others.append(await outcome(generate("A list is")))
    assert failed == others[-1]
    assert failed.startswith("INTERNAL: internal error; the server's log has the details")
    assert "Traceback" in caplog.text
    for text in (*others, caplog.text):
        assert not any(word in text for word in SECRET.split())
