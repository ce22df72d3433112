"""What suits each provider: how much it gains from running together, and which shapes it should see."""

from server.batching.shape_buckets import EXACT, Shapes, steps_to

# Tokens of one batch: about as many as a provider may gain by; more would only let callers wait for each other. These
# are guesses. What was seen of BERT-base, once, on a 2-core Xeon that also did other work (22 November 2026): 1,230
# tokens a second with 128 together, 1,450 with 512, 1,390 with 4,096; with OpenVINO 1,200 with 128, 1,230 with 1,024,
# 1,390 with 2,048 and with 4,096. Such a machine may differ as much from run to run.
MAX_BATCH_TOKENS = {"cpu": 1024, "openvino": 2048, "cuda": 32768}
# Up to how many tokens a batch is taken to cost no more for being larger, because the weights have to be read anyway.
FREE_TOKENS = {"cpu": 64, "openvino": 64, "cuda": 1024}
SHORTEST = 8  # tokens that a text is padded to at least, where lengths have steps


def shapes_of(provider: str, *, rows: int, longest: int | None, logit_positions: int) -> Shapes:
    """The shapes for batches of so many rows, whose texts have up to `longest` tokens (None for images)."""
    if provider == "cpu":
        return EXACT
    lengths = steps_to(longest, first=SHORTEST) if longest else ()
    if provider == "openvino":
        return Shapes(lengths=lengths)
    return Shapes(lengths=lengths, row_counts=steps_to(rows), logit_counts=steps_to(logit_positions))
