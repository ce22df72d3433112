"""`python -m tests.bench.encoders`: BERT-base and ViT-B/16 through gRPC, beside other runtimes and servers.

Random weights of the published sizes, 16 callers at a time. Ours is `python -m server` in a process of its own, asked
over gRPC by this one, in each precision; the fastest is also measured without gRPC. Peers are handed everything at
once, in batches of 16 (one by one where lengths differ, which pads nothing), with nothing around them. Peers that
cannot run are skipped by name, with the reason. `--sizes quick` measures fewer inputs.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.artifact import newest
from server.client import Client
from server.errors import ProviderUnavailable
from server.host.processor import read_processor
from server.runtime.providers import openvino_device
from tests.bench import goals, options
from tests.bench.clients import CONCURRENCY, asking_triton, classifying, filling, padding_from_now_on
from tests.bench.goals import FILL_MASK, LENGTHS, VISION
from tests.bench.inputs import masked_texts, photographs, ready_images, ready_texts
from tests.bench.load import log_uniform
from tests.bench.measure import MostPadding, Result, Target, machine, table, verdicts, write
from tests.bench.processes import OURS, PEERS, TRITON
from tests.bench.sides import Workload
from tests.serving import Served, served

FP32, BF16 = goals.TRANSFORMERS, "transformers bf16"
RUNTIME = "ONNX Runtime fp32, ready tensors"
OPENVINO, OPENVINO_FP32 = "OpenVINO bf16, ready tensors", "OpenVINO fp32, ready tensors"
FIRST_COME, TRITON_CORE = "first come, first served", "Triton core, ONNX Runtime fp32"
ROUNDED, DYNAMIC = "int8-weights", "int8-dynamic"
ARTIFACTS = {"fp32": "artifacts", ROUNDED: "artifacts-int8", DYNAMIC: "artifacts-int8-dynamic"}  # precision → folder
WITHOUT_GRPC = "engine alone"  # the fastest of ours
EVERY_PEER = (FP32, BF16, RUNTIME, OPENVINO, OPENVINO_FP32, FIRST_COME, TRITON_CORE, WITHOUT_GRPC)


@dataclass(frozen=True)
class Extent:
    """The sizes of the inputs, and how many of them make a round."""

    tokens: int
    longest: int
    inputs: int
    mixed: int


EXTENTS = {
    "published": Extent(128, 512, 32, 48),
    "quick": Extent(128, 512, 16, 32),
    "tiny": Extent(48, 64, 16, 16),
}


@dataclass(frozen=True)
class Ours:
    """One of our servers, and the provider and precision that it computes with."""

    server: Served
    provider: str
    precision: str

    @property
    def name(self) -> str:
        return f"{goals.OURS}{self.provider} {self.precision}"

    @property
    def name_without_grpc(self) -> str:
        return f"{goals.ENGINE}{self.provider} {self.precision}"


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
        return newest(self.folder / ARTIFACTS["fp32"])[model]

    def workload(self, name: str, stack: ExitStack) -> Workload:
        return Workload(name, [*self.peers, *(ours.name_without_grpc for ours in self.ours)], stack)

    def add_engine(self, work: Workload, model: str, **inputs: Any) -> None:
        """Add the fastest of ours without gRPC, after one run of all of ours."""
        if WITHOUT_GRPC not in self.peers:
            return
        name = work.fastest([ours.name for ours in self.ours])
        fastest = next(ours for ours in self.ours if ours.name == name)
        arguments = (OURS, "own_encoder", fastest.server.artifacts, model, fastest.provider)
        work.add_peer(fastest.name_without_grpc, *arguments, callers=CONCURRENCY, **inputs)


# ---- the workloads


def fill_mask(bench: Bench) -> list[Result]:
    """BERT: texts of one length with one mask each."""
    checkpoint = bench.checkpoints["bert-base"]
    texts = masked_texts(checkpoint, [bench.extent.tokens] * bench.extent.inputs)
    ready = {"file": str(ready_texts(texts, bench.folder / "texts.npz")), "batch": CONCURRENCY}
    with ExitStack() as stack:
        work = bench.workload(FILL_MASK, stack)
        for side, dtype in ((FP32, "float32"), (BF16, "bfloat16")):
            arguments = (OURS, "pipelines", checkpoint, "fill-mask", dtype)
            work.add_peer(side, *arguments, texts=[each.text for each in texts], batch=CONCURRENCY)
        work.add_peer(RUNTIME, OURS, "plain_runtime", checkpoint, "text", bench.folder / "text.onnx", **ready)
        for side, precision in ((OPENVINO, "bf16"), (OPENVINO_FP32, "f32")):
            work.add_peer(side, PEERS, "bare_openvino", checkpoint, "text", precision, **ready)
        for ours in bench.ours:
            work.add(ours.name, filling(ours.server, texts), ours.server.process.pid)
        bench.add_engine(work, "bert-base", texts=[each.text for each in texts])
        return work.measured(bench.rounds)


def images(bench: Bench) -> list[Result]:
    """ViT: JPEG files; engines without a decoder get tensors."""
    checkpoint = bench.checkpoints["vit-base"]
    (bench.folder / "photographs").mkdir(exist_ok=True)
    files = photographs(bench.folder / "photographs", bench.extent.inputs)
    ready = {"file": str(ready_images(checkpoint, files, bench.folder / "images.npz")), "batch": CONCURRENCY}
    with ExitStack() as stack:
        work = bench.workload(VISION, stack)
        for side, dtype in ((FP32, "float32"), (BF16, "bfloat16")):
            arguments = (OURS, "pipelines", checkpoint, "image-classification", dtype)
            work.add_peer(side, *arguments, files=[str(file) for file in files], batch=CONCURRENCY)
        work.add_peer(RUNTIME, OURS, "plain_runtime", checkpoint, "image", bench.folder / "image.onnx", **ready)
        for side, precision in ((OPENVINO, "bf16"), (OPENVINO_FP32, "f32")):
            work.add_peer(side, PEERS, "bare_openvino", checkpoint, "image", precision, **ready)
        for ours in bench.ours:
            work.add(ours.name, classifying(ours.server, files), ours.server.process.pid)
        bench.add_engine(work, "vit-base", files=[str(file) for file in files])
        return work.measured(bench.rounds)


def lengths(bench: Bench) -> list[Result]:
    """BERT: log-uniform lengths, which show how much each side pads and whether it batches."""
    spread = log_uniform(8, bench.extent.longest, bench.extent.mixed)
    checkpoint = bench.checkpoints["bert-base"]
    texts = masked_texts(checkpoint, spread)
    ready = {"file": str(ready_texts(texts, bench.folder / "lengths.npz")), "batch": 1}
    rows = {"rows": [each.token_ids for each in texts], "positions": [each.position for each in texts]}
    with ExitStack() as stack:
        work = bench.workload(LENGTHS, stack)
        arguments = (OURS, "pipelines", checkpoint, "fill-mask", "float32")
        work.add_peer(FP32, *arguments, texts=[each.text for each in texts], batch=1)
        for side, precision in ((OPENVINO, "bf16"), (OPENVINO_FP32, "f32")):
            work.add_peer(side, PEERS, "bare_openvino", checkpoint, "text", precision, **ready)
        for ours in bench.ours:
            work.add(ours.name, filling(ours.server, texts), ours.server.process.pid)
            work.paddings[ours.name] = padding_from_now_on(ours.server)
        bench.add_engine(work, "bert-base", texts=[each.text for each in texts])
        first = bench.ours[0]
        arguments = (OURS, "first_come", bench.artifact("bert-base"), first.provider, first.precision)
        work.add_peer(FIRST_COME, *arguments, batch=CONCURRENCY, **rows)
        if core := work.open(TRITON_CORE, TRITON, "triton_core", bench.artifact("bert-base") / "cpu.onnx"):
            work.add(TRITON_CORE, asking_triton(f"127.0.0.1:{core.ask()['port']}", texts), core.pid)
        return work.measured(bench.rounds)


WORKLOADS: dict[str, Callable[[Bench], list[Result]]] = {FILL_MASK: fill_mask, VISION: images, LENGTHS: lengths}
WEIGHTS = {"quick": "published"}
MODELS = {FILL_MASK: "bert-base", VISION: "vit-base", LENGTHS: "bert-base"}


def batching_targets(ours: str) -> list[Target | MostPadding]:
    """The targets for batching, in addition to those of `goals`."""
    return [
        Target(LENGTHS, ours, FIRST_COME, 1.8),
        Target(LENGTHS, ours, TRITON_CORE, 3),
        MostPadding(LENGTHS, ours, 0.15),
    ]


# ---- the command


@contextmanager
def our_servers(folder: Path) -> Iterator[list[Ours]]:
    """One server for each provider of this machine, the fastest first, and one for each other precision."""
    fastest, *others = providers()
    sides = [(fastest, "fp32"), (fastest, ROUNDED), ("cpu", DYNAMIC), *((other, "fp32") for other in others)]
    with ExitStack() as stack:
        found = []
        for provider, precision in sides:
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
        SIZES[WEIGHTS.get(sizes, sizes)](
            folder / "checkpoints", [name for name, source in checkpoints.items() if not source.exists()]
        )
        for precision, sources in missing.items():
            if sources:
                export(sources, folder / ARTIFACTS[precision], f"cpu={precision}")
    return checkpoints


def arguments() -> argparse.Namespace:
    parser = options.parser("encoders", __doc__)
    options.add_sizes(parser, EXTENTS)
    options.add_choice(parser, "--workloads", WORKLOADS)
    options.add_choice(parser, "--peers", EVERY_PEER)
    options.add_rounds(parser, 5)
    options.add_folder(parser)
    options.add_output(parser)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    with ExitStack() as stack:
        folder = stack.enter_context(options.folder_of(given))
        checkpoints = prepared(folder, given.sizes, given.workloads)
        ours = stack.enter_context(our_servers(folder))
        bench = Bench(folder, checkpoints, EXTENTS[given.sizes], ours, given.peers, given.rounds)
        results = [result for name in given.workloads for result in WORKLOADS[name](bench)]
    judged = [target for fastest in ours[:2] for target in batching_targets(fastest.name)]
    wanted = [target for target in judged if target.workload in given.workloads]
    print(f"\n{machine()}; {given.sizes} sizes, {CONCURRENCY} callers, {given.rounds} rounds\n")
    print(table(results), verdicts(results, wanted), sep="\n\n", end="\n\n")
    print(goals.table(results, goals.kind_of(read_processor().instruction_sets), given.workloads))
    if given.output:
        write(given.output, results)


if __name__ == "__main__":
    main()
