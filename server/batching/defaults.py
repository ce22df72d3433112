"""Defaults for each provider: batch sizes in tokens, and shape buckets."""

from server.batching.shape_buckets import EXACT, Shapes, steps_to

# Tokens in a batch: larger batches raise latency without raising throughput. These are estimates. BERT-base, measured
# once on a busy 2-core Xeon (22 November 2026), reached 1,230 tokens/s with batches of 128 tokens, 1,450 with 512 and
# 1,390 with 4,096; with OpenVINO 1,200 with 128, 1,230 with 1,024, and 1,390 with 2,048 and with 4,096. Runs on such a
# machine differ from each other by as much.
MAX_BATCH_TOKENS = {"cpu": 1024, "openvino": 2048, "cuda": 32768}
# Up to this many tokens a larger batch is assumed to cost no more, because reading the weights dominates.
FREE_TOKENS = {"cpu": 64, "openvino": 64, "cuda": 1024}
MIN_LENGTH = 8  # the smallest bucket for lengths, in tokens


def shapes_of(provider: str, *, batch_size: int, longest: int | None, logit_positions: int) -> Shapes:
    """The buckets for batches of up to `batch_size` texts of up to `longest` tokens (None for images)."""
    if provider == "cpu":
        return EXACT
    lengths = steps_to(longest, first=MIN_LENGTH) if longest else ()
    if provider == "openvino":
        return Shapes(lengths=lengths)
    return Shapes(lengths=lengths, batch_sizes=steps_to(batch_size), logit_counts=steps_to(logit_positions))
