"""Published weights and configurations to our models, as tables, and back.

    model = load("path/to/checkpoint")  # a directory in the Hugging Face layout, or nanoGPT's ckpt.pt
    save("another/path", published_config(model), published(model))

Read in this order: layout, tables, configs, files, weights, resize. Knows torch and
safetensors, and nothing of tokenizers, images or serving.
"""

from models.checkpoints.configs import architecture, configuration, guessed, labels, published_config
from models.checkpoints.errors import CheckpointError
from models.checkpoints.files import read, save, tensors_in
from models.checkpoints.weights import load, published

__all__ = [
    "CheckpointError",
    "architecture",
    "configuration",
    "guessed",
    "labels",
    "load",
    "published",
    "published_config",
    "read",
    "save",
    "tensors_in",
]
