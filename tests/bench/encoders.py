"""`python -m tests.bench.encoders`: BERT-base and ViT-B/16 through gRPC, beside other runtimes and servers.

Random weights of the published sizes, 16 callers at a time. Ours is `python -m server` in a process of its own, asked
over gRPC by this one; peers are handed everything at once, in batches of 16, with nothing around them. Peers that are
not there are skipped by name (`make bench-peers`). `--sizes tiny` rehearses it.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from server.client import Client
from server.errors import ProviderUnavailable
from server.runtime.providers import openvino_device
from tests.bench.inputs import MaskedText, masked_texts, photographs, ready_images, ready_texts
from tests.bench.load import all_answered, log_uniform
from tests.bench.measure import MostPadding, Result, Target, machine, table, verdicts, write
from tests.bench.padding import ran
from tests.bench.processes import OURS, PEERS, TRITON
from tests.bench.sides import Round, Workload
from tests.serving import Served, served

CONCURRENCY = 16
FILL_MASK, VISION, LENGTHS = "fill-mask", "images", "lengths"
FP32, BF16 = "transformers fp32", "transformers bf16"
RUNTIME = "ONNX Runtime fp32, ready tensors"
OPENVINO, OPENVINO_FP32 = "OpenVINO bf16, ready tensors", "OpenVINO fp32, ready tensors"
FIRST_COME, TRITON_CORE = "first come, first served", "Triton core, ONNX Runtime fp32"
ROUNDED = "int8-weights"
ARTIFACTS = {"fp32": "artifacts", ROUNDED: "artifacts-int8"}  # precision → folder
EVERY_PEER = (FP32, BF16, RUNTIME, OPENVINO, OPENVINO_FP32, FIRST_COME, TRITON_CORE)


@dataclass(frozen=True)
class Extent:
    """The sizes of the inputs, and how many of them make a round."""

    tokens: int
    longest: int
    inputs: int
    mixed: int


EXTENTS = {"published": Extent(128, 512, 32, 48), "tiny": Extent(48, 64, 16, 16)}


@dataclass(frozen=True)
class Ours:
    """One of our servers, and the provider and precision that it computes with."""

    server: Served
    provider: str
    precision: str

    @property
    def name(self) -> str:
        return f"ours, {self.provider} {self.precision}"


@dataclass(frozen=True)
class Bench:
    """The options and processes that the workloads share."""

    folder: Path
    checkpoints: dict[str, Path]
    extent: Extent
    ours: Sequence[Ours]
    peers: Sequence[str]  # by name
    rounds: int

    def artifact(self, model: str) -> Path:
        return max((self.folder / ARTIFACTS["fp32"] / model).iterdir(), key=lambda version: int(version.name))


# ---- the workloads


def fill_mask(bench: Bench) -> list[Result]:
    """BERT: texts of one length with one mask each."""
    checkpoint = bench.checkpoints["bert-base"]
    texts = masked_texts(checkpoint, [bench.extent.tokens] * bench.extent.inputs)
    ready = {"file": str(ready_texts(texts, bench.folder / "texts.npz")), "batch": CONCURRENCY}
    with ExitStack() as stack:
        work = Workload(FILL_MASK, bench.peers, stack)
        for side, dtype in ((FP32, "float32"), (BF16, "bfloat16")):
            arguments = (OURS, "pipelines", checkpoint, "fill-mask", dtype)
            work.add_peer(side, *arguments, texts=[each.text for each in texts], batch=CONCURRENCY)
        work.add_peer(RUNTIME, OURS, "plain_runtime", checkpoint, "text", bench.folder / "text.onnx", **ready)
        for side, precision in ((OPENVINO, "bf16"), (OPENVINO_FP32, "f32")):
            work.add_peer(side, PEERS, "bare_openvino", checkpoint, "text", precision, **ready)
        for ours in bench.ours:
            work.add(ours.name, filling(ours.server, texts), ours.server.process.pid)
        return work.measured(bench.rounds)


def images(bench: Bench) -> list[Result]:
    """ViT: JPEG files; engines without a decoder get tensors."""
    checkpoint = bench.checkpoints["vit-base"]
    (bench.folder / "photographs").mkdir(exist_ok=True)
    files = photographs(bench.folder / "photographs", bench.extent.inputs)
    ready = {"file": str(ready_images(checkpoint, files, bench.folder / "images.npz")), "batch": CONCURRENCY}
    with ExitStack() as stack:
        work = Workload(VISION, bench.peers, stack)
        for side, dtype in ((FP32, "float32"), (BF16, "bfloat16")):
            arguments = (OURS, "pipelines", checkpoint, "image-classification", dtype)
            work.add_peer(side, *arguments, files=[str(file) for file in files], batch=CONCURRENCY)
        work.add_peer(RUNTIME, OURS, "plain_runtime", checkpoint, "image", bench.folder / "image.onnx", **ready)
        for side, precision in ((OPENVINO, "bf16"), (OPENVINO_FP32, "f32")):
            work.add_peer(side, PEERS, "bare_openvino", checkpoint, "image", precision, **ready)
        for ours in bench.ours:
            work.add(ours.name, classifying(ours.server, files), ours.server.process.pid)
        return work.measured(bench.rounds)


def lengths(bench: Bench) -> list[Result]:
    """BERT: log-uniform lengths, which show how much each side pads and whether it batches."""
    spread = log_uniform(8, bench.extent.longest, bench.extent.mixed)
    texts = masked_texts(bench.checkpoints["bert-base"], spread)
    rows = {"rows": [each.token_ids for each in texts], "positions": [each.position for each in texts]}
    with ExitStack() as stack:
        work = Workload(LENGTHS, bench.peers, stack)
        for ours in bench.ours:
            work.add(ours.name, filling(ours.server, texts), ours.server.process.pid)
            work.paddings[ours.name] = padding_from_now_on(ours.server)
        first = bench.ours[0]
        arguments = (OURS, "first_come", bench.artifact("bert-base"), first.provider, first.precision)
        work.add_peer(FIRST_COME, *arguments, batch=CONCURRENCY, **rows)
        if core := work.open(TRITON_CORE, TRITON, "triton_core", bench.artifact("bert-base") / "cpu.onnx"):
            work.add(TRITON_CORE, asking_triton(f"127.0.0.1:{core.ask()['port']}", texts), core.pid)
        return work.measured(bench.rounds)


WORKLOADS: dict[str, Callable[[Bench], list[Result]]] = {FILL_MASK: fill_mask, VISION: images, LENGTHS: lengths}
MODELS = {FILL_MASK: "bert-base", VISION: "vit-base", LENGTHS: "bert-base"}


def targets(ours: str) -> list[Target | MostPadding]:
    """The targets, on two cores with AMX."""
    return [
        Target(FILL_MASK, ours, FP32, 4),
        Target(FILL_MASK, ours, BF16, 1.5),
        Target(FILL_MASK, ours, OPENVINO, 1.1),
        Target(VISION, ours, FP32, 3.5),
        Target(VISION, ours, OPENVINO, 0.85),
        Target(LENGTHS, ours, FIRST_COME, 1.8),
        Target(LENGTHS, ours, TRITON_CORE, 3),
        MostPadding(LENGTHS, ours, 0.15),
    ]


# ---- requests to servers, from 16 clients at a time


def filling(server: Served, texts: Sequence[MaskedText]) -> Round:
    """One request for each text, with our service."""
    client = Client(server.target)

    def best(text: MaskedText) -> int:
        (filled,) = client.fill_mask([text.text], model="bert-base")
        return filled.masks[0].candidates[0].token

    return lambda: all_answered(best, texts, CONCURRENCY)


def classifying(server: Served, files: Sequence[Path]) -> Round:
    """One request for each file, with our service."""
    client, contents = Client(server.target), [file.read_bytes() for file in files]

    def best(content: bytes) -> int:
        (classified,) = client.classify_image([content], model="vit-base")
        return classified.classes[0].class_id

    return lambda: all_answered(best, contents, CONCURRENCY)


def asking_triton(target: str, texts: Sequence[MaskedText]) -> Round:
    """One request for each text, as token ids."""
    client = triton.InferenceServerClient(target)

    def tensor(name: str, values: list[int]) -> triton.InferInput:
        array = np.array([values])
        return triton.InferInput(name, list(array.shape), "INT64").set_data_from_numpy(array)

    def best(text: MaskedText) -> int:
        inputs = [tensor("input_ids", text.token_ids), tensor("position", [text.position])]
        return int(client.infer("bert", inputs).as_numpy("best")[0, 0])

    return lambda: all_answered(best, texts, CONCURRENCY)


def padding_from_now_on(server: Served) -> Callable[[], float]:
    """The share of padding in what a server has run since."""
    before = ran(server, "bert-base")
    return lambda: ran(server, "bert-base").share_since(before)


# ---- the command


@contextmanager
def our_servers(folder: Path) -> Iterator[list[Ours]]:
    """One server for each provider of this machine, the fastest first, and another of that with weights in 8 bits."""
    with ExitStack() as stack:
        found = []
        fastest, *others = providers()
        for provider, precision in ((fastest, "fp32"), (fastest, ROUNDED), *((other, "fp32") for other in others)):
            artifacts = folder / ARTIFACTS[precision]
            server = stack.enter_context(served(artifacts, "--provider", provider, "--threads", "0"))
            with Client(server.target) as client:
                model = client.models()[0]
            found.append(Ours(server, model.provider, model.precision))
        yield found


def providers() -> list[str]:
    try:
        openvino_device()
    except ProviderUnavailable as reason:
        print(reason)
        return ["cpu"]
    return ["openvino", "cpu"]


def prepared(folder: Path, sizes: str, workloads: Sequence[str]) -> dict[str, Path]:
    """The checkpoints that the workloads need: written and exported unless the folder has them already."""
    checkpoints = {name: folder / "checkpoints" / name for name in sorted({MODELS[each] for each in workloads})}
    missing = {
        precision: [source for name, source in checkpoints.items() if not (folder / artifacts / name).exists()]
        for precision, artifacts in ARTIFACTS.items()
    }
    if any(missing.values()):
        from tests.published import SIZES, export  # imports torch

        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        SIZES[sizes](folder / "checkpoints", [name for name, source in checkpoints.items() if not source.exists()])
        for precision, sources in missing.items():
            if sources:
                export(sources, folder / ARTIFACTS[precision], f"cpu={precision}")
    return checkpoints


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.encoders", description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", choices=EXTENTS, default="published")
    parser.add_argument("--workloads", choices=WORKLOADS, nargs="+", default=list(WORKLOADS))
    parser.add_argument(
        "--peers", choices=EVERY_PEER, nargs="*", default=EVERY_PEER, metavar="PEER", help=", ".join(EVERY_PEER)
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_const", dest="rounds", const=2, help="two rounds")
    parser.add_argument("--folder", type=Path, help="keep the models here for the next run")
    parser.add_argument("--output", type=Path, help="a file for the rates of all rounds, as JSON")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    with ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoints = prepared(folder, given.sizes, given.workloads)
        ours = stack.enter_context(our_servers(folder))
        bench = Bench(folder, checkpoints, EXTENTS[given.sizes], ours, given.peers, given.rounds)
        results = [result for name in given.workloads for result in WORKLOADS[name](bench)]
    judged = [target for fastest in ours[:2] for target in targets(fastest.name)]
    wanted = [target for target in judged if target.workload in given.workloads]
    print(f"\n{machine()}; {given.sizes} sizes, {CONCURRENCY} callers, {given.rounds} rounds\n")
    print(f"{table(results)}\n\n{verdicts(results, wanted)}")
    if given.output:
        write(given.output, results)


if __name__ == "__main__":
    main()
