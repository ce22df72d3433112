"""Which models are served, and how they come and go while others are asked."""

import asyncio
import json
import shutil
from importlib.util import find_spec

import pytest

from server.admission import Call
from server.errors import BadArtifact, InvalidRequest, ModelNotFound, NotReady, ProviderUnavailable, WrongTask
from server.repository import Entry
from tests.server.conftest import opened

CALL = Call()
ASK = "a [MASK]"


@pytest.fixture
def root(artifacts, tmp_path):
    """A directory of artifacts of this test's own."""
    for name in ("tiny-bert", "tiny-embedder"):
        shutil.copytree(artifacts / name, tmp_path / name)
    return tmp_path


def next_version(root, name, **fields):
    """Another version of a model, as an export would add it."""
    version = max(int(path.name) for path in (root / name).iterdir()) + 1
    directory = shutil.copytree(root / name / "1", root / name / str(version))
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"version": version} | fields))
    return directory


async def test_every_model_of_the_directory_is_loaded_and_measured(root):
    async with opened(root) as repository:
        assert repository.ready
        assert repository.index() == [Entry("tiny-bert", "1", "READY"), Entry("tiny-embedder", "1", "READY")]
        for model in repository.models():
            assert (model.provider, model.precision) == ("cpu", "fp32")
            assert 0 < model.measured.maximum <= 1e-4
    assert not repository.ready


async def test_a_directory_without_models_ends_the_start(tmp_path):
    with pytest.raises(BadArtifact, match="found no models; `python -m export SOURCE --artifacts .*` makes one"):
        async with opened(tmp_path):
            pass


async def test_a_model_that_is_asked_for_and_not_there_ends_the_start(root):
    with pytest.raises(ModelNotFound, match="model gpt-5: found no such directory in"):
        async with opened(root, "gpt-5"):
            pass


async def test_a_setting_of_a_model_that_is_not_there_ends_the_start(root):
    with pytest.raises(
        ModelNotFound, match="--set tiny-bret: found no such model, expected one of tiny-bert, tiny-emb"
    ):
        async with opened(root, overrides={"tiny-bret": {"slots": 1}}):
            pass


async def test_a_model_that_fails_ends_the_start_with_the_reason(root):
    next_version(root, "tiny-bert", format_version=0)
    with pytest.raises(BadArtifact, match="found format_version 0, expected 1: export again"):
        async with opened(root):
            pass


async def test_a_model_of_a_task_that_the_server_does_not_know_is_refused(root):
    next_version(root, "tiny-bert", task="translate")
    with pytest.raises(BadArtifact, match="found task 'translate', expected one of fill-mask"):
        async with opened(root):
            pass


@pytest.mark.asyncio(loop_scope="module")
async def test_models_are_found_by_name_version_and_task(repository):
    assert repository.get("tiny-bert").name == "tiny-bert"
    assert repository.get("tiny-bert", "1").version == "1"
    assert repository.for_task("tiny-bert", "", "fill-mask").name == "tiny-bert"
    assert repository.for_task("", "", "embed").name == "tiny-embedder"
    with pytest.raises(ModelNotFound, match="model: found 'bert', expected one of those that are served: tiny-bert, "):
        repository.get("bert")
    with pytest.raises(ModelNotFound, match="model tiny-bert: found version 1, not '2'"):
        repository.get("tiny-bert", "2")
    with pytest.raises(WrongTask, match="model tiny-bert: found task fill-mask, expected embed"):
        repository.for_task("tiny-bert", "", "embed")
    with pytest.raises(InvalidRequest, match="model: found nothing, expected one of tiny-mixer, tiny-vit"):
        repository.for_task("", "", "classify-image")
    with pytest.raises(ModelNotFound, match="none of those that are served does generate"):
        repository.for_task("", "", "generate")


async def test_a_new_version_takes_over_and_nobody_notices(root):
    async with opened(root) as repository:
        next_version(root, "tiny-bert")
        old = repository.get("tiny-bert")
        stop, answers = asyncio.Event(), []

        async def keep_asking():
            while not stop.is_set():
                answers.append(await repository.get("tiny-bert").task([ASK], call=CALL))

        asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
        await repository.load("tiny-bert")
        count = len(answers)
        await repository.get("tiny-bert").task([ASK], call=CALL)
        stop.set()
        await asyncio.gather(*asking)
        assert repository.get("tiny-bert").version == "2"
        assert repository.index()[0] == Entry("tiny-bert", "2", "READY")
        assert count > 0
        assert all(answer[0][0].candidates[0].token_id == answers[0][0][0].candidates[0].token_id for answer in answers)
        with pytest.raises(NotReady):
            await old.task([ASK], call=CALL)


async def test_a_bad_new_version_leaves_the_old_one_in_place(root):
    async with opened(root) as repository:
        (next_version(root, "tiny-bert") / "cpu.onnx").write_bytes(b"altered")
        with pytest.raises(BadArtifact, match="the file was altered"):
            await repository.load("tiny-bert")
        assert repository.get("tiny-bert").version == "1"
        assert repository.index()[0] == Entry("tiny-bert", "1", "READY")
        assert await repository.get("tiny-bert").task([ASK], call=CALL)


async def test_an_unloaded_model_is_gone_and_can_come_back(root):
    async with opened(root) as repository:
        await repository.unload("tiny-bert")
        with pytest.raises(ModelNotFound):
            repository.get("tiny-bert")
        assert repository.index()[0] == Entry("tiny-bert", "1", "UNAVAILABLE", "unloaded")
        with pytest.raises(ModelNotFound):
            await repository.unload("tiny-bert")
        await repository.load("tiny-bert")
        assert await repository.get("tiny-bert").task([ASK], call=CALL)


async def test_what_happens_inside_is_told_to_the_observer_of_that_version(root):
    from tests.server.test_batcher import Notes

    notes = {}
    async with opened(root, observe=lambda *key: notes.setdefault(key, Notes())) as repository:
        await repository.get("tiny-embedder").task(["a text", "another one"], call=CALL)
    assert sum(facts["rows"] for facts in notes["tiny-embedder", "1"].batches) == 2
    assert notes["tiny-bert", "1"].batches == []


@pytest.mark.skipif(find_spec("onnxruntime_ep_openvino") is None, reason="needs onnxruntime-ep-openvino")
async def test_generation_is_refused_on_openvino(artifacts):
    with pytest.raises(ProviderUnavailable, match="tiny-gpt: found provider openvino, expected cpu or cuda"):
        async with opened(artifacts, "tiny-gpt", provider="openvino"):
            pass
