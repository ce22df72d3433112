"""Models that are loaded with tuning: what they run with, and what is kept. The measurements are made up."""

import asyncio
import json
import logging
import math
import re
import shutil
import threading
import time
import urllib.request
import weakref
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from tritonclient.grpc import InferenceServerClient

from server.admission.queue import RequestContext
from server.artifact import read_artifact
from server.client import Client
from server.concurrency.stop_signal import StopSignal
from server.config.settings import Settings
from server.errors import BadArtifact, NotReady
from server.repository.scan import Scanner
from server.runtime.providers import ProviderChoice
from server.tasks.registry import TASKS
from server.tuning import comparison, tuner
from server.tuning.tuner import Tuner
from tests.artifacts import change_manifest
from tests.server.conftest import opened
from tests.serving import served

PATIENCE_S = 30


def kept(root, name):
    """The files with choices for a model."""
    return sorted((root / name / ".tuning").glob("*"))


def tuned(root, name, *, tune="auto", **settings):
    """A repository that is tuned, with one model."""
    return opened(root, name, tune=tune, **settings)


@pytest.mark.parametrize("name", ["tiny-embedder", "tiny-gpt"])
async def test_a_faster_graph_is_chosen_and_taken_from_the_cache_at_the_next_start(root, name, stopwatch, caplog):
    caplog.set_level(logging.INFO)
    stopwatch.speedup = 2.0
    async with tuned(root, name) as repository:
        model = repository.get(name)
        assert (model.precision, model.tuning.source) == ("int8-weights", "measured")
        assert model.tuning.choice.speedup >= 2
    assert len(kept(root, name)) == 1
    measured = len(stopwatch.compared)
    async with tuned(root, name) as repository:
        again = repository.get(name)
        assert (again.precision, again.tuning.source) == ("int8-weights", "cache")
        assert again.tuning.choice == model.tuning.choice
    assert len(stopwatch.compared) == measured
    lines = [line for line in caplog.messages if "tuned" in line]
    assert len(lines) == 2
    assert "times as fast as the default" in lines[0]
    assert "from the cache" in lines[1]


@pytest.mark.parametrize("speedup", [1.0, 1.04, 0.5])
async def test_without_a_faster_choice_the_default_stays_and_is_kept(root, stopwatch, speedup):
    stopwatch.speedup = speedup
    async with tuned(root, "tiny-embedder") as repository:
        model = repository.get("tiny-embedder")
        assert (model.precision, model.tuning.choice.speedup) == ("fp32", 1.0)
    assert len(kept(root, "tiny-embedder")) == 1


@pytest.mark.parametrize("overloaded", [False, True])
async def test_fewer_threads_are_not_tried_while_others_use_the_cpus(root, stopwatch, monkeypatch, overloaded):
    """With fewer threads a model would seem faster then, and be slower later."""
    monkeypatch.setattr(tuner, "usable_cpus", lambda: 4)
    monkeypatch.setattr(tuner, "is_overloaded", lambda: overloaded)
    stopwatch.speedup = 2.0
    async with tuned(root, "tiny-embedder", threads=0) as repository:
        candidate = repository.get("tiny-embedder").tuning.choice.candidate
    assert candidate.graph == "int8-weights"
    assert (candidate.threads == 4) == overloaded


async def test_what_was_measured_while_others_used_the_cpus_is_measured_again_when_they_do_not(
    root, stopwatch, monkeypatch
):
    monkeypatch.setattr(tuner, "usable_cpus", lambda: 4)
    stopwatch.speedup = 2.0
    for overloaded, source in ((True, "measured"), (True, "cache"), (False, "measured"), (False, "cache")):
        monkeypatch.setattr(tuner, "is_overloaded", lambda overloaded=overloaded: overloaded)
        async with tuned(root, "tiny-embedder", threads=0) as repository:
            tuning = repository.get("tiny-embedder").tuning
        assert (tuning.source, tuning.choice.complete) == (source, not overloaded)
    assert len(kept(root, "tiny-embedder")) == 1


async def test_the_sizes_of_batches_that_were_chosen_apply(root, stopwatch):
    stopwatch.speedup = 1.1
    async with tuned(root, "tiny-embedder", overrides={"*": {"precision": "fp32"}}) as repository:
        model = repository.get("tiny-embedder")
        tokens = model.tuning.choice.sizes.max_batch_tokens
        assert 0 < tokens < 1024
        text = "a text " * 5
        [vector] = (await model.task([text], context=RequestContext())).vectors[:1]
        assert len(vector)


async def test_a_graph_out_of_tolerance_is_left_out_with_a_line_in_the_log(root, stopwatch, caplog):
    caplog.set_level(logging.INFO)
    stopwatch.speedup = 9.0

    def demand(fields):
        fields["graphs"][-1]["parity"]["tolerance"] = 1e-9

    change_manifest(root / "tiny-embedder" / "1", demand)
    async with tuned(root, "tiny-embedder") as repository:
        assert repository.get("tiny-embedder").precision == "fp32"
    [line] = [line for line in caplog.messages if "not considered" in line]
    assert "int8-weights" in line
    assert "golden outputs are off" in line


@pytest.mark.usefixtures("openvino_or_stand_in")
@pytest.mark.parametrize(("speedup", "provider"), [(2.0, "cpu"), (1.0, "openvino")])
async def test_another_provider_is_chosen_where_it_is_faster(root, stopwatch, speedup, provider):
    stopwatch.speedup = speedup
    settings = {"provider": "auto", "overrides": {"*": {"precision": "fp32", "max_batch_tokens": 512}}}
    for source in ("measured", "cache"):
        async with tuned(root, "tiny-embedder", **settings) as repository:
            model = repository.get("tiny-embedder")
            assert (model.provider, model.tuning.source) == (provider, source)


@pytest.mark.usefixtures("openvino_or_stand_in")
async def test_a_provider_that_is_named_is_kept(root, stopwatch):
    stopwatch.speedup = 2.0
    async with tuned(root, "tiny-embedder", provider="openvino") as repository:
        assert repository.get("tiny-embedder").provider == "openvino"


async def test_without_memory_for_a_second_session_the_default_stays(root, stopwatch, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    stopwatch.speedup = 2.0
    with monkeypatch.context() as full:
        full.setattr(comparison, "available_bytes", lambda: 0)
        async with tuned(root, "tiny-embedder") as repository:
            assert repository.get("tiny-embedder").precision == "fp32"
    assert any("memory" in line for line in caplog.messages)
    async with tuned(root, "tiny-embedder") as repository:  # with memory it is measured again
        assert repository.get("tiny-embedder").precision == "int8-weights"


async def test_a_choice_that_cannot_serve_gives_way_to_the_default(root, stopwatch, monkeypatch, caplog):
    """The sessions of that choice are closed before: there may be no memory for both."""
    stopwatch.speedup = 2.0
    real, refused = TASKS["embed"], []

    def build(context):
        if context.sessions[0].precision != "fp32":
            refused.append(weakref.ref(context.sessions[0]))
            raise BadArtifact("cannot serve")
        return real.build(context)

    def open_default(*arguments, real=Tuner.open_default, **options):
        assert all(session() is None for session in refused)
        return real(*arguments, **options)

    monkeypatch.setitem(TASKS, "embed", replace(real, build=build))
    monkeypatch.setattr(Tuner, "open_default", open_default)
    async with tuned(root, "tiny-embedder") as repository:
        model = repository.get("tiny-embedder")
        assert (model.precision, model.tuning) == ("fp32", None)
    assert len(refused) == 1
    assert any("instead of the measured choice: cannot serve" in line for line in caplog.messages)


async def test_a_version_that_is_removed_while_it_is_loaded_is_refused(root, stopwatch):
    artifact = read_artifact(root / "tiny-embedder" / "1")
    shutil.rmtree(artifact.directory)
    with pytest.raises(BadArtifact, match=r"cpu\.onnx"):
        Tuner(Settings(threads=1)).open(artifact, ProviderChoice("cpu"), [], stop=StopSignal())


async def test_a_kept_choice_that_is_not_possible_is_measured_again(root, stopwatch, caplog):
    stopwatch.speedup = 2.0
    async with tuned(root, "tiny-embedder"):
        pass
    [file] = kept(root, "tiny-embedder")
    found = json.loads(file.read_text())
    found["choice"]["candidate"]["graph"] = "int4-weights"
    file.write_text(json.dumps(found))
    async with tuned(root, "tiny-embedder") as repository:
        assert repository.get("tiny-embedder").tuning.source == "measured"
    assert any("measured again" in line and "int4-weights" in line for line in caplog.messages)
    assert json.loads(file.read_text())["choice"]["candidate"]["graph"] == "int8-weights"


async def test_a_damaged_file_is_measured_again_and_replaced(root, stopwatch, caplog):
    async with tuned(root, "tiny-embedder"):
        pass
    [file] = kept(root, "tiny-embedder")
    whole = file.read_text()
    file.write_text(whole[:-9])
    async with tuned(root, "tiny-embedder") as repository:
        assert repository.get("tiny-embedder").tuning.source == "measured"
    assert any(str(file) in line for line in caplog.messages)
    assert file.read_text() == whole


async def test_forced_means_measured_again_and_replaced(root, stopwatch):
    async with tuned(root, "tiny-embedder"):
        pass
    stopwatch.speedup = 2.0
    async with tuned(root, "tiny-embedder", tune="force") as repository:
        assert repository.get("tiny-embedder").precision == "int8-weights"
    async with tuned(root, "tiny-embedder") as repository:
        assert repository.get("tiny-embedder").precision == "int8-weights"
    assert len(kept(root, "tiny-embedder")) == 1


async def test_off_means_the_defaults_and_no_file(root, stopwatch):
    stopwatch.speedup = 2.0
    async with tuned(root, "tiny-embedder", tune="off") as repository:
        model = repository.get("tiny-embedder")
        assert (model.precision, model.tuning) == ("fp32", None)
    assert not stopwatch.compared
    assert not kept(root, "tiny-embedder")


@pytest.mark.parametrize("tune", ["off", "auto"])
@pytest.mark.parametrize("precision", ["fp32", "int8-weights"])
async def test_a_precision_in_the_settings_is_the_only_one_considered(root, stopwatch, tune, precision):
    stopwatch.speedup = 2.0
    settings = {"overrides": {"tiny-embedder": {"precision": precision, "max_batch_tokens": 512}}}
    async with tuned(root, "tiny-embedder", tune=tune, **settings) as repository:
        assert repository.get("tiny-embedder").precision == precision
    assert not stopwatch.compared  # nothing is left open


async def test_a_precision_that_the_artifact_lacks_is_refused_with_those_that_it_has(root):
    settings = {"overrides": {"tiny-embedder": {"precision": "int4-weights"}}}
    expected = (
        r"tiny-embedder\.precision: found 'int4-weights', expected one of fp32, int8-weights \(the graphs for cpu"
    )
    with pytest.raises(BadArtifact, match=expected):
        async with tuned(root, "tiny-embedder", **settings):
            pass


async def test_other_settings_have_a_choice_of_their_own(root, stopwatch):
    for settings in ({}, {"threads": 2}, {"overrides": {"*": {"max_batch_size": 4}}}):
        async with tuned(root, "tiny-embedder", **settings):
            pass
    assert len(kept(root, "tiny-embedder")) == 3


async def test_a_model_with_one_graph_and_all_sizes_set_is_not_measured(root, stopwatch):
    change_manifest(root / "tiny-embedder" / "1", lambda fields: fields["graphs"].pop())
    settings = {"overrides": {"*": {"max_batch_tokens": 256}}}
    async with tuned(root, "tiny-embedder", **settings) as repository:
        assert repository.get("tiny-embedder").tuning.choice.speedup == 1
    assert not stopwatch.compared


async def test_the_files_change_neither_the_versions_nor_their_fingerprints(root, stopwatch):
    from export.artifact.store import versions

    before = Scanner(root).scan()
    async with tuned(root, "tiny-embedder") as repository:
        assert [entry.version for entry in repository.index() if entry.name == "tiny-embedder"] == ["1"]
    assert kept(root, "tiny-embedder")
    assert Scanner(root).scan() == before
    assert list(versions(root / "tiny-embedder")) == [1]


async def test_two_servers_that_start_together_both_serve(root, stopwatch):
    stopwatch.speedup = 2.0

    async def serve():
        async with tuned(root, "tiny-embedder") as repository:
            return repository.get("tiny-embedder").precision

    assert await asyncio.gather(serve(), serve()) == ["int8-weights"] * 2
    assert len(kept(root, "tiny-embedder")) == 1
    assert await serve() == "int8-weights"


class Pause:
    """Holds a measurement until it is to end."""

    def __init__(self):
        self.begun = threading.Event()

    def __call__(self, *, limit, stop):
        self.begun.set()
        while limit.left > 0:
            stop.check()
            time.sleep(0.01)


@asynccontextmanager
async def measuring(root, stopwatch, monkeypatch):
    """A repository that is measuring a model, and the task that loads it. The measurement would never end."""
    monkeypatch.setattr(tuner, "MAX_SECONDS", math.inf)
    async with tuned(root, "tiny-gpt", model_control="explicit") as repository:
        stopwatch.before = pause = Pause()
        task = asyncio.create_task(repository.load("tiny-embedder"))
        assert await asyncio.to_thread(pause.begun.wait, PATIENCE_S)
        yield repository, task


async def test_a_stop_ends_the_measurement(root, stopwatch, monkeypatch):
    async with measuring(root, stopwatch, monkeypatch) as (repository, task):
        await repository.drain()
        with pytest.raises(NotReady):
            await asyncio.wait_for(task, PATIENCE_S)
    assert not kept(root, "tiny-embedder")


async def test_a_model_is_not_ready_while_it_is_measured_and_an_unload_ends_that(root, stopwatch, monkeypatch):
    async with measuring(root, stopwatch, monkeypatch) as (repository, task):
        with pytest.raises(NotReady, match="is being loaded"):
            repository.get("tiny-embedder")
        await asyncio.wait_for(repository.unload("tiny-embedder"), PATIENCE_S)
        await task
        assert [model.name for model in repository.models()] == ["tiny-gpt"]
    assert not kept(root, "tiny-embedder")  # the measurement is not complete


async def test_a_load_that_is_cancelled_measures_no_longer(root, stopwatch, monkeypatch):
    async with measuring(root, stopwatch, monkeypatch) as (repository, task):
        task.cancel()
        await asyncio.wait([task], timeout=PATIENCE_S)
        stopwatch.before = lambda **_: None
        await asyncio.wait_for(repository.load("tiny-embedder"), PATIENCE_S)  # in the same thread
        assert repository.get("tiny-embedder").tuning.source == "measured"


def test_a_server_measures_and_says_what_it_chose(root, tmp_path):
    """The real thing: whatever is faster here, the answers, the metrics and the log agree."""
    cache = tmp_path / "kept"
    for source in ("measured", "cache"):
        flags = ("--models", "tiny-embedder", "--tune", "auto", "--cache", str(cache), "--log-level", "debug")
        with served(root, *flags) as running, Client(running.target) as client:
            tuning = client.info("tiny-embedder").tuning
            assert (tuning.source, tuning.threads) == (source, 1)
            assert tuning.speedup == 1 or tuning.speedup >= 1.05
            triton = InferenceServerClient(running.target)
            parameters = triton.get_model_config("tiny-embedder").config.parameters
            assert json.loads(parameters["tuning"].string_value)["source"] == source
            with urllib.request.urlopen(running.url("/metrics"), timeout=PATIENCE_S) as response:
                metrics = response.read().decode()
            [line] = re.findall(r"^affinity_tuning_info\{.*", metrics, re.MULTILINE)
            assert f'source="{source}"' in line
            assert 'affinity_tuning_speedup_ratio{model="tiny-embedder",version="1"}' in metrics
            assert [line for line in running.banner.splitlines() if "tiny-embedder version 1: tuned" in line]
    assert len(list((cache / "tiny-embedder").iterdir())) == 1
    assert not kept(root, "tiny-embedder")
