"""Prompts of embedders: the default prompt precedes each text, and a request can select another one or none."""

import numpy as np
import pytest
import tritonclient.grpc as triton
from sentence_transformers import SentenceTransformer

from server.admission.queue import RequestContext
from server.artifact import Artifact, read_artifact
from server.client import Client
from server.client.__main__ import main
from server.errors import InvalidRequest
from server.text.tokenizer import TextEncoder
from tests.checkpoints import PROMPTS

pytestmark = pytest.mark.asyncio(loop_scope="module")
TEXTS = ["a list", "The statement RAISES an exception."]
PROMPTED = [PROMPTS["passage"] + text for text in TEXTS]


@pytest.fixture(scope="module")
def encoder(exported):
    """As if the embedder's prompt for passages were its default one."""
    artifact = read_artifact(exported("tiny-embedder"))
    artifact.manifest.text.default_prompt_name = "passage"
    return TextEncoder(Artifact(artifact.directory, artifact.manifest))


async def test_vectors_are_those_of_sentence_transformers_with_any_prompt(tiny_checkpoints, repository):
    reference = SentenceTransformer(str(tiny_checkpoints["tiny-embedder"]), device="cpu")
    for name in (None, "passage", "query", "document"):
        found = await repository.get("tiny-embedder").task(TEXTS, prompt_name=name, context=RequestContext())
        assert found.vectors == pytest.approx(reference.encode(TEXTS, prompt_name=name), abs=1e-5)


async def test_a_request_names_another_prompt_than_the_default_or_none(encoder):
    def ids(texts, name):
        return [tokens.input_ids.tolist() for tokens in encoder.encode(texts, prompt_name=name)]

    assert ids(TEXTS, None) == ids(TEXTS, "passage") == ids(PROMPTED, "") == ids(PROMPTED, "document")
    assert ids(TEXTS, "") != ids(TEXTS, None)


async def test_the_tokens_of_the_prompt_are_counted(encoder):
    def count(name):
        return encoder.count(TEXTS, prompt_name=name, field="inputs", pair_field="text_pairs")

    assert count(None) == count("passage") == [len(tokens) for tokens in encoder.encode(PROMPTED, prompt_name="")]
    assert count("") < count(None)


async def test_a_prompt_stands_before_the_first_text_of_a_pair(encoder):
    (found,) = encoder.encode(TEXTS[:1], ["a set"])
    (expected,) = encoder.encode(PROMPTED[:1], ["a set"], prompt_name="")
    assert found.input_ids.tolist() == expected.input_ids.tolist()


async def test_prompts_that_are_not_there_are_refused_with_those_that_are(encoder, exported):
    known = "'title', expected one of 'document', 'passage', 'query', or '' for no prompt"
    with pytest.raises(InvalidRequest, match=f"prompt_name: found {known}"):
        encoder.encode(TEXTS, prompt_name="title")
    with pytest.raises(InvalidRequest, match="prompt_name: found 'query', expected none: the model has no prompts"):
        TextEncoder(read_artifact(exported("tiny-bert"))).encode(TEXTS, prompt_name="query")


async def test_both_services_and_the_client_accept_the_name_of_a_prompt(server, capsys):
    with Client(server.target) as client:
        expected = client.embed(PROMPTED, model="tiny-embedder")
        assert client.embed(TEXTS, model="tiny-embedder", prompt_name="passage") == expected
        counted = client.count_tokens(PROMPTED, model="tiny-embedder").tokens
        assert client.count_tokens(TEXTS, model="tiny-embedder", prompt_name="passage").tokens == counted
        assert client.info("tiny-embedder").prompts == {**PROMPTS, "document": ""}
    text = triton.InferInput("text", [2], "BYTES").set_data_from_numpy(np.array([t.encode() for t in TEXTS], object))
    with triton.InferenceServerClient(server.target) as other:
        answer = other.infer("tiny-embedder", [text], parameters={"prompt_name": "passage"})
    assert answer.as_numpy("embedding") == pytest.approx(np.array(expected), abs=1e-6)
    command = ["embed", "--server", server.target, "--model", "tiny-embedder", "--prompt-name", "passage", "a list"]
    assert main(command) == 0
    shown = " ".join(f"{value:+.4f}" for value in expected[0][:4])
    assert shown in capsys.readouterr().out
