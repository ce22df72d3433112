"""What each client sends for every task, and its outputs as plain values. Needs numpy alone."""

import base64

import numpy as np

IDS = np.random.default_rng(0).integers(5, 200, (2, 9))
PIXELS = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
IMAGE = base64.b64decode(  # a PNG of 4 × 4 pixels
    "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAP0lEQVR4nAE0AMv/AF+CwtnP6w+jIdfZggD4vRBFuOjNTqk9fQoBHfBC9sblKE4U"
    "FtrxAluK8L2Y9QWiPgjMvcAUGmGw6GylAAAAAElFTkSuQmCC"
)
# Name → model, tensors, parameters of the request, and outputs.
CASES = {
    "fill-mask": (
        "tiny-bert",
        {"text": ["The [MASK] raises an exception.", "é [MASK] 好"]},
        {"top_k": 3},
        ["token", "token_id", "score", "row"],
    ),
    "classify-text": (
        "tiny-classifier",
        {"text": ["a list", "zero"], "text_pair": ["or a set", "or none"]},
        {"function_to_apply": "sigmoid"},
        ["label", "score"],
    ),
    "embed": ("tiny-embedder", {"text": ["a list", "zero"]}, {"normalize": False}, ["embedding"]),
    "classify-image": ("tiny-vit", {"image": [IMAGE, IMAGE]}, {"top_k": 2}, ["label", "class_id", "score"]),
    "generate": (
        "tiny-gpt",
        {"text_input": ["A list is"]},
        {"max_tokens": 8, "seed": 7, "top_k": -1, "temperature": "0.7"},  # neither client can send 0.7 as a number
        ["text_output", "finish_reason"],
    ),
    "raw ids": ("tiny-bert.raw", {"input_ids": IDS}, {}, ["logits"]),
    "raw pixels": ("tiny-vit.raw", {"pixel_values": PIXELS}, {}, ["logits"]),
}


def plain(array: np.ndarray) -> list:
    """The values of an output, with texts as `str`."""
    return [value.decode() if isinstance(value, bytes) else value for value in np.asarray(array).ravel().tolist()]
