"""On machines with two CPUs, small batches of small models run in a session with one thread."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from server.artifact import Artifact, read_artifact
from server.batching.collate import ImageItem, TextItem, collate
from server.config.settings import Settings
from server.errors import BadArtifact
from server.runtime import small_batches
from server.runtime.providers import ProviderChoice
from server.runtime.session import Session
from server.runtime.sessions import check_session, open_unchecked
from server.runtime.small_batches import LEAST_TOKENS, SmallBatches

CPU = ProviderChoice("cpu")
TOKENS = 20  # the largest batch that the tests run in one thread


@dataclass
class Counting:
    """Counts the runs of each session of a pair by its number of threads."""

    runs: list[int] = field(default_factory=list)

    def watch(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        for part in session.parts:
            monkeypatch.setattr(part, "run", self._counted(part))

    def _counted(self, part: Session):
        run, threads = part.run, part.ort.get_session_options().intra_op_num_threads

        def counted(feeds, outputs):
            self.runs.append(threads)
            return run(feeds, outputs)

        return counted


@pytest.fixture
def two_cpus(monkeypatch) -> None:
    monkeypatch.setattr(small_batches, "usable_cpus", lambda: 2)


@pytest.fixture
def artifact(artifacts: Path, two_cpus: None, monkeypatch: pytest.MonkeyPatch):
    """Name → an artifact for which batches of up to `TOKENS` tokens are small."""

    def read(name: str) -> Artifact:
        found = read_artifact(artifacts / name / "1")
        monkeypatch.setattr(small_batches, "MOST_BYTES", TOKENS * found.graph_bytes("cpu"))
        return found

    return read


def texts(session: Session, *, rows: int, tokens: int):
    outputs = session.output_names[-1:]
    selected = np.zeros(1 if "selected" in session.input_names else 0, np.int64)
    ids = np.arange(5, 5 + tokens, dtype=np.int64)
    items = [TextItem(input_ids=ids, selected=selected, outputs=outputs) for _ in range(rows)]
    return collate(items, session.input_names), outputs


@pytest.mark.parametrize(("rows", "tokens", "threads"), [(1, 4, 1), (2, 10, 1), (1, 21, 2), (3, 7, 2)])
def test_small_batches_have_one_thread_and_large_ones_two(artifact, monkeypatch, rows, tokens, threads):
    session = open_unchecked(artifact("tiny-bert"), CPU, Settings(threads=2))
    found, counting = texts(session, rows=rows, tokens=tokens), Counting()
    alike = [part.run(*found) for part in session.parts]
    counting.watch(session, monkeypatch)
    (name,) = found[1]
    answer = session.run(*found)[name]
    assert counting.runs == [threads]
    for each in alike:
        np.testing.assert_allclose(answer, each[name], rtol=0, atol=1e-5)


def test_the_size_of_a_batch_of_images_is_in_patches(artifact, monkeypatch):
    found, most = artifact("tiny-vit"), 3
    channels, height, width = small_batches.CHANNELS, found.manifest.image.height, found.manifest.image.width
    monkeypatch.setattr(small_batches, "MOST_BYTES", LEAST_TOKENS * found.graph_bytes("cpu"))
    monkeypatch.setattr(small_batches, "PIXELS_PER_TOKEN", most * height * width / LEAST_TOKENS)
    session = open_unchecked(found, CPU, Settings(threads=2))
    item = ImageItem(pixel_values=np.zeros((channels, height, width), np.float32), outputs=("logits",))
    counting = Counting()
    counting.watch(session, monkeypatch)
    for rows in (most, most + 1):
        session.run(collate([item] * rows, session.input_names), ("logits",))
    assert counting.runs == [1, 2]


@pytest.mark.parametrize(("name", "threads"), [("tiny-bert", 1), ("tiny-gpt", 2)])
def test_one_session_is_enough_for_one_thread_and_for_generation(artifact, name, threads):
    session = open_unchecked(artifact(name), CPU, Settings(threads=threads))
    assert session.parts == (session,)


def test_one_session_is_enough_where_the_event_loop_has_a_cpu_of_its_own(artifact, monkeypatch):
    found = artifact("tiny-bert")
    monkeypatch.setattr(small_batches, "usable_cpus", lambda: 4)
    for threads in (0, 2, 4):
        assert not isinstance(open_unchecked(found, CPU, Settings(threads=threads)), SmallBatches)


def test_a_large_model_has_one_session(artifact, monkeypatch):
    found = artifact("tiny-bert")
    monkeypatch.setattr(small_batches, "MOST_BYTES", (LEAST_TOKENS - 1) * found.graph_bytes("cpu"))
    assert not isinstance(open_unchecked(found, CPU, Settings(threads=2)), SmallBatches)


@pytest.mark.parametrize("number", [0, 1])
def test_both_sessions_are_checked(artifact, monkeypatch, number):
    found = artifact("tiny-bert")
    session = open_unchecked(found, CPU, Settings(threads=2))
    assert check_session(session, found).parity.error <= 1e-4
    run = session.parts[number].run
    wrong = lambda feeds, outputs: {name: value + 1 for name, value in run(feeds, outputs).items()}  # noqa: E731
    monkeypatch.setattr(session.parts[number], "run", wrong)
    with pytest.raises(BadArtifact, match="golden outputs are off"):
        check_session(session, found)
