"""Generation from weights, and keys and values, in fewer bits over gRPC, compared with the graph over whole texts."""

import numpy as np
import onnxruntime
import pytest

from export.__main__ import main
from server.artifact import read_artifact
from server.client import Client
from server.runtime.session import NUMPY_TYPES
from tests.continuations import continued, tokens_of
from tests.serving import served

COUNT = 20
OPTIONS = {"int8-weights": [], "int4-weights": ["--head-precision", "int4"], "int8-weights+int8-kv": []}


@pytest.fixture(scope="module", params=OPTIONS)
def quantised(request, checkpoints, traced_once, tmp_path_factory):
    """A precision, and the exported artifact."""
    root = tmp_path_factory.mktemp(request.param)
    options = ["--target", f"cpu={request.param}", *OPTIONS[request.param], "--tolerance", "0.5"]
    assert main([str(checkpoints["tiny-gpt"]), "--artifacts", str(root), *options]) == 0
    return request.param, read_artifact(root / "tiny-gpt" / "1")


def logits_of(session: onnxruntime.InferenceSession, ids: np.ndarray) -> np.ndarray:
    """The logits (t, vocabulary) after each token of a text (t,), from one run without a past."""
    feeds = {
        "input_ids": ids[None],
        "position_ids": np.arange(len(ids))[None],
        "lengths": np.array([len(ids)], np.int32),
        "selected": np.arange(len(ids)),
    }
    for value in session.get_inputs():
        if value.name.startswith("past_"):
            _, heads, _, width = value.shape
            feeds[value.name] = np.zeros((1, heads, len(ids), width), NUMPY_TYPES[value.type])
        if value.name == "total_sequence_length":
            feeds[value.name] = np.full(value.shape, len(ids), np.int32)
    return session.run(["logits"], feeds)[0]


async def test_greedy_tokens_of_quantised_weights_have_the_highest_logits_of_their_graph(quantised, prompts):
    precision, artifact = quantised
    session = onnxruntime.InferenceSession(
        artifact.path(artifact.graph("cpu").file), providers=["CPUExecutionProvider"]
    )
    asked = prompts(12)
    with served(artifact.directory.parents[1]) as running:
        with Client(running.target) as client:
            assert {model.precision for model in client.models()} == {precision}
        found = await continued(running.target, asked, model="tiny-gpt", max_tokens=COUNT, temperature=0)
    for ids, responses in zip(asked, found, strict=True):
        tokens = tokens_of(responses)
        assert len(tokens) == COUNT
        logits = logits_of(session, np.array([*ids, *tokens]))[len(ids) - 1 : -1]  # (tokens, vocabulary)
        difference = logits.max(axis=1) - np.take_along_axis(logits, np.array(tokens)[:, None], axis=1)[:, 0]
        assert difference.max() <= 1e-3 * logits.std(), "not the most likely token, nor equal to it but for rounding"
