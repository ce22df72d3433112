"""GPT over its cache, as the server runs it, compared with the whole text at once.

Prompts of different lengths are read one by one, in two chunks each; then all rows decode together, a token per step.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from export.graph.recipes import Arrays, GptRecipe
from export.graph.runtime import Runtime, empty_cache
from export.parity.cases import Case
from export.parity.comparison import Difference, deviation, difference_of_logits
from export.precisions import Precision

ROWS = 4
STEPS = 6
MAX_LENGTH = 48  # tokens: enough to detect a wrong step, and cheap at any size


def inputs_for(recipe: GptRecipe, seed: int = 1) -> Arrays:
    """Random tokens in rows of one length; all positions are selected."""
    random = np.random.default_rng(seed)
    length = min(MAX_LENGTH, recipe.config.positions)
    return {
        "input_ids": random.integers(0, recipe.config.vocabulary, (ROWS, length)),
        "position_ids": np.tile(np.arange(length), (ROWS, 1)),
        "lengths": np.full(ROWS, length, np.int32),
        "selected": np.arange(ROWS * length),
    }


def measure(runtime: Runtime, recipe: GptRecipe, precision: Precision, whole: Case) -> list[Difference]:
    """One difference for each chunk and each step; `whole` has PyTorch's logits of the whole text."""
    token_ids = whole.inputs["input_ids"]
    rows, length = token_ids.shape
    reference = whole.reference.reshape(rows, length, -1)  # (b, t, v)
    scale = deviation([whole])
    # The prompts have different lengths, so that the rows are at different positions when the steps begin.
    prompts = [max(1, length - STEPS - 3 * row) for row in range(rows)]
    caches = [empty_cache(recipe.inputs(precision.name), 1, length) for _ in range(rows)]
    differences: list[Difference] = []

    def run(past: Arrays, first: list[int], tokens: NDArray[np.generic], what: str) -> Arrays:
        """Run `tokens` (b, t), whose first positions are `first` (b); compare, and return the new cache."""
        t = tokens.shape[1]
        lengths = np.array(first, np.int32) + np.int32(t)
        outputs = runtime.run(
            {
                "input_ids": tokens,
                "position_ids": np.array(first)[:, None] + np.arange(t),
                "lengths": lengths,
                "total_sequence_length": lengths.max(keepdims=True),
                "selected": np.arange(tokens.size),
            }
            | past
        )
        expected = np.concatenate([chosen[f : f + t] for chosen, f in zip(chosen_rows, first, strict=True)])
        differences.append(difference_of_logits(what, outputs["logits"], expected, scale))
        return {name: outputs[name.replace("past", "present")] for name in past}

    for row, prompt in enumerate(prompts):
        chosen_rows = reference[row : row + 1]
        for start, end in chunks(prompt):
            what = f"logits of tokens {start} to {end - 1} of a prompt"
            caches[row] = run(caches[row], [start], token_ids[row : row + 1, start:end], what)

    cache = {name: np.concatenate([rows[name] for rows in caches]) for name in caches[0]}
    chosen_rows = reference
    for step in range(min(STEPS, length - max(prompts))):
        first = [prompt + step for prompt in prompts]
        tokens = token_ids[np.arange(rows), first][:, None]
        cache = run(cache, first, tokens, f"logits of step {step} after prompts of {prompts} tokens")
    return differences


def chunks(length: int) -> Iterator[tuple[int, int]]:
    """A prompt in two parts; the second one is read over the cache of the first."""
    middle = length // 2
    if middle:
        yield 0, middle
    yield middle, length
