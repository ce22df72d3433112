"""Checkpoints of the published sizes, from transformers to an answer over gRPC: the same numbers, the same words.

Minutes on two cores, so not among the tests that always run: `make test-large`.
"""

from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import torch
import transformers
import tritonclient.grpc as triton

from protos.affinity_pb2 import GenerateRequest, Prompt, TokenIds
from protos.affinity_pb2_grpc import AffinityStub
from tests.checkpoints import randomise
from tests.published import EXTRAS, MODELS, export
from tests.serving import served

pytestmark = [pytest.mark.large, pytest.mark.timeout(1200)]
TOLERANCE = 1e-4  # of the standard deviation of the reference
PROMPTS, NEW_TOKENS = 20, 32


@pytest.fixture(scope="module")
def references() -> dict[str, transformers.PreTrainedModel]:
    """The three of them, every weight random."""
    transformers.utils.logging.disable_progress_bar()
    return {name: randomise(make()) for name, make in MODELS.items()}


@pytest.fixture(scope="module")
def server(references, tmp_path_factory):
    """A server over what the exporter makes of them."""
    root = tmp_path_factory.mktemp("published")
    for name, model in references.items():
        model.save_pretrained(root / name)
        EXTRAS[name](root / name)
    export([root / name for name in references], root / "artifacts", "cpu")
    with served(root / "artifacts") as running:
        yield running


def raw(target: str, model: str, **arrays: np.ndarray) -> np.ndarray:
    """The logits that NAME.raw gives."""
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
def test_the_logits_of_words_are_those_of_transformers(name, references, server) -> None:
    ids = np.random.default_rng(0).integers(0, references[name].config.vocab_size, (2, 33))
    with torch.inference_mode():
        expected = references[name](torch.from_numpy(ids)).logits
    assert_equal(raw(server.target, name, input_ids=ids), expected)


def test_the_logits_of_images_are_those_of_transformers(references, server) -> None:
    pixels = np.random.default_rng(0).standard_normal((3, 3, 224, 224)).astype(np.float32)
    with torch.inference_mode():
        expected = references["vit-base"](torch.from_numpy(pixels)).logits
    assert_equal(raw(server.target, "vit-base", pixel_values=pixels), expected)


def test_greedy_tokens_are_those_of_transformers_for_many_prompts_at_once(references, server) -> None:
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 50257, length).tolist() for length in random.integers(1, 120, PROMPTS)]
    stub = AffinityStub(grpc.insecure_channel(server.target))

    def generated(ids: list[int]) -> list[int]:
        prompt = Prompt(token_ids=TokenIds(ids=ids))
        request = GenerateRequest(model="gpt2", prompts=[prompt], max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
        return [token for piece in stub.Generate(request) for token in piece.token_ids]

    with ThreadPoolExecutor(PROMPTS) as pool:
        found = list(pool.map(generated, prompts))
    for ids, tokens in zip(prompts, found, strict=True):
        assert tokens == continued(references["gpt2"], ids)


def continued(model: transformers.PreTrainedModel, ids: list[int]) -> list[int]:
    """What transformers generates after `ids`."""
    whole = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return whole[0, len(ids) :].tolist()
