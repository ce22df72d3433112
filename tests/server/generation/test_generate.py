"""The task: text in, pieces of text out; and the tensor door."""

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
from tests.server.generation.test_engine import Listener, held

PROMPT = "A list is"


@pytest.fixture
async def task(engine_of, artifact, prepare):
    return Generate(await engine_of(end_ids=artifact.manifest.text.end_ids), TextEncoder(artifact), prepare)


async def pieces_of(task, prompt=PROMPT, *, stop=(), include_stop=False, **sampling):
    asked = task.stream([prompt], Sampling(**sampling), stop=stop, include_stop=include_stop, context=RequestContext())
    async with asked as continued:
        return [piece async for _, piece in continued.read()]


def ids_of(pieces):
    return [token for piece in pieces for token in piece.token_ids]


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


async def test_pieces_are_the_text_of_the_tokens(task, artifact):
    pieces = await pieces_of(task, max_tokens=20, seed=1, ignore_eos=True)
    ids = ids_of(pieces)
    assert len(ids) == 20
    assert text_of(pieces) == TextEncoder(artifact).decode(ids, skip_special_tokens=True)
    assert [piece.finish_reason for piece in pieces] == [""] * (len(pieces) - 1) + ["length"]


async def test_only_the_last_piece_has_seed_and_usage(task, artifact):
    *others, last = await pieces_of(task, max_tokens=5, seed=1, ignore_eos=True)
    assert all((piece.seed, piece.usage) == (None, None) for piece in others)
    (tokens,) = TextEncoder(artifact).encode([PROMPT])
    assert (last.seed, last.usage.prompt_tokens, last.usage.completion_tokens) == (1, len(tokens), 5)


async def test_a_prompt_can_be_token_ids(task, artifact):
    (tokens,) = TextEncoder(artifact).encode([PROMPT])
    as_ids = await pieces_of(task, tokens.input_ids.tolist(), max_tokens=8, seed=2)
    assert text_of(as_ids) == text_of(await pieces_of(task, max_tokens=8, seed=2))


async def test_log_probabilities_come_only_if_asked_for(task):
    (piece,) = await pieces_of(task, max_tokens=1)
    assert piece.logprobs == []
    (piece,) = await pieces_of(task, max_tokens=1, logprobs=3)
    assert len(piece.logprobs) == 1
    assert len(piece.logprobs[0].top) == 3


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_a_stop_string_ends_the_text_before_it_wherever_tokens_end(task, data):
    seed = data.draw(st.integers(0, 5))
    whole = await pieces_of(task, max_tokens=20, seed=seed, ignore_eos=True)
    text = text_of(whole)
    start = data.draw(st.integers(0, len(text) - 1))
    stop = text[start : start + data.draw(st.integers(1, 6))]
    include = data.draw(st.booleans())
    *_, last = stopped = await pieces_of(
        task, stop=[stop], include_stop=include, max_tokens=20, seed=seed, ignore_eos=True
    )
    end = text.index(stop)
    assert text_of(stopped) == text[: end + include * len(stop)]
    assert (last.finish_reason, last.stop_reason, last.seed) == ("stop", stop, seed)
    tokens = [token for piece in stopped for token in piece.token_ids]
    assert tokens == [token for piece in whole for token in piece.token_ids][: len(tokens)]
    assert last.usage.completion_tokens == len(tokens)
    assert last.usage.inference_seconds > 0


async def test_no_stop_string_ends_the_text_before_min_tokens(task):
    whole = await pieces_of(task, max_tokens=20, seed=1, ignore_eos=True)
    every = sorted(set(text_of(whole)))[:16]
    *_, last = await pieces_of(task, stop=every, min_tokens=10, max_tokens=20, seed=1, ignore_eos=True)
    assert last.finish_reason == "stop"
    assert last.usage.completion_tokens > 10


class Polite(Decoder):
    """A step takes a second, and waits until the event loop has what came before it."""

    now = 0.0

    def decode(self, *arguments):
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.loop).result()
        Polite.now += 1.0
        return super().decode(*arguments)


class Ending(Listener):
    """Says when a generation has ended."""

    def __init__(self):
        super().__init__()
        self.ended = asyncio.Event()

    def finished(self, **how):
        super().finished(**how)
        self.ended.set()


async def test_a_stop_string_ends_the_work_though_nobody_reads_yet(engine_of, artifact, prepare, monkeypatch):
    monkeypatch.setattr(Polite, "loop", asyncio.get_running_loop(), raising=False)
    listener, how = Ending(), Sampling(max_tokens=40, seed=3, ignore_eos=True)
    engine = await engine_of(decoder=Polite, observer=listener, clock=lambda: Polite.now)
    task = Generate(engine, TextEncoder(artifact), prepare)
    text = text_of(await pieces_of(task, max_tokens=40, seed=3, ignore_eos=True))
    listener.__init__()
    async with task.stream([PROMPT], how, stop=[text[9]], context=RequestContext()) as continued:
        await listener.ended.wait()
        ((_, piece),) = [each async for each in continued.read()]
    assert piece.text == text[: text.index(text[9])]
    assert [reason for reason, _ in listener.endings] == ["stop"]
    steps = sum(step["kind"] == "decode" for step in listener.steps)
    assert piece.usage.completion_tokens == piece.usage.inference_seconds + 1  # on the engine's clock
    assert steps - piece.usage.inference_seconds in (0, 1)  # its slot is free by the next step
    assert steps < 39


async def test_what_waits_for_its_reader_is_one_piece(engine_of, artifact, prepare):
    engine, decoder = await held(engine_of)
    task = Generate(engine, TextEncoder(artifact), prepare)
    async with task.stream(
        [PROMPT], Sampling(max_tokens=9, logprobs=1, ignore_eos=True), context=RequestContext()
    ) as continued:
        pieces, counts = continued.read(), []
        for steps in (0, 1, 4):
            for _ in range(steps):
                await decoder.has_arrived()
                decoder.go.release()
            await decoder.has_arrived()  # in the next step: all before it has come
            decoder.arrived.release()
            _, piece = await anext(pieces)
            counts.append((len(piece.token_ids), len(piece.logprobs), piece.finish_reason))
        decoder.let_go()
        *_, (_, last) = [each async for each in pieces]
    assert counts == [(1, 1, ""), (1, 1, ""), (4, 4, "")]
    assert (last.finish_reason, last.usage.completion_tokens) == ("length", 9)


@pytest.mark.parametrize("include", [False, True])
async def test_the_text_of_a_stop_token_is_shown_only_on_demand(task, artifact, include):
    ids = [t for piece in await pieces_of(task, max_tokens=8, temperature=0, ignore_eos=True) for t in piece.token_ids]
    pieces = await pieces_of(task, max_tokens=8, temperature=0, stop_token_ids=(ids[-1],), include_stop=include)
    found = [token for piece in pieces for token in piece.token_ids]
    assert found == ids[: ids.index(ids[-1]) + 1]
    shown = found if include else found[:-1]
    assert text_of(pieces) == TextEncoder(artifact).decode(shown, skip_special_tokens=True)


async def test_who_leaves_in_the_middle_frees_the_slot_by_the_next_step_and_who_never_began_never_runs(
    engine_of, artifact, prepare
):
    listener, how = Listener(), Sampling(max_tokens=40, ignore_eos=True)
    engine, decoder = await held(engine_of, slots=1, observer=listener)
    task = Generate(engine, TextEncoder(artifact), prepare)
    async with task.stream([PROMPT], how, context=RequestContext()) as continued:
        await anext(continued.read())
        await decoder.has_arrived()
    async with task.stream([PROMPT], how, context=RequestContext()):
        pass  # waits for the slot, and leaves
    decoder.let_go()
    assert len(ids_of(await pieces_of(task, max_tokens=3, ignore_eos=True))) == 3
    await engine.drain()
    assert sum(step["kind"] == "decode" for step in listener.steps) == 1 + 2
    assert [reason for reason, _ in listener.endings] == ["cancelled", "length"]
    assert listener.drops == ["cancelled"]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("word " * 200, {}, "prompts.3.: found [0-9]+ tokens, expected at most 64"),
        ([], {}, "prompts.3.: found 0 tokens"),
        ([400], {}, "prompts.3.: found token 400, expected 0 to 399"),
        ("fine", {"stop": [""]}, r"stop\[0\]: found an empty string"),
    ],
)
async def test_a_refusal_names_the_field_as_the_caller_knows_it(task, prompt, options, message):
    with pytest.raises(InvalidRequest, match=message):
        async with task.stream(["a", "b", "c", prompt], Sampling(), **options, context=RequestContext()):
            raise AssertionError("nothing may begin")


async def test_the_tensor_door_gives_torchs_logits_and_zeros_at_padding(engine_of, reference):
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
async def test_the_tensor_door_refuses_what_makes_no_sense(engine_of, inputs, field):
    with pytest.raises(InvalidRequest, match=field):
        await RawGpt(await engine_of())(inputs, context=RequestContext())


async def test_who_came_before_the_model_goes_is_answered_though_the_prompt_is_not_read_yet(
    engine_of, artifact, prepare
):
    engine = await engine_of()
    task = Generate(engine, TextEncoder(artifact), prepare)
    busy = threading.Event()
    for _ in range(2):  # as many threads as make tokens of texts
        prepare.submit(busy.wait)
    asked = asyncio.create_task(pieces_of(task, max_tokens=5, ignore_eos=True))
    await asyncio.sleep(0)
    ending = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    with pytest.raises(NotReady, match="gpt is being unloaded"):
        await pieces_of(task)
    busy.set()
    assert len(ids_of(await asked)) == 5
    await ending


async def test_a_line_break_alone_is_a_prompt(task):
    assert len(ids_of(await pieces_of(task, "\n", max_tokens=3, ignore_eos=True))) == 3
