"""NVIDIA's perf_analyzer drives every model of a server: `python -m tests.bench.perf_analyzer PERF_ANALYZER`.

The binary is in a wheel, and needs two libraries that few machines have. All three lie beside each other afterwards:

    mkdir perf && cd perf
    pip download --no-deps tritonclient==2.48.0 nvidia-cuda-runtime-cu12
    apt-get download libb64-0d && dpkg -x libb64*.deb .
    for wheel in *.whl; do python -m zipfile -e $wheel .; done
    cp tritonclient-2.48.0.data/data/bin/perf_analyzer nvidia/cuda_runtime/lib/libcudart.so.12 usr/lib/*/libb64.so.0d .
    chmod +x perf_analyzer

What one command of it looks like, texts.json being one of those that are written here:

    LD_LIBRARY_PATH=. ./perf_analyzer -i grpc -u localhost:8001 -m bert-mini --input-data texts.json
"""

import argparse
import base64
import csv
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server.client import Client, ServedModel
from tests.bench import options
from tests.bench.measure import machine
from tests.serving import ROOT, served

IMAGE = (ROOT / "models" / "pretrained" / "vit-digits" / "example.png").read_bytes()
TEXTS = ["The [MASK] statement raises an exception.", "Return a [MASK] of all names that are in the [MASK] scope."]
IDS = [2, *range(10, 40), 3]
BYTES = base64.b64encode(struct.pack("<I", len(IMAGE)) + IMAGE).decode()  # in the wire format of BYTES
STREAM = ("--streaming", "--request-parameter", "max_tokens:16:int", "--request-parameter", "ignore_eos:true:bool")

DATA: dict[str, list[dict[str, Any]]] = {  # task → requests of one input each
    "fill-mask": [{"text": [text]} for text in TEXTS],
    "classify-text": [{"text": [text]} for text in TEXTS],
    "embed": [{"text": [text]} for text in TEXTS],
    "generate": [{"text_input": ["A list is"]}],
    "classify-image": [{"image": {"b64": BYTES}}],
}
RAW = [{"input_ids": {"content": IDS, "shape": [len(IDS)]}}]
COLUMNS = (
    "Inferences/Second",
    "p50 latency",
    "p99 latency",
    "Server Queue",
    "Server Compute Input",
    "Server Compute Infer",
    "Server Compute Output",
)


def main() -> None:
    arguments = parsed()
    head = ("endpoint", "inputs a request", "concurrency", *(column.lower() for column in COLUMNS))
    print(f"{machine()}; times in µs\n")
    print("|".join(("", *head, "")), "|---" * len(head) + "|", sep="\n")
    window = ["-p", str(arguments.milliseconds), "-r", "3", "-s", "999"]  # three measurements, whatever their spread
    with served(arguments.artifacts, "--provider", arguments.provider, "--threads", "0") as server:
        with Client(server.target) as client:
            models = [model for model in client.models() if model.state == "READY"]
        for model in models:
            for endpoint, flags in endpoints(model):
                for batch, concurrency in ((1, 1), (1, 16)) if model.task == "generate" else ((1, 1), (1, 16), (8, 4)):
                    command = [arguments.perf_analyzer, "-i", "grpc", "-u", server.target, "-m", endpoint, *flags]
                    load = ["-b", str(batch), "--concurrency-range", str(concurrency)]
                    found = measured([*command, *load, *window])
                    figures = (f"{float(found[column]):,.0f}" for column in COLUMNS)
                    print("|".join(("", endpoint, str(batch), str(concurrency), *figures, "")), flush=True)


def endpoints(model: ServedModel) -> Iterator[tuple[str, list[str]]]:
    """Both endpoints of a model, with the flags for their inputs."""
    yield model.name, ["--input-data", written(DATA[model.task]), *(STREAM if model.task == "generate" else ())]
    yield f"{model.name}.raw", ["--input-data", "zero" if model.task == "classify-image" else written(RAW)]


def written(requests: list[dict[str, Any]]) -> str:
    """A file with these requests."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump({"data": requests}, file)
    return file.name


def measured(command: list[str]) -> dict[str, str]:
    """The report of perf_analyzer for one load; exits with its output if it fails."""
    libraries = f"{Path(command[0]).resolve().parent}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    with tempfile.NamedTemporaryFile("r", suffix=".csv") as report:
        done = subprocess.run(
            [*command, "-f", report.name],
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
            capture_output=True,
            text=True,
        )
        rows = list(csv.DictReader(report))
    if done.returncode or not rows:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return rows[0]


def parsed() -> argparse.Namespace:
    parser = options.parser("perf_analyzer", __doc__)
    parser.add_argument("perf_analyzer", help="the binary, with the libraries it needs beside it")
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts")
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--milliseconds", type=int, default=1000, help="duration of each of three measurements (1000)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
