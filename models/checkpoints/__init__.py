"""From published weights and configurations to these models and back, by tables.

    model = load("path/to/checkpoint")  # a directory in the Hugging Face layout, or nanoGPT's ckpt.pt
    save("another/path", published_config(model), published(model))

Read in this order: architectures, fields, configs, layout, tables, leftovers, files, bounds, matching, weights, resize.
Knows torch and safetensors, and nothing of tokenizers, images or serving.
"""

from models.checkpoints.architectures import TASKS, architecture, for_task
from models.checkpoints.configs import configuration, guessed, published_config
from models.checkpoints.errors import CheckpointError
from models.checkpoints.files import read, save, tensors_in, weights_file
from models.checkpoints.labels import class_count, labels
from models.checkpoints.weights import fitted, load, published

__all__ = [
    "TASKS",
    "CheckpointError",
    "architecture",
    "class_count",
    "configuration",
    "fitted",
    "for_task",
    "guessed",
    "labels",
    "load",
    "published",
    "published_config",
    "read",
    "save",
    "tensors_in",
    "weights_file",
]
