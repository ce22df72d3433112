"""The repository: which models are served, and how they are loaded and unloaded while others answer requests."""

import asyncio
import shutil

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from server.admission.queue import RequestContext
from server.config.version_policy import Versions
from server.errors import BadArtifact, InvalidRequest, ModelNotFound, NotReady, ProviderUnavailable, WrongTask
from server.repository.listener import RepositoryListener
from server.repository.states import Entry
from server.rpc.health import Health
from server.tasks.classify_image import ClassifyImage
from server.tasks.embed import Embed
from server.tasks.fill_mask import FillMask
from server.tasks.generate import Generate
from tests.artifacts import change_manifest, next_version
from tests.server.batching.fakes import BatcherEvents
from tests.server.conftest import opened

CONTEXT = RequestContext()
ASK = "a [MASK]"


@pytest.fixture
def root(artifacts, tmp_path):
    """A directory of artifacts that the test may change."""
    for name in ("tiny-bert", "tiny-embedder"):
        shutil.copytree(artifacts / name, tmp_path / name)
    return tmp_path


class VersionRecorder(RepositoryListener):
    """Records which versions are observed."""

    def __init__(self):
        self.observed = set()

    def observer(self, name, version):
        self.observed.add((name, version))
        return super().observer(name, version)

    def unloaded(self, name, version):
        self.observed.discard((name, version))


class HealthListener(RepositoryListener):
    """Refreshes the health service."""

    def __init__(self, health):
        self.health = health

    async def changed(self, repository):
        await self.health.refresh(repository)


class EventsListener(RepositoryListener):
    """Records the events of each version."""

    def __init__(self):
        self.events = {}

    def observer(self, name, version):
        return self.events.setdefault((name, version), BatcherEvents())


async def test_every_model_of_the_directory_is_loaded_and_measured(root):
    async with opened(root) as repository:
        assert repository.ready
        assert repository.index() == [Entry("tiny-bert", "1", "READY"), Entry("tiny-embedder", "1", "READY")]
        for model in repository.models():
            assert (model.provider, model.precision) == ("cpu", "fp32")
            assert 0 < model.parity.maximum <= 1e-4
    assert not repository.ready


async def test_a_model_that_is_not_named_is_not_ready_while_models_are_loaded(root):
    errors = []

    class Listener(RepositoryListener):
        async def changed(self, served):
            if not served.models():
                with pytest.raises(NotReady, match="model: the models are being loaded") as error:
                    served.for_task("", "", FillMask)
                errors.append(error.value)

    async with opened(root, listener=Listener()) as repository:
        assert repository.for_task("", "", FillMask).name == "tiny-bert"
    assert errors


async def test_a_directory_without_models_ends_the_start(tmp_path):
    with pytest.raises(BadArtifact, match="found no models; `python -m export SOURCE --artifacts .*` makes one"):
        async with opened(tmp_path):
            pass


async def test_a_missing_model_in_the_settings_ends_the_start(root):
    with pytest.raises(ModelNotFound, match="model gpt-5: found no such directory in"):
        async with opened(root, "gpt-5"):
            pass


async def test_a_setting_for_a_missing_model_ends_the_start(root):
    with pytest.raises(
        ModelNotFound, match="--set tiny-bret: found no such model, expected one of tiny-bert, tiny-emb"
    ):
        async with opened(root, overrides={"tiny-bret": {"slots": 1}}):
            pass


async def test_a_model_that_fails_ends_the_start_with_the_reason(root):
    next_version(root, "tiny-bert", format_version=0)
    with pytest.raises(BadArtifact, match="found format_version 0, expected 3: export again"):
        async with opened(root):
            pass


async def test_a_model_of_a_task_that_the_server_does_not_know_is_refused(root):
    next_version(root, "tiny-bert", task="translate")
    with pytest.raises(BadArtifact, match="task: found 'translate', expected one of fill-mask"):
        async with opened(root):
            pass


@pytest.mark.asyncio(loop_scope="module")
async def test_models_are_found_by_name_version_and_task(repository):
    assert repository.get("tiny-bert").name == "tiny-bert"
    assert repository.get("tiny-bert", "1").version == "1"
    assert repository.for_task("tiny-bert", "", FillMask).name == "tiny-bert"
    assert repository.for_task("", "", Embed).name == "tiny-embedder"
    with pytest.raises(ModelNotFound, match="model: found 'bert', expected one of those that are served: tiny-bert, "):
        repository.get("bert")
    with pytest.raises(ModelNotFound, match="model tiny-bert: found version 1, not '2'"):
        repository.get("tiny-bert", "2")
    with pytest.raises(WrongTask, match="model tiny-bert: found task fill-mask, expected embed"):
        repository.for_task("tiny-bert", "", Embed)
    with pytest.raises(InvalidRequest, match="model: found nothing, expected one of tiny-mixer, tiny-vit"):
        repository.for_task("", "", ClassifyImage)
    with pytest.raises(ModelNotFound, match="no served model has the task generate"):
        repository.for_task("", "", Generate)


async def test_a_new_version_replaces_the_old_one_without_a_failed_request(root):
    async with opened(root) as repository:
        next_version(root, "tiny-bert")
        old = repository.get("tiny-bert")
        stop, answers = asyncio.Event(), []

        async def keep_asking():
            while not stop.is_set():
                answers.append(await repository.get("tiny-bert").task([ASK], context=CONTEXT))

        asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
        while not answers:
            await asyncio.sleep(0)
        await repository.load("tiny-bert")
        await repository.get("tiny-bert").task([ASK], context=CONTEXT)
        stop.set()
        await asyncio.gather(*asking)
        assert repository.get("tiny-bert").version == "2"
        assert all(
            answer[0].masks[0].candidates[0].token_id == answers[0][0].masks[0].candidates[0].token_id
            for answer in answers
        )
        while repository.index()[0].state == "UNLOADING":
            await asyncio.sleep(0)
        assert repository.index()[:2] == [
            Entry("tiny-bert", "1", "UNAVAILABLE", "unloaded"),
            Entry("tiny-bert", "2", "READY"),
        ]
        with pytest.raises(NotReady):
            await old.task([ASK], context=CONTEXT)


async def test_a_bad_new_version_leaves_the_old_one_in_place(root):
    async with opened(root) as repository:
        (next_version(root, "tiny-bert") / "cpu.onnx").write_bytes(b"altered")
        with pytest.raises(BadArtifact, match="the file was altered"):
            await repository.load("tiny-bert")
        old, new = repository.index()[:2]
        assert old == Entry("tiny-bert", "1", "READY")
        assert (new.version, new.state) == ("2", "UNAVAILABLE")
        assert "the file was altered" in new.reason
        with pytest.raises(ModelNotFound, match="found version 1, not '2': .*the file was altered"):
            repository.get("tiny-bert", "2")
        assert repository.get("tiny-bert").version == "1"
        assert await repository.get("tiny-bert").task([ASK], context=CONTEXT)


async def test_a_version_that_fails_to_load_leaves_no_observer(root):
    listener = VersionRecorder()
    async with opened(root, listener=listener) as repository:
        next_version(root, "tiny-bert", task="translate")
        with pytest.raises(BadArtifact):
            await repository.load("tiny-bert")
        assert listener.observed == {("tiny-bert", "1"), ("tiny-embedder", "1")}


async def test_the_health_service_knows_a_model_from_the_start_of_its_first_load(root):
    shutil.move(root / "tiny-bert", root.parent / "elsewhere")
    health = Health()
    async with opened(root, listener=HealthListener(health)) as repository:

        async def state():
            return (await health.Check(HealthCheckRequest(service="model/tiny-bert"), None)).status

        shutil.move(root.parent / "elsewhere", root / "tiny-bert")
        with pytest.raises(ModelNotFound):
            await state()
        loading = asyncio.create_task(repository.load("tiny-bert"))
        while not repository.names().count("tiny-bert"):
            await asyncio.sleep(0)
        assert await state() == HealthCheckResponse.NOT_SERVING
        await loading
        assert await state() == HealthCheckResponse.SERVING


async def test_the_health_of_a_model_whose_first_load_failed_is_not_serving(root):
    health = Health()
    async with opened(root, "tiny-embedder", listener=HealthListener(health)) as repository:
        (root / "tiny-bert" / "1" / "cpu.onnx").write_bytes(b"altered")
        with pytest.raises(BadArtifact):
            await repository.load("tiny-bert")
        found = await health.Check(HealthCheckRequest(service="model/tiny-bert"), None)
        assert found.status == HealthCheckResponse.NOT_SERVING


async def test_unknown_names_leave_nothing_behind(root):
    async with opened(root) as repository:
        known = repository.index(), repository.names(), set(repository._locks)
        for attempt in (repository.load, repository.unload):
            with pytest.raises(ModelNotFound):
                await attempt("made-up")
        assert (repository.index(), repository.names(), set(repository._locks)) == known


async def test_an_unloaded_model_is_not_found_and_can_be_loaded_again(root):
    async with opened(root) as repository:
        await repository.unload("tiny-bert")
        with pytest.raises(ModelNotFound):
            repository.get("tiny-bert")
        assert repository.index()[0] == Entry("tiny-bert", "1", "UNAVAILABLE", "unloaded")
        with pytest.raises(ModelNotFound):
            await repository.unload("tiny-bert")
        await repository.load("tiny-bert")
        assert await repository.get("tiny-bert").task([ASK], context=CONTEXT)


# ---- which versions


async def test_a_model_is_unloaded_when_the_requests_that_use_it_have_ended(root):
    """A request that found the model may not have reached the batcher yet: large tensors are read in a thread."""
    async with opened(root) as repository:
        with repository.use("tiny-bert", "", FillMask) as (model, fill_mask):
            unloading = asyncio.create_task(repository.unload("tiny-bert"))
            for _ in range(20):
                await asyncio.sleep(0)
            with pytest.raises(ModelNotFound):
                repository.get("tiny-bert")
            assert await fill_mask([ASK], context=CONTEXT)
            assert not unloading.done()
        await unloading
        assert model.in_flight.count == 0
        with pytest.raises(NotReady):
            await fill_mask([ASK], context=CONTEXT)


async def test_all_versions_can_be_served_and_the_newest_is_the_default(root):
    next_version(root, "tiny-bert")
    async with opened(root, "tiny-bert", overrides=versions("tiny-bert", "all")) as repository:
        assert repository.get("tiny-bert").version == "2"
        assert [model.version for model in repository.served("tiny-bert")] == ["1", "2"]
        assert repository.for_task("", "1", FillMask).version == "1"
        with pytest.raises(ModelNotFound, match="model tiny-bert: found versions 1, 2, not '3'"):
            repository.get("tiny-bert", "3")


async def test_versions_that_are_not_chosen_are_listed_and_not_loaded(root):
    for _ in range(2):
        next_version(root, "tiny-bert")
    async with opened(root, "tiny-bert", overrides=versions("*", "1+3")) as repository:
        states = {(entry.name, entry.version): (entry.state, entry.reason) for entry in repository.index()}
        assert states == {
            ("tiny-bert", "1"): ("READY", ""),
            ("tiny-bert", "2"): ("UNAVAILABLE", "not loaded; --set tiny-bert.versions=1+3 says which ones are"),
            ("tiny-bert", "3"): ("READY", ""),
            ("tiny-embedder", "1"): ("UNAVAILABLE", "not loaded"),
        }


async def test_a_missing_version_in_the_settings_ends_the_start(root):
    with pytest.raises(ModelNotFound, match="found versions 1 in .*, expected also 4: --set tiny-bert.versions=1.4"):
        async with opened(root, overrides=versions("tiny-bert", "1+4")):
            pass


async def test_the_oldest_of_two_served_versions_is_unloaded_for_a_new_one(root):
    next_version(root, "tiny-bert")
    async with opened(root, "tiny-bert", overrides=versions("tiny-bert", "latest:2")) as repository:
        second = repository.get("tiny-bert", "2")
        next_version(root, "tiny-bert")
        await repository.load("tiny-bert")
        assert [model.version for model in repository.served("tiny-bert")] == ["2", "3"]
        assert repository.get("tiny-bert", "2") is second  # not opened again: it has not changed


async def test_versions_are_loaded_together_or_not_at_all(root):
    async with opened(root, "tiny-bert", overrides=versions("tiny-bert", "all")) as repository:
        next_version(root, "tiny-bert")
        (next_version(root, "tiny-bert") / "cpu.onnx").unlink()
        with pytest.raises(BadArtifact, match="tiny-bert/3/cpu.onnx: No such file"):
            await repository.load("tiny-bert")
        assert [model.version for model in repository.served("tiny-bert")] == ["1"]
        _, second, third, *_ = repository.index()
        assert (second.state, third.state) == ("UNAVAILABLE", "UNAVAILABLE")
        assert second.reason.startswith("version 3: ")


async def test_a_version_whose_directory_is_gone_serves_until_the_next_load(root):
    next_version(root, "tiny-bert")
    async with opened(root, "tiny-bert") as repository:
        shutil.rmtree(root / "tiny-bert" / "2")
        assert await repository.get("tiny-bert", "2").task([ASK], context=CONTEXT)
        await repository.load("tiny-bert")
        assert repository.get("tiny-bert").version == "1"
        shutil.rmtree(root / "tiny-bert")
        with pytest.raises(ModelNotFound, match="model tiny-bert: found no such directory"):
            await repository.load("tiny-bert")
        assert await repository.get("tiny-bert", "1").task([ASK], context=CONTEXT)


async def test_a_version_that_was_exported_again_is_loaded_again(root):
    async with opened(root, "tiny-bert") as repository:
        old = repository.get("tiny-bert")
        change_manifest(root / "tiny-bert/1", source={"digest": "another"})
        await repository.load("tiny-bert")
        assert repository.get("tiny-bert") is not old
        assert repository.get("tiny-bert").artifact.manifest.source.digest == "another"
        assert repository.index()[0] == Entry("tiny-bert", "1", "READY")


def versions(name, text):
    return {name: {"versions": Versions.parse(text)}}


async def test_events_of_a_version_reach_its_own_observer(root):
    listener = EventsListener()
    async with opened(root, listener=listener) as repository:
        await repository.get("tiny-embedder").task(["a text", "another one"], context=CONTEXT)
    assert sum(facts["items"] for facts in listener.events["tiny-embedder", "1"].batches) == 2
    assert listener.events["tiny-bert", "1"].batches == []


@pytest.mark.usefixtures("openvino_or_stand_in")
async def test_generation_is_refused_on_openvino(artifacts):
    with pytest.raises(ProviderUnavailable, match="tiny-gpt: found provider openvino, expected cpu or cuda"):
        async with opened(artifacts, "tiny-gpt", provider="openvino"):
            pass
