"""Writes the graphs of an artifact: traces, fuses, quantises and saves each, and compares it with its source."""

import gc
from dataclasses import dataclass
from pathlib import Path

import onnx_ir

from export.graph.dynamic import quantize_products
from export.graph.fuse import node_counts, optimize, split_slow_fusions
from export.graph.quantise import quantize
from export.graph.quantise_cache import Largest, quantize_cache
from export.graph.recipes import DTYPES, GptRecipe, Ports, Recipe
from export.graph.runtime import Runtime, with_cache
from export.graph.trace import trace
from export.parity import comparison, decode
from export.parity.comparison import Parity
from export.parity.references import References
from export.precisions import PRECISIONS, Precision, Targets
from export.progress import Progress
from protos.manifest_pb2 import Graph, Score, Tensor

EXTERNAL_BYTES = 1_900_000_000  # a protobuf file is limited to 2 GiB; larger weights get files of their own ...
SHARD_BYTES = 4_000_000_000  # ... of at most this size
EXACT, EXACT_PREFIX = PRECISIONS["fp32"], "exact-"  # the graph that is quantised, and the name of its file
MILLION = 1e6


@dataclass(frozen=True)
class Traced:
    """A saved graph that is not quantised, and how many nodes of each kind were traced."""

    path: Path
    nodes: dict[str, int]


def make_all(
    directory: Path, targets: Targets, recipe: Recipe, references: References, progress: Progress
) -> list[Graph]:
    """Make the graphs; returns them in the order of `targets`. The model is left in the datatype of the last one made.

    All quantised graphs of a target are made of one graph in fp32, which is compared with PyTorch first, so that their
    error is that of the quantisation. If the artifact does not contain it, it is deleted afterwards.
    """
    made: dict[tuple[str, Precision], Graph] = {}
    exact: dict[str, Traced] = {}
    for target, precision in sorted(targets, key=order_of_making):
        path, label = directory / file_name(target, precision, targets), f"{target} {precision.name}"
        if not precision.weights:
            traced = fuse(path, target, precision, recipe, progress)
            if precision.name == EXACT.name:
                exact[target] = traced
        else:
            if target not in exact:
                exact[target] = fuse(directory / f"{EXACT_PREFIX}{target}.onnx", target, EXACT, recipe, progress)
                with progress.step(f"{label}: compare") as remarks:
                    remarks.append(str(prove(exact[target].path, EXACT, recipe, references)))
            traced = exact[target]
            with progress.step(f"{label}: quantise") as remarks:
                remarks += quantize_saved(traced.path, path, precision, references.largest)
        gc.collect()  # a graph and its nodes refer to each other, and to the weights
        graph = Graph(target=target, file=path.name, traced_nodes=traced.nodes)
        made[target, precision] = measured(graph, path, precision, recipe, references, progress)
    for file in directory.glob(f"{EXACT_PREFIX}*"):
        file.unlink()
    return [made[chosen] for chosen in targets]


def order_of_making(chosen: tuple[str, Precision]) -> tuple[bool, bool]:
    """A sort key: half precision last, because a converted model stays in it; quantised graphs after those in fp32."""
    _, precision = chosen
    return precision.datatype != EXACT.datatype, bool(precision.weights)


def file_name(target: str, precision: Precision, targets: Targets) -> str:
    """The file of a graph: `cpu.onnx` for the default of its target, `cpu-int8-weights.onnx` for another precision."""
    default = next(chosen for name, chosen in targets if name == target)
    return f"{target}.onnx" if precision == default else f"{target}-{precision.name}.onnx"


def measured(
    graph: Graph, path: Path, precision: Precision, recipe: Recipe, references: References, progress: Progress
) -> Graph:
    """The description of a saved graph, with its errors against PyTorch."""
    label = f"{graph.target} {precision.name}"
    with progress.step(f"{label}: compare") as remarks:
        proven = prove(path, precision, recipe, references)
        remarks.append(str(proven))
    graph.precision, graph.head_precision = precision.name, precision.head
    graph.inputs.extend(tensors(recipe.inputs(precision.name)))
    graph.outputs.extend(tensors(recipe.outputs(precision.name)))
    graph.parity.CopyFrom(comparison.message(proven))
    if references.sample is not None and precision.weights:
        with progress.step(f"{label}: held out") as remarks:
            graph.held_out.CopyFrom(held_out_score(path, precision, recipe, references))
            remarks.append(f"{graph.held_out.measure} {graph.held_out.pytorch:.4g} → {graph.held_out.graph:.4g}")
    if references.evaluation_cases:
        with progress.step(f"{label}: evaluate") as remarks:
            differences = comparison.measure(Runtime(path), recipe, precision, references.evaluation_cases)
            evaluated = comparison.combine(differences, precision)
            graph.evaluation.CopyFrom(references.evaluation)
            graph.evaluation.parity.CopyFrom(comparison.message(evaluated))
            graph.evaluation.parity.ClearField("tolerance")
            remarks.append(str(evaluated))
    return graph


def fuse(path: Path, target: str, precision: Precision, recipe: Recipe, progress: Progress) -> Traced:
    """Trace, fuse and save. The graph, as large as the model, is freed here."""
    label = f"{target} {precision.name}"
    recipe.to(DTYPES[precision.datatype])
    with progress.step(f"{label}: trace"):
        traced = trace(recipe, precision.name)
        before = node_counts(traced)
    with progress.step(f"{label}: fuse") as remarks:
        fused = optimize(traced)
        if target == "cpu" and not isinstance(recipe, GptRecipe):
            fused = split_slow_fusions(fused)
        remarks += [save(fused, path), node_changes(before, node_counts(fused))]
    return Traced(path, before)


def quantize_saved(exact: Path, path: Path, precision: Precision, largest: Largest = ()) -> list[str]:
    """Quantise a saved graph into another file; returns remarks for the user."""
    model = onnx_ir.load(exact)
    before = node_counts(model)
    if precision.activations:
        quantize_products(model)  # all but the head, which is left for `quantize`
    quantize(model, precision)
    if precision.cache:
        quantize_cache(model, largest)
    return [save(model, path), node_changes(before, node_counts(model))]


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
    return f"{sum(before.values())} → {sum(after.values())} nodes{': ' * bool(counts)}{', '.join(counts)}"


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
    return sorted(path.parent.glob(f"{path.name}*.data"))


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
