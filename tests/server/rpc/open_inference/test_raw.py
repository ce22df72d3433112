"""The tensor tasks (NAME.raw) over the Open Inference Protocol, compared with PyTorch."""

import numpy as np
import pytest
import torch
import transformers
import tritonclient.grpc as triton

from tests.server.rpc.open_inference.requests import IDS, LENGTHS, MASK, infer


def close(found, expected):
    """Assert equality within 1e-4 of the standard deviation of PyTorch's outputs."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * expected.std()


def test_raw_bert_equals_pytorch(client, checkpoints):
    model = transformers.BertForMaskedLM.from_pretrained(checkpoints["tiny-bert"]).eval()
    segments = np.random.default_rng(1).integers(0, 2, IDS.shape)
    inputs = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": segments}
    answer = infer(client, "tiny-bert.raw", [(name, array, "INT64") for name, array in inputs.items()])
    found = answer.as_numpy("logits")
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()
    for row, length in enumerate(LENGTHS):
        close(found[row, :length], expected[row, :length])
        assert not found[row, length:].any()


def test_raw_gpt_equals_pytorch(client, checkpoints):
    model = transformers.GPT2LMHeadModel.from_pretrained(checkpoints["tiny-gpt"]).eval()
    found = infer(client, "tiny-gpt.raw", [("input_ids", IDS, "INT64")]).as_numpy("logits")
    with torch.no_grad():
        close(found, model(torch.from_numpy(IDS)).logits.numpy())


def test_raw_images_equal_pytorch_and_name_their_classes(client, checkpoints):
    model = transformers.ViTForImageClassification.from_pretrained(checkpoints["tiny-vit"]).eval()
    pixels = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    found = infer(client, "tiny-vit.raw", [("pixel_values", pixels, "FP32")]).as_numpy("logits")
    with torch.no_grad():
        close(found, model(torch.from_numpy(pixels)).logits.numpy())
    wanted = [triton.InferRequestedOutput("logits", class_count=2)]
    classes = infer(client, "tiny-vit.raw", [("pixel_values", pixels, "FP32")], outputs=wanted).as_numpy("logits")
    best = found[0].argmax()
    assert classes.shape == (2, 2)
    assert classes[0, 0].decode() == f"{found[0, best]:f}:{best}:digit {best}"


@pytest.mark.parametrize(("model", "output"), [("tiny-classifier", "logits"), ("tiny-embedder", "embedding")])
def test_raw_encoders_return_one_row_for_each_input(client, model, output):
    inputs = [("input_ids", IDS, "INT64"), ("attention_mask", MASK, "INT64")]
    assert len(infer(client, f"{model}.raw", inputs).as_numpy(output)) == 3
