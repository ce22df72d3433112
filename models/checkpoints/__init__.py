"""Published weights and configurations to our models, as tables, and back.

    model = load("path/to/checkpoint")                       # config.json and model.safetensors
    save("another/path", published_config(model), published(model))

Read in this order: tables, configs, weights. Knows torch and safetensors, and nothing of tokenizers, images or serving.
"""

from models.checkpoints.configs import configuration, labels, published_config
from models.checkpoints.errors import CheckpointError
from models.checkpoints.weights import load, published, read, save

__all__ = ["CheckpointError", "configuration", "labels", "load", "published", "published_config", "read", "save"]
