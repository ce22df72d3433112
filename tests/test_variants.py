"""RoBERTa, DistilBERT, DeiT and unusual sizes: from the files that transformers writes to answers over gRPC.

They are those of transformers' own pipelines, words, labels and numbers.
"""

import io

import grpc
import numpy as np
import pytest
import torch
import transformers
import tritonclient.grpc as triton
from PIL import Image
from sentence_transformers import SentenceTransformer

from export.__main__ import main
from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from server.tasks.embed import normalised
from tests.serving import served
from tests.variants import VARIANTS

FILL_MASK = {
    "roberta": [
        "The <mask> raises an exception.",
        "The<mask> raises   <mask> exception",
        "<mask>",
        "<s> a list <mask> </s> naïve 好 items",
        " ".join(["<mask>"] * 62),
    ],
    "distilbert": ["The [MASK] raises an exception.", "ÉCOLE [MASK] [MASK]", " ".join(["[MASK]"] * 62)],
}
TEXTS = ["A list is a mutable sequence.", " the caller", "may catch it " * 10, "naïve 好"]


@pytest.fixture(scope="module")
def checkpoints(variant_checkpoints):
    """Name → directory, as transformers writes it."""
    return variant_checkpoints


@pytest.fixture(scope="module")
def target(exported_variant):
    """The address of a server over all of them."""
    with served([exported_variant(name) for name in VARIANTS][0].parents[1]) as running:
        yield running.target


@pytest.fixture(scope="module")
def stub(target):
    with grpc.insecure_channel(target) as channel:
        yield AffinityStub(channel)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in FILL_MASK.items() for text in texts])
def test_masks_are_filled_as_the_pipeline_fills_them(name, text, checkpoints, stub) -> None:
    pipeline = transformers.pipeline("fill-mask", model=str(checkpoints[name]), device="cpu")
    (found,) = stub.FillMask(pb.FillMaskRequest(model=name, inputs=[text], top_k=6)).results
    expected = pipeline(text, top_k=6)
    expected = expected if isinstance(expected[0], list) else [expected]
    for mask, candidates in zip(found.masks, expected, strict=True):
        assert [each.score for each in mask.candidates] == pytest.approx([one["score"] for one in candidates], rel=1e-4)
        for each, one in zip(mask.candidates, candidates, strict=True):
            assert (each.token, each.token_str, each.sequence) == (one["token"], one["token_str"], one["sequence"])


@pytest.mark.parametrize("name", ["roberta-classifier", "distilbert-classifier", "regression"])
def test_texts_are_classified_as_the_pipeline_classifies_them(name, checkpoints, stub) -> None:
    pipeline = transformers.pipeline("text-classification", model=str(checkpoints[name]), device="cpu")
    found = stub.ClassifyText(pb.ClassifyTextRequest(model=name, inputs=TEXTS)).results
    for each, expected in zip(found, pipeline(TEXTS, top_k=None), strict=True):
        assert [one.label for one in each.classes] == [one["label"] for one in expected]
        assert [one.score for one in each.classes] == pytest.approx([one["score"] for one in expected], rel=1e-4)


@pytest.mark.parametrize("name", ["roberta-embedder", "distilbert-embedder"])
def test_texts_become_the_mean_of_their_words_at_length_one(name, checkpoints, stub) -> None:
    model = transformers.AutoModel.from_pretrained(checkpoints[name]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoints[name])
    found = stub.Embed(pb.EmbedRequest(model=name, inputs=TEXTS[:2])).results
    for text, each in zip(TEXTS, found, strict=False):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        assert np.abs(np.array(each.values) - (mean / mean.norm()).numpy()).max() < 1e-5


def test_poolings_and_layers_give_vectors_of_any_length_unless_asked_otherwise(checkpoints, stub) -> None:
    """Texts of different lengths, in one batch."""
    name = "layered-embedder"
    expected = SentenceTransformer(str(checkpoints[name]), device="cpu").encode(TEXTS)
    for fields, vectors in (({}, expected), ({"normalize": True}, normalised(expected))):
        found = stub.Embed(pb.EmbedRequest(model=name, inputs=TEXTS, **fields)).results
        assert np.array([each.values for each in found]) == pytest.approx(vectors, abs=1e-5)
    info = stub.ModelInfo(pb.ModelInfoRequest(model=name))
    assert (info.normalized, info.embedding_width) == (False, 32)


@pytest.mark.parametrize("name", ["deit", "deit-with-teacher", "odd-vit", "multi-label-vit"])
def test_images_are_classified_as_the_pipeline_classifies_them(name, checkpoints, stub, tmp_path) -> None:
    from tests.server.images.files import FILES

    processor = transformers.AutoImageProcessor.from_pretrained(checkpoints[name], backend="pil")
    kind = transformers.AutoConfig.from_pretrained(checkpoints[name]).architectures[0]
    model = getattr(transformers, kind).from_pretrained(checkpoints[name])
    pipeline = transformers.pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    (tmp_path / "image").write_bytes(FILES["png"])
    (found,) = stub.ClassifyImage(pb.ClassifyImageRequest(model=name, images=[FILES["png"]])).results
    expected = pipeline(str(tmp_path / "image"))
    assert [one.label for one in found.classes] == [one["label"] for one in expected]
    assert [one.score for one in found.classes] == pytest.approx([one["score"] for one in expected], rel=1e-4)


@pytest.mark.parametrize("name", ["roberta", "distilbert"])
def test_plain_tensors_give_the_logits_of_transformers(name, checkpoints, target) -> None:
    """Rows of different lengths, positions counted by the server."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoints[name])
    model = transformers.AutoModelForMaskedLM.from_pretrained(checkpoints[name]).eval()
    batch = tokenizer(TEXTS, padding=True, return_tensors="np")
    inputs = [
        triton.InferInput(key, list(batch[key].shape), "INT64").set_data_from_numpy(batch[key])
        for key in ("input_ids", "attention_mask")
    ]
    found = triton.InferenceServerClient(target).infer(f"{name}.raw", inputs).as_numpy("logits")
    with torch.no_grad():
        expected = model(**{key: torch.tensor(array) for key, array in batch.items()}).logits.numpy()
    real = batch["attention_mask"] == 1
    assert np.abs(found - expected)[real].max() <= 1e-4 * expected[real].std()


@pytest.mark.parametrize(("name", "size"), [("odd-vit", 48), ("deit", 48)])
def test_a_vit_looks_at_larger_images_where_it_is_asked_to(name, size, checkpoints, tmp_path) -> None:
    """Preprocessing grows in proportion."""
    from tests.server.images.files import FILES

    root = tmp_path / "artifacts"
    command = [str(checkpoints[name]), "--artifacts", str(root), "--target", "cpu", "--image-size", str(size)]
    assert main(command) == 0
    sizes = {"height": size, "width": size}
    options = {"size": sizes} if name == "odd-vit" else {"size": {"height": 60, "width": 60}, "crop_size": sizes}
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoints[name], backend="pil", **options)
    kind = transformers.AutoConfig.from_pretrained(checkpoints[name]).architectures[0]
    model = getattr(transformers, kind).from_pretrained(checkpoints[name]).eval()
    with torch.no_grad():
        pixels = processor(Image.open(io.BytesIO(FILES["png"])), return_tensors="pt")
        logits = model(**pixels, interpolate_pos_encoding=True).logits[0]
    with served(root) as running, grpc.insecure_channel(running.target) as channel:
        request = pb.ClassifyImageRequest(images=[FILES["png"]], top_k=10)
        (found,) = AffinityStub(channel).ClassifyImage(request).results
    scores = {each.class_id: each.score for each in found.classes}
    assert [scores[n] for n in range(len(scores))] == pytest.approx(logits.softmax(0).tolist(), rel=1e-4)


@pytest.mark.parametrize("name", ["roberta-classifier", "distilbert-classifier"])
def test_pairs_are_read_as_the_pipeline_reads_them(name, checkpoints, stub) -> None:
    """Also those that are too long together: cut from the longer text."""
    pipeline = transformers.pipeline("text-classification", model=str(checkpoints[name]), device="cpu")
    pairs = [("A list", "the caller"), ("may catch it " * 30, "a sequence"), ("zero", "or none " * 40)]
    texts, seconds = zip(*pairs, strict=True)
    request = pb.ClassifyTextRequest(model=name, inputs=texts, text_pairs=seconds, truncate=True)
    expected = pipeline([{"text": a, "text_pair": b} for a, b in pairs], top_k=None, truncation=True)
    for each, classes in zip(stub.ClassifyText(request).results, expected, strict=True):
        assert [one.label for one in each.classes] == [one["label"] for one in classes]
        assert [one.score for one in each.classes] == pytest.approx([one["score"] for one in classes], rel=1e-4)
    assert [each.tokens.truncated for each in stub.ClassifyText(request).results] == [False, True, True]


def test_targets_are_those_of_the_pipeline_where_words_begin_with_spaces(checkpoints, stub) -> None:
    targets = ["Ġa", "e", "Ġthe"]
    pipeline = transformers.pipeline("fill-mask", model=str(checkpoints["roberta"]), device="cpu")
    request = pb.FillMaskRequest(model="roberta", inputs=["The <mask> raises"], targets=targets)
    found = stub.FillMask(request).results[0].masks[0].candidates
    for each, one in zip(found, pipeline("The <mask> raises", targets=targets), strict=True):
        assert (each.token, each.sequence) == (one["token"], one["sequence"])
        assert each.score == pytest.approx(one["score"], rel=1e-4)
