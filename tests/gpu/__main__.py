"""`python -m tests.gpu`: checks and measures the server on a machine with a GPU, in one command and without a network.

Makes checkpoints of the published sizes with random weights, exports them and the bundled models, serves all of them on
the provider (the server checks the golden outputs before it is ready), calls each over gRPC, and times them at several
batch sizes: the graph alone, over gRPC, and compiled by torch. BERT and ViT are compared with the rate at which the
device multiplies matrices, decode steps of GPT-2 with the bound set by memory bandwidth. `--provider cpu --sizes tiny`
rehearses the command.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import grpc
import numpy as np

from export.artifact import inspection
from protos import affinity_pb2 as pb
from protos import open_inference_pb2 as oip
from protos.affinity_pb2_grpc import AffinityStub
from server.artifact import Artifact, read_artifact
from server.client import OPEN_INFERENCE, Client
from server.config.settings import Settings
from server.runtime.cuda import CPU, CUDA
from server.runtime.golden_check import check_parity
from server.runtime.io_binding import BoundSession
from server.runtime.open import open_session
from server.runtime.providers import find_providers
from server.runtime.session import Session
from tests.bench.inputs import photographs
from tests.gpu.decoding import decoding
from tests.gpu.encoding import ENCODERS, TEXT_TOKENS, floor, in_torch, operations, products_per_second, text_length
from tests.gpu.rows import Row, table, timed
from tests.published import SIZES, export
from tests.serving import ROOT, Served, served

BUNDLED = ("bert-mini", "gpt-mini", "vit-digits", "mixer-digits")
TARGETS = {"cuda": "cuda=fp16", "cpu": "cpu=fp32"}
NEW_TOKENS = 32
PHOTOGRAPHS = 8
EXTENTS = {"published": {"tokens": TEXT_TOKENS, "side": 224}, "tiny": {"tokens": 48, "side": 32}}
MESSAGE_MB = "512"  # 128 images of 224 × 224 in fp32 are 77 MB


def alone(artifacts: Path, name: str, settings: Settings, device: int, floors: list[Row], runs: int) -> Iterator[Row]:
    """The session of an encoder or a vision model on a device, without the server, with and without bound inputs."""
    artifact = read_artifact(artifacts / name / "1")
    (choice,) = find_providers(settings).choices
    opened = open_session(artifact, choice, settings, device=device)
    where = {"provider": opened.provider, "precision": opened.precision, "device": device}
    for what, kind in (("graph alone", Session), ("graph alone, bound", BoundSession)):
        session = kind(opened.ort, **where)
        measured = check_parity(session, artifact)
        print(f"{name}, {what}, device {device}: {measured.error:.2g} standard deviations from PyTorch")
        yield from timed_batches(session, artifact, f"{what}, device {device}", floors, runs)


def timed_batches(session: Session, artifact: Artifact, what: str, floors: list[Row], runs: int) -> Iterator[Row]:
    """One row for each batch size, with the share of the rate of matrix products."""
    random = np.random.default_rng(0)
    for least in floors:
        batch = least.batch
        if artifact.manifest.HasField("image"):
            image = artifact.manifest.image
            feeds = {"pixel_values": random.standard_normal((batch, 3, image.height, image.width)).astype(np.float32)}
            outputs = ["logits"]
        else:
            length = text_length(artifact)
            ids = random.integers(5, artifact.manifest.text.vocabulary, (batch, length))
            feeds = {
                "input_ids": ids,
                "position_ids": np.tile(np.arange(length), (batch, 1)),
                "lengths": np.full(batch, length, np.int32),
                "token_type_ids": np.zeros_like(ids),
                "selected": np.arange(batch) * length,  # one mask in each text
            }
            outputs = ["top_scores", "top_ids", "logsumexp"]
        seconds = timed(lambda feeds=feeds, outputs=outputs: session.run(feeds, outputs), runs)
        yield Row(artifact.name, what, batch, seconds * 1e3, batch / seconds, least.milliseconds / 1e3 / seconds)


def through_grpc(
    server: Served, files: list[Path], batches: list[int], runs: int, *, tokens: int, side: int
) -> Iterator[Row]:
    """One row for each task and number of inputs in a call: texts of `tokens` tokens, images of `side` × `side` pixels.

    Images are sent as pixels and as files.
    """
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    channel = grpc.insecure_channel(server.target, options=options)
    stub = AffinityStub(channel)
    infer = channel.unary_unary(
        OPEN_INFERENCE + "ModelInfer",
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelInferResponse.FromString,
    )
    text = " ".join(["a"] * (tokens - 3) + ["[MASK]"])
    prompt = pb.Prompt(token_ids=pb.TokenIds(ids=[1] * (tokens // 2)))
    for batch in batches:
        fill = pb.FillMaskRequest(model="bert-base", inputs=[text] * batch)
        seconds = timed(lambda fill=fill: stub.FillMask(fill), runs)
        yield Row("bert-base", "through gRPC", batch, seconds * 1e3, batch / seconds)
        texts = [" ".join(["a"] * int(count) + ["[MASK]"]) for count in np.geomspace(5, tokens - 3, batch)]
        fill = pb.FillMaskRequest(model="bert-base", inputs=texts)
        seconds = timed(lambda fill=fill: stub.FillMask(fill), runs)
        yield Row("bert-base", f"through gRPC, 8 to {tokens} tokens", batch, seconds * 1e3, batch / seconds)
        pixels = np.zeros((batch, 3, side, side), np.float32)
        tensor = oip.ModelInferRequest.InferInputTensor(name="pixel_values", datatype="FP32", shape=pixels.shape)
        images = oip.ModelInferRequest(
            model_name="vit-base.raw", inputs=[tensor], raw_input_contents=[pixels.tobytes()]
        )
        seconds = timed(lambda images=images: infer(images), runs)
        yield Row("vit-base", "through gRPC, pixels", batch, seconds * 1e3, batch / seconds)
        classify = pb.ClassifyImageRequest(
            model="vit-base", images=[files[number % len(files)].read_bytes() for number in range(batch)]
        )
        seconds = timed(lambda classify=classify: stub.ClassifyImage(classify), runs)
        yield Row("vit-base", "through gRPC, JPEG files", batch, seconds * 1e3, batch / seconds)
        new_tokens = min(NEW_TOKENS, tokens // 2 - 1)
        more = pb.GenerateRequest(
            model="gpt2", prompts=[prompt] * batch, max_tokens=new_tokens, temperature=0, ignore_eos=True
        )
        seconds = timed(lambda more=more: list(stub.Generate(more)), max(1, runs // 4))
        yield Row("gpt2", f"through gRPC, {new_tokens} tokens", batch, seconds * 1e3, batch * new_tokens / seconds)


def check_bundled_models(server: Served) -> None:
    """Call the bundled models over gRPC, as in the README."""
    with Client(server.target) as client:
        for model in client.models():
            print(f"{model.name}: {model.task} on {model.provider} in {model.precision}, {model.state}")
        assert client.fill_mask(["A list is a mutable [MASK]."], model="bert-mini")[0].masks[0].candidates
        assert "".join(piece.text for piece in client.generate("A list is", model="gpt-mini", max_tokens=20, seed=1))
        image = (ROOT / "models/pretrained/vit-digits/example.png").read_bytes()
        for model in ("vit-digits", "mixer-digits"):
            assert client.classify_image([image], model=model)[0].classes[0].label == "4"


def verified(artifacts: Path) -> set[str]:
    """The providers on which `python -m export verify` ran the graphs."""
    accounts = [inspection.verify(directory) for directory in sorted(artifacts.glob("*/1"))]
    for account in accounts:
        print("\n".join(inspection.describe_verification(account)))
    return {graph["measured_on"].rsplit(", ")[-1] for account in accounts for graph in account["graphs"]}


def measured(given: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """All rows. Those that torch has to compile come last."""
    checkpoints_folder, artifacts = folder / "checkpoints", folder / "artifacts"
    checkpoints_folder.mkdir()
    checkpoints = SIZES[given.sizes](checkpoints_folder)
    export([*BUNDLED, *map(str, checkpoints.values())], artifacts, TARGETS[given.provider])
    devices, rate = tuple(map(int, given.device.split(","))), products_per_second(given.provider)
    read = {name: read_artifact(artifacts / name / "1") for name in ENCODERS}
    floors = {
        name: [
            floor(name, batch, batch * operations(name, artifact, checkpoints[name]) / rate, rate)
            for batch in given.batches
        ]
        for name, artifact in read.items()
    }
    for name in ENCODERS:
        yield from floors[name]
        for device in devices:
            settings = Settings(provider=given.provider, device=devices)
            yield from alone(artifacts, name, settings, device, floors[name], given.runs)
    flags = ("--provider", given.provider, "--device", given.device, "--threads", "0", "--max-message-mb", MESSAGE_MB)
    with served(artifacts, *flags) as server:
        print(server.banner)
        check_bundled_models(server)
        files = photographs(folder, PHOTOGRAPHS)
        yield from through_grpc(server, files, given.batches, given.runs, **EXTENTS[given.sizes])
    places, expected = verified(artifacts), {"cuda": CUDA, "cpu": CPU}[given.provider]
    assert places == {expected}, f"verify: found {places}, expected {expected}"
    timing, tokens = (given.batches, given.runs), EXTENTS[given.sizes]["tokens"]
    yield from decoding(artifacts, checkpoints["gpt2"], given.provider, *timing, tokens=tokens)
    for name, artifact in read.items():
        yield from in_torch(name, artifact, checkpoints[name], given.provider, floors[name], given.runs)


def keep(rows: list[Row], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(table(rows) + "\n")
    (folder / "table.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--provider", choices=TARGETS, default="cuda")
    parser.add_argument("--device", default="0", help="numbers of the GPUs, separated by commas")
    parser.add_argument("--sizes", choices=SIZES, default="published")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument(
        "--output", type=Path, help="a directory for table.md and table.json, which are updated after each row"
    )
    return parser.parse_args()


def main() -> None:
    given, rows = arguments(), []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for row in measured(given, Path(folder)):
                rows.append(row)
                if given.output:
                    keep(rows, given.output)
        finally:
            print(table(rows))


if __name__ == "__main__":
    main()
