"""The tasks of encoders and vision models return what transformers returns for the same checkpoints."""

import asyncio
import threading
import time
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from server.admission.queue import RequestContext
from server.concurrency.offload import MAX_INLINE_ITEMS
from server.errors import DeadlineExceeded, InvalidRequest
from server.tasks.embed import Embeddings
from server.tasks.fill_mask import FilledText
from tests.server.conftest import opened
from tests.server.images.files import FILES, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTEXT = RequestContext()
WORDS = ["the", "statement", "raises", "an", "exception", "caller", "may", "catch", "it", "list", "sequence", "items"]


def texts(count, *, mask=False, seed=0):
    """Distinct texts of 2 to 14 words."""
    random = np.random.default_rng(seed)
    made = [" ".join(random.choice(WORDS, random.integers(1, 14))) for _ in range(count)]
    return [f"{text} [MASK] {n % 10}" if mask else f"{text} {n % 10}" for n, text in enumerate(made)]


@pytest.fixture(scope="module")
def reference(checkpoints):
    """A model and its tokenizer, as transformers loads them."""

    def load(kind, name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoints[name])
        return kind.from_pretrained(checkpoints[name]).eval(), tokenizer

    return load


# ---- fill-mask


@pytest.fixture(scope="module")
def fill_mask_pipeline(checkpoints):
    return transformers.pipeline("fill-mask", model=str(checkpoints["tiny-bert"]), device="cpu")


@pytest.mark.parametrize(
    "text",
    [
        "The [MASK] raises an exception.",
        "A [MASK] is a [MASK] sequence, isn't it?",
        "[MASK]",
        "ÉCOLE  [MASK] ( 12 ) !",
        "[CLS] a list [PAD] [MASK] [SEP] items",
    ],
)
@pytest.mark.parametrize("top_k", [1, 5, 64, 65, 200, 1000])
async def test_fill_mask_answers_as_the_pipeline_does(repository, fill_mask_pipeline, text, top_k):
    found = await repository.get("tiny-bert").task([text], top_k=top_k, context=CONTEXT)
    expected = fill_mask_pipeline(text, top_k=min(top_k, 200))
    expected = expected if text.count("[MASK]") > 1 else [expected]
    assert [len(mask.candidates) for mask in found[0].masks] == [min(top_k, 200)] * text.count("[MASK]")
    for mask, candidates in zip(found[0].masks, expected, strict=True):
        scores = {candidate.token_id: candidate for candidate in mask.candidates}
        assert [candidate.score for candidate in mask.candidates] == sorted(
            (candidate.score for candidate in mask.candidates), reverse=True
        )
        for one in candidates:
            if one["token"] not in scores:  # as likely as the last, which took its place
                assert mask.candidates[-1].score == pytest.approx(one["score"], rel=1e-4)
                continue
            same = scores[one["token"]]
            assert same.score == pytest.approx(one["score"], rel=1e-4)
            assert (same.token, same.sequence) == (one["token_str"], one["sequence"])


async def test_fill_mask_returns_the_positions_of_the_masks(repository):
    (text,) = await repository.get("tiny-bert").task(["[MASK] [MASK]"], context=CONTEXT)
    assert [mask.position for mask in text.masks] == [1, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a [MASK]", ""], r"texts\[1\]: found no \[MASK\], expected at least one"),
        (["  \n"], r"texts\[0\]: found no \[MASK\]"),
        (["a [MASK]", "no mask"], r"texts\[1\]: found no \[MASK\], expected at least one \[MASK\]"),
        (["[MASK] " * 63], r"texts\[0\]: found 65 tokens, expected at most 64"),
        (["x" * 20_000], r"texts\[0\]: found 20000 characters, expected at most 64 tokens"),
    ],
)
async def test_a_bad_text_is_refused_by_its_number_and_the_next_request_works(repository, given, message):
    task = repository.get("tiny-bert").task
    with pytest.raises(InvalidRequest, match=message):
        await task(given, context=CONTEXT)
    with pytest.raises(InvalidRequest, match=message.replace("texts", "inputs")):
        await task(given, context=CONTEXT, field="inputs")
    assert len(await task(["a [MASK]", "[MASK] " * 62], context=CONTEXT)) == 2


async def test_top_k_must_be_at_least_one(repository):
    for name, given in (("tiny-bert", "[MASK]"), ("tiny-classifier", "a"), ("tiny-vit", FILES["png"])):
        with pytest.raises(InvalidRequest, match="top_k: found 0, expected 1 or more"):
            await repository.get(name).task([given], top_k=0, context=CONTEXT)


# ---- classification and embedding


async def test_classes_of_texts_are_those_of_the_pipeline(repository, checkpoints):
    pipeline = transformers.pipeline("text-classification", model=str(checkpoints["tiny-classifier"]), device="cpu")
    given = texts(5)
    for text, expected in zip(
        await repository.get("tiny-classifier").task(given, context=CONTEXT), pipeline(given, top_k=None), strict=True
    ):
        assert [each.label for each in text.classes] == [each["label"] for each in expected]
        assert [each.score for each in text.classes] == pytest.approx([each["score"] for each in expected], rel=1e-4)
    (text,) = await repository.get("tiny-classifier").task(given[:1], top_k=1, context=CONTEXT)
    (best,) = text.classes
    assert best.label == pipeline(given[0])[0]["label"]


async def test_embeddings_are_the_normalised_mean_over_tokens(repository, reference):
    model, tokenizer = reference(transformers.BertModel, "tiny-embedder")
    given = texts(20)
    found = (await repository.get("tiny-embedder").task(given, context=CONTEXT)).vectors
    for text, vector in zip(given, found, strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        assert np.abs(vector - (mean / mean.norm()).numpy()).max() < 1e-5
    assert (await repository.get("tiny-embedder").task([], context=CONTEXT)).vectors.shape == (0, 64)


@pytest.mark.parametrize("kind", ["png", "grey", "palette", "turned"])
async def test_classes_of_images_are_those_of_the_pipeline(repository, checkpoints, kind, tmp_path):
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoints["tiny-vit"], backend="pil")
    model = transformers.ViTForImageClassification.from_pretrained(checkpoints["tiny-vit"])
    pipeline = transformers.pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    (tmp_path / "image").write_bytes(FILES[kind])
    expected = pipeline(str(tmp_path / "image"))
    (found,) = await repository.get("tiny-vit").task([FILES[kind]], context=CONTEXT)
    assert [each.label for each in found] == [each["label"] for each in expected]
    assert [each.score for each in found] == pytest.approx([each["score"] for each in expected], rel=1e-4)


async def test_a_bad_image_is_refused_by_its_number(repository):
    with pytest.raises(InvalidRequest, match=r"images\[1\]: found a broken image"):
        await repository.get("tiny-mixer").task([FILES["png"], FILES["jpeg"][:300]], context=CONTEXT)


# ---- tensor tasks


async def test_raw_logits_of_a_padded_batch_are_those_of_transformers(repository, reference):
    model, tokenizer = reference(transformers.BertForMaskedLM, "tiny-bert")
    batch = tokenizer(texts(6, mask=True), padding=True, return_tensors="np")
    found = (await repository.get("tiny-bert").raw(dict(batch), context=CONTEXT))["logits"]
    with torch.no_grad():
        expected = model(**{name: torch.tensor(array) for name, array in batch.items()}).logits.numpy()
    real = batch["attention_mask"] == 1
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    assert np.abs(found - expected)[real].max() <= 1e-4 * expected[real].std()
    assert not found[~real].any()


async def test_raw_accepts_segments_and_needs_no_mask(repository, reference):
    model, _ = reference(transformers.BertForSequenceClassification, "tiny-classifier")
    ids = np.random.default_rng(0).integers(0, 200, (3, 9))
    types = np.array([[0] * 4 + [1] * 5] * 3)
    found = (await repository.get("tiny-classifier").raw({"input_ids": ids, "token_type_ids": types}, context=CONTEXT))[
        "logits"
    ]
    with torch.no_grad():
        expected = model(torch.tensor(ids), token_type_ids=torch.tensor(types)).logits.numpy()
    assert np.abs(found - expected).max() <= 1e-4 * expected.std()


async def test_raw_returns_embeddings_and_the_logits_of_images(repository, checkpoints):
    ids = np.random.default_rng(0).integers(5, 200, (2, 7))
    assert (await repository.get("tiny-embedder").raw({"input_ids": ids}, context=CONTEXT))["embedding"].shape == (
        2,
        64,
    )
    pixels = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)
    found = (await repository.get("tiny-vit").raw({"pixel_values": pixels}, context=CONTEXT))["logits"]
    model = transformers.ViTForImageClassification.from_pretrained(checkpoints["tiny-vit"]).eval()
    with torch.no_grad():
        expected = model(torch.tensor(pixels)).logits.numpy()
    assert np.abs(found - expected).max() <= 1e-4 * expected.std()


ONES = np.ones((2, 3), np.int64)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": ONES[0]}, r"input_ids: found int64 of shape \[3\], expected int64 of shape \[n, t\]"),
        ({"input_ids": ONES.astype(np.int32)}, r"input_ids: found int32 of shape \[2, 3\], expected int64"),
        ({"input_ids": ONES[:, :0]}, "neither of them 0"),
        ({"input_ids": np.ones((1, 65), np.int64)}, "input_ids: found 65 tokens in a row, expected at most 64"),
        ({"input_ids": ONES * 200}, r"input_ids\[0, 0\]: found 200, expected 0 to 199"),
        ({"input_ids": -ONES}, r"input_ids\[0, 0\]: found -1, expected 0 to 199"),
        ({"input_ids": ONES, "token_type_ids": ONES * 2}, r"token_type_ids\[0, 0\]: found 2, expected 0 to 1"),
        ({"input_ids": ONES, "attention_mask": ONES[:1]}, r"attention_mask: .* expected int64 of shape \[2, 3\]"),
        (
            {"input_ids": ONES, "attention_mask": np.array([[1, 1, 1], [0, 1, 1]])},
            r"attention_mask\[1\]: found \[0, 1, 1\], expected ones, then zeros: right-padded",
        ),
        ({"input_ids": ONES, "attention_mask": ONES * 0}, r"attention_mask\[0\]: found \[0, 0, 0\]"),
        ({"input_ids": ONES, "attention_mask": ONES * 2}, r"attention_mask\[0\]: found \[2, 2, 2\]"),
        ({"input_ids": np.ones((6000, 64), np.int64)}, "at most 335544 tokens in a request"),
    ],
)
async def test_wrong_tensors_are_refused_by_name(repository, inputs, message):
    with pytest.raises(InvalidRequest, match=message):
        await repository.get("tiny-bert").raw(inputs, context=CONTEXT)


async def test_too_many_rows_are_refused_before_they_are_converted(repository):
    inputs = {"input_ids": np.full((100_000, 1), 7)}
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="input_ids: found 100000 inputs, expected at most 1024"):
            await repository.get("tiny-embedder").raw(inputs, context=CONTEXT)
        assert tracemalloc.get_traced_memory()[1] < 100_000  # bytes: not one for each row
    finally:
        tracemalloc.stop()


async def test_ids_in_the_padding_do_not_matter(repository):
    ids = np.array([[5, 6, 7], [5, 6, 9999]])
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    found = (await repository.get("tiny-bert").raw({"input_ids": ids, "attention_mask": mask}, context=CONTEXT))[
        "logits"
    ]
    (alone,) = (await repository.get("tiny-bert").raw({"input_ids": ids[1:, :2]}, context=CONTEXT))["logits"]
    assert np.abs(found[1, :2] - alone).max() < 1e-5


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((1, 3, 32, 31), np.float32), np.zeros((1, 3, 32, 32)), np.zeros((0, 3, 32, 32), np.float32)],
)
async def test_wrong_pixels_are_refused(repository, pixels):
    with pytest.raises(InvalidRequest, match=r"pixel_values: .* expected float32 of shape \[n, 3, 32, 32\]"):
        await repository.get("tiny-vit").raw({"pixel_values": pixels}, context=CONTEXT)


# ---- in memory and in time


@pytest.fixture
def logits_in_memory(repository, monkeypatch):
    """The number of batches whose logits were in memory at the start of each run."""
    (worker,) = repository.get("tiny-bert").backend._workers
    run, made, held = worker._session.run, [], []

    def count_and_run(feeds, outputs):
        held.append(sum(logits() is not None for logits in made))
        found = run(feeds, outputs)
        made.append(weakref.ref(found["logits"]))
        return found

    monkeypatch.setattr(worker._session, "run", count_and_run)
    return held


@pytest.mark.parametrize("asked", [{"targets": ["list"]}, {"top_k": 65}])
async def test_the_logits_of_a_batch_are_freed_before_the_request_is_answered(repository, logits_in_memory, asked):
    found = await repository.get("tiny-bert").task(texts(200, mask=True), **asked, context=CONTEXT)
    assert len(found) == 200
    assert len(logits_in_memory) > 5
    assert max(logits_in_memory) <= 1  # that of the run before


async def test_a_request_for_tensors_holds_only_its_own_logits(repository, logits_in_memory):
    await repository.get("tiny-bert").raw({"input_ids": np.full((200, 5), 7)}, context=CONTEXT)
    assert len(logits_in_memory) > 5
    assert max(logits_in_memory) <= 1


@pytest.mark.parametrize(("name", "given"), [("tiny-bert", "[MASK]"), ("tiny-classifier", "a"), ("tiny-embedder", "a")])
async def test_a_deadline_that_passes_before_an_input_is_encoded_ends_the_request_at_once(
    repository, busy, name, given
):
    context = RequestContext(deadline=time.monotonic() + 0.05)
    with pytest.raises(DeadlineExceeded):
        await repository.get(name).task([" " * MAX_INLINE_ITEMS + given], context=context)  # too long to encode at once
    assert not any(work.done() for work in busy)


@pytest.fixture
def busy(repository):
    """All threads that encode inputs are busy until the test ends."""
    over, pools = threading.Event(), (repository._threads, repository._images._threads)
    yield [pool.submit(over.wait, 30) for pool in pools for _ in range(pool._max_workers)]
    over.set()


# ---- many at once


async def test_hundreds_of_concurrent_requests_get_the_same_answers_as_alone(artifacts, repository):
    """Distinct inputs of mixed lengths to all tasks at the same time, compared with one input at a time, unbatched."""
    images = [Image.fromarray(np.asarray(picture(seed=seed))) for seed in range(30)]
    pixels = np.stack([np.asarray(image.resize((32, 32)), np.float32).transpose(2, 0, 1) / 255 for image in images])
    ids = [np.random.default_rng(n).integers(5, 200, (1, 2 + n % 60)) for n in range(60)]
    jobs = [
        *(("tiny-bert", "task", [text]) for text in texts(120, mask=True)),
        *(("tiny-classifier", "task", [text]) for text in texts(80, seed=1)),
        *(("tiny-embedder", "task", [text]) for text in texts(80, seed=2)),
        *(("tiny-bert", "raw", {"input_ids": each}) for each in ids),
        *(("tiny-vit", "raw", {"pixel_values": each[None]}) for each in pixels),
    ]

    async def call(repository, name, attribute, given):
        return await getattr(repository.get(name), attribute)(given, context=CONTEXT)

    together = await asyncio.gather(*(call(repository, *job) for job in jobs))
    async with opened(artifacts, *{job[0] for job in jobs}, overrides={"*": {"max_batch_size": 1}}) as unbatched:
        alone = [await call(unbatched, *job) for job in jobs]
    for found, expected in zip(together, alone, strict=True):
        assert_same(found, expected)


def assert_same(found, expected):
    if isinstance(found, dict):
        assert all(np.abs(found[name] - expected[name]).max() < 1e-4 for name in expected)
    elif isinstance(found, Embeddings):
        assert np.abs(found.vectors - expected.vectors).max() < 1e-5
    elif isinstance(found[0], FilledText):
        for mask, alone in zip(found[0].masks, expected[0].masks, strict=True):
            assert mask.candidates[0].token_id == alone.candidates[0].token_id
            scores = [each.score for each in alone.candidates]
            assert [each.score for each in mask.candidates] == pytest.approx(scores, abs=1e-5)
    else:
        (found,), (expected,) = found, expected
        assert [each.class_id for each in found.classes] == [each.class_id for each in expected.classes]
        scores = [each.score for each in expected.classes]
        assert [each.score for each in found.classes] == pytest.approx(scores, abs=1e-5)
