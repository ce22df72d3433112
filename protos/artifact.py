"""The contract of an artifact besides manifest.proto: names of files and of values, keys of golden tensors, tolerances.

The exporter writes by it and the server reads by it.
"""

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.json.sha256"  # in the format of sha256sum
TOKENIZER = "tokenizer.json"  # in the format of the `tokenizers` library
# Inputs and outputs of the graph; the outputs are PyTorch's. Keys: see `golden_key`.
GOLDEN_TENSORS = "golden.safetensors"
# Texts and the token ids that transformers gave: a `GoldenTexts` message (manifest.proto) as JSON.
GOLDEN_TEXTS = "golden_texts.json"
# Image files and the pixels that transformers gave. Keys: see `image_key`.
GOLDEN_IMAGES = "golden_images.safetensors"

# The values of the manifest's fields that are names.
TASKS = ("fill-mask", "classify-text", "embed", "classify-image", "generate")
TARGETS = ("cpu", "cuda")
PRECISIONS = (
    "fp32",
    "fp16",
    "int8-weights",
    "int4-weights",
    "int8-dynamic",
    "fp32+int8-kv",
    "int8-weights+int8-kv",
    "int4-weights+int8-kv",
    "int8-dynamic+int8-kv",
)
FUNCTIONS = ("softmax", "sigmoid", "none")  # function_to_apply
TRUNCATION_SIDES = ("right", "left")

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # that are read, by the names of Pillow

INPUT, OUTPUT = "input", "output"  # of a golden case
FILE, PIXEL_VALUES = "file", "pixel_values"  # of a golden image: the bytes of its file, and the input of the model
MAX_RESIZED_PIXELS = 16_000_000  # of an image after its resize, before a crop
PIXEL_TOLERANCE = 1.0  # grey levels of 256: the libraries of two machines decode JPEG files a little differently

# The error that a tolerance bounds, relative to the standard deviation of the reference.
MAXIMUM, ROOT_MEAN_SQUARE = "maximum", "root-mean-square"
# The measure and the tolerance of each precision in which a provider computes. Quantised precisions are not here:
# their tolerance is the user's choice and stands in the manifest.
TOLERANCES = {
    # Strict enough to catch an erf-GELU in place of a tanh-GELU, which moves GPT-2's logits by 8e-4.
    "fp32": (MAXIMUM, 1e-4),
    # The maximum in half precision varies too much between models to be a useful bound.
    "fp16": (ROOT_MEAN_SQUARE, 0.015),
    "bf16": (ROOT_MEAN_SQUARE, 0.1),
}


def golden_key(case: int, side: str, name: str) -> str:
    """The key of one tensor of a golden case: `0/input/input_ids`; `side` is INPUT or OUTPUT."""
    return f"{case}/{side}/{name}"


def parse_golden_key(key: str) -> tuple[int, str, str]:
    """Case, side and name of a golden tensor. ValueError if the key is none of `golden_key`."""
    case, side, name = key.split("/")
    if side not in (INPUT, OUTPUT):
        raise ValueError(f"golden tensor {key!r}: found {side!r}, expected {INPUT} or {OUTPUT}")
    return int(case), side, name


def image_key(image: int, part: str) -> str:
    """The key of one tensor of a golden image: `0/file`; `part` is FILE or PIXEL_VALUES."""
    return f"{image}/{part}"
