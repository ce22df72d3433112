"""Representative work of a model, for measuring: batches of texts or images, or steps of generation.

All inputs are random and the same for all candidates.
"""

import time
from functools import partial

import numpy as np

from server.artifact import Artifact
from server.batching.collate import ImageItem, Item, TextItem, collate
from server.generation.open import make_decoder, make_layout, make_memory
from server.runtime.session import Session
from server.tuning.measure import Workload

TEXTS, TEXT_TOKENS = 8, 128
SHORT_TEXT_TOKENS = 32
IMAGES = 4
MAX_BATCH_S = 0.25  # a batch that would take longer is measured with fewer inputs
DECODE_ROWS = 8
PAST_TOKENS = 64  # in the cache, before a step
CHUNK_TOKENS = 64  # of a prompt


def workloads(session: Session, artifact: Artifact, *, rows: int) -> list[Workload]:
    """The work that decides between candidates: a single short input, and a batch of `rows` inputs (see `batch_rows`).

    For generation: decode steps of one row and of several, and a chunk of a prompt.
    """
    if artifact.manifest.HasField("cache"):
        return steps(session, artifact)
    if artifact.manifest.HasField("image"):
        return [batch(session, artifact, count, 1) for count in sorted({1, rows})]
    longest = artifact.manifest.text.max_length
    return [
        batch(session, artifact, 1, min(SHORT_TEXT_TOKENS, longest)),
        batch(session, artifact, rows, min(TEXT_TOKENS, longest)),
    ]


def batch_rows(session: Session, artifact: Artifact) -> int:
    """The number of inputs in the batch that is measured: fewer for slow models. Runs the model.

    Generation has no such batch.
    """
    if artifact.manifest.HasField("cache"):
        return 1
    most = IMAGES if artifact.manifest.HasField("image") else TEXTS
    return max(1, min(most, int(MAX_BATCH_S / row_seconds(session, artifact))))


def row_seconds(session: Session, artifact: Artifact) -> float:
    """The seconds that one input takes by itself. Runs the model."""
    length = 1 if artifact.manifest.HasField("image") else min(TEXT_TOKENS, artifact.manifest.text.max_length)
    return warm_seconds(batch(session, artifact, 1, length))


def warm_seconds(work: Workload) -> float:
    """The seconds of a run, after a run to warm up."""
    work.run()
    begun = time.perf_counter()
    work.run()
    return max(time.perf_counter() - begun, 1e-6)


def batch(session: Session, artifact: Artifact, rows: int, tokens: int) -> Workload:
    """A batch of `rows` texts of `tokens` tokens, or of `rows` images."""
    random = np.random.default_rng(0)
    items = [_item(session, artifact, tokens, random) for _ in range(rows)]
    feeds, outputs = collate(items, session.input_names), items[0].outputs
    name = f"{rows} images" if isinstance(items[0], ImageItem) else f"{rows} x {tokens} tokens"
    return Workload(name, partial(session.run, feeds, outputs), work=rows)


def _item(session: Session, artifact: Artifact, tokens: int, random: np.random.Generator) -> Item:
    """An input with one logit position. Fetches only the last output, which is the smallest."""
    outputs = session.output_names[-1:]
    if artifact.manifest.HasField("image"):
        image = artifact.manifest.image
        pixels = random.standard_normal((3, image.height, image.width), np.float32)
        return ImageItem(pixel_values=pixels, outputs=outputs)
    selected = np.zeros(1 if "selected" in session.input_names else 0, np.int64)
    ids = random.integers(0, artifact.manifest.text.vocabulary, tokens)
    return TextItem(input_ids=ids, selected=selected, outputs=outputs)


def steps(session: Session, artifact: Artifact) -> list[Workload]:
    """Decode steps of one row and of several, and a chunk of a prompt, after some tokens in the cache."""
    context = artifact.manifest.text.max_length
    past = min(PAST_TOKENS, context // 2)
    return [
        decode(session, artifact, 1, past),
        decode(session, artifact, DECODE_ROWS, past),
        prefill(session, artifact, min(CHUNK_TOKENS, context - past), past),
    ]


def decode(session: Session, artifact: Artifact, rows: int, past: int) -> Workload:
    """A decode step of `rows` sequences that have `past` tokens."""
    layout = make_layout(session, slots=rows, max_slots=rows, capacity=past + 1)
    decoder = make_decoder(session, layout, make_memory(session))
    ids = np.random.default_rng(0).integers(0, artifact.manifest.text.vocabulary, rows)
    return Workload(f"decode {rows} rows", partial(decoder.decode, ids, np.full(rows, past + 1, np.int32)), work=rows)


def prefill(session: Session, artifact: Artifact, tokens: int, past: int) -> Workload:
    """A chunk of `tokens` tokens of a prompt, after `past` tokens."""
    layout = make_layout(session, slots=1, max_slots=1, capacity=past + tokens)
    decoder = make_decoder(session, layout, make_memory(session))
    ids = np.random.default_rng(0).integers(0, artifact.manifest.text.vocabulary, tokens)
    return Workload(f"prefill {tokens} tokens", partial(decoder.prefill, 0, ids, past), work=tokens)
