"""One graph of an artifact: traced, fused, rounded where that is wanted, saved, and proven equal to its source."""

import gc
from pathlib import Path

import onnx_ir

from export.graph.fuse import node_counts, optimize
from export.graph.quantise import quantize
from export.graph.recipes import DTYPES, GptRecipe, Ports, Recipe
from export.graph.runtime import Runtime, filled
from export.graph.trace import trace
from export.parity import comparison, decode
from export.parity.comparison import Parity
from export.parity.references import References
from export.precisions import PRECISIONS, Precision
from export.progress import Progress
from protos.manifest_pb2 import Graph, Score, Tensor

EXTERNAL_BYTES = 1_900_000_000  # a protobuf file ends at 2 GiB; beyond this, weights get files of their own ...
SHARD_BYTES = 4_000_000_000  # ... of at most this size, which every file system and store takes
MILLION = 1e6


def make(
    directory: Path, target: str, precision: Precision, recipe: Recipe, references: References, progress: Progress
) -> Graph:
    """Trace, fuse and save one graph, then prove it. The model is left in its datatype.

    What is to be rounded is proven in fp32 first: only then does the error of the rest tell what rounding costs.
    """
    path, label = directory / f"{target}.onnx", f"{target} {precision.name}"
    exact = directory / f"exact-{target}.onnx" if precision.weights else path
    recipe.to(DTYPES[precision.datatype])
    traced_nodes = fuse(exact, label, precision, recipe, progress)
    gc.collect()  # a graph and its nodes hold each other, and the weights
    if precision.weights:
        with progress.step(f"{label}: compare") as remarks:
            remarks.append(str(prove(exact, PRECISIONS["fp32"], recipe, references)))
        with progress.step(f"{label}: quantise") as remarks:
            remarks += round_off(exact, path, precision)
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
            graph.held_out.CopyFrom(scored(path, precision, recipe, references))
            remarks.append(f"{graph.held_out.measure} {graph.held_out.pytorch:.4g} → {graph.held_out.graph:.4g}")
    if references.evaluation_cases:
        with progress.step(f"{label}: evaluate") as remarks:
            measured = comparison.measure(Runtime(path), recipe, precision, references.evaluation_cases)
            evaluated = comparison.summed(measured, precision)
            graph.evaluation.CopyFrom(references.evaluation)
            graph.evaluation.parity.CopyFrom(comparison.message(evaluated))
            graph.evaluation.parity.ClearField("tolerance")
            remarks.append(str(evaluated))
    return graph


def fuse(path: Path, label: str, precision: Precision, recipe: Recipe, progress: Progress) -> dict[str, int]:
    """Trace, fuse and save; returns the nodes as traced. The graph itself is as large as the model: it ends here."""
    with progress.step(f"{label}: trace"):
        traced = trace(recipe, precision.name)
        before = node_counts(traced)
    with progress.step(f"{label}: fuse") as remarks:
        fused = optimize(traced)
        remarks += [save(fused, path), changed(before, node_counts(fused))]
    return before


def round_off(exact: Path, path: Path, precision: Precision) -> list[str]:
    """The saved graph again, its matrices in fewer bits, in place of the exact one; returns remarks for a reader."""
    model = onnx_ir.load(exact)
    before = node_counts(model)
    remarks = [save(quantize(model, precision), path), changed(before, node_counts(model))]
    for file in (exact, *beside(exact)):
        file.unlink()
    return remarks


def scored(path: Path, precision: Precision, recipe: Recipe, references: References) -> Score:
    """The graph's score on the held-out sample beside PyTorch's."""
    assert references.sample is not None, "nothing to score: this is a bug"
    runtime, ports = Runtime(path), recipe.inputs(precision.name)
    found = references.sample.score(lambda inputs: runtime.run(filled(ports, inputs))[recipe.result])
    return Score(measure=references.sample.measure, pytorch=references.score, graph=found)


def changed(before: dict[str, int], after: dict[str, int]) -> str:
    """How many nodes of each kind there were and are, where that differs, for a reader."""
    kinds = sorted({kind for kind in before | after if before.get(kind) != after.get(kind)})
    counts = [f"{kind} {before.get(kind, 0)} → {after.get(kind, 0)}" for kind in kinds]
    return f"{sum(before.values())} → {sum(after.values())} nodes: {', '.join(counts)}"


def save(model: onnx_ir.Model, path: Path) -> str:
    """Write the graph; weights of more than 2 GiB go to files beside it. Returns its size, for a reader."""
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weights > EXTERNAL_BYTES:
        onnx_ir.save(model, path, external_data=f"{path.name}.data", max_shard_size_bytes=SHARD_BYTES)
    else:
        onnx_ir.save(model, path)
    return f"{sum(file.stat().st_size for file in (path, *beside(path))) / MILLION:.1f} MB"


def beside(path: Path) -> list[Path]:
    """The files with a graph's weights, if it does not hold them itself."""
    return sorted(path.parent.glob(f"{path.stem}*.data"))


def prove(path: Path, precision: Precision, recipe: Recipe, references: References) -> Parity:
    """Run the saved file on every case, and for GPT step by step. ParityError if it is too far from PyTorch."""
    runtime = Runtime(path)
    runtime.check(recipe, precision.name)
    differences = comparison.measure(runtime, recipe, precision, references.cases)
    if isinstance(recipe, GptRecipe) and references.generation is not None:
        differences += decode.measure(runtime, recipe, precision, references.generation)
    return comparison.judge(differences, precision)


def tensors(ports: Ports) -> list[Tensor]:
    """Ports in the manifest's words."""
    return [
        Tensor(name=name, datatype=port.datatype, shape=[str(size) for size in port.shape])
        for name, port in ports.items()
    ]
