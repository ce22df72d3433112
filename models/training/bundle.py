"""Saves a trained model as a directory in the Hugging Face layout, which is exported like any other checkpoint."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from torch import nn

from models import checkpoints
from models.training import corpus, digits
from models.training.corpus import Document

HALVED = {"dtype": "float16"}  # text models are stored in half precision: half the size, and the same score


def save_text(
    directory: Path, model: nn.Module, tokenizer: Tokenizer, *, special: Mapping[str, str], kind: str
) -> None:
    """Save a text model. `special` maps names such as `mask_token` to tokens; `kind` is the class of the tokenizer."""
    ids = {
        f"{name.removesuffix('token')}token_id": tokenizer.token_to_id(token)
        for name, token in special.items()
        if name in ("pad_token", "bos_token", "eos_token")
    }
    tensors = {name: tensor.to(torch.float16) for name, tensor in checkpoints.published(model).items()}
    checkpoints.save(directory, {**checkpoints.published_config(model), **ids, **HALVED}, tensors)
    tokenizer.save(str(directory / "tokenizer.json"))
    longest = {"model_max_length": model.config.positions}
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": kind, **longest, **special})
    write_json(directory / "special_tokens_map.json", special)


def save_vit(directory: Path, model: nn.Module, names: Sequence[str]) -> None:
    """Save a ViT in the layout of transformers, which has a separate file for the preprocessing of images."""
    checkpoints.save(directory, checkpoints.published_config(model, names), checkpoints.published(model))
    side = {"height": digits.IMAGE_SIZE, "width": digits.IMAGE_SIZE}
    write_json(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": side,
            "resample": 2,  # bilinear
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [digits.MEAN] * 3,
            "image_std": [digits.DEVIATION] * 3,
        },
    )


def save_mixer(directory: Path, model: nn.Module, names: Sequence[str]) -> None:
    """Save an MLP-Mixer in the layout of timm, which has the preprocessing in `config.json`."""
    config = checkpoints.published_config(model, names)
    config["label_names"] = list(names)
    config["pretrained_cfg"] |= {
        "mean": [digits.MEAN] * 3,
        "std": [digits.DEVIATION] * 3,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "label_names": list(names),
    }
    checkpoints.save(directory, config, checkpoints.published(model))


def save_held_out_texts(directory: Path, documents: Sequence[Document]) -> None:
    """Save a sample of the held-out text, one paragraph on each line, for the evaluation of an export."""
    chosen = (document for document in documents if document.name.split("/")[0] in corpus.SAMPLED)
    lines = (" ".join(paragraph.split()) for document in chosen for text in document.texts for paragraph in text)
    (directory / "held-out.txt").write_text("\n".join(lines) + "\n", "utf-8")


def save_held_out_digits(directory: Path) -> None:
    """Save all held-out digits, white on black, for the evaluation of an export."""
    _, held_out = digits.read()
    images = [np.asarray(digits.as_picture(image).convert("L")) for image in held_out.images]
    path = directory / "held-out.safetensors"
    save_file({"images": np.stack(images), "labels": held_out.labels.numpy().astype(np.uint8)}, path)
    path.chmod(0o644)  # safetensors makes it readable by its owner only


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
