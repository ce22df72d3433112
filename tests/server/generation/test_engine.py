"""The engine on a real graph: against transformers, among others, and when things go wrong."""

import asyncio
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from server.admission.queue import RequestContext
from server.errors import DeadlineExceeded, InvalidRequest, NotEnoughMemory, NotReady, Overloaded
from server.generation.decoder import Decoder
from server.generation.device_memory import HostMemory
from server.generation.engine import Engine, padded_batches
from server.generation.request import Sampling, TokenOutput
from server.generation.worker import StepFailed
from server.observability.observer import NoOpObserver
from tests.generating import generate, generate_all

GREEDY = {"temperature": 0.0, "ignore_eos": True}


async def steps_of(engine: Engine, prompt, context=RequestContext(), **sampling) -> list[TokenOutput]:  # noqa: B008  # it is frozen
    return [step async for step in generate(engine, prompt, Sampling(**sampling), context)]


async def tokens_of(engine: Engine, prompt, **sampling) -> list[int]:
    return [step.token_id for step in await steps_of(engine, prompt, **sampling)]


def greedy_of(reference, prompt, count: int) -> list[int]:
    """What transformers generates."""
    ids = torch.tensor(np.asarray(prompt))[None]
    with torch.no_grad():
        whole = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None
        )
    return whole[0, ids.shape[1] :].tolist()


def padded(rows):
    """Rows of token ids as the raw door takes them: (n, t), and the length of each."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, its in zip(ids, rows, strict=True):
        row[: len(its)] = its
    return ids, np.array([len(row) for row in rows])


class Listener(NoOpObserver):
    """Writes down what it hears."""

    def __init__(self):
        self.steps, self.endings, self.failures, self.drops, self.refusals = [], [], [], [], []

    def step(self, **step):
        self.steps.append(step)

    def finished(self, *, reason, usage):
        self.endings.append((reason, usage))

    def failed(self, rows):
        self.failures.append(rows)

    def dropped(self, reason):
        self.drops.append(reason)

    def refused(self, reason):
        self.refusals.append(reason)


class Held(Decoder):
    """Decodes only when it is let, one step at a time."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.arrived, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def decode(self, *arguments):
        self.arrived.release()
        self.go.acquire()
        return super().decode(*arguments)

    async def has_arrived(self):
        await asyncio.to_thread(self.arrived.acquire)

    def let_go(self):
        self.go.release(1000)


async def held(engine_of, kind=Held, **options) -> tuple[Engine, Held]:
    decoders = []

    def make(*arguments):
        decoders.append(kind(*arguments))
        return decoders[0]

    return await engine_of(decoder=make, **options), decoders[0]


# ---- right


async def test_greedy_tokens_are_those_of_transformers_for_prompts_that_come_while_others_run(
    engine_of, prompts, reference
):
    engine, asked = await engine_of(slots=6), prompts(24)
    made, came = 0, asyncio.Condition()

    async def one(number, prompt):
        nonlocal made
        async with came:
            await came.wait_for(lambda: made >= number * 5)  # those before have made so many tokens
        tokens = []
        async for step in generate(engine, prompt, Sampling(max_tokens=20, **GREEDY), RequestContext()):
            tokens.append(step.token_id)
            async with came:
                made += 1
                came.notify_all()
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
async def test_a_request_gets_the_same_tokens_alone_and_among_31_others(engine_of, prompts, sampling):
    engine, (prompt, *others) = await engine_of(slots=32), prompts(32, longest=30)
    alone = await tokens_of(engine, prompt, seed=7, max_tokens=30, **sampling)
    together = asyncio.gather(
        tokens_of(engine, prompt, seed=7, max_tokens=30, **sampling),
        *(tokens_of(engine, other, seed=number, max_tokens=1 + number) for number, other in enumerate(others)),
    )
    assert (await together)[0] == alone


async def test_log_probabilities_are_those_of_torch(engine_of, prompts, reference):
    engine, (prompt,) = await engine_of(), prompts(1)
    steps = await steps_of(engine, prompt, seed=1, max_tokens=15, temperature=2.0, logprobs=20, ignore_eos=True)
    ids = [*prompt.tolist(), *(step.token_id for step in steps)]
    with torch.no_grad():
        logprobs = reference(torch.tensor(ids)[None]).logits[0].log_softmax(-1).numpy()
    for position, step in enumerate(steps, start=len(prompt) - 1):
        assert step.logprob == pytest.approx(logprobs[position, step.token_id], abs=1e-4)
        assert [logprob for _, logprob in step.top] == pytest.approx(
            np.sort(logprobs[position])[:-21:-1].tolist(), abs=1e-4
        )


@pytest.mark.parametrize("forward_tokens", [1024, 21])
async def test_raw_logits_are_those_of_torch_for_rows_of_any_length(
    engine_of, prompts, reference, context_length, forward_tokens
):
    engine, rows = (
        await engine_of(forward_tokens=forward_tokens),
        [*prompts(20, longest=60), np.arange(1, context_length + 1)],
    )
    generating = asyncio.create_task(tokens_of(engine, rows[0], max_tokens=4))
    found = await engine.logits(*padded(rows), RequestContext())
    await generating
    for row, logits in zip(rows, found, strict=True):
        with torch.no_grad():
            expected = reference(torch.tensor(row)[None]).logits[0].numpy()
        assert np.abs(logits[: len(row)] - expected).max() / expected.std() < 1e-4
        assert not logits[len(row) :].any()


class TokenUsage(Decoder):
    """Writes down what runs: the first token of a part of a whole text, or a step."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.ran = []

    def decode(self, *arguments):
        self.ran.append("decode")
        return super().decode(*arguments)

    def _run_without_cache(self, input_ids, *arguments, **options):
        self.ran.append(int(input_ids[0, 0]))
        return super()._run_without_cache(input_ids, *arguments, **options)


async def test_a_stream_goes_on_between_the_parts_of_a_long_text_for_the_raw_logits(engine_of, context_length):
    class Slow(TokenUsage):
        """Decodes so slowly that the stream lasts longer than the parts take."""

        def decode(self, *arguments):
            time.sleep(0.02)
            return super().decode(*arguments)

    engine, decoder = await held(engine_of, kind=Slow, forward_tokens=8)
    streaming = generate(
        engine, np.array([1]), Sampling(max_tokens=context_length - 1, ignore_eos=True), RequestContext()
    )
    await anext(streaming)
    await engine.logits(*padded([np.arange(1, 65)]), RequestContext())
    parts = [decoder.ran.index(token) for token in range(1, 65, 8)]
    last_step = max(index for index, ran in enumerate(decoder.ran) if ran == "decode")
    while_streaming = [part for part in parts if part < last_step]
    assert len(while_streaming) > 1
    assert all("decode" in decoder.ran[one:other] for one, other in pairwise(while_streaming))
    await streaming.aclose()


@pytest.mark.parametrize(
    ("room", "order"),
    [(2 * 24 * 400, [1, 31, 9, 39, 17, 47, 101, 109, 117]), (1, [1, 9, 17, 31, 39, 47, 101, 109, 117])],
)
async def test_only_so_many_logits_are_in_memory_at_once_and_the_rest_waits(engine_of, monkeypatch, room, order):
    monkeypatch.setattr("server.generation.engine.MAX_LOGITS", room)
    engine, decoder = await held(engine_of, kind=TokenUsage, forward_tokens=8)
    texts = [np.arange(first, first + 24) for first in (1, 31, 101)]
    await asyncio.gather(*(engine.logits(*padded([text]), RequestContext()) for text in texts))
    assert decoder.ran == order
    assert engine.waiting_inputs == 0


def test_rows_of_the_raw_door_run_together_up_to_a_number_of_padded_tokens():
    rows = [np.zeros(length) for length in (5, 5, 10, 30, 1)]
    assert [[len(row) for row in group] for group in padded_batches(rows, 20)] == [[5, 5], [10], [30], [1]]


async def test_answers_are_identical_whether_shared_prompts_are_read_again_or_not(engine_of, prompts):
    beginning = np.arange(1, 31)
    asked = [np.concatenate([beginning[: 10 + 3 * number], own[:20]]) for number, own in enumerate(prompts(7))]
    found, reused = {}, {}
    for shared_tokens in (4, 10_000):
        engine = await engine_of(slots=4, min_shared_tokens=shared_tokens)
        answers = await asyncio.gather(
            *(
                steps_of(engine, prompt, seed=number % 7, max_tokens=10, logprobs=2, ignore_eos=True)
                for number, prompt in enumerate(asked * 3)
            )
        )
        found[shared_tokens] = [[(step.token_id, step.logprob, step.top) for step in steps] for steps in answers]
        reused[shared_tokens] = sum(steps[-1].usage.cached_tokens for steps in answers)
    assert found[4] == found[10_000]
    assert reused[10_000] == 0
    assert reused[4] > 3 * 7 * 10


# ---- room


async def test_slots_become_more_while_others_run_and_nobody_notices(engine_of, prompts, reference):
    listener, asked = Listener(), prompts(30)
    engine = await engine_of(slots=2, max_slots=12, observer=listener)
    found = await asyncio.gather(*(tokens_of(engine, prompt, max_tokens=20, **GREEDY) for prompt in asked))
    assert found == [greedy_of(reference, prompt, 20) for prompt in asked]
    assert max(step["sequences"] for step in listener.steps) > 4  # grew twice


@pytest.mark.parametrize("error", [NotEnoughMemory("nothing left"), RuntimeError("cudaMemcpy failed")], ids=repr)
async def test_where_slots_cannot_become_more_everybody_is_answered_all_the_same(engine_of, prompts, reference, error):
    class Full(HostMemory):
        """Grows no more."""

        def grow(self, address, size, new):
            raise error

    listener, asked = Listener(), prompts(8)
    engine = await engine_of(slots=2, max_slots=8, memory=Full(), observer=listener)
    found = await asyncio.gather(*(tokens_of(engine, prompt, max_tokens=9, **GREEDY) for prompt in asked))
    assert found == [greedy_of(reference, prompt, 9) for prompt in asked]
    assert max(step["sequences"] for step in listener.steps) == 2


class HeldAtAll(Held):
    """Reads whole texts only when it is let, too."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.reading, self.read = threading.Semaphore(0), threading.Semaphore(0)

    def _run_without_cache(self, *arguments, **options):
        self.reading.release()
        self.read.acquire()
        return super()._run_without_cache(*arguments, **options)


async def test_who_leaves_while_a_whole_text_is_read_is_in_no_step_any_more(engine_of):
    listener = Listener()
    engine, decoder = await held(engine_of, kind=HeldAtAll, observer=listener)
    leaving = generate(engine, [1, 2], Sampling(max_tokens=50, ignore_eos=True))
    await anext(leaving)
    await decoder.has_arrived()
    raw = asyncio.create_task(engine.logits(*padded([[1]]), RequestContext()))
    await asyncio.sleep(0)
    decoder.go.release()
    await asyncio.to_thread(decoder.reading.acquire)
    await leaving.aclose()
    decoder.read.release()
    await raw
    decoder.let_go()
    await engine.drain()
    assert [step["kind"] for step in listener.steps] == ["prefill", "decode"]


async def test_a_deadline_ends_the_wait_for_whole_texts(engine_of, monkeypatch):
    monkeypatch.setattr("server.generation.engine.MAX_LOGITS", 1)
    engine, decoder = await held(engine_of, kind=HeldAtAll)
    first, *others = (
        asyncio.create_task(engine.logits(*padded([[1]]), RequestContext(deadline=deadline)))
        for deadline in (None, time.monotonic() + 0.05, None)
    )
    await asyncio.to_thread(decoder.reading.acquire)
    with pytest.raises(DeadlineExceeded):
        await others[0]
    decoder.read.release(2)
    assert len(await first) == len(await others[1]) == 1
    assert engine.waiting_inputs == 0


# ---- ends


async def test_it_ends_at_max_tokens_and_tells_what_it_took(engine_of):
    steps = await steps_of(await engine_of(), [1, 2, 3], max_tokens=5, seed=9, ignore_eos=True)
    assert [step.finish_reason for step in steps] == ["", "", "", "", "length"]
    usage = steps[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, steps[-1].seed) == (3, 5, 0, 9)
    assert usage.queue_seconds >= 0
    assert usage.inference_seconds > 0


async def test_it_ends_where_the_context_ends(engine_of, context_length):
    steps = await steps_of(await engine_of(), [1] * (context_length - 3), max_tokens=50, ignore_eos=True)
    assert (len(steps), steps[-1].finish_reason) == (3, "length")


async def test_it_ends_after_a_stop_token_but_not_before_min_tokens(engine_of, reference):
    engine, prompt = await engine_of(end_ids=[0]), [5, 6, 7]
    usual = greedy_of(reference, prompt, 12)
    early, late = usual[2], next(token for token in usual if token != usual[2])
    steps = await steps_of(engine, prompt, max_tokens=12, temperature=0, stop_token_ids=(early,))
    assert (steps[-1].finish_reason, steps[-1].stop_reason) == ("stop", str(early))
    assert [step.token_id for step in steps] == usual[: usual.index(early) + 1]
    steps = await steps_of(engine, prompt, max_tokens=12, min_tokens=6, temperature=0, stop_token_ids=(early, late))
    assert len(steps) >= 6
    assert early not in [step.token_id for step in steps[:6]]


@pytest.mark.parametrize(("ignore", "reason", "count"), [(False, "stop", 1), (True, "length", 4)])
async def test_it_ends_with_the_text_unless_told_to_go_on(engine_of, ignore, reason, count):
    engine = await engine_of(end_ids=[3])
    steps = await steps_of(engine, [1], max_tokens=4, temperature=0, logit_bias={3: 100.0}, ignore_eos=ignore)
    assert (len(steps), steps[-1].finish_reason, steps[-1].stop_reason) == (count, reason, "")


# ---- wrong requests


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
async def test_what_cannot_be_answered_is_refused_with_what_was_found_and_expected(
    engine_of, prompt, sampling, message
):
    engine = await engine_of()
    with pytest.raises(InvalidRequest, match=message):
        await steps_of(engine, np.array(prompt, np.int64), **sampling)
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
        {"logit_bias": {1: float("inf")}},
        {"logit_bias": dict.fromkeys(range(1025), 1.0)},
        {"stop_token_ids": tuple(range(1025))},
    ],
    ids=lambda sampling: str(sampling)[:40],
)
def test_sampling_that_makes_no_sense_is_refused_by_name(sampling):
    with pytest.raises(InvalidRequest, match=next(iter(sampling))):
        Sampling(**sampling)


# ---- callers


async def test_a_caller_who_leaves_frees_the_slot_by_the_next_step(engine_of):
    listener = Listener()
    engine, decoder = await held(engine_of, slots=2, observer=listener)
    leaving = generate(engine, np.array([1, 2]), Sampling(max_tokens=50, ignore_eos=True), RequestContext())
    await anext(leaving)
    await decoder.has_arrived()  # in the first step, alone
    staying = asyncio.create_task(tokens_of(engine, [3], max_tokens=10, ignore_eos=True))
    await asyncio.sleep(0)
    await leaving.aclose()
    decoder.let_go()
    assert len(await staying) == 10
    await engine.drain()
    rows = [step["sequences"] for step in listener.steps if step["kind"] == "decode"]
    assert rows == [1] * 10  # one of whoever left, nine of whoever stayed, never two together
    assert [reason for reason, _ in listener.endings] == ["cancelled", "length"]


async def test_a_caller_who_leaves_while_waiting_never_runs(engine_of):
    listener = Listener()
    engine, decoder = await held(engine_of, slots=1, observer=listener)
    running = asyncio.create_task(tokens_of(engine, [1], max_tokens=5, ignore_eos=True))
    await decoder.has_arrived()
    waiting = asyncio.create_task(tokens_of(engine, [2, 3, 4], max_tokens=5))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    decoder.let_go()
    assert len(await running) == 5
    await engine.drain()
    assert listener.drops == ["cancelled"]
    assert [step["tokens"] for step in listener.steps if step["kind"] == "prefill"] == [1]


async def test_a_slow_caller_slows_nobody_and_gets_everything(engine_of, reference):
    engine = await engine_of()
    slow = generate(engine, np.array([1, 2]), Sampling(max_tokens=30, **GREEDY), RequestContext())
    first = await anext(slow)
    assert len(await tokens_of(engine, [3, 4], max_tokens=40, **GREEDY)) == 40
    found = [first.token_id, *[step.token_id async for step in slow]]
    assert found == greedy_of(reference, [1, 2], 30)


async def test_a_request_whose_time_is_up_leaves_with_what_it_has(engine_of):
    now = 0.0

    class Ticking(Decoder):
        """Each step takes a second."""

        def decode(self, *arguments):
            nonlocal now
            now += 1.0
            return super().decode(*arguments)

    engine, got = await engine_of(decoder=Ticking, clock=lambda: now), []

    async def hurried():
        async for step in generate(engine, np.array([1]), Sampling(max_tokens=50), RequestContext(deadline=3.5)):
            got.append(step)

    patient = asyncio.create_task(tokens_of(engine, [2], max_tokens=20, ignore_eos=True))
    with pytest.raises(DeadlineExceeded):
        await hurried()
    assert 1 <= len(got) <= 5
    assert len(await patient) == 20
    with pytest.raises(DeadlineExceeded):
        await steps_of(engine, [1], RequestContext(deadline=now))


async def test_a_full_queue_refuses_and_says_when_to_come_back(engine_of):
    listener = Listener()
    engine, decoder = await held(engine_of, slots=1, waiting=1, observer=listener)
    running = asyncio.create_task(tokens_of(engine, [1], max_tokens=3, ignore_eos=True))
    await decoder.has_arrived()
    waiting = asyncio.create_task(tokens_of(engine, [1], max_tokens=3, ignore_eos=True))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await tokens_of(engine, [1])
    assert refused.value.retry_after_s > 0
    with pytest.raises(Overloaded):
        await engine.logits(*padded([[1]]), RequestContext())
    assert listener.refusals == ["overloaded"] * 2
    decoder.let_go()
    assert len(await running) == len(await waiting) == 3


async def test_prompts_are_let_in_together_or_not_at_all(engine_of):
    listener = Listener()
    engine, decoder = await held(engine_of, slots=1, waiting=3, observer=listener)
    running = asyncio.create_task(tokens_of(engine, [1], max_tokens=3, ignore_eos=True))
    await decoder.has_arrived()
    waiting = asyncio.create_task(tokens_of(engine, [1], max_tokens=3, ignore_eos=True))
    await asyncio.sleep(0)
    three, four = ({f"prompts[{number}]": [1] for number in range(count)} for count in (3, 4))
    with pytest.raises(Overloaded):
        await anext(generate_all(engine, three, Sampling()))
    with pytest.raises(InvalidRequest, match="prompts: found 4 inputs, expected at most 3"):
        await anext(generate_all(engine, four, Sampling()))
    assert (engine.waiting_inputs, listener.refusals) == (1, ["overloaded"])
    decoder.let_go()
    assert len(await running) == len(await waiting) == 3


# ---- failures and ends


async def test_a_step_that_fails_fails_only_the_requests_in_it(engine_of, reference):
    all_came = threading.Event()

    class Flaky(Decoder):
        """The fourth decode step fails."""

        decodes = 0

        def prefill(self, *arguments):
            all_came.wait()
            return super().prefill(*arguments)

        def decode(self, *arguments):
            self.decodes += 1
            if self.decodes == 4:
                raise RuntimeError("out of memory")
            return super().decode(*arguments)

    listener = Listener()
    engine = await engine_of(slots=2, decoder=Flaky, observer=listener)
    asked = [[1], [2], [3], [4]]
    answers = [asyncio.create_task(tokens_of(engine, prompt, max_tokens=10, **GREEDY)) for prompt in asked]
    await asyncio.sleep(0)
    all_came.set()
    found = await asyncio.gather(*answers, return_exceptions=True)
    assert [type(answer) for answer in found] == [StepFailed, StepFailed, list, list]
    assert found[2:] == [greedy_of(reference, prompt, 10) for prompt in asked[2:]]
    assert listener.failures == [2]


async def test_after_a_failed_copy_nothing_is_trusted_and_new_requests_are_answered(engine_of, reference):
    class Torn(Decoder):
        """Cannot copy."""

        def __init__(self, session, cache):
            super().__init__(session, cache)
            cache.copy = self.tear

        def tear(self, **where):
            raise RuntimeError("no copies today")

    engine, prompt = await engine_of(slots=2, decoder=Torn, min_shared_tokens=4), list(range(1, 20))
    expected = greedy_of(reference, prompt, 9)
    assert await tokens_of(engine, prompt, max_tokens=9, **GREEDY) == expected
    with pytest.raises(StepFailed):
        await tokens_of(engine, prompt, max_tokens=9, **GREEDY)
    assert await tokens_of(engine, prompt, max_tokens=9, **GREEDY) == expected


async def test_after_an_error_nobody_foresaw_who_is_there_is_told_and_who_comes_next_is_answered(engine_of, reference):
    all_came = threading.Event()

    class Puzzling(Decoder):
        """Does not know once with how many rows to run."""

        puzzled = False

        def prefill(self, *arguments):
            all_came.wait()
            return super().prefill(*arguments)

        def padded_batch_size(self, sequences):
            if sequences == 2 and not self.puzzled:
                self.puzzled = True
                raise RuntimeError("two?")
            return sequences

    listener = Listener()
    engine = await engine_of(slots=2, decoder=Puzzling, observer=listener)
    asked = [tokens_of(engine, [number], max_tokens=9, **GREEDY) for number in range(1, 6)]
    answers = asyncio.gather(*asked, engine.logits(*padded([[1]]), RequestContext()), return_exceptions=True)
    await asyncio.sleep(0)
    all_came.set()
    found = await answers
    assert [type(answer) for answer in found[:5]] == [StepFailed] * 5
    assert (listener.failures, engine.waiting_inputs, engine.running_inputs) == ([5], 0, 0)
    assert await tokens_of(engine, [7, 8], max_tokens=9, **GREEDY) == greedy_of(reference, [7, 8], 9)
    assert len(await engine.logits(*padded([[1]]), RequestContext())) == 1


async def test_a_prefill_that_fails_fails_only_its_request(engine_of):
    class Allergic(Decoder):
        """Fails on a certain token."""

        def prefill(self, slot, token_ids, past):
            if 13 in token_ids:
                raise RuntimeError("not this one")
            return super().prefill(slot, token_ids, past)

    engine = await engine_of(decoder=Allergic)
    found = await asyncio.gather(
        *(tokens_of(engine, [token], max_tokens=5, ignore_eos=True) for token in (1, 13, 2)), return_exceptions=True
    )
    assert [type(answer) for answer in found] == [list, StepFailed, list]


async def test_draining_lets_those_who_are_in_finish_and_nobody_else_in(engine_of):
    engine, decoder = await held(engine_of)
    running = asyncio.create_task(tokens_of(engine, [1], max_tokens=5, ignore_eos=True))
    await decoder.has_arrived()
    draining = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        await tokens_of(engine, [1])
    decoder.let_go()
    await draining
    assert len(await running) == 5


async def test_who_is_given_up_ends_with_what_there_is(engine_of):
    engine, decoder = await held(engine_of, slots=1)
    running = asyncio.create_task(steps_of(engine, [1], max_tokens=50, ignore_eos=True))
    await decoder.has_arrived()
    waiting = asyncio.create_task(steps_of(engine, [2], max_tokens=50, ignore_eos=True))
    await asyncio.sleep(0)
    engine.abort()
    decoder.let_go()
    steps, never = await running, await waiting
    assert (steps[-1].finish_reason, steps[-1].token_id) == ("cancelled", None)
    assert len(steps) <= 4
    assert [step.finish_reason for step in never] == ["cancelled"]
