"""The commands `inspect`, `verify` and `seal`: what an artifact contains, whether it is unchanged or may change.

`inspect` imports no torch.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from export.artifact import store
from export.errors import ExportError, ParityError
from protos import golden
from protos import manifest as manifests
from protos.artifact import MANIFEST
from protos.golden import GoldenCase
from protos.manifest import unlisted_files
from protos.manifest_pb2 import Graph, Manifest

if TYPE_CHECKING:
    from export.graph.runtime import Runtime
    from export.parity.cases import Case

MILLION = 1e6
Account = dict[str, Any]


def inspect(directory: Path) -> Account:
    """The manifest as a dictionary, with the number of nodes by kind in each graph. ExportError as in `verify`."""
    check_is_artifact(directory)
    manifest = store.read(directory)
    account: Account = MessageToDict(
        manifest, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for graph in account["graphs"]:
        loaded = nodes_of(directory / graph["file"])
        graph["nodes"] = dict(Counter(loaded).most_common())
    account["unlisted_files"] = unlisted_files(directory, manifest)
    return account


def check_is_artifact(directory: Path) -> None:
    """ExportError if the directory has no manifest."""
    if not (directory / MANIFEST).is_file():
        raise ExportError(f"{directory}: found no {MANIFEST}, expected an artifact (DIR/<name>/<version>)")


def nodes_of(path: Path) -> list[str]:
    """The kind of each node of a graph. ExportError if the file cannot be read."""
    try:
        return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    except (OSError, DecodeError) as error:
        raise ExportError(f"{path}: found no ONNX graph ({error}), expected it as exported: export again") from error


def describe(account: Account) -> list[str]:
    """The lines that `inspect` prints."""
    sizes = {file["path"]: file["bytes"] for file in account["files"]}
    source, tools = account["source"], account["tool_versions"]
    lines = [
        f"{account['name']} {account['version']}: {account['architecture']}, {account['task']}",
        f"  made of {source['location']} (sha256 {source['digest'][:12]}…), {source['options']}",
        "  made with " + ", ".join(f"{name} {version}" for name, version in sorted(tools.items())),
    ]
    lines += [f"  {path}: {size / MILLION:.1f} MB" for path, size in sizes.items()]
    lines += unlisted_lines(account)
    counts = account["golden"]
    if counts["images"]:
        lines.append(f"  {counts['images']} golden images, as transformers prepares them")
    if counts["texts"]:
        lines.append(f"  {counts['texts']} golden texts, with the token ids of transformers")
    for graph in account["graphs"]:
        nodes, traced = graph["nodes"], graph["traced_nodes"]
        head = f" (head {graph['head_precision']})" if graph["head_precision"] else ""
        lines += [
            f"  {graph['target']} {graph['precision']}{head}: {sum(nodes.values())} nodes, "
            f"{sum(traced.values())} as traced",
            *(f"    {kind:<24}{traced.get(kind, 0):>5} → {nodes.get(kind, 0)}" for kind in sorted(nodes | traced)),
            f"    from PyTorch: {errors(graph['parity'])}; {graph['parity']['measure']} bound by "
            f"{graph['parity']['tolerance']:g}, {graph['parity']['cases']} cases, {graph['parity']['measured_on']}",
        ]
        if "held_out" in graph:
            score = graph["held_out"]
            lines.append(f"    held out: {score['measure']} {score['pytorch']:.4g} → {score['graph']:.4g}")
        if "evaluation" in graph:
            own = graph["evaluation"]
            lines.append(f"    on {own['inputs']} inputs of {own['file']}: {errors(own['parity'])}")
    return lines


def errors(parity: Account) -> str:
    """The measured errors of a graph, for the user."""
    said = (
        f"maximum {parity['maximum']:.1e} standard deviations ({parity['absolute']:.1e} absolute), "
        f"root mean square {parity['root_mean_square']:.1e}"
    )
    if "kl_divergence" in parity:
        said += f", top-1 {parity['top1_agreement']:.1%}, KL {parity['kl_divergence']:.1e} nats"
    return said


def unlisted_lines(account: Account) -> list[str]:
    """The line about files that do not belong to the artifact, if there are any."""
    unlisted = account["unlisted_files"]
    return [f"  ignored, because the manifest does not list them: {', '.join(unlisted)}"] if unlisted else []


def verify(directory: Path) -> Account:
    """Check every hash and run the golden inputs through every graph. ExportError names the change.

    A graph for CUDA runs on CUDA if this machine can, otherwise on the CPU.
    """
    check_is_artifact(directory)
    return prove(directory, store.read(directory))


def seal(directory: Path) -> Account:
    """Do what `verify` does for a manifest that was edited, then write its digest. ExportError as in `verify`."""
    check_is_artifact(directory)
    contents, manifest = store.read_unsealed(directory)
    account = prove(directory, manifest)
    manifests.seal(directory, contents)
    return account


def prove(directory: Path, manifest: Manifest) -> Account:
    """Run the golden inputs of an artifact whose files are unaltered."""
    with store.translated_errors():
        cases = golden.read_cases(directory, manifest)
    account = {
        "name": manifest.name,
        "version": manifest.version,
        "files": len(manifest.files),
        "unlisted_files": unlisted_files(directory, manifest),
        "graphs": [measure(directory, graph, cases) for graph in manifest.graphs],
    }
    with store.translated_errors():
        if manifest.task == "classify-image":
            from export.inputs.images import golden_images  # imports transformers

            account |= golden_images.verify(golden.read_images(directory, manifest), manifest.image)
        else:
            from export.inputs.text import golden_texts  # the same

            account |= golden_texts.verify(directory, golden.read_texts(directory, manifest), manifest.text)
    return account


def describe_verification(account: Account) -> list[str]:
    """The lines that `verify` prints."""
    return (
        [f"{account['name']} {account['version']}: all {account['files']} files are as they were exported"]
        + [
            f"  {graph['target']} {graph['precision']}: maximum {graph['maximum']:.1e}, root mean square "
            f"{graph['root_mean_square']:.1e}, {graph['cases']} cases, {graph['measured_on']}{through_casts(graph)}"
            for graph in account["graphs"]
        ]
        + golden_lines(account)
        + unlisted_lines(account)
    )


def golden_lines(account: Account) -> list[str]:
    """The lines about golden images and texts that `verify` prints."""
    lines = []
    if "golden_images" in account:
        lines.append(
            f"  {account['golden_images']} golden images: at most {account['pixel_error']:.2g} grey levels off"
        )
    if "golden_texts" in account:
        lines.append(f"  {account['golden_texts']} golden texts: all of them have the token ids of transformers")
    return lines


def through_casts(graph: Account) -> str:
    """The note that a graph for CUDA was checked on the CPU, with the reason."""
    why = graph.get("not_on_cuda")
    casts = ", through casts" if graph["precision"] == "fp16" else ""
    return f"; not on CUDA ({why}): checked on the CPU{casts}" if why else ""


def measure(directory: Path, graph: Graph, cases: list[GoldenCase]) -> Account:
    """How far one graph is from the golden outputs on this machine, for its own provider or else on the CPU."""
    from export.graph import runtime  # imports torch, which `inspect` does not need

    path, why = directory / graph.file, ""
    if graph.target == "cuda":
        try:
            return distance(runtime.load_on_cuda(path), graph, cases)
        except ParityError:
            raise
        except Exception as error:  # without a GPU; the runtime's errors have no common base class
            why = next(iter(str(error).splitlines()), type(error).__name__)
    return distance(runtime.Runtime(path), graph, cases) | ({"not_on_cuda": why} if why else {})


def results(graph: Graph, cases: list[GoldenCase]) -> list[tuple[str, "Case"]]:
    """The golden cases as inputs of this graph, one for each of their results, with the name of the result."""
    from export.graph.recipes import Port
    from export.graph.runtime import with_cache
    from export.parity.cases import Case

    ports = {
        tensor.name: Port(tensor.datatype, tuple(int(size) if size.isdecimal() else size for size in tensor.shape))
        for tensor in graph.inputs
    }
    return [
        (result, Case(with_cache(ports, case.inputs), reference))
        for case in cases
        for result, reference in case.outputs.items()
    ]


def distance(session: "Runtime", graph: Graph, golden_cases: list[GoldenCase]) -> Account:
    """How far a graph is from the golden outputs in this session. ParityError if it is out of tolerance."""
    from export.graph import runtime
    from export.parity import comparison
    from export.precisions import PRECISIONS

    cases = results(graph, golden_cases)
    scale = comparison.deviation([case for _, case in cases])
    differences = [
        comparison.difference(result, session.run(case.inputs)[result], case.reference, scale) for result, case in cases
    ]
    precision = PRECISIONS[graph.precision]
    if precision.weights:  # the tolerance was chosen at the export; others are the same for all artifacts
        precision = replace(precision, tolerance=graph.parity.tolerance)
    found = comparison.judge(differences, precision)
    return {
        "target": graph.target,
        "precision": graph.precision,
        "maximum": found.maximum,
        "root_mean_square": found.root_mean_square,
        "cases": found.cases,
        "measured_on": runtime.description(session.provider),
    }
