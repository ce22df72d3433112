"""The client's command line, run as a user runs it, against a real server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.client import CallFailed, Client
from tests.server.rpc.affinity.test_servicer import TEXT, picture

ROOT = Path(__file__).parents[3]


def run(server, *arguments):
    command = [sys.executable, "-m", "server.client", "--server", getattr(server, "target", server), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def output(server, *arguments):
    done = run(server, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def image(tmp_path):
    file = tmp_path / "some.png"
    file.write_bytes(picture())
    return file


def test_fill_mask_prints_the_likeliest_words(server):
    lines = output(server, "fill-mask", TEXT, "--top-k", "3").splitlines()
    assert lines[0] == TEXT
    scores = [float(line.split()[0]) for line in lines[1:]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_generate_prints_the_text_and_the_seed_that_repeats_it(server):
    done = run(server, "generate", "A list is", "--max-tokens", "12", "--temperature", "0.5", "--top-p", "0.9")
    assert done.stdout.startswith("A list is")
    assert "tokens in" in done.stderr
    seed = done.stderr.rpartition("seed ")[2].strip(")\n")
    again = run(
        server, "generate", "A list is", "--max-tokens", "12", "--temperature", "0.5", "--top-p", "0.9", "--seed", seed
    )
    assert again.stdout == done.stdout


def test_the_first_of_several_models_is_used_with_a_note(server, image):
    done = run(server, "classify-image", str(image))
    assert done.stdout.splitlines()[0] == str(image)
    assert "using tiny-mixer; choose another with --model: tiny-vit" in done.stderr
    assert not run(server, "classify-image", str(image), "--model", "tiny-vit").stderr


def test_texts_are_classified_and_embedded(server):
    assert {line.split()[-1] for line in output(server, "classify-text", "a list").splitlines()[1:]} == {
        "bad",
        "fair",
        "good",
    }
    assert "64 values" in output(server, "embed", "a list")


def test_options_of_requests_are_flags(server):
    lines = output(server, "fill-mask", TEXT, "--target", "list", "--target", "set").splitlines()
    assert {line.split()[1] for line in lines[1:]} == {"list", "set"}
    paired = output(
        server, "classify-text", "a list", "--pair", "or a set", "--function-to-apply", "none", "--top-k", "1"
    )
    assert paired.splitlines()[0] == "a list  +  or a set"
    assert "16 values" in output(server, "embed", "a list", "--dimensions", "16", "--no-normalize")
    truncated = run(server, "fill-mask", TEXT + " list" * 80, "--truncate")
    assert truncated.returncode == 0
    assert "(truncated to 64 tokens: The [MASK]" in truncated.stderr


def test_tokens_are_counted_and_limits_printed(server):
    done = run(server, "count-tokens", "a list", "a list and more", "--model", "tiny-classifier")
    counts = [int(line.split()[0]) for line in done.stdout.splitlines()]
    assert len(counts) == 2
    assert counts[0] < counts[1]
    assert done.stderr == "(tiny-classifier accepts at most 64 tokens)\n"
    facts = dict(line.split(maxsplit=1) for line in output(server, "info", "tiny-vit").splitlines())
    assert (facts["task"], facts["image_height"]) == ("classify-image", "32")
    assert json.loads(output(server, "info", "tiny-classifier", "--json"))["labels"] == ["bad", "fair", "good"]


def test_models_are_listed_with_their_tasks(server):
    rows = [line.split() for line in output(server, "models").splitlines()]
    assert ["tiny-gpt", "1", "READY", "generate", "cpu", "fp32"] in rows


def test_health_is_an_exit_status(server):
    assert output(server, "health") == "SERVING\n"
    assert output(server, "health", "model/tiny-bert") == "SERVING\n"
    assert run(server, "health", "model/missing").returncode == 1


def test_every_command_prints_json(server, image):
    assert json.loads(output(server, "fill-mask", TEXT, "--json"))[0]["masks"][0]["candidates"][0]["token_str"]
    assert len(json.loads(output(server, "embed", "a", "b", "--json"))) == 2
    assert json.loads(output(server, "classify-image", str(image), "--json"))[0]["classes"]
    assert {model["name"] for model in json.loads(output(server, "models", "--json"))} >= {"tiny-bert", "tiny-gpt"}
    lines = output(server, "generate", "A list", "--max-tokens", "3", "--json").splitlines()
    assert json.loads(lines[-1])["finish_reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fill-mask", "no mask"], "INVALID_ARGUMENT: inputs[0]: found no [MASK]"),
        (["fill-mask", TEXT, "--model", "missing"], "NOT_FOUND: "),
        (["fill-mask", TEXT, "--model", "tiny-gpt"], "FAILED_PRECONDITION: "),
        (["classify-image", "nowhere.png"], "nowhere.png"),
        (["generate", "A list", "--max-tokens", "0"], "INVALID_ARGUMENT: max_tokens: found 0, expected at least 1"),
    ],
)
def test_an_error_is_one_line(server, arguments, message):
    done = run(server, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_error_for_a_missing_server_says_how_to_start_one():
    done = run("127.0.0.1:1", "models")
    assert done.returncode == 1
    assert done.stderr == "no server answers at 127.0.0.1:1; start one with: make serve  (or: python -m server)\n"


# ---- the library


def test_the_library_returns_messages(server):
    with Client(server.target) as client:
        assert client.fill_mask([TEXT], top_k=2)[0].masks[0].candidates[1].score > 0
        assert "".join(response.text for response in client.generate("A list is", max_tokens=5, seed=1))
        assert len(client.classify_image([picture()], model="tiny-vit")[0].classes) == 5
        assert len(client.embed(["a"])[0]) == 64
        assert len(client.embed(["a"], dimensions=3, normalize=False)[0]) == 3
        assert client.classify_text(["a"], text_pairs=["b"], function_to_apply="sigmoid")[0].classes
        assert client.count_tokens(["a list"], model="tiny-gpt").tokens[0] > 0
        assert client.info("tiny-bert").mask_token == "[MASK]"
        assert client.health() == "SERVING"
        with pytest.raises(CallFailed, match="found no") as error:
            client.fill_mask(["no mask"])
        assert error.value.code.name == "INVALID_ARGUMENT"
