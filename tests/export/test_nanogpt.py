"""nanoGPT's `ckpt.pt`, from the file that its training script writes to text over gRPC."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
from tokenizers import Tokenizer

from export.__main__ import main
from export.errors import ExportError
from export.inputs.text import characters
from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from tests import nanogpt
from tests.serving import served

PROMPT = "To be, or not\nto be?"
STEPS = 12


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> tuple[nanogpt.NanoGpt, Path]:
    """A model without biases that was compiled and reads letters, and the file it was saved to."""
    directory = tmp_path_factory.mktemp("nanogpt") / "out-shakespeare-char"
    directory.mkdir()
    model = nanogpt.random_model()
    arguments = {**nanogpt.SIZES, "vocab_size": len(nanogpt.CHARACTERS)}
    nanogpt.save(directory / "ckpt.pt", model, arguments, prefix="_orig_mod.")
    nanogpt.save_meta(directory / "meta.pkl")
    return model, directory / "ckpt.pt"


@pytest.fixture(scope="module")
def words(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[nanogpt.NanoGpt, Path]:
    """One with biases that reads words, of which its vocabulary has more than its tokenizer: a multiple of 64."""
    path = tmp_path_factory.mktemp("nanogpt") / "gpt2-padded.pt"
    arguments = {**nanogpt.SIZES, "vocab_size": 448, "bias": True}
    model = nanogpt.random_model(**arguments)
    nanogpt.save(path, model, arguments)
    return model, path


@pytest.fixture(scope="module")
def artifacts(letters: tuple, words: tuple, checkpoints: dict[str, Path], tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("artifacts")
    command = ["--artifacts", str(root), "--target", "cpu"]
    assert main([str(letters[1]), *command]) == 0
    assert main([str(words[1]), *command, "--tokenizer", str(checkpoints["gpt"])]) == 0
    return root


@pytest.fixture(scope="module")
def stub(artifacts: Path) -> Iterator[AffinityStub]:
    with served(artifacts) as running, grpc.insecure_channel(running.target) as channel:
        yield AffinityStub(channel)


def written(stub: AffinityStub, model: str, prompt: str) -> tuple[str, list[int]]:
    """The likeliest continuation."""
    prompts = [pb.Prompt(text=prompt)]
    request = pb.GenerateRequest(model=model, prompts=prompts, max_tokens=STEPS, temperature=0, ignore_eos=True)
    pieces = list(stub.Generate(request))
    return "".join(piece.text for piece in pieces), [token for piece in pieces for token in piece.token_ids]


def continued(model: nanogpt.NanoGpt, ids: list[int]) -> list[int]:
    """What nanoGPT would write."""
    text = torch.tensor([ids])
    with torch.no_grad():
        for _ in range(STEPS):
            text = torch.cat([text, model(text)[:, -1:].argmax(dim=-1)], dim=1)
    return text[0, len(ids) :].tolist()


def test_characters_are_generated_as_by_nanogpt(letters: tuple, stub: AffinityStub) -> None:
    numbers = {letter: n for n, letter in enumerate(nanogpt.CHARACTERS)}
    expected = continued(letters[0], [numbers[letter] for letter in PROMPT])
    text = "".join(nanogpt.CHARACTERS[number] for number in expected)
    assert written(stub, "out-shakespeare-char", PROMPT) == (text, expected)


def test_tokens_are_generated_as_by_nanogpt(words: tuple, checkpoints: dict[str, Path], stub: AffinityStub) -> None:
    ids = Tokenizer.from_file(str(checkpoints["gpt"] / "tokenizer.json")).encode("A list is").ids
    assert written(stub, "gpt2-padded", "A list is")[1] == continued(words[0], ids)


def test_an_unknown_character_is_refused(stub: AffinityStub) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        written(stub, "out-shakespeare-char", "naïve")
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "prompts[0]: found a character that the tokenizer has no token for" in refused.value.details()


def test_the_manifest_takes_the_context_from_the_checkpoint(artifacts: Path) -> None:
    manifest = json.loads((artifacts / "out-shakespeare-char/1/manifest.json").read_text())
    assert (manifest["architecture"], manifest["task"], manifest["cache"]["head_width"]) == ("gpt", "generate", 16)
    sizes = {"vocabulary": 61, "max_length": 32}
    assert manifest["text"] == {"tokenizer": "tokenizer.json", "truncation_side": "right"} | sizes
    golden = json.loads((artifacts / "out-shakespeare-char/1/golden_texts.json").read_text())["texts"]
    assert len(golden) >= 16
    letters = "".join(text.get("text", "") for text in golden)
    assert set(letters) == set(nanogpt.CHARACTERS)


def test_the_tokenizer_must_be_that_of_the_model(export, letters: tuple, checkpoints: dict[str, Path]) -> None:
    outcome = export(letters[1], "--tokenizer", checkpoints["gpt"])
    assert "tokenizer: found token ids up to 399, expected less than the model's 61" in outcome.complained


def test_the_characters_must_be_the_models_vocabulary(export, words: tuple, letters: tuple) -> None:
    outcome = export(words[1], "--tokenizer", letters[1].with_name("meta.pkl"))
    assert "meta.pkl: found 61 characters, expected the model's 448" in outcome.complained


def test_an_unknown_character_in_an_evaluation_file_is_refused(export, letters: tuple, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("naïve")
    outcome = export(letters[1], "--evaluate", tmp_path / "mine.txt")
    assert outcome.status == 1
    assert "mine.txt: found a character that the tokenizer has no token for" in outcome.complained


@pytest.mark.parametrize(
    ("biases", "said"), [(True, "guessed: the exact GELU, as"), (False, "guessed: GELU by tanh, because")]
)
def test_the_guessed_gelu_is_reported(
    biases: bool, said: str, export, words: tuple, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    saved = torch.load(words[1], weights_only=True)
    if not biases:
        del saved["model_args"]["bias"]
    torch.save(saved, tmp_path / "model.pt")
    outcome = export(tmp_path / "model.pt", "--tokenizer", checkpoints["gpt"], "--target", "cpu")
    assert said in outcome.said
    assert outcome.status == 0, outcome.complained


class Malicious:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('the code of a pickle was run')",))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (
            {"stoi": {"a": 0}, "extra": Malicious()},
            r"no pickle of plain values \(it imports builtins.exec\).* not run",
        ),
        ({"vocab_size": 65}, "found no stoi, expected a dictionary from each character to its number"),
        ({"stoi": {"ab": 0}}, "found no stoi, expected a dictionary from each character"),
        ({"stoi": {"a": "b"}}, "found no stoi"),
        ([1], "found no stoi"),
    ],
)
def test_a_pickle_of_characters_has_plain_values_only(meta: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    with pytest.raises(ExportError, match=message):
        characters.read(tmp_path / "meta.pkl")


def test_a_broken_pickle_of_characters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "meta.pkl").write_bytes(b"letters")
    with pytest.raises(ExportError, match="found no pickle of plain values"):
        characters.read(tmp_path / "meta.pkl")


def test_a_checkpoint_with_code_is_refused(export, letters: tuple, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    torch.save({"model": {}, "model_args": Malicious()}, path)
    nanogpt.save_meta(tmp_path / "meta.pkl")
    outcome = export(path)
    assert outcome.status == 1
    assert "found a pickle that imports" in outcome.complained
