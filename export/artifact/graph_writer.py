"""Writes one graph of an artifact: traces, fuses, quantises and saves it, and compares it with its source."""

import gc
from pathlib import Path

import onnx_ir

from export.graph.fuse import node_counts, optimize
from export.graph.quantise import quantize
from export.graph.recipes import DTYPES, GptRecipe, Ports, Recipe
from export.graph.runtime import Runtime, with_cache
from export.graph.trace import trace
from export.parity import comparison, decode
from export.parity.comparison import Parity
from export.parity.references import References
from export.precisions import PRECISIONS, Precision
from export.progress import Progress
from protos.manifest_pb2 import Graph, Score, Tensor

EXTERNAL_BYTES = 1_900_000_000  # a protobuf file is limited to 2 GiB; larger weights get files of their own ...
SHARD_BYTES = 4_000_000_000  # ... of at most this size
MILLION = 1e6


def make(
    directory: Path, target: str, precision: Precision, recipe: Recipe, references: References, progress: Progress
) -> Graph:
    """Trace, fuse and save one graph, then compare it with PyTorch. The model is left in its datatype.

    A graph that will be quantised is compared in fp32 first, so that the second error is that of the quantisation.
    """
    path, label = directory / f"{target}.onnx", f"{target} {precision.name}"
    exact = directory / f"exact-{target}.onnx" if precision.weights else path
    recipe.to(DTYPES[precision.datatype])
    traced_nodes = fuse(exact, label, precision, recipe, progress)
    gc.collect()  # a graph and its nodes refer to each other, and to the weights
    if precision.weights:
        with progress.step(f"{label}: compare") as remarks:
            remarks.append(str(prove(exact, PRECISIONS["fp32"], recipe, references)))
        with progress.step(f"{label}: quantise") as remarks:
            remarks += quantize_saved(exact, path, precision)
        gc.collect()
    with progress.step(f"{label}: compare") as remarks:
        proven = prove(path, precision, recipe, references)
        remarks.append(str(proven))
    graph = Graph(
        target=target,
        precision=precision.name,
        head_precision=precision.head,
        file=path.name,
        inputs=tensors(recipe.inputs(precision.name)),
        outputs=tensors(recipe.outputs(precision.name)),
        traced_nodes=traced_nodes,
        parity=comparison.message(proven),
    )
    if references.sample is not None and precision.weights:
        with progress.step(f"{label}: held out") as remarks:
            graph.held_out.CopyFrom(held_out_score(path, precision, recipe, references))
            remarks.append(f"{graph.held_out.measure} {graph.held_out.pytorch:.4g} → {graph.held_out.graph:.4g}")
    if references.evaluation_cases:
        with progress.step(f"{label}: evaluate") as remarks:
            measured = comparison.measure(Runtime(path), recipe, precision, references.evaluation_cases)
            evaluated = comparison.combine(measured, precision)
            graph.evaluation.CopyFrom(references.evaluation)
            graph.evaluation.parity.CopyFrom(comparison.message(evaluated))
            graph.evaluation.parity.ClearField("tolerance")
            remarks.append(str(evaluated))
    return graph


def fuse(path: Path, label: str, precision: Precision, recipe: Recipe, progress: Progress) -> dict[str, int]:
    """Trace, fuse and save; returns the counts of nodes as traced. The graph, as large as the model, is freed here."""
    with progress.step(f"{label}: trace"):
        traced = trace(recipe, precision.name)
        before = node_counts(traced)
    with progress.step(f"{label}: fuse") as remarks:
        fused = optimize(traced)
        remarks += [save(fused, path), node_changes(before, node_counts(fused))]
    return before


def quantize_saved(exact: Path, path: Path, precision: Precision) -> list[str]:
    """Quantise the saved graph, and delete the exact one; returns remarks for the user."""
    model = onnx_ir.load(exact)
    before = node_counts(model)
    remarks = [save(quantize(model, precision), path), node_changes(before, node_counts(model))]
    for file in (exact, *weight_files(exact)):
        file.unlink()
    return remarks


def held_out_score(path: Path, precision: Precision, recipe: Recipe, references: References) -> Score:
    """The graph's score on the held-out sample beside PyTorch's."""
    assert references.sample is not None, "nothing to score: this is a bug"
    runtime, ports = Runtime(path), recipe.inputs(precision.name)
    found = references.sample.score(lambda inputs: runtime.run(with_cache(ports, inputs))[recipe.result])
    return Score(measure=references.sample.measure, pytorch=references.score, graph=found)


def node_changes(before: dict[str, int], after: dict[str, int]) -> str:
    """The change in the number of nodes of each kind, for the user."""
    kinds = sorted({kind for kind in before | after if before.get(kind) != after.get(kind)})
    counts = [f"{kind} {before.get(kind, 0)} → {after.get(kind, 0)}" for kind in kinds]
    return f"{sum(before.values())} → {sum(after.values())} nodes: {', '.join(counts)}"


def save(model: onnx_ir.Model, path: Path) -> str:
    """Write the graph, with weights of more than 2 GiB in files beside it. Returns its size, for the user."""
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weights > EXTERNAL_BYTES:
        onnx_ir.save(model, path, external_data=f"{path.name}.data", max_shard_size_bytes=SHARD_BYTES)
    else:
        onnx_ir.save(model, path)
    return f"{sum(file.stat().st_size for file in (path, *weight_files(path))) / MILLION:.1f} MB"


def weight_files(path: Path) -> list[Path]:
    """The files beside a graph that have its weights, if any."""
    return sorted(path.parent.glob(f"{path.stem}*.data"))


def prove(path: Path, precision: Precision, recipe: Recipe, references: References) -> Parity:
    """Compare the saved file on every case, and GPT also over its cache. ParityError if it is out of tolerance."""
    runtime = Runtime(path)
    runtime.check(recipe, precision.name)
    differences = comparison.measure(runtime, recipe, precision, references.cases)
    if isinstance(recipe, GptRecipe) and references.generation is not None:
        differences += decode.measure(runtime, recipe, precision, references.generation)
    return comparison.judge(differences, precision)


def tensors(ports: Ports) -> list[Tensor]:
    """Ports as the manifest has them."""
    return [
        Tensor(name=name, datatype=port.datatype, shape=[str(size) for size in port.shape])
        for name, port in ports.items()
    ]
