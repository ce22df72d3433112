"""Each model runs on the best provider that can run it, and where that is not the first the log says why."""

import importlib.util
import logging

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from server import model, sessions
from server.admission import Call
from server.batching.warm_up import WarmUp
from server.cuda import cuda_problem
from server.errors import BadArtifact
from tests.server.conftest import opened

CALL = Call()
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("onnxruntime_ep_openvino") is None, reason="OpenVINO not installed"),
    pytest.mark.skipif(cuda_problem(0) is None, reason="CUDA can be used here"),
]


async def test_auto_gives_openvino_what_it_can_run_and_the_cpu_the_rest(artifacts, caplog):
    async with opened(artifacts, "tiny-bert", "tiny-gpt", "tiny-vit", provider="auto") as repository:
        providers = {model.name: model.provider for model in repository.models()}
    assert providers == {"tiny-bert": "openvino", "tiny-gpt": "cpu", "tiny-vit": "openvino"}
    assert "running on openvino or cpu: provider cuda cannot run here: " in caplog.text
    assert "generation over a cache does not run on OpenVINO" in caplog.text
    assert "running on cpu instead" in caplog.text


async def test_a_model_that_is_out_of_tolerance_on_openvino_runs_on_the_cpu(artifacts, caplog, monkeypatch):
    def measure(session, artifact):
        if session.provider == "openvino":
            raise BadArtifact(f"{artifact.name} on openvino is off")
        return real(session, artifact)

    real = sessions.measure
    monkeypatch.setattr(sessions, "measure", measure)
    async with opened(artifacts, "tiny-vit", provider="auto") as repository:
        assert repository.get("tiny-vit").provider == "cpu"
    assert "tiny-vit on openvino is off; running on cpu instead" in caplog.text
    with pytest.raises(BadArtifact, match="tiny-vit on openvino is off"):
        async with opened(artifacts, "tiny-vit", provider="openvino"):
            pass


async def test_a_model_that_cannot_be_warmed_up_runs_on_the_next_provider_unless_one_was_named(
    artifacts, caplog, monkeypatch
):
    def fails(session, *_, **__):
        if session.provider == "openvino":
            raise runtime.Fail("no kernel for that\nand much more")
        return WarmUp(0, 0, 0.0)

    monkeypatch.setattr(model, "warm_up", fails)
    async with opened(artifacts, "tiny-vit", provider="auto") as repository:
        assert repository.get("tiny-vit").provider == "cpu"
    assert "tiny-vit/1: does not run on openvino: no kernel for that; running on cpu instead" in caplog.text
    with pytest.raises(BadArtifact, match="does not run on openvino: no kernel for that$"):
        async with opened(artifacts, "tiny-vit", provider="openvino"):
            pass


async def test_on_openvino_lengths_have_steps_that_are_warmed_up_before_the_model_is_ready(artifacts, caplog):
    caplog.set_level(logging.INFO, "server")
    async with opened(artifacts, "tiny-embedder", provider="openvino") as repository:
        task = repository.get("tiny-embedder").task
        texts = ["a list " * count for count in range(1, 12)]
        vectors = (await task(texts, call=CALL)).vectors
    assert "tiny-embedder: 4 of 4 shapes warmed up in " in caplog.text  # 8, 16, 24 and 32 tokens
    async with opened(artifacts, "tiny-embedder", provider="cpu") as repository:
        expected = (await repository.get("tiny-embedder").task(texts, call=CALL)).vectors
    np.testing.assert_allclose(vectors, expected, atol=0.02)  # bf16, where that is fast
