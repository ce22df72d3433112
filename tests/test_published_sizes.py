"""Checkpoints of published sizes: the server's results over gRPC equal those of transformers.

The tests take minutes, so only `make test-large` runs them.
"""

from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import torch
import transformers
import tritonclient.grpc as triton

from protos.affinity_pb2 import GenerateResponse
from protos.affinity_pb2_grpc import AffinityStub
from tests.checkpoints import randomise
from tests.continuations import continued, greedy_of, logprobs_of, request_of, tokens_of
from tests.published import EXTRAS, MODELS, export
from tests.serving import served

pytestmark = [pytest.mark.large, pytest.mark.timeout(1200)]
TOLERANCE = 1e-4  # of the standard deviation of the reference
NEW_TOKENS = 32


@pytest.fixture(scope="module")
def references() -> dict[str, transformers.PreTrainedModel]:
    """Models of published sizes with random weights."""
    transformers.utils.logging.disable_progress_bar()
    return {name: randomise(make()) for name, make in MODELS.items()}


@pytest.fixture(scope="module")
def server(references, tmp_path_factory):
    """A server with the exported models."""
    root = tmp_path_factory.mktemp("published")
    for name, model in references.items():
        model.save_pretrained(root / name)
        EXTRAS[name](root / name)
    export([root / name for name in references], root / "artifacts", "cpu")
    with served(root / "artifacts") as running:
        yield running


def raw(target: str, model: str, **arrays: np.ndarray) -> np.ndarray:
    """The logits from the raw endpoint of a model."""
    inputs = []
    for name, array in arrays.items():
        datatype = {"int64": "INT64", "float32": "FP32"}[str(array.dtype)]
        inputs.append(triton.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array))
    return triton.InferenceServerClient(target).infer(f"{model}.raw", inputs).as_numpy("logits")


def assert_equal(found: np.ndarray, reference: torch.Tensor) -> None:
    expected = reference.numpy()
    largest = np.abs(found - expected).max() / expected.std()
    assert largest <= TOLERANCE, f"largest difference: {largest:.1e} standard deviations"


@pytest.mark.parametrize("name", ["bert-base", "gpt2"])
def test_the_logits_of_tokens_are_those_of_transformers(name, references, server) -> None:
    ids = np.random.default_rng(0).integers(0, references[name].config.vocab_size, (2, 33))
    with torch.inference_mode():
        expected = references[name](torch.from_numpy(ids)).logits
    assert_equal(raw(server.target, name, input_ids=ids), expected)


def test_the_logits_of_images_are_those_of_transformers(references, server) -> None:
    pixels = np.random.default_rng(0).standard_normal((3, 3, 224, 224)).astype(np.float32)
    with torch.inference_mode():
        expected = references["vit-base"](torch.from_numpy(pixels)).logits
    assert_equal(raw(server.target, "vit-base", pixel_values=pixels), expected)


async def test_greedy_tokens_are_those_of_transformers_for_50_prompts_at_random_times(references, server) -> None:
    prompts = prompts_of(50)
    found = await continued(server.target, prompts, model="gpt2", max_tokens=NEW_TOKENS, temperature=0, logprobs=1)
    ties, differences = 0, []
    for ids, responses in zip(prompts, found, strict=True):
        tokens = tokens_of(responses)
        expected = logprobs_of(references["gpt2"], ids, tokens)  # (tokens, vocabulary)
        differences.append(np.abs(logprobs(responses) - expected[np.arange(NEW_TOKENS), tokens]).max() / expected.std())
        greedy = greedy_of(references["gpt2"], ids, NEW_TOKENS)
        if tokens != greedy:  # after a tie, the texts differ
            ties += 1
            at = next(at for at, pair in enumerate(zip(tokens, greedy, strict=True)) if len(set(pair)) > 1)
            gap = (expected[at, greedy[at]] - expected[at, tokens[at]]) / expected.std()
            print(f"two tokens differ by only {gap:.1e} standard deviations in transformers")
            assert abs(gap) < TOLERANCE
    print(f"{50 - ties} of 50 are the same; log-probabilities differ by at most {max(differences):.1e} of theirs")
    assert ties <= 2
    assert max(differences) < TOLERANCE


def test_a_request_gets_the_same_tokens_alone_and_among_31_others(server) -> None:
    """Log-probabilities may differ in their last bits, because other kernels compute products of one row."""
    (ids, *others), stub = prompts_of(32), AffinityStub(grpc.insecure_channel(server.target))
    asked = {"model": "gpt2", "logprobs": 1, "max_tokens": NEW_TOKENS, "seed": 7}
    alone = list(stub.Generate(request_of(ids, **asked)))
    with ThreadPoolExecutor(32) as pool:
        running = [pool.submit(lambda ids=ids: list(stub.Generate(request_of(ids, **asked)))) for ids in [ids, *others]]
        among = running[0].result()
    assert tokens_of(among) == tokens_of(alone)
    difference = np.abs(logprobs(among) - logprobs(alone)).max()
    print(f"largest difference of a log-probability alone and among 31 others: {difference:.1e}")
    assert difference < 1e-4


def test_responses_are_identical_with_and_without_the_prefix_cache(server) -> None:
    beginning, stub = prompts_of(1, shortest=100)[0], AffinityStub(grpc.insecure_channel(server.target))
    prompts = [[*beginning[: 20 + 20 * number], *own] for number, own in enumerate(prompts_of(4))]
    asked = {"model": "gpt2", "max_tokens": NEW_TOKENS, "logprobs": 5, "seed": 7}

    def answers(stub: AffinityStub) -> list[list[GenerateResponse]]:
        return [list(stub.Generate(request_of(ids, **asked))) for ids in prompts]

    with served(server.artifacts, "--models", "gpt2", "--set", "gpt2.prefix_cache=off") as without:
        whole = answers(AffinityStub(grpc.insecure_channel(without.target)))
    once = answers(stub)
    assert sum(responses[-1].usage.cached_tokens for responses in whole) == 0
    assert sum(responses[-1].usage.cached_tokens for responses in once) >= 20 + 40 + 60
    assert [[response.logprobs for response in responses] for responses in once] == [
        [response.logprobs for response in responses] for responses in whole
    ]
    assert list(map(tokens_of, once)) == list(map(tokens_of, whole))


def prompts_of(count: int, *, shortest: int = 1) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(0, 50257, length).tolist() for length in random.integers(shortest, 120, count)]


def logprobs(responses: list[GenerateResponse]) -> np.ndarray:
    return np.array([token.logprob for response in responses for token in response.logprobs])
