"""The client's command line, run as a user runs it, against a real server."""

import asyncio
import contextlib
import inspect
import io
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from protos import affinity_pb2 as pb
from server.client import AsyncClient, CallFailed, Client
from server.client.__main__ import main
from server.client.output import flat, to_dict
from server.client.progress import ProgressBar
from tests.certificates import Authority, server_credentials
from tests.server.client.stand_in import StandIn, serving
from tests.server.rpc.affinity.test_servicer import TEXT, picture

ROOT = Path(__file__).parents[3]


def command(server, *arguments):
    return [sys.executable, "-m", "server.client", "--server", getattr(server, "target", server), *map(str, arguments)]


def run(server, *arguments, **options):
    return subprocess.run(command(server, *arguments), cwd=ROOT, capture_output=True, text=True, check=False, **options)


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


def test_the_fields_within_a_field_are_printed_under_its_name():
    tuning = pb.Tuning(source="cache", speedup=1.5, session_options={"an.option": "1"})
    info = pb.ModelInfoResponse(model="bert", labels=["a", "b"], prompts={"query": "Q: "}, tuning=tuning)
    assert dict(flat(to_dict(info))) == {
        "model": "bert",
        "labels": ["a", "b"],
        "prompts.query": "Q: ",
        "tuning.source": "cache",
        "tuning.speedup": 1.5,
        "tuning.session_options.an.option": "1",
    }


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


def test_the_lines_of_a_file_are_texts(server, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"text {n}\r\n" for n in range(200)))
    done = run(server, "embed", "first", "--file", file, "--json")
    assert (len(json.loads(done.stdout)), done.stderr) == (201, "")
    done = run(
        server, "count-tokens", "--file", "-", "--model", "tiny-bert", "--json", input="a list\n\na list and more"
    )
    assert [count - 2 for count in json.loads(done.stdout)["tokens"]] == [2, 0, 5]
    file.write_bytes(b"\xff")
    done = run(server, "embed", "--file", file)
    assert (done.returncode, done.stderr) == (1, f"--file {file}: found b'\\xff', expected UTF-8\n")


def test_a_terminal_shows_the_progress_of_many_texts(server, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("a list\n" * 300)
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 80))
    with open(tmp_path / "vectors.json", "w") as stdout:
        process = subprocess.Popen(
            command(server, "embed", "--file", file, "--json"), cwd=ROOT, stdout=stdout, stderr=stderr
        )
    os.close(stderr)
    shown = b""
    with contextlib.suppress(OSError):  # at the end
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert process.wait(30) == 0
    assert b"/300" in shown
    assert len(json.loads((tmp_path / "vectors.json").read_text())) == 300


@pytest.mark.parametrize("terminal", [True, False])
def test_without_tqdm_progress_is_a_few_lines_on_a_terminal(terminal, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    with ProgressBar(stream) as progress:
        for done in range(64, 6500, 64):
            progress.show(done, 6400)
    lines = stream.getvalue().splitlines()
    assert len(lines) == (10 if terminal else 0)
    assert lines[-1:] == (["(6400 of 6400 inputs)"] if terminal else [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models", "--tls-cert", "some.pem"], "--tls-cert and --tls-key: found one of them, expected both or none"),
        (["--tls-key", "some.key", "models"], "--tls-cert and --tls-key: found one of them, expected both or none"),
        (["embed"], "embed: found no texts, expected at least one, or --file"),
        (["models", "--timeout", "0"], "--timeout: found '0', expected a number of seconds above 0"),
        (["models", "--timeout", "nan"], "--timeout: found 'nan', expected a number of seconds above 0"),
        (["models", "--token", "secret"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_has_the_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--tls-ca", "--token-file", "--file"])
def test_a_missing_file_is_named(option, capsys):
    assert main(["embed", "a", option, "nowhere.pem"]) == 1
    shown = capsys.readouterr().err
    assert "nowhere.pem" in shown
    assert shown.count("\n") == 1


async def test_the_command_line_connects_with_tls_and_a_token_from_a_file(tmp_path):
    authority = Authority(tmp_path)
    stand_in, files = StandIn(), authority.sign("server")
    token = tmp_path / "token"
    token.write_text("a-secret-token\n")
    client, key = authority.sign("client")
    credentials = server_credentials(files, client_ca=authority.certificate)
    async with serving(stand_in, credentials=credentials) as port:
        own = ("--tls-ca", authority.certificate, "--tls-cert", client, "--tls-key", key)
        for before, behind in ((own, ()), ((), own)):
            arguments = (*before, "count-tokens", "abc", "--json", "--token-file", token, *behind)
            done = await asyncio.to_thread(run, f"127.0.0.1:{port}", *arguments)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["tokens"] == [3]
            assert stand_in.metadata[-1]["authorization"] == "Bearer a-secret-token"
        done = await asyncio.to_thread(run, f"127.0.0.1:{port}", "models", "--tls")
        assert done.returncode == 1
        own_line = done.stderr.splitlines()[-1]  # gRPC writes lines about handshakes, too
        assert own_line.startswith(f"UNAVAILABLE: no TLS connection to 127.0.0.1:{port}: ")


def test_a_token_that_leaves_the_machine_without_tls_is_worth_a_note(monkeypatch, capsys):
    monkeypatch.setenv("AFFINITY_TOKEN", "secret")
    assert main(["--server", "203.0.113.1:1", "models", "--timeout", "0.01"]) == 1
    assert "the token is sent without TLS" in capsys.readouterr().err
    assert main(["--server", "127.0.0.1:1", "models", "--timeout", "0.01"]) == 1
    assert "TLS" not in capsys.readouterr().err


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


async def test_both_clients_return_the_same(server):
    texts, image = ["a list", "an exception"], picture()
    calls = {
        "fill_mask": (([TEXT],), {"top_k": 2}),
        "classify_image": (([image],), {"model": "tiny-vit"}),
        "classify_text": ((texts,), {"text_pairs": texts}),
        "embed": ((texts,), {"dimensions": 3, "normalize": False}),
        "count_tokens": ((texts,), {"model": "tiny-gpt"}),
        "info": (("tiny-bert",), {}),
        "models": ((), {}),
        "choose": (("generate",), {}),
        "candidates": (("classify-image",), {}),
        "health": ((), {}),
    }
    with Client(server.target) as sync:
        async with AsyncClient(server.target) as client:
            for method, (arguments, options) in calls.items():
                found = await getattr(client, method)(*arguments, **options)
                assert found == await asyncio.to_thread(getattr(sync, method), *arguments, **options)
            assert (await client.embed_array(texts)).tolist() == await client.embed(texts)
            texts = [part.text async for part in client.generate("A list is", max_tokens=9, seed=1)]
            assert "".join(texts) == "".join(part.text for part in sync.generate("A list is", max_tokens=9, seed=1))


def test_the_clients_have_the_same_methods_with_documentation():
    def described(client):
        public = (getattr(client, name) for name in dir(client) if not name.startswith("_"))
        return {each.__name__: inspect.signature(each).parameters for each in public if each.__name__ != "close"}

    assert described(Client) == described(AsyncClient)
    assert "generate" in described(Client)
    assert all(getattr(Client, name).__doc__ for name in described(Client))
    assert inspect.signature(Client.embed).return_annotation == list[list[float]]
