"""Change a saved model, and compute with it: PyTorch behind the server's tokenizer, without making a graph."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from export.loading import Job, LoadedSource, load
from export.precisions import parse
from export.sources import lookup
from protos.manifest_pb2 import Manifest
from server.artifact import Artifact
from server.batching.collate import TextItem, collate
from server.text.tokenizer import TextEncoder

SETTINGS = "sentence_bert_config.json"
LIBRARY_SETTINGS = "config_sentence_transformers.json"


def write(path: Path, contents: object) -> None:
    path.write_text(json.dumps(contents))


def change(path: Path, **changes: object) -> None:
    """Change some keys of a JSON file; None takes a key away."""
    contents = json.loads(path.read_text()) if path.is_file() else {}
    write(path, {key: value for key, value in {**contents, **changes}.items() if value is not None})


def loaded(directory: Path) -> LoadedSource:
    """The first step of an export."""
    source = lookup.resolve(str(directory))
    return load(Job(source, "model", Path("unused"), parse("cpu"), digest="", options=""))


def computed(
    directory: Path, texts: Sequence[str], pairs: Sequence[str] = (), *, scratch: Path
) -> tuple[np.ndarray, Manifest]:
    """What the model gives for texts that the server's own tokenizer has read, in one batch; and the manifest."""
    model = loaded(directory)
    scratch.mkdir(exist_ok=True)
    for name, contents in model.files.items():
        (scratch / name).write_bytes(contents)
    rows = [
        TextItem(
            input_ids=each.input_ids,
            token_type_ids=each.token_type_ids,
            position_ids=each.position_ids,
            outputs=(model.recipe.result,),
        )
        for each in TextEncoder(Artifact(scratch, model.manifest)).encode(texts, pairs, truncate=True)
    ]
    batch = collate(rows, list(model.recipe.inputs("fp32")))
    with torch.inference_mode():
        found = model.recipe.reference({name: torch.from_numpy(array) for name, array in batch.items()})
    return found.numpy(), model.manifest
