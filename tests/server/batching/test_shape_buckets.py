"""Batches padded to few shapes, run as on CUDA with everything bound, give what single inputs give."""

import asyncio
from itertools import count

import numpy as np
import pytest

from server.admission.queue import Limits
from server.artifact import read_artifact
from server.batching.batcher import Batcher
from server.batching.collate import ImageItem, TextItem, collate
from server.batching.defaults import shapes_of
from server.batching.scheduler import Budget
from server.batching.warm_up import warm_up
from server.concurrency.stop_signal import StopSignal
from server.config.settings import Settings
from server.errors import NotReady
from server.observability.observer import NoOpObserver
from server.runtime.io_binding import BoundSession
from server.runtime.open import open_session
from server.runtime.providers import ProviderChoice
from tests.server.batching.fakes import run_items

OUTPUTS = {
    "tiny-bert": ("top_scores", "top_ids", "logsumexp"),
    "tiny-classifier": ("logits",),
    "tiny-embedder": ("embedding",),
    "tiny-vit": ("logits",),
    "tiny-mixer": ("logits",),
}


def rows_of(artifact, count):
    """Inputs of all lengths."""
    random = np.random.default_rng(0)
    outputs, image, text = OUTPUTS[artifact.name], artifact.manifest.image, artifact.manifest.text
    if artifact.manifest.HasField("image"):
        shape = (3, image.height, image.width)
        return [
            ImageItem(pixel_values=random.standard_normal(shape).astype(np.float32), outputs=outputs)
            for _ in range(count)
        ]
    lengths = random.integers(2, text.max_length, count)
    logit_positions = 2 if artifact.name == "tiny-bert" else 0
    return [
        TextItem(
            input_ids=random.integers(5, text.vocabulary, length),
            selected=random.choice(length, logit_positions, replace=False),
            outputs=outputs,
        )
        for length in lengths
    ]


def budget_of(artifact, provider):
    longest = artifact.manifest.text.max_length or None
    shapes = shapes_of(provider, batch_size=6, longest=longest, logit_positions=512)
    return Budget(items=6, tokens=512, logit_positions=512, shapes=shapes)


@pytest.fixture
def bound(artifacts):
    """A model's artifact, and a session of the kind that CUDA has, on the CPU."""

    def make(name):
        artifact = read_artifact(artifacts / name / "1")
        session = open_session(artifact, ProviderChoice("cpu"), Settings(threads=1))
        return artifact, BoundSession(session.ort, provider="cpu", precision="fp32")

    return make


@pytest.mark.parametrize("name", OUTPUTS)
async def test_padded_batches_answer_as_single_inputs_do(name, bound):
    artifact, session = bound(name)
    items = rows_of(artifact, 60)
    batcher = Batcher(
        [session],
        name=name,
        budget=budget_of(artifact, "cuda"),
        limits=Limits(inputs=1000, tokens=100_000),
        observer=NoOpObserver(),
    )
    await batcher.start()
    answers = await asyncio.gather(*(run_items(batcher, [item]) for item in items))
    await batcher.drain()
    for item, (answer,) in zip(items, answers, strict=True):
        alone = session.run(collate([item], session.input_names), item.outputs)
        for output in item.outputs:
            expected = alone[output] if item.logit_positions else alone[output][0]
            np.testing.assert_allclose(answer[output], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OUTPUTS)
def test_warming_up_meets_every_shape_once_the_largest_first(name, bound):
    artifact, session = bound(name)
    warmed = warm_up(session, artifact, budget_of(artifact, "cuda"))
    lengths = len(budget_of(artifact, "cuda").shapes.lengths) or 1
    assert warmed.shapes == warmed.of == session.shapes == 6 * lengths
    assert warm_up(session, artifact, budget_of(artifact, "openvino")).of == (lengths if lengths > 1 else 0)
    assert warm_up(session, artifact, budget_of(artifact, "cpu")).of == 0


def test_warming_up_leaves_out_what_there_is_no_memory_for_but_not_a_single_item(bound, monkeypatch, caplog):
    artifact, session = bound("tiny-bert")
    run, most = session.run, 3

    def short_of_memory(feeds, outputs):
        if len(feeds["input_ids"]) > most:
            raise RuntimeError("CUDA out of memory")
        return run(feeds, outputs)

    monkeypatch.setattr(session, "run", short_of_memory)
    warmed = warm_up(session, artifact, budget_of(artifact, "cuda"))
    assert warmed.shapes == warmed.of // 2
    assert "tiny-bert: not enough memory to warm up 6 items of length" in caplog.text
    most = 0
    with pytest.raises(RuntimeError, match="out of memory"):
        warm_up(session, artifact, budget_of(artifact, "cuda"))


def test_warming_up_ends_when_it_is_asked_to(bound):
    artifact, session = bound("tiny-bert")
    stop, looks = StopSignal(), count()

    def clock():
        if next(looks) == 3:
            stop.set()
        return 0.0

    with pytest.raises(NotReady):
        warm_up(session, artifact, budget_of(artifact, "cuda"), stop=stop, clock=clock)
    assert session.shapes == 3


def test_warming_up_ends_when_it_takes_too_long(bound):
    artifact, session = bound("tiny-bert")
    minutes = iter(range(0, 10_000, 10))
    warmed = warm_up(session, artifact, budget_of(artifact, "cuda"), clock=lambda: next(minutes))
    assert warmed.shapes == 3
    assert warmed.of > 3
