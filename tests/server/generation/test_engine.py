"""The engine on a real graph, compared with transformers and torch: outputs, ends of sequences, invalid requests."""

import asyncio

import numpy as np
import pytest
import torch

from server.admission.queue import RequestContext
from server.errors import InvalidRequest, NotEnoughMemory
from server.generation.device_memory import HostMemory
from server.generation.request import Sampling
from tests.continuations import greedy_of
from tests.generating import generate
from tests.server.generation.engines import (
    GREEDY,
    EngineEvents,
    outputs_of,
    tokens_of,
)


async def test_greedy_tokens_equal_those_of_transformers_for_prompts_that_arrive_while_others_run(
    engine_of, prompts, reference
):
    engine, asked = await engine_of(slots=6), prompts(24)
    generated, changed = 0, asyncio.Condition()

    async def one(number, prompt):
        nonlocal generated
        async with changed:
            await changed.wait_for(lambda: generated >= number * 5)  # by all earlier requests
        tokens = []
        async for output in generate(engine, prompt, Sampling(max_tokens=20, **GREEDY), RequestContext()):
            tokens.append(output.token_id)
            async with changed:
                generated += 1
                changed.notify_all()
        return tokens

    found = await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(asked)))
    assert found == [greedy_of(reference, prompt, 20) for prompt in asked]


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"top_k": 0, "top_p": 0.9},
        {"repetition_penalty": 1.5, "temperature": 1.5},
        {"logit_bias": {5: 3.0}, "min_p": 0.02},
    ],
    ids=str,
)
async def test_a_request_gets_the_same_tokens_alone_and_with_31_others(engine_of, prompts, sampling):
    engine, (prompt, *others) = await engine_of(slots=32), prompts(32, longest=30)
    alone = await tokens_of(engine, prompt, seed=7, max_tokens=30, **sampling)
    together = asyncio.gather(
        tokens_of(engine, prompt, seed=7, max_tokens=30, **sampling),
        *(tokens_of(engine, other, seed=number, max_tokens=1 + number) for number, other in enumerate(others)),
    )
    assert (await together)[0] == alone


async def test_log_probabilities_equal_those_of_torch(engine_of, prompts, reference):
    engine, (prompt,) = await engine_of(), prompts(1)
    outputs = await outputs_of(engine, prompt, seed=1, max_tokens=15, temperature=2.0, logprobs=20, ignore_eos=True)
    ids = [*prompt.tolist(), *(output.token_id for output in outputs)]
    with torch.no_grad():
        logprobs = reference(torch.tensor(ids)[None]).logits[0].log_softmax(-1).numpy()
    for position, output in enumerate(outputs, start=len(prompt) - 1):
        assert output.logprob == pytest.approx(logprobs[position, output.token_id], abs=1e-4)
        assert [logprob for _, logprob in output.top] == pytest.approx(
            np.sort(logprobs[position])[:-21:-1].tolist(), abs=1e-4
        )


async def test_outputs_are_identical_with_and_without_the_prefix_cache(engine_of, prompts):
    beginning = np.arange(1, 31)
    asked = [np.concatenate([beginning[: 10 + 3 * number], own[:20]]) for number, own in enumerate(prompts(7))]
    found, reused = {}, {}
    for shared_tokens in (4, 10_000):
        engine = await engine_of(slots=4, min_shared_tokens=shared_tokens)
        answers = await asyncio.gather(
            *(
                outputs_of(engine, prompt, seed=number % 7, max_tokens=10, logprobs=2, ignore_eos=True)
                for number, prompt in enumerate(asked * 3)
            )
        )
        found[shared_tokens] = [
            [(output.token_id, output.logprob, output.top) for output in outputs] for outputs in answers
        ]
        reused[shared_tokens] = sum(outputs[-1].usage.cached_tokens for outputs in answers)
    assert found[4] == found[10_000]
    assert reused[10_000] == 0
    assert reused[4] > 3 * 7 * 10


async def test_growing_the_cache_does_not_change_the_tokens_of_running_requests(engine_of, prompts, reference):
    events, asked = EngineEvents(), prompts(30)
    engine = await engine_of(slots=2, max_slots=12, observer=events)
    found = await asyncio.gather(*(tokens_of(engine, prompt, max_tokens=20, **GREEDY) for prompt in asked))
    assert found == [greedy_of(reference, prompt, 20) for prompt in asked]
    assert max(step["sequences"] for step in events.steps) > 4  # grew twice


@pytest.mark.parametrize("error", [NotEnoughMemory("nothing left"), RuntimeError("cudaMemcpy failed")], ids=repr)
async def test_all_requests_are_answered_if_the_cache_cannot_grow(engine_of, prompts, reference, error):
    class Full(HostMemory):
        """Cannot grow."""

        def grow(self, address, size, new):
            raise error

    events, asked = EngineEvents(), prompts(8)
    engine = await engine_of(slots=2, max_slots=8, memory=Full(), observer=events)
    found = await asyncio.gather(*(tokens_of(engine, prompt, max_tokens=9, **GREEDY) for prompt in asked))
    assert found == [greedy_of(reference, prompt, 9) for prompt in asked]
    assert max(step["sequences"] for step in events.steps) == 2


async def test_a_sequence_ends_at_max_tokens_and_reports_its_usage(engine_of):
    outputs = await outputs_of(await engine_of(), [1, 2, 3], max_tokens=5, seed=9, ignore_eos=True)
    assert [output.finish_reason for output in outputs] == ["", "", "", "", "length"]
    usage = outputs[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, outputs[-1].seed) == (3, 5, 0, 9)
    assert usage.queue_seconds >= 0
    assert usage.inference_seconds > 0


async def test_a_sequence_ends_at_the_context_length(engine_of, context_length):
    outputs = await outputs_of(await engine_of(), [1] * (context_length - 3), max_tokens=50, ignore_eos=True)
    assert (len(outputs), outputs[-1].finish_reason) == (3, "length")


async def test_a_sequence_ends_after_a_stop_token_but_not_before_min_tokens(engine_of, reference):
    engine, prompt = await engine_of(end_ids=[0]), [5, 6, 7]
    usual = greedy_of(reference, prompt, 12)
    early, late = usual[2], next(token for token in usual if token != usual[2])
    outputs = await outputs_of(engine, prompt, max_tokens=12, temperature=0, stop_token_ids=(early,))
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", str(early))
    assert [output.token_id for output in outputs] == usual[: usual.index(early) + 1]
    outputs = await outputs_of(engine, prompt, max_tokens=12, min_tokens=6, temperature=0, stop_token_ids=(early, late))
    assert len(outputs) >= 6
    assert early not in [output.token_id for output in outputs[:6]]


@pytest.mark.parametrize(("ignore", "reason", "count"), [(False, "stop", 1), (True, "length", 4)])
async def test_a_sequence_ends_after_an_end_token_unless_the_request_ignores_it(engine_of, ignore, reason, count):
    engine = await engine_of(end_ids=[3])
    outputs = await outputs_of(engine, [1], max_tokens=4, temperature=0, logit_bias={3: 100.0}, ignore_eos=ignore)
    assert (len(outputs), outputs[-1].finish_reason, outputs[-1].stop_reason) == (count, reason, "")


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ([], {}, "prompt: found 0 tokens, expected 1 to 63"),
        ([1] * 64, {}, "prompt: found 64 tokens, expected 1 to 63"),
        ([1, 400], {}, "prompt: found token 400, expected 0 to 399"),
        ([1, -1], {}, "prompt: found token -1, expected 0 to 399"),
        ([1], {"stop_token_ids": (400,)}, "stop_token_ids: found token 400"),
        ([1], {"logit_bias": {-1: 1.0}}, "logit_bias: found token -1"),
    ],
)
async def test_an_invalid_prompt_or_token_id_is_refused_with_the_value_and_the_limits(
    engine_of, prompt, sampling, message
):
    engine = await engine_of()
    with pytest.raises(InvalidRequest, match=message):
        await outputs_of(engine, np.array(prompt, np.int64), **sampling)
    assert len(await tokens_of(engine, [1], max_tokens=2, ignore_eos=True)) == 2


@pytest.mark.parametrize(
    "sampling",
    [
        {"max_tokens": 0},
        {"min_tokens": 17},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"frequency_penalty": 3.0},
        {"presence_penalty": float("nan")},
        {"seed": -1},
        {"logprobs": -1},
        {"logprobs": 21},
        {"logit_bias": {1: float("nan")}},
    ],
    ids=lambda sampling: str(sampling)[:40],
)
def test_an_invalid_sampling_parameter_is_refused_by_name(sampling):
    with pytest.raises(InvalidRequest, match=next(iter(sampling))):
        Sampling(**sampling)
