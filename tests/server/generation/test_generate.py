"""The generate task, which streams text, and its tensor task."""

import asyncio
import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.admission.queue import RequestContext
from server.errors import InvalidRequest, NotReady
from server.generation.decoder import Decoder
from server.generation.request import Sampling
from server.tasks.generate import Generate, RawGpt
from server.text.tokenizer import TextEncoder
from tests.server.generation.engines import EngineEvents, engine_with

PROMPT = "A list is"


@pytest.fixture
async def task(engine_of, artifact, threads):
    return Generate(await engine_of(end_ids=artifact.manifest.text.end_ids), TextEncoder(artifact), threads)


async def deltas_of(task, prompt=PROMPT, *, stop=(), include_stop=False, **sampling):
    continuation = task.stream(
        [prompt], Sampling(**sampling), stop=stop, include_stop=include_stop, context=RequestContext()
    )
    async with continuation as stream:
        return [delta async for _, delta in stream.read()]


def ids_of(deltas):
    return [token for delta in deltas for token in delta.token_ids]


def text_of(deltas):
    return "".join(delta.text for delta in deltas)


async def test_deltas_contain_the_text_of_the_tokens(task, artifact):
    deltas = await deltas_of(task, max_tokens=20, seed=1, ignore_eos=True)
    ids = ids_of(deltas)
    assert len(ids) == 20
    assert text_of(deltas) == TextEncoder(artifact).decode(ids, skip_special_tokens=True)
    assert [delta.finish_reason for delta in deltas] == [""] * (len(deltas) - 1) + ["length"]


async def test_only_the_last_piece_has_seed_and_usage(task, artifact):
    *others, last = await deltas_of(task, max_tokens=5, seed=1, ignore_eos=True)
    assert all((delta.seed, delta.usage) == (None, None) for delta in others)
    (tokens,) = TextEncoder(artifact).encode([PROMPT])
    assert (last.seed, last.usage.prompt_tokens, last.usage.completion_tokens) == (1, len(tokens), 5)


async def test_a_prompt_can_be_token_ids(task, artifact):
    (tokens,) = TextEncoder(artifact).encode([PROMPT])
    as_ids = await deltas_of(task, tokens.input_ids.tolist(), max_tokens=8, seed=2)
    assert text_of(as_ids) == text_of(await deltas_of(task, max_tokens=8, seed=2))


async def test_deltas_have_log_probabilities_only_if_requested(task):
    (delta,) = await deltas_of(task, max_tokens=1)
    assert delta.logprobs == []
    (delta,) = await deltas_of(task, max_tokens=1, logprobs=3)
    assert len(delta.logprobs) == 1
    assert len(delta.logprobs[0].top) == 3


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_a_stop_string_ends_the_text_before_it_wherever_tokens_end(task, data):
    seed = data.draw(st.integers(0, 5))
    whole = await deltas_of(task, max_tokens=20, seed=seed, ignore_eos=True)
    text = text_of(whole)
    start = data.draw(st.integers(0, len(text) - 1))
    stop = text[start : start + data.draw(st.integers(1, 6))]
    include = data.draw(st.booleans())
    *_, last = stopped = await deltas_of(
        task, stop=[stop], include_stop=include, max_tokens=20, seed=seed, ignore_eos=True
    )
    end = text.index(stop)
    assert text_of(stopped) == text[: end + include * len(stop)]
    assert (last.finish_reason, last.stop_reason, last.seed) == ("stop", stop, seed)
    tokens = [token for delta in stopped for token in delta.token_ids]
    assert tokens == [token for delta in whole for token in delta.token_ids][: len(tokens)]
    assert last.usage.completion_tokens == len(tokens)
    assert last.usage.inference_seconds > 0


async def test_no_stop_string_ends_the_text_before_min_tokens(task):
    whole = await deltas_of(task, max_tokens=20, seed=1, ignore_eos=True)
    every = sorted(set(text_of(whole)))[:16]
    *_, last = await deltas_of(task, stop=every, min_tokens=10, max_tokens=20, seed=1, ignore_eos=True)
    assert last.finish_reason == "stop"
    assert last.usage.completion_tokens > 10


class SynchronousDecoder(Decoder):
    """Each step takes a second of `now`, and waits until the event loop has the outputs of the step before."""

    now = 0.0

    def decode(self, *arguments):
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.loop).result()
        SynchronousDecoder.now += 1.0
        return super().decode(*arguments)


class EndRecorder(EngineEvents):
    """Sets an event when a sequence has finished."""

    def __init__(self):
        super().__init__()
        self.ended = asyncio.Event()

    def finished(self, **how):
        super().finished(**how)
        self.ended.set()


async def test_a_stop_string_ends_the_sequence_before_the_text_is_read(engine_of, artifact, threads, monkeypatch):
    monkeypatch.setattr(SynchronousDecoder, "loop", asyncio.get_running_loop(), raising=False)
    events, how = EndRecorder(), Sampling(max_tokens=40, seed=3, ignore_eos=True)
    engine = await engine_of(decoder=SynchronousDecoder, observer=events, clock=lambda: SynchronousDecoder.now)
    task = Generate(engine, TextEncoder(artifact), threads)
    text = text_of(await deltas_of(task, max_tokens=40, seed=3, ignore_eos=True))
    events.__init__()
    async with task.stream([PROMPT], how, stop=[text[9]], context=RequestContext()) as stream:
        await events.ended.wait()
        ((_, delta),) = [each async for each in stream.read()]
    assert delta.text == text[: text.index(text[9])]
    assert [reason for reason, _ in events.endings] == ["stop"]
    steps = sum(step["kind"] == "decode" for step in events.steps)
    assert delta.usage.completion_tokens == delta.usage.inference_seconds + 1  # on the engine's clock
    assert steps - delta.usage.inference_seconds in (0, 1)  # its slot is free before the next step
    assert steps < 39


async def test_deltas_that_wait_for_their_reader_are_merged(engine_of, artifact, threads):
    engine, decoder = await engine_with(engine_of)
    task = Generate(engine, TextEncoder(artifact), threads)
    async with task.stream(
        [PROMPT], Sampling(max_tokens=9, logprobs=1, ignore_eos=True), context=RequestContext()
    ) as stream:
        deltas, counts = stream.read(), []
        for steps in (0, 1, 4):
            for _ in range(steps):
                await decoder.decode_started()
                decoder.go.release()
            await decoder.decode_started()  # the outputs of all steps before have arrived
            decoder.arrived.release()
            _, delta = await anext(deltas)
            counts.append((len(delta.token_ids), len(delta.logprobs), delta.finish_reason))
        decoder.stop_waiting()
        *_, (_, last) = [each async for each in deltas]
    assert counts == [(1, 1, ""), (1, 1, ""), (4, 4, "")]
    assert (last.finish_reason, last.usage.completion_tokens) == ("length", 9)


@pytest.mark.parametrize("include", [False, True])
async def test_the_text_of_a_stop_token_is_included_only_if_requested(task, artifact, include):
    ids = [t for delta in await deltas_of(task, max_tokens=8, temperature=0, ignore_eos=True) for t in delta.token_ids]
    deltas = await deltas_of(task, max_tokens=8, temperature=0, stop_token_ids=(ids[-1],), include_stop=include)
    found = [token for delta in deltas for token in delta.token_ids]
    assert found == ids[: ids.index(ids[-1]) + 1]
    shown = found if include else found[:-1]
    assert text_of(deltas) == TextEncoder(artifact).decode(shown, skip_special_tokens=True)


async def test_a_stream_that_is_left_early_frees_its_slot_and_one_that_is_left_while_it_waits_never_runs(
    engine_of, artifact, threads
):
    events, how = EngineEvents(), Sampling(max_tokens=40, ignore_eos=True)
    engine, decoder = await engine_with(engine_of, slots=1, observer=events)
    task = Generate(engine, TextEncoder(artifact), threads)
    async with task.stream([PROMPT], how, context=RequestContext()) as stream:
        await anext(stream.read())
        await decoder.decode_started()
    async with task.stream([PROMPT], how, context=RequestContext()):
        pass  # waits for the slot, and is cancelled
    decoder.stop_waiting()
    assert len(ids_of(await deltas_of(task, max_tokens=3, ignore_eos=True))) == 3
    await engine.drain()
    assert sum(step["kind"] == "decode" for step in events.steps) == 1 + 2
    assert [reason for reason, _ in events.endings] == ["cancelled", "length"]
    assert events.drops == ["cancelled"]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("word " * 200, {}, "prompts.3.: found [0-9]+ tokens, expected at most 64"),
        ([], {}, "prompts.3.: found 0 tokens"),
        ([400], {}, "prompts.3.: found token 400, expected 0 to 399"),
        ("fine", {"stop": [""]}, r"stop\[0\]: found an empty string"),
    ],
)
async def test_an_error_names_the_prompt(task, prompt, options, message):
    with pytest.raises(InvalidRequest, match=message):
        async with task.stream(["a", "b", "c", prompt], Sampling(), **options, context=RequestContext()):
            raise AssertionError("the stream must not begin")


async def test_raw_logits_equal_those_of_torch_and_are_zero_at_padding(engine_of, reference):
    ids = np.array([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    raw = RawGpt(await engine_of())
    logits = (await raw({"input_ids": ids, "attention_mask": mask}, context=RequestContext()))["logits"]
    assert logits.dtype == np.float32
    with torch.no_grad():
        expected = reference(torch.tensor(ids)).logits.numpy()
    assert np.abs(logits[0] - expected[0]).max() / expected.std() < 1e-4
    assert np.abs(logits[1, :2] - expected[1, :2]).max() / expected.std() < 1e-4
    assert not logits[1, 2:].any()


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"input_ids": np.array([[400]])}, "input_ids"),
        ({"input_ids": np.zeros((1, 65), np.int64)}, "input_ids"),
        ({"input_ids": np.array([[1, 2]]), "attention_mask": np.array([[0, 1]])}, "attention_mask"),
        ({"input_ids": np.array([[1]]), "token_type_ids": np.array([[0]])}, "token_type_ids"),
    ],
)
async def test_the_tensor_task_refuses_invalid_inputs(engine_of, inputs, field):
    with pytest.raises(InvalidRequest, match=field):
        await RawGpt(await engine_of())(inputs, context=RequestContext())


async def test_a_request_whose_prompt_is_being_encoded_is_answered_although_the_model_is_unloaded(
    engine_of, artifact, threads
):
    engine = await engine_of()
    task = Generate(engine, TextEncoder(artifact), threads)
    busy = threading.Event()
    for _ in range(2):  # all threads that encode prompts
        threads.submit(busy.wait)
    request = asyncio.create_task(deltas_of(task, max_tokens=5, ignore_eos=True))
    await asyncio.sleep(0)
    draining = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    with pytest.raises(NotReady, match="gpt is being unloaded"):
        await deltas_of(task)
    busy.set()
    assert len(ids_of(await request)) == 5
    await draining


async def test_a_line_break_alone_is_a_prompt(task):
    assert len(ids_of(await deltas_of(task, "\n", max_tokens=3, ignore_eos=True))) == 3
