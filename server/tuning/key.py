"""The key of a choice: everything that it depends on. A change of any part means that the model is measured again."""

import hashlib
from collections.abc import Sequence
from importlib import metadata

import onnxruntime

from server.artifact import Artifact
from server.config.settings import Settings, version
from server.host.processor import read_processor
from server.runtime.providers import OPENVINO_PACKAGE
from server.tuning.cache import Key
from server.tuning.candidates import Machine

MODEL_SETTINGS = ("precision", "max_batch_size", "max_batch_tokens", "max_prefill_tokens")


def key_of(artifact: Artifact, settings: Settings, machine: Machine, providers: Sequence[str]) -> Key:
    """The key of the choice for a model that can run on these providers, the preferred one first."""
    processor, model = read_processor(), settings.of(artifact.name)
    return {
        "processor": processor.name,
        "instruction_sets": " ".join(sorted(processor.instruction_sets)),
        "cpus": machine.cpus,
        "cores": machine.cores,
        "versions": {
            "affinity": version(),
            "onnxruntime": onnxruntime.__version__,
            OPENVINO_PACKAGE: _version(OPENVINO_PACKAGE) if "openvino" in providers else "",
        },
        # The manifest has the digests of all other files.
        "manifest": hashlib.sha256(artifact.manifest.SerializeToString(deterministic=True)).hexdigest(),
        "providers": list(providers),
        "threads": settings.threads,
        "settings": {name: getattr(model, name) for name in MODEL_SETTINGS},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
