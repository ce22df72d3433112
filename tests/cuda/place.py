"""Prints where ONNX Runtime places the nodes of a graph, as JSON; runs with the stand-ins on LD_LIBRARY_PATH."""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime


def place(path: str) -> dict[str, object]:
    """Nodes by provider, copies between devices, and why the graph cannot be a CUDA graph (empty if it can)."""
    with tempfile.TemporaryDirectory() as folder:
        final = str(Path(folder) / "final.onnx")
        session = open_on_cuda(path, {}, final)
        nodes = Counter(node.op_type for node in onnx.load(final, load_external_data=False).graph.node)
    elsewhere = [
        f"{node.op_type} on {part.ep_name}"
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name != "CUDAExecutionProvider"
    ]
    try:
        open_on_cuda(path, {"enable_cuda_graph": "1"}, "")
        refusal = ""
    except Exception as error:
        refusal = str(error)
    copies = sum(count for kind, count in nodes.items() if kind.startswith("Memcpy"))
    return {"nodes": nodes, "elsewhere": elsewhere, "copies": copies, "cuda_graph_refused": refusal}


def open_on_cuda(path: str, provider_options: dict[str, str], final: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = 3
    options.optimized_model_filepath = final
    providers = [("CUDAExecutionProvider", provider_options)]
    session = onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError(f"the session runs on {session.get_providers()}")
    return session


if __name__ == "__main__":
    print(json.dumps(place(sys.argv[1])))
