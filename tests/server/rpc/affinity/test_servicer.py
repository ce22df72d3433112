"""The typed service on a real server, called through its stub."""

import io
import re
import struct
import urllib.request

import grpc
import numpy as np
import pytest
from PIL import Image

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from tests.checkpoints import SPECIAL

TEXT = "The [MASK] raises an exception."


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.target) as channel:
        yield AffinityStub(channel)


def picture(size=(40, 30), form="PNG", seed=0):
    """An image of large coloured squares."""
    spots = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8))
    file = io.BytesIO()
    spots.resize(size, Image.Resampling.NEAREST).save(file, form)
    return file.getvalue()


def pictures(count):
    """Images of several formats. Each is smaller than the one before, so the last is decoded first."""
    forms = ("PNG", "JPEG", "WEBP", "GIF")
    return [picture((40 * (count - n), 30 * (count - n)), forms[n % 4], seed=n) for n in range(count)]


def assert_same_scores(together, alone):
    """Scores (n, k) of images in one request equal those of single requests, and differ between images."""
    np.testing.assert_allclose(together, alone, atol=1e-5)
    apart = np.abs(together[:, None] - together[None]).max(axis=-1)  # (n, n)
    assert apart[~np.eye(len(apart), dtype=bool)].min() > 1e-4


def continuation(stub, **fields):
    return list(stub.Generate(pb.GenerateRequest(prompts=[pb.Prompt(text="A list is")], **fields)))


def test_masks_are_filled_in_the_order_of_the_texts(stub):
    answer = stub.FillMask(pb.FillMaskRequest(inputs=[TEXT, "A [MASK] is a [MASK] sequence."], top_k=3))
    assert (answer.model, answer.model_version) == ("tiny-bert", "1")
    assert [len(result.masks) for result in answer.results] == [1, 2]
    best = answer.results[0].masks[0].candidates
    assert len(best) == 3
    assert sorted((each.score for each in best), reverse=True) == [each.score for each in best]
    # The tokenizer is trained anew in each run: now and then a special token is probable.
    words = [each for each in best if each.token >= len(SPECIAL)]
    assert all(each.token_str and "[MASK]" not in each.sequence for each in words)


def test_five_candidates_are_the_default(stub):
    assert len(stub.FillMask(pb.FillMaskRequest(inputs=[TEXT])).results[0].masks[0].candidates) == 5


def test_images_of_a_request_are_classified_independently(stub):
    def classified(images):
        answer = stub.ClassifyImage(pb.ClassifyImageRequest(model="tiny-vit", images=images, top_k=10))
        for result in answer.results:
            assert sum(each.score for each in result.classes) == pytest.approx(1, abs=1e-5)
            assert all(each.label == f"digit {each.class_id}" for each in result.classes)
        return [[each.score for each in sorted(result.classes, key=class_id)] for result in answer.results]

    def class_id(each):
        return each.class_id

    images = pictures(12)
    assert_same_scores(np.array(classified(images)), np.concatenate([classified([image]) for image in images]))


def test_texts_are_classified_into_all_classes(stub):
    answer = stub.ClassifyText(pb.ClassifyTextRequest(inputs=["a list", "an exception"]))
    assert [{each.label for each in result.classes} for result in answer.results] == [{"bad", "fair", "good"}] * 2


def test_texts_become_vectors_of_length_one(stub):
    answer = stub.Embed(pb.EmbedRequest(inputs=["a list", "an exception of another length"]))
    assert [np.linalg.norm(each.values) for each in answer.results] == pytest.approx([1, 1], abs=1e-5)


def test_vectors_can_be_packed_into_bytes(stub):
    texts = ["a list", "an exception of another length"]
    floats = stub.Embed(pb.EmbedRequest(inputs=texts, dimensions=5, encoding_format="float")).results
    packed = stub.Embed(pb.EmbedRequest(inputs=texts, dimensions=5, encoding_format="bytes")).results
    for expected, found in zip(floats, packed, strict=True):
        assert struct.unpack("<5f", found.embedding_bytes) == pytest.approx(expected.values, abs=1e-6)
        assert (len(expected.values), len(found.values), expected.embedding_bytes) == (5, 0, b"")
        assert found.tokens == expected.tokens


def test_an_unknown_format_of_vectors_is_refused(stub):
    with pytest.raises(grpc.RpcError) as error:
        stub.Embed(pb.EmbedRequest(inputs=["a"], encoding_format="base64"))
    assert error.value.details() == "encoding_format: found 'base64', expected 'float' or 'bytes'"


def test_the_last_response_of_a_stream_has_the_finish_reason(stub):
    responses = continuation(stub, max_tokens=12, temperature=0, ignore_eos=True)
    assert [response.finish_reason for response in responses] == [""] * (len(responses) - 1) + ["length"]
    assert sum(len(response.token_ids) for response in responses) == 12
    usage = responses[-1].usage
    assert (usage.completion_tokens, usage.prompt_tokens > 0) == (12, True)


def test_a_seed_repeats_a_continuation(stub):
    one, same, other = (
        "".join(response.text for response in continuation(stub, max_tokens=20, seed=seed)) for seed in (1, 1, 2)
    )
    assert one == same != other


def test_the_seed_that_the_server_chooses_is_returned(stub):
    responses = continuation(stub, max_tokens=20)
    assert responses[-1].HasField("seed")
    again = continuation(stub, max_tokens=20, seed=responses[-1].seed)
    assert "".join(response.text for response in again) == "".join(response.text for response in responses)


def test_prompts_of_one_request_run_concurrently(stub):
    prompts = [pb.Prompt(text=text) for text in ("A list is", "The statement", "Attention")]
    fields = {"max_tokens": 40, "temperature": 0.0, "ignore_eos": True}
    together = list(stub.Generate(pb.GenerateRequest(prompts=prompts, **fields)))
    for number, prompt in enumerate(prompts):
        alone = stub.Generate(pb.GenerateRequest(prompts=[prompt], **fields))
        assert [token for response in together if response.index == number for token in response.token_ids] == [
            token for response in alone for token in response.token_ids
        ]


def test_a_prompt_can_be_token_ids(stub):
    prompt = pb.Prompt(token_ids=pb.TokenIds(ids=[5, 6, 7]))
    responses = list(stub.Generate(pb.GenerateRequest(prompts=[prompt], max_tokens=2)))
    assert responses[-1].usage.prompt_tokens == 3


def test_logprobs_are_returned_on_request(stub):
    response = continuation(stub, max_tokens=1, temperature=0, logprobs=3)[0]
    (chosen,) = response.logprobs
    assert len(chosen.top) == 3
    assert chosen.top[0].token == response.token_ids[0]
    assert chosen.top[0].logprob == pytest.approx(chosen.logprob)


def dropped(server):
    """The number of prompts that were cancelled before they had a slot."""
    with urllib.request.urlopen(server.url("/metrics")) as answer:
        samples = re.findall(r"^affinity_dropped_rows_total{(.*)} (.*)$", answer.read().decode(), re.MULTILINE)
    cancelled = ('model="tiny-gpt"', 'reason="cancelled"')
    return sum(float(count) for labels, count in samples if all(label in labels for label in cancelled))


def test_a_cancelled_request_frees_its_place_in_the_queue(server, stub):
    before, prompts = dropped(server), [pb.Prompt(text="A list is")] * 300
    call = stub.Generate(pb.GenerateRequest(prompts=prompts, max_tokens=60, ignore_eos=True))
    next(call)
    call.cancel()
    assert continuation(stub, max_tokens=2)  # its turn would be after all of them
    assert dropped(server) - before > 200


PROMPT = pb.Prompt(text="A list is")
WRONG = {
    "nothing to fill": ("FillMask", pb.FillMaskRequest(), "INVALID_ARGUMENT", "inputs: found nothing"),
    "empty text": ("FillMask", pb.FillMaskRequest(inputs=[TEXT, ""]), "INVALID_ARGUMENT", "inputs[1]: found no [MASK]"),
    "no mask": ("FillMask", pb.FillMaskRequest(inputs=["no"]), "INVALID_ARGUMENT", "inputs[0]: found no [MASK]"),
    "too long": (
        "FillMask",
        pb.FillMaskRequest(inputs=["[MASK]" + " list" * 80]),
        "INVALID_ARGUMENT",
        "tokens, expected at most 64",
    ),
    "top_k": ("FillMask", pb.FillMaskRequest(inputs=[TEXT], top_k=0), "INVALID_ARGUMENT", "top_k: found 0"),
    "unknown model": ("FillMask", pb.FillMaskRequest(model="no", inputs=[TEXT]), "NOT_FOUND", "no"),
    "unknown version": (
        "FillMask",
        pb.FillMaskRequest(model="tiny-bert", model_version="7", inputs=[TEXT]),
        "NOT_FOUND",
        "7",
    ),
    "wrong task": (
        "FillMask",
        pb.FillMaskRequest(model="tiny-gpt", inputs=[TEXT]),
        "FAILED_PRECONDITION",
        "generate",
    ),
    "which of two": (
        "ClassifyImage",
        pb.ClassifyImageRequest(images=[picture()]),
        "INVALID_ARGUMENT",
        "tiny-mixer, tiny-vit",
    ),
    "not an image": (
        "ClassifyImage",
        pb.ClassifyImageRequest(model="tiny-vit", images=[picture(), b"no image"]),
        "INVALID_ARGUMENT",
        "images[1]: found ",
    ),
    "a truncated image": (
        "ClassifyImage",
        pb.ClassifyImageRequest(model="tiny-vit", images=[picture()[:-300]]),
        "INVALID_ARGUMENT",
        "images[0]: found ",
    ),
    "no prompt": ("Generate", pb.GenerateRequest(), "INVALID_ARGUMENT", "prompts: found nothing"),
    "more prompts than the queue can hold": (
        "Generate",
        pb.GenerateRequest(prompts=[pb.Prompt(text="A list")] * 1025),
        "INVALID_ARGUMENT",
        "prompts: found 1025 inputs, expected at most 1024",
    ),
    "empty prompt": ("Generate", pb.GenerateRequest(prompts=[pb.Prompt()]), "INVALID_ARGUMENT", "prompts[0]: found "),
    "millions of token ids": (
        "Generate",
        pb.GenerateRequest(prompts=[pb.Prompt(token_ids=pb.TokenIds(ids=range(2_000_000)))]),
        "INVALID_ARGUMENT",
        "prompts[0]: found 2000000 tokens, expected 1 to 63",
    ),
    "a bias for every token": (
        "Generate",
        pb.GenerateRequest(prompts=[PROMPT], logit_bias=dict.fromkeys(range(50_000), 1.0)),
        "INVALID_ARGUMENT",
        "logit_bias: found 50000 tokens, expected at most 1024",
    ),
    "temperature": (
        "Generate",
        pb.GenerateRequest(prompts=[PROMPT], temperature=-1),
        "INVALID_ARGUMENT",
        "temperature: found -1.0, expected",
    ),
    "a long prompt": (
        "Generate",
        pb.GenerateRequest(prompts=[pb.Prompt(text="A list is" * 40)]),
        "INVALID_ARGUMENT",
        "prompts[0]: found ",
    ),
}


@pytest.mark.parametrize(("method", "request_", "code", "message"), WRONG.values(), ids=WRONG.keys())
def test_an_invalid_request_is_refused_and_the_next_one_works(stub, method, request_, code, message):
    with pytest.raises(grpc.RpcError) as error:
        list(getattr(stub, method)(request_))  # a stream raises its error when it is read
    assert error.value.code().name == code
    assert message in error.value.details()
    assert stub.FillMask(pb.FillMaskRequest(inputs=[TEXT])).results


def test_a_deadline_is_kept(stub):
    request = pb.GenerateRequest(prompts=[PROMPT] * 1000, max_tokens=60, ignore_eos=True)  # 60,000 steps, or seconds
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Generate(request, timeout=0.02))
    ended_or_refused = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert error.value.code() in ended_or_refused  # refused if the request of another test still runs
    assert stub.FillMask(pb.FillMaskRequest(inputs=[TEXT])).results
