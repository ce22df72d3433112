"""What suits each provider: how much it gains from running together, and which shapes it should see."""

from server.batching.shapes import EXACT, Shapes, steps_to

# Tokens of one batch: as many as the provider gains by. And up to how many a batch costs no more for being larger.
MAX_BATCH_TOKENS = {"cpu": 2048, "openvino": 4096, "cuda": 32768}
FREE_TOKENS = {"cpu": 0, "openvino": 0, "cuda": 1024}
SHORTEST = 8  # tokens that a text is padded to at least, where lengths have steps


def shapes_of(provider: str, *, rows: int, longest: int | None, heads: int) -> Shapes:
    """The shapes for batches of so many rows, whose texts have up to `longest` tokens (None for images)."""
    if provider == "cpu":
        return EXACT
    lengths = steps_to(longest, first=SHORTEST) if longest else ()
    if provider == "openvino":
        return Shapes(lengths=lengths)
    return Shapes(lengths=lengths, row_counts=steps_to(rows), head_counts=steps_to(heads))
