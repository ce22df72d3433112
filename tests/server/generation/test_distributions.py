"""What the engine draws, on a real graph, follows the distributions that transformers' own processors give.

Every token is drawn from a distribution of its own, because what came before it differs. Spread over the interval that
is its token's in the sum of the probabilities, all draws together are uniform, if and only if they follow theirs.
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
END = 17  # ends a text; the prompt has it, so that it is likely to be penalised, too
BINS = 24
BIAS = {5: 4.0, 8: -3.0, 301: 6.0}

# What is asked, on top of the whole vocabulary at temperature 1; and the same in transformers, in its order.
CASES = {
    "nothing": ({}, []),
    "cold": ({"temperature": 0.6}, [TemperatureLogitsWarper(0.6)]),
    "hot": ({"temperature": 1.7}, [TemperatureLogitsWarper(1.7)]),
    "the likeliest few": ({"top_k": 7}, [TopKLogitsWarper(7)]),
    "more than the graph ranks": ({"top_k": 150}, [TopKLogitsWarper(150)]),
    "a nucleus": ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
    "not too unlikely": ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
    "no repetition": ({"repetition_penalty": 1.6}, [RepetitionPenaltyLogitsProcessor(1.6)]),
    "repetition": (
        {"repetition_penalty": 0.7, "top_k": 50},
        [RepetitionPenaltyLogitsProcessor(0.7), TopKLogitsWarper(50)],
    ),
    "biased": (
        {"logit_bias": BIAS, "top_k": 20},
        [SequenceBiasLogitsProcessor({(token,): bias for token, bias in BIAS.items()}), TopKLogitsWarper(20)],
    ),
    "not yet": (
        {"min_tokens": TOKENS, "logit_bias": {END: 8.0}, "ignore_eos": False},
        [
            SequenceBiasLogitsProcessor({(END,): 8.0}),
            MinNewTokensLengthLogitsProcessor(len(PROMPT), TOKENS, END),
        ],
    ),
    "everything at once": (
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


@pytest.mark.parametrize(("asked", "processors"), CASES.values(), ids=CASES.keys())
async def test_draws_follow_the_distribution_of_transformers(engine_of, reference, asked, processors):
    engine = await engine_of(slots=16, end_ids=[END])
    sampling = {"top_k": 0, "max_tokens": TOKENS, "ignore_eos": True} | asked
    answers = await asyncio.gather(*(outputs_of(engine, PROMPT, seed=seed, **sampling) for seed in range(REQUESTS)))
    drawn = np.array([[output.token_id for output in outputs] for outputs in answers])  # (requests, tokens)
    probabilities = distributions(reference, drawn, LogitsProcessorList(processors))
    own = np.take_along_axis(probabilities, drawn[..., None], axis=2)[..., 0]
    assert own.min() > 0, "a token was drawn that transformers never draws"
    likelier = np.where(probabilities > own[..., None], probabilities, 0).sum(axis=2)
    places = likelier + own * np.random.default_rng(0).random(own.shape)
    counts, expected = np.histogram(places, BINS, (0, 1))[0], places.size / BINS
    chi_square, freedom = float(((counts - expected) ** 2 / expected).sum()), BINS - 1
    assert counts.sum() == REQUESTS * TOKENS
    assert chi_square < freedom + 4.5 * math.sqrt(2 * freedom)


def distributions(model, drawn: np.ndarray, processors: LogitsProcessorList) -> np.ndarray:
    """The probabilities (requests, tokens, vocabulary) of each drawn token, given those before it."""
    ids = torch.tensor(np.concatenate([np.tile(PROMPT, (len(drawn), 1)), drawn], axis=1))
    with torch.inference_mode():
        logits = model(ids).logits
        scores = [processors(ids[:, :read], logits[:, read - 1]) for read in range(len(PROMPT), ids.shape[1])]
        return torch.stack(scores, dim=1).double().softmax(-1).numpy()
