"""Generation from keys and values in int8 on a real server: memory, chunks, rows, the prefix cache, the tensor API."""

import re

import numpy as np
import pytest
import tritonclient.grpc as triton

from export.__main__ import main
from server.artifact import read_artifact
from server.client import Client
from server.config.settings import Settings
from server.errors import ProviderUnavailable
from server.runtime.open import open_session
from server.runtime.providers import ProviderChoice
from server.runtime.sessions import open_unchecked
from tests.continuations import continued, tokens_of
from tests.serving import served
from tests.sharing import make_once, shared_directory

PRECISION = "fp32+int8-kv"
GREEDY = {"model": "tiny-gpt", "temperature": 0}
NEARLY = 0.05  # standard deviations of the logits, between fp32 and int8 keys and values


@pytest.fixture(scope="module")
def root(checkpoints, tmp_path_factory):
    """Artifacts with one model that has a graph in fp32 and one with int8 keys and values."""
    directory = shared_directory(tmp_path_factory, "int8-kv")
    command = [str(checkpoints["tiny-gpt"]), "--artifacts", str(directory), "--target", f"cpu=fp32,cpu={PRECISION}"]

    def make():
        assert main(command) == 0

    make_once(directory, "all", make)
    return directory


@pytest.fixture(scope="module")
def serve(root):
    """Makes servers of the graph with int8 keys and values."""

    def make(*settings, precision=PRECISION):
        flags = [f"--set=tiny-gpt.{setting}" for setting in (f"precision={precision}", *settings)]
        return served(root, *flags)

    return make


@pytest.fixture(scope="module")
def logits_of(root):
    """Computes the logits (t, vocabulary) of a text in fp32."""
    session = open_session(read_artifact(root / "tiny-gpt/1"), ProviderChoice("cpu"), Settings(threads=1))

    def compute(ids):
        feeds = {
            "input_ids": np.array([ids]),
            "position_ids": np.arange(len(ids))[None],
            "lengths": np.array([len(ids)], np.int32),
            "total_sequence_length": np.array([len(ids)], np.int32),
            "selected": np.arange(len(ids)),
        }
        for name in session.input_names:
            if name.startswith("past_"):
                _, heads, _, width = session.tensor_shapes[name]
                feeds[name] = np.zeros((1, heads, len(ids), width), np.float32)
        return session.run(feeds, ["logits"])["logits"]

    return compute


def assert_greedy(asked, found, logits_of):
    """Assert that every generated token is, but for rounding, the most likely one in fp32."""
    for ids, tokens in zip(asked, found, strict=True):
        logits = logits_of([*ids, *tokens])[len(ids) - 1 : -1]
        missing = logits.max(axis=1) - np.take_along_axis(logits, np.array(tokens)[:, None], axis=1)[:, 0]
        assert missing.max() <= NEARLY * logits.std()


async def test_rows_of_different_lengths_read_in_chunks_give_the_most_likely_tokens(serve, prompts, logits_of):
    asked = prompts(24)
    with serve("max_prefill_tokens=5", "slots=6") as running:
        with Client(running.target) as client:
            assert {model.precision for model in client.models()} == {PRECISION}
        found = await continued(running.target, asked, max_tokens=20, **GREEDY)
    assert_greedy(asked, [tokens_of(responses) for responses in found], logits_of)


@pytest.mark.parametrize("chunk", [3, 64])
async def test_a_common_prefix_is_read_once_and_copied_in_every_head(serve, prompts, logits_of, chunk):
    asked = [np.concatenate([np.arange(1, 31), own[:20]]) for own in prompts(12)]
    with serve(f"max_prefill_tokens={chunk}") as running:
        found = await continued(running.target, asked, max_tokens=8, **GREEDY)
    assert sum(responses[-1].usage.cached_tokens for responses in found) >= 200
    assert_greedy(asked, [tokens_of(responses) for responses in found], logits_of)


def test_a_slot_takes_a_quarter_of_the_memory(serve):
    sizes = {}
    for precision in ("fp32", PRECISION):
        with serve("slots=12", precision=precision) as running:
            line = re.search(r"tiny-gpt: 8 slots of 64 tokens, .*in 12 slots", running.banner)
            assert line, running.banner
            sizes[precision] = float(re.search(r"([0-9.,]+) MB in 12 slots", line[0])[1])
    assert sizes[PRECISION] == pytest.approx(sizes["fp32"] / 4, abs=0.1)


def test_the_tensor_api_gives_the_logits_of_every_position(serve, logits_of):
    ids = np.random.default_rng(0).integers(1, 400, (3, 40))
    mask = (np.arange(40) < np.array([[40], [7], [23]])).astype(np.int64)
    inputs = [triton.InferInput(name, [3, 40], "INT64") for name in ("input_ids", "attention_mask")]
    for each, array in zip(inputs, (ids, mask), strict=True):
        each.set_data_from_numpy(array)
    with serve() as running, triton.InferenceServerClient(running.target) as client:
        logits = client.infer("tiny-gpt.raw", inputs).as_numpy("logits")
    for row, length in enumerate(mask.sum(axis=1)):
        expected = logits_of(ids[row, :length])
        assert np.sqrt(np.mean((logits[row, :length] - expected) ** 2)) < NEARLY * expected.std()
        assert not logits[row, length:].any()


def test_openvino_is_not_given_such_a_graph(root):
    artifact = read_artifact(root / "tiny-gpt/1")
    with pytest.raises(ProviderUnavailable, match="found provider openvino"):
        open_unchecked(artifact, ProviderChoice("openvino"), Settings(), graph_precision=PRECISION)


def test_a_server_that_measures_may_choose_either_graph(root, tmp_path):
    with (
        served(root, "--tune", "force", "--cache", str(tmp_path)) as running,
        Client(running.target) as client,
    ):
        assert {model.precision for model in client.models()} <= {"fp32", PRECISION}
