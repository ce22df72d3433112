"""The tokens of the engine, on a real graph, follow the distributions of transformers' logits processors.

Each token has a distribution of its own, because the tokens before it differ. So each token is mapped to a random point
of its interval in the cumulative distribution: if and only if the tokens follow their distributions, these points are
uniform in [0, 1).
"""

import asyncio
import math

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.server.generation.engines import outputs_of

REQUESTS, TOKENS = 96, 50
PROMPT = [5, 17, 200, 17, 33, 8]
END = 17  # the end token; the prompt contains it, so that it is penalised, too
BINS = 24
BIAS = {5: 4.0, 8: -3.0, 301: 6.0}

# Parameters that differ from the whole vocabulary at temperature 1, and the processors of transformers in its order.
CASES = {
    "defaults": ({}, []),
    "cold": ({"temperature": 0.6}, [TemperatureLogitsWarper(0.6)]),
    "hot": ({"temperature": 1.7}, [TemperatureLogitsWarper(1.7)]),
    "top_k": ({"top_k": 7}, [TopKLogitsWarper(7)]),
    "more than the graph ranks": ({"top_k": 150}, [TopKLogitsWarper(150)]),
    "top_p": ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
    "min_p": ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
    "no repetition": ({"repetition_penalty": 1.6}, [RepetitionPenaltyLogitsProcessor(1.6)]),
    "repetition": (
        {"repetition_penalty": 0.7, "top_k": 50},
        [RepetitionPenaltyLogitsProcessor(0.7), TopKLogitsWarper(50)],
    ),
    "logit_bias": (
        {"logit_bias": BIAS, "top_k": 20},
        [SequenceBiasLogitsProcessor({(token,): bias for token, bias in BIAS.items()}), TopKLogitsWarper(20)],
    ),
    "min_tokens": (
        {"min_tokens": TOKENS, "logit_bias": {END: 8.0}, "ignore_eos": False},
        [
            SequenceBiasLogitsProcessor({(END,): 8.0}),
            MinNewTokensLengthLogitsProcessor(len(PROMPT), TOKENS, END),
        ],
    ),
    "all at once": (
        {"repetition_penalty": 1.3, "logit_bias": BIAS, "temperature": 1.4, "top_k": 40, "top_p": 0.9, "min_p": 0.03},
        [
            RepetitionPenaltyLogitsProcessor(1.3),
            SequenceBiasLogitsProcessor({(token,): bias for token, bias in BIAS.items()}),
            TemperatureLogitsWarper(1.4),
            TopKLogitsWarper(40),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.03),
        ],
    ),
}


@pytest.mark.parametrize(("changes", "processors"), CASES.values(), ids=CASES.keys())
async def test_tokens_follow_the_distribution_of_transformers(engine_of, reference, changes, processors):
    engine = await engine_of(slots=16, end_ids=[END])
    sampling = {"top_k": 0, "max_tokens": TOKENS, "ignore_eos": True} | changes
    answers = await asyncio.gather(*(outputs_of(engine, PROMPT, seed=seed, **sampling) for seed in range(REQUESTS)))
    tokens = np.array([[output.token_id for output in outputs] for outputs in answers])  # (requests, tokens)
    probabilities = distributions(reference, tokens, LogitsProcessorList(processors))
    own = np.take_along_axis(probabilities, tokens[..., None], axis=2)[..., 0]
    assert own.min() > 0, "a token that has probability 0 in transformers"
    likelier = np.where(probabilities > own[..., None], probabilities, 0).sum(axis=2)
    points = likelier + own * np.random.default_rng(0).random(own.shape)
    counts, expected = np.histogram(points, BINS, (0, 1))[0], points.size / BINS
    chi_square, freedom = float(((counts - expected) ** 2 / expected).sum()), BINS - 1
    assert counts.sum() == REQUESTS * TOKENS
    assert chi_square < freedom + 4.5 * math.sqrt(2 * freedom)


def distributions(model, tokens: np.ndarray, processors: LogitsProcessorList) -> np.ndarray:
    """The distributions (requests, tokens, vocabulary) of the tokens (requests, tokens), given those before them."""
    ids = torch.tensor(np.concatenate([np.tile(PROMPT, (len(tokens), 1)), tokens], axis=1))
    with torch.inference_mode():
        logits = model(ids).logits
        scores = [processors(ids[:, :end], logits[:, end - 1]) for end in range(len(PROMPT), ids.shape[1])]
        return torch.stack(scores, dim=1).double().softmax(-1).numpy()
