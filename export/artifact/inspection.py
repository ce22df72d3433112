"""The commands `inspect` and `verify`: what an artifact contains, and whether it is unchanged.

`inspect` imports no torch.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.json_format import MessageToDict, Parse, ParseError
from google.protobuf.message import DecodeError
from safetensors.numpy import load_file

from export.artifact import store
from export.errors import ExportError, ParityError
from export.inputs import golden_inputs
from protos.artifact import FORMAT_VERSION, GOLDEN_TENSORS, INPUT, MANIFEST, OUTPUT, golden_key, parse_golden_key
from protos.manifest_pb2 import Graph, Manifest

if TYPE_CHECKING:
    from export.graph.runtime import Runtime
    from export.parity.cases import Case

MILLION = 1e6
Account = dict[str, Any]


def read(directory: Path) -> Manifest:
    """The manifest of an artifact. ExportError if there is none, or if it has another format."""
    try:
        text = (directory / MANIFEST).read_text("utf-8")
        manifest = Parse(text, Manifest(), ignore_unknown_fields=True)
    except (OSError, ParseError) as error:
        raise ExportError(f"{directory}: found no manifest, expected an artifact (DIR/<name>/<version>)") from error
    if manifest.format_version != FORMAT_VERSION:
        found, expected = manifest.format_version, FORMAT_VERSION
        raise ExportError(f"{directory}: found format_version {found}, expected {expected}: export again")
    return manifest


def inspect(directory: Path) -> Account:
    """The manifest as a dictionary, with the number of nodes by kind in each graph."""
    manifest = read(directory)
    account: Account = MessageToDict(
        manifest, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for graph in account["graphs"]:
        loaded = nodes_of(directory / graph["file"])
        graph["nodes"] = dict(Counter(loaded).most_common())
    if manifest.task == "classify-image":
        account["golden_images"] = golden_inputs.count_images(directory)
    else:
        account["golden_texts"] = len(golden_inputs.texts(directory).texts)
    return account


def nodes_of(path: Path) -> list[str]:
    """The kind of each node of a graph. ExportError if the file cannot be read."""
    try:
        return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    except (OSError, DecodeError) as error:
        raise ExportError(f"{path}: found no ONNX graph ({error}), expected it as exported: export again") from error


def described(account: Account) -> list[str]:
    """The lines that `inspect` prints."""
    sizes = {file["path"]: file["bytes"] for file in account["files"]}
    source, tools = account["source"], account["tool_versions"]
    lines = [
        f"{account['name']} {account['version']}: {account['architecture']}, {account['task']}",
        f"  made of {source['location']} (sha256 {source['digest'][:12]}…), {source['options']}",
        "  made with " + ", ".join(f"{name} {version}" for name, version in sorted(tools.items())),
    ]
    lines += [f"  {path}: {size / MILLION:.1f} MB" for path, size in sizes.items()]
    if "golden_images" in account:
        lines.append(f"  {account['golden_images']} golden images, as transformers prepares them")
    if "golden_texts" in account:
        lines.append(f"  {account['golden_texts']} golden texts, with the token ids of transformers")
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


def verify(directory: Path) -> Account:
    """Check every hash and run the golden inputs through every graph. ExportError names what has changed.

    A graph for CUDA runs on CUDA if this machine can, otherwise on the CPU.
    """
    manifest = read(directory)
    for file in manifest.files:
        path = directory / file.path
        if not path.is_file():
            raise ExportError(f"{path}: found no such file, expected {file.bytes:.0f} bytes")
        if store.file_entry(path, directory).sha256 != file.sha256:
            raise ExportError(f"{path}: found other contents, expected those of sha256 {file.sha256[:12]}…")
    tensors = load_file(directory / GOLDEN_TENSORS)
    graphs = [measured(directory, graph, tensors) for graph in manifest.graphs]
    account = {"name": manifest.name, "version": manifest.version, "files": len(manifest.files), "graphs": graphs}
    if manifest.task == "classify-image":
        from export.inputs.images import golden_images  # imports transformers

        account |= golden_images.verify(golden_inputs.images(directory), manifest.image)
    else:
        from export.inputs.text import golden_texts  # the same

        account |= golden_texts.verify(directory, manifest.text)
    return account


def verified(account: Account) -> list[str]:
    """The lines that `verify` prints."""
    return (
        [f"{account['name']} {account['version']}: all {account['files']} files are as they were exported"]
        + [
            f"  {graph['target']} {graph['precision']}: maximum {graph['maximum']:.1e}, root mean square "
            f"{graph['root_mean_square']:.1e}, {graph['cases']} cases, {graph['measured_on']}{through_casts(graph)}"
            for graph in account["graphs"]
        ]
        + golden_inputs.verification_lines(account)
    )


def through_casts(graph: Account) -> str:
    """The note that a graph for CUDA was checked on the CPU, with the reason."""
    why = graph.get("not_on_cuda")
    casts = ", through casts" if graph["precision"] == "fp16" else ""
    return f"; not on CUDA ({why}): checked on the CPU{casts}" if why else ""


def measured(directory: Path, graph: Graph, tensors: dict[str, np.ndarray[Any, Any]]) -> Account:
    """How far one graph is from the golden outputs on this machine, for its own provider or else on the CPU."""
    from export.graph import runtime  # imports torch, which `inspect` does not need

    path, why = directory / graph.file, ""
    if graph.target == "cuda":
        try:
            return distance(runtime.load_on_cuda(path), graph, tensors)
        except ParityError:
            raise
        except Exception as error:  # without a GPU; the runtime's errors have no common base class
            why = next(iter(str(error).splitlines()), type(error).__name__)
    return distance(runtime.Runtime(path), graph, tensors) | ({"not_on_cuda": why} if why else {})


def golden(graph: Graph, tensors: dict[str, np.ndarray[Any, Any]]) -> list[tuple[str, "Case"]]:
    """The golden cases as inputs of this graph, each with the name of the result."""
    from export.graph.recipes import Port
    from export.graph.runtime import with_cache
    from export.parity.cases import Case

    ports = {
        tensor.name: Port(tensor.datatype, tuple(int(size) if size.isdecimal() else size for size in tensor.shape))
        for tensor in graph.inputs
    }
    cases: list[tuple[str, Case]] = []
    for key in tensors:
        number, side, result = parse_golden_key(key)
        if side == OUTPUT:
            prefix = golden_key(number, INPUT, "")
            inputs = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
            cases.append((result, Case(with_cache(ports, inputs), tensors[key])))
    return cases


def distance(session: "Runtime", graph: Graph, tensors: dict[str, np.ndarray[Any, Any]]) -> Account:
    """How far a graph is from the golden outputs in this session. ParityError if it is out of tolerance."""
    from export.graph import runtime
    from export.parity import comparison
    from export.precisions import PRECISIONS

    cases = golden(graph, tensors)
    scale = comparison.deviation([case for _, case in cases])
    differences = [
        comparison.difference(result, session.run(case.inputs)[result], case.reference, scale) for result, case in cases
    ]
    proven = comparison.judge(differences, replace(PRECISIONS[graph.precision], tolerance=graph.parity.tolerance))
    return {
        "target": graph.target,
        "precision": graph.precision,
        "maximum": proven.maximum,
        "root_mean_square": proven.root_mean_square,
        "cases": proven.cases,
        "measured_on": runtime.description(session.provider),
    }
