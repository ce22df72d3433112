"""The names and the version of the files in an artifact: what the exporter writes and the server reads."""

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"  # in the format of the `tokenizers` library
# Inputs and outputs of the graph: tensors `<case>/input/<name>` and `<case>/output/<name>`, the outputs PyTorch's.
GOLDEN_TENSORS = "golden.safetensors"
# Texts and the token ids that transformers gave: a `GoldenTexts` message (manifest.proto) as JSON.
GOLDEN_TEXTS = "golden_texts.json"
# Image files and the pixels that transformers gave: tensors `<image>/file` (its bytes) and `<image>/pixel_values`.
GOLDEN_IMAGES = "golden_images.safetensors"
