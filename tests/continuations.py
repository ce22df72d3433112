"""Many prompts on a server at random times, and what transformers makes of each: for tests of generation."""

import asyncio
from collections.abc import Sequence

import grpc
import numpy as np
import torch
import transformers

from protos.affinity_pb2 import GenerateRequest, GenerateResponse, Prompt, TokenIds
from protos.affinity_pb2_grpc import AffinityStub

TextStream = list[GenerateResponse]


async def continued(target: str, prompts: Sequence[Sequence[int]], *, seed: int = 0, **asked) -> list[TextStream]:
    """The pieces of each prompt.

    Each is sent a random number of tokens after the one before, all counted, so that they come while others run: the
    same course of events on a slow machine and on a fast one.
    """
    gaps = np.random.default_rng(seed).integers(0, asked["max_tokens"], len(prompts)) * (np.arange(len(prompts)) > 0)
    made, changed = 0, asyncio.Condition()

    async def one(stub: AffinityStub, ids: Sequence[int], after: int) -> TextStream:
        nonlocal made
        async with changed:
            await changed.wait_for(lambda: made >= after)
        pieces = []
        async for piece in stub.Generate(request_of(ids, **asked)):
            pieces.append(piece)
            async with changed:
                made += len(piece.token_ids)
                changed.notify_all()
        return pieces

    async with grpc.aio.insecure_channel(target) as channel:
        stub = AffinityStub(channel)
        when = np.cumsum(gaps).tolist()
        return list(await asyncio.gather(*(one(stub, ids, after) for ids, after in zip(prompts, when, strict=True))))


def request_of(ids: Sequence[int], **asked) -> GenerateRequest:
    """To continue one prompt; to its last token, unless something else is asked."""
    prompt = Prompt(token_ids=TokenIds(ids=list(ids)))
    return GenerateRequest(prompts=[prompt], **{"ignore_eos": True, **asked})


def tokens_of(pieces: TextStream) -> list[int]:
    return [token for piece in pieces for token in piece.token_ids]


def greedy_of(model: transformers.PreTrainedModel, ids: Sequence[int], count: int) -> list[int]:
    """What transformers generates after `ids`."""
    prompt = torch.tensor([list(ids)])
    with torch.inference_mode():
        whole = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            min_new_tokens=count,
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return whole[0, len(ids) :].tolist()


def logprobs_of(model: transformers.PreTrainedModel, ids: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
    """What transformers gives for the tokens that follow `ids`: (tokens, vocabulary)."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*ids, *tokens]])).logits[0]
    return logits[len(ids) - 1 : -1].log_softmax(-1).numpy()
