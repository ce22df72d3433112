"""The options of requests on a real server, compared with transformers' pipelines over the same checkpoints."""

import grpc
import numpy as np
import pytest
import torch
import transformers

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from tests.server.rpc.affinity.test_servicer import picture

TEXT = "The [MASK] raises an exception."
PAIRS = [("A list is a sequence.", "The caller may catch it."), ("a", "b c d"), ("zero or none", "Attention")]
LONG = "the caller may catch it " * 30
LONG_PAIRS = [(LONG, "A list"), ("A list", LONG), (LONG, LONG + "items"), ("the caller " * 20, LONG)]


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.target) as channel:
        yield AffinityStub(channel)


@pytest.fixture(scope="module")
def pipeline(checkpoints):
    """Task and model → the pipeline of transformers."""
    return lambda task, name: transformers.pipeline(task, model=str(checkpoints[name]), device="cpu")


def refused(call, request, message):
    with pytest.raises(grpc.RpcError) as error:
        call(request)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in error.value.details()


# ---- fill-mask


@pytest.mark.parametrize("targets", [["list", "##s"], ["list"], ["set", "list", "set", "or", "in", "##t", "[UNK]"]])
@pytest.mark.parametrize("top_k", [2, 5])
def test_only_targets_are_ranked_and_their_scores_stay(stub, pipeline, targets, top_k):
    pipe = pipeline("fill-mask", "tiny-bert")
    for text in (TEXT, "A [MASK] is a [MASK] sequence."):
        (found,) = stub.FillMask(pb.FillMaskRequest(inputs=[text], targets=targets, top_k=top_k)).results
        expected = pipe(text, targets=targets, top_k=top_k)
        for mask, candidates in zip(found.masks, expected if text.count("[M") > 1 else [expected], strict=True):
            assert [each.token for each in mask.candidates] == [one["token"] for one in candidates]
            scores = [one["score"] for one in candidates]
            assert [each.score for each in mask.candidates] == pytest.approx(scores, rel=1e-4)
            assert [each.sequence for each in mask.candidates] == [one["sequence"] for one in candidates]


def test_a_target_may_be_written_as_in_a_text(stub):
    def tokens(*targets):
        request = pb.FillMaskRequest(inputs=[TEXT], targets=targets)
        return [each.token for each in stub.FillMask(request).results[0].masks[0].candidates]

    assert tokens("The") == tokens("the")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("exceptionally", "targets[1]: found 'exceptionally' (tokens 'exception', '##a"),
        ("好", "targets[1]: found '好' (tokens '[UNK]'), expected a word that is one token of the model"),
        ("", "targets[1]: found '' (no token)"),
    ],
)
def test_a_target_of_several_tokens_is_refused_with_its_tokens(stub, target, message):
    refused(stub.FillMask, pb.FillMaskRequest(inputs=[TEXT], targets=["list", target]), message)


def test_the_length_and_number_of_targets_are_limited(stub):
    refused(stub.FillMask, pb.FillMaskRequest(inputs=[TEXT], targets=["x" * 300]), "targets[0]: found 300 characters")
    many = pb.FillMaskRequest(inputs=[TEXT], targets=["list"] * 201)
    refused(stub.FillMask, many, "targets: found 201 words, expected at most 200, all that there are")


def test_a_request_for_too_many_candidates_is_refused(stub):
    request = pb.FillMaskRequest(inputs=["[MASK] " * 62] * 20, top_k=200)
    refused(stub.FillMask, request, "top_k: found 200 for each of 1240 masks, 15872000 tokens of filled-in texts")
    short = pb.FillMaskRequest(inputs=["[MASK] [MASK]"] * 700, top_k=200)
    refused(stub.FillMask, short, "filled-in texts, expected at most 262144 candidates in an answer")


# ---- classes


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_the_function_that_makes_scores_can_be_chosen(stub, pipeline, checkpoints, function):
    texts = ["A list is a sequence.", "Return zero"]
    expected = pipeline("text-classification", "tiny-classifier")(texts, function_to_apply=function, top_k=None)
    answer = stub.ClassifyText(pb.ClassifyTextRequest(inputs=texts, function_to_apply=function))
    for found, classes in zip(answer.results, expected, strict=True):
        assert [each.label for each in found.classes] == [one["label"] for one in classes]
        assert [each.score for each in found.classes] == pytest.approx([one["score"] for one in classes], rel=1e-4)
    images = pb.ClassifyImageRequest(model="tiny-vit", images=[picture()], function_to_apply=function, top_k=10)
    scores = np.array([each.score for each in stub.ClassifyImage(images).results[0].classes])
    assert (np.diff(scores) <= 0).all()
    assert (scores.sum() == pytest.approx(1, abs=1e-5)) == (function == "softmax")


def test_the_models_own_function_is_the_default(stub):
    def scores(function):
        answer = stub.ClassifyText(pb.ClassifyTextRequest(inputs=["a list"], function_to_apply=function))
        return [each.score for each in answer.results[0].classes]

    assert scores("") == scores("default") == scores("softmax") != scores("sigmoid")
    message = "function_to_apply: found 'tanh', expected one of default, softmax, sigmoid, none"
    refused(stub.ClassifyText, pb.ClassifyTextRequest(inputs=["a"], function_to_apply="tanh"), message)
    images = pb.ClassifyImageRequest(model="tiny-vit", images=[picture()], function_to_apply="tanh")
    refused(stub.ClassifyImage, images, message)


@pytest.mark.parametrize(("pairs", "truncate"), [(PAIRS, False), (PAIRS, True), (LONG_PAIRS, True)])
def test_pairs_of_texts_are_classified_as_the_pipeline_does(stub, pipeline, pairs, truncate):
    """Token types are those of the pipeline; pairs that are too long lose tokens of the longer text, on the right."""
    texts, seconds = zip(*pairs, strict=True)
    answer = stub.ClassifyText(pb.ClassifyTextRequest(inputs=texts, text_pairs=seconds, truncate=truncate))
    pipe = pipeline("text-classification", "tiny-classifier")
    expected = pipe([{"text": a, "text_pair": b} for a, b in pairs], top_k=None, truncation=truncate)
    for found, classes in zip(answer.results, expected, strict=True):
        assert [each.label for each in found.classes] == [one["label"] for one in classes]
        assert [each.score for each in found.classes] == pytest.approx([one["score"] for one in classes], rel=1e-4)
        assert found.tokens.truncated == (pairs is LONG_PAIRS)
        assert found.tokens.used <= 64


def test_invalid_pairs_are_refused(stub):
    refused(
        stub.ClassifyText,
        pb.ClassifyTextRequest(inputs=["a", "b"], text_pairs=["c"]),
        "text_pairs: found 1 texts, expected 2, one for each text, or none",
    )
    refused(
        stub.ClassifyText,
        pb.ClassifyTextRequest(inputs=["a", LONG], text_pairs=["c", "d"]),
        "inputs[1]: found ",
    )


# ---- vectors


@pytest.fixture(scope="module")
def mean_of_the_words(checkpoints):
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoints["tiny-embedder"])
    model = transformers.BertModel.from_pretrained(checkpoints["tiny-embedder"]).eval()

    def mean(text):
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0).numpy()

    return mean


@pytest.mark.parametrize("normalize", [None, True, False])
@pytest.mark.parametrize("dimensions", [None, 1, 16, 64])
def test_vectors_have_the_requested_length_and_width(stub, mean_of_the_words, normalize, dimensions):
    text = "A list is a mutable sequence"
    request = pb.EmbedRequest(inputs=[text], normalize=normalize, dimensions=dimensions)
    expected = mean_of_the_words(text)[:dimensions]
    if normalize is not False:  # this model's own way
        expected = expected / np.linalg.norm(expected)
    np.testing.assert_allclose(stub.Embed(request).results[0].values, expected, atol=2e-5)


@pytest.mark.parametrize("dimensions", [0, 65])
def test_invalid_dimensions_are_refused(stub, dimensions):
    request = pb.EmbedRequest(inputs=["a"], dimensions=dimensions)
    refused(stub.Embed, request, f"dimensions: found {dimensions}, expected 1 to 64")


# ---- truncation


def test_long_texts_are_truncated_only_on_request(stub, pipeline):
    text = "The [MASK] raises " + LONG
    refused(stub.FillMask, pb.FillMaskRequest(inputs=[text]), "inputs[0]: found 1")
    refused(stub.FillMask, pb.FillMaskRequest(inputs=[text]), "tokens, expected at most 64 (or `truncate`)")
    found, short = stub.FillMask(pb.FillMaskRequest(inputs=[text, TEXT], truncate=True)).results
    expected = pipeline("fill-mask", "tiny-bert")(text, tokenizer_kwargs={"truncation": True})
    assert [each.sequence for each in found.masks[0].candidates] == [one["sequence"] for one in expected]
    assert [each.score for each in found.masks[0].candidates] == pytest.approx(
        [one["score"] for one in expected], rel=1e-4
    )
    assert (found.tokens.used, found.tokens.truncated) == (64, True)
    assert (short.tokens.used < 64, short.tokens.truncated) == (True, False)


def test_a_truncated_mask_is_reported(stub):
    request = pb.FillMaskRequest(inputs=[LONG + "[MASK]"], truncate=True)
    refused(stub.FillMask, request, "inputs[0]: found no [MASK] in the rest of it")


def test_long_texts_are_classified_and_embedded_up_to_the_models_limit(stub, pipeline):
    (found,) = stub.ClassifyText(pb.ClassifyTextRequest(inputs=[LONG], truncate=True)).results
    (expected,) = pipeline("text-classification", "tiny-classifier")([LONG], top_k=None, truncation=True)
    assert [each.score for each in found.classes] == pytest.approx([one["score"] for one in expected], rel=1e-4)
    (cut,) = stub.Embed(pb.EmbedRequest(inputs=[LONG], truncate=True)).results
    (same,) = stub.Embed(pb.EmbedRequest(inputs=["the caller may catch it " * 6], truncate=True)).results
    assert (cut.tokens.used, cut.tokens.truncated) == (32, True)  # sentence-transformers' own limit
    np.testing.assert_allclose(cut.values, same.values, atol=1e-6)


def test_a_text_of_megabytes_is_truncated_before_it_is_tokenized(stub):
    (found,) = stub.Embed(pb.EmbedRequest(inputs=["list " * 1_000_000], truncate=True)).results
    assert (found.tokens.used, found.tokens.truncated) == (32, True)


def test_texts_truncated_before_tokenization_count_as_truncated(stub):
    """White space gives no tokens, so text behind a large amount of it is cut off although few tokens are left."""
    hidden = "list" + " " * 20_000 + "of items"
    few, whole = stub.Embed(pb.EmbedRequest(inputs=[hidden, "list"], truncate=True)).results
    assert (few.tokens.used, few.tokens.truncated) == (whole.tokens.used, True)
    assert not whole.tokens.truncated
    pair = pb.ClassifyTextRequest(inputs=["a"], text_pairs=[hidden], truncate=True)
    assert stub.ClassifyText(pair).results[0].tokens.truncated


# ---- token counts and model information


@pytest.mark.parametrize(("name", "limit"), [("bert", 64), ("classifier", 64), ("embedder", 32), ("gpt", 64)])
def test_tokens_are_counted_as_transformers_counts_them(stub, checkpoints, name, limit):
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoints[f"tiny-{name}"])
    texts = ["A list", "The statement raises an exception.", LONG, "ÉCOLE 好", ""]
    answer = stub.CountTokens(pb.CountTokensRequest(model=f"tiny-{name}", inputs=texts))
    assert list(answer.tokens) == [len(tokenizer(text).input_ids) for text in texts]
    assert (answer.model, answer.max_tokens) == (f"tiny-{name}", limit)


def test_tokens_of_pairs_are_counted_together(stub, checkpoints):
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoints["tiny-classifier"])
    texts, seconds = zip(*PAIRS, strict=True)
    request = pb.CountTokensRequest(model="tiny-classifier", inputs=texts, text_pairs=seconds)
    assert list(stub.CountTokens(request).tokens) == [len(tokenizer(*pair).input_ids) for pair in PAIRS]


def test_invalid_token_counts_are_refused(stub):
    refused(stub.CountTokens, pb.CountTokensRequest(inputs=["a"]), "model: found nothing, expected one of tiny-bert")
    refused(stub.CountTokens, pb.CountTokensRequest(model="tiny-bert"), "inputs: found nothing, expected at least one")
    long = pb.CountTokensRequest(model="tiny-bert", inputs=["x" * 20_000])
    refused(stub.CountTokens, long, "inputs[0]: found 20000 characters")
    many = pb.CountTokensRequest(model="tiny-bert", inputs=["x"] * 1025)
    refused(stub.CountTokens, many, "inputs: found 1025 inputs, expected at most 1024 inputs")
    much = pb.CountTokensRequest(model="tiny-bert", inputs=["x" * 15_000] * 300)
    refused(stub.CountTokens, much, "inputs: found 4500000 characters together, expected at most 4194304")
    with pytest.raises(grpc.RpcError, match="found task classify-image, expected fill-mask or generate"):
        stub.CountTokens(pb.CountTokensRequest(model="tiny-vit", inputs=["a"]))


KNOWN = {
    "tiny-bert": {"task": "fill-mask", "max_tokens": 64, "mask_token": "[MASK]", "max_top_k": 200, "labels": []},
    "tiny-classifier": {
        "task": "classify-text",
        "max_tokens": 64,
        "labels": ["bad", "fair", "good"],
        "max_top_k": 3,
        "function_to_apply": "softmax",
    },
    "tiny-embedder": {"task": "embed", "max_tokens": 32, "embedding_width": 64, "normalized": True, "max_top_k": 0},
    "tiny-gpt": {"task": "generate", "max_tokens": 64, "vocabulary": 400},
    "tiny-vit": {
        "task": "classify-image",
        "architecture": "vit",
        "max_tokens": 0,
        "labels": [f"digit {number}" for number in range(10)],
        "image_height": 32,
        "image_width": 32,
        "image_formats": ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"],
    },
}


@pytest.mark.parametrize("name", KNOWN)
def test_model_info_has_limits_and_labels(stub, name):
    info = stub.ModelInfo(pb.ModelInfoRequest(model=name))
    expected = {"model": name, "provider": "cpu", "precision": "fp32", "model_version": "1", **KNOWN[name]}
    found = {field: getattr(info, field) for field in expected}
    assert {field: value if isinstance(value, str | int) else list(value) for field, value in found.items()} == expected
    assert info.max_inputs > 0
