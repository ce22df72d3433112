"""Both clients and the command line with a server that has TLS, tokens and small limits."""

import json
import os
import subprocess
import sys

import pytest

from server.client import AsyncClient, CallFailed, Client, Tls
from tests.certificates import Authority, Signed
from tests.server.rpc.affinity.test_servicer import picture
from tests.serving import ROOT, Served, served

TOKEN = "the-secret-of-alice"
SMALL = ["--set", "*.max_request_inputs=9", "--set", "tiny-embedder.max_request_tokens=100", "--max-message-mb", "1"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def own(authority) -> Signed:
    """The certificate of the client."""
    return authority.sign("client")


@pytest.fixture(scope="module")
def secured(artifacts, authority, tmp_path_factory) -> Served:
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"alice: {TOKEN}\n")
    issued = authority.sign("server")
    flags = ["--models", "tiny-embedder,tiny-gpt,tiny-vit", *SMALL, "--auth-tokens", tokens]
    flags += ["--tls-cert", issued.certificate, "--tls-key", issued.key, "--tls-client-ca", authority.certificate]
    with served(artifacts, *flags) as running:
        yield running


@pytest.fixture
def tls(authority, own):
    return Tls(authority.certificate, *own)


@pytest.mark.parametrize("address", ["localhost:{0}", "dns:///localhost:{0}"])
async def test_both_clients_call_a_secured_server(secured, tls, address):
    address, texts = address.format(secured.port), [f"text {n}" for n in range(30)]
    with Client(address, tls=tls, token=TOKEN) as client:
        vectors = client.embed_array(texts)
        assert [part.finish_reason for part in client.generate("A list", max_tokens=5, ignore_eos=True)][-1] == "length"
        assert client.health() == "SERVING"
    async with AsyncClient(address, tls=tls, token=TOKEN) as client:
        assert await client.embed_array(texts) == pytest.approx(vectors, abs=1e-5)
        parts = [part.finish_reason async for part in client.generate("A list", max_tokens=5, ignore_eos=True)]
        assert parts[-1] == "length"


def test_many_inputs_stay_within_the_limits_of_the_server(secured, tls):
    reports = []
    options = {"tls": tls, "token": TOKEN, "on_progress": lambda *report: reports.append(report)}
    with Client(secured_address(secured), **options) as client:
        assert (client.info("tiny-embedder").max_inputs, client.info("tiny-embedder").max_request_tokens) == (9, 100)
        assert client.embed_array(["a list " * 40] * 20, truncate=True).shape == (20, 64)
        assert reports[-1] == (20, 20)
        images = [picture((400, 300), "BMP", seed=n) for n in range(12)]
        assert sum(map(len, images)) > 4 * 2**20
        assert len(client.classify_image(images)) == 12
        with pytest.raises(CallFailed, match=r"images\[7\]: ") as failed:
            client.classify_image([*images[:7], b"no image", *images[8:]])
        assert failed.value.cause.violations[0][0] == "images[7]"


async def test_without_a_token_only_the_health_is_known(secured, tls, monkeypatch):
    monkeypatch.delenv("AFFINITY_TOKEN", raising=False)
    for token in (None, "another"):
        with Client(secured_address(secured), tls=tls, token=token) as client:
            assert client.health() == "SERVING"
            with pytest.raises(CallFailed) as failed:
                client.embed(["a list"], model="tiny-embedder")
        assert (failed.value.code.name, failed.value.cause.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        async with AsyncClient(secured_address(secured), tls=tls, token=token) as other:
            with pytest.raises(CallFailed, match=str(failed.value)):
                await other.generate("a", model="tiny-gpt").__anext__()


def test_the_command_line_has_the_certificates_and_the_token(secured, authority, own, tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    files = ["--tls-ca", authority.certificate, "--tls-cert", own.certificate, "--tls-key", own.key]

    def run(*arguments, **environment):
        command = [sys.executable, "-m", "server.client", "--server", secured_address(secured), *files, *arguments]
        without = {name: value for name, value in os.environ.items() if name != "AFFINITY_TOKEN"}
        return subprocess.run(command, cwd=ROOT, env={**without, **environment}, capture_output=True, text=True)

    for done in (run("models", "--json", AFFINITY_TOKEN=TOKEN), run("models", "--json", "--token-file", file)):
        ready = {model["name"] for model in json.loads(done.stdout) if model["state"] == "READY"}
        assert ready == {"tiny-embedder", "tiny-gpt", "tiny-vit"}
        assert done.stderr == ""
    done = run("models", AFFINITY_TOKEN="another-secret")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("UNAUTHENTICATED: ")
    assert "another-secret" not in done.stderr


def secured_address(secured):
    return f"localhost:{secured.port}"
