"""Sends many prompts to a server at random times, and continues them with transformers, for comparison."""

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
    """The responses to each prompt.

    Each prompt is sent a random number of generated tokens (of all prompts) after the one before, so that it arrives
    while others run. Counting tokens instead of time gives the same schedule on slow and fast machines.
    """
    gaps = np.random.default_rng(seed).integers(0, asked["max_tokens"], len(prompts)) * (np.arange(len(prompts)) > 0)
    made, changed = 0, asyncio.Condition()

    async def one(stub: AffinityStub, ids: Sequence[int], after: int) -> TextStream:
        nonlocal made
        async with changed:
            await changed.wait_for(lambda: made >= after)
        responses = []
        async for response in stub.Generate(request_of(ids, **asked)):
            responses.append(response)
            async with changed:
                made += len(response.token_ids)
                changed.notify_all()
        return responses

    async with grpc.aio.insecure_channel(target) as channel:
        stub = AffinityStub(channel)
        when = np.cumsum(gaps).tolist()
        return list(await asyncio.gather(*(one(stub, ids, after) for ids, after in zip(prompts, when, strict=True))))


def request_of(ids: Sequence[int], **asked) -> GenerateRequest:
    """A request with one prompt, which generates exactly max_tokens unless `asked` overrides ignore_eos."""
    prompt = Prompt(token_ids=TokenIds(ids=list(ids)))
    return GenerateRequest(prompts=[prompt], **{"ignore_eos": True, **asked})


def tokens_of(responses: TextStream) -> list[int]:
    return [token for response in responses for token in response.token_ids]


def greedy_of(model: transformers.PreTrainedModel, ids: Sequence[int], count: int) -> list[int]:
    """The tokens that transformers generates after `ids`."""
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
    """The log-probabilities of transformers at the `tokens` that follow `ids`: (tokens, vocabulary)."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*ids, *tokens]])).logits[0]
    return logits[len(ids) - 1 : -1].log_softmax(-1).numpy()
