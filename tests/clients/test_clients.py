"""Every task through the clients of other servers, if `make test-clients` has made their environments."""

import base64
import json
import subprocess

import grpc
import pytest

from protos.open_inference_pb2 import ModelInferRequest
from tests.clients.cases import CASES
from tests.clients.messages import assert_same, messages_of_kserve, messages_of_mlserver, outputs_for, plain_message
from tests.serving import ROOT

CLIENTS = {
    ".venv-kserve": ("kserve_sdk", messages_of_kserve),
    ".venv-mlserver": ("mlserver_codecs", messages_of_mlserver),
}


@pytest.mark.timeout(900)  # the first import of the SDK reads thousands of files
@pytest.mark.parametrize("environment", CLIENTS)
def test_every_task_answers_real_clients(environment, request):
    program, messages = CLIENTS[environment]
    python = ROOT / environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no {environment} (make test-clients)")
    server = request.getfixturevalue("server")
    command = [python, "-m", f"tests.clients.{program}", server.target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    built = dict(messages())
    assert answers.keys() == built.keys()
    with grpc.insecure_channel(server.target) as channel:
        expected = {case: outputs_for(channel, plain_message(case)) for case in CASES}
    for name, answer in answers.items():
        assert ModelInferRequest.FromString(base64.b64decode(answer["request"])) == built[name], name
        assert_same(answer["outputs"], expected[name.split(",")[0]])
