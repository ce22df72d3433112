"""`python -m tests.bench.soak` works, with tiny models of every task for some seconds."""

import re
import subprocess
import sys

import pytest

from tests.bench.soak.calls import same
from tests.serving import ROOT

KINDS = ("fill-mask", "classify-text", "classify-image", "embed", "raw tensors")
KINDS += ("generate, streamed", "generate, whole", "generate, ModelStreamInfer")
DISTURBANCES = ("reload", "bad input", "tiny-gpt: cancels", "tiny-gpt: dies", "tiny-gpt: reads late")


@pytest.mark.large  # on a machine with other work calls may end as CANCELLED, which the soak counts as faults
def test_every_answer_of_a_disturbed_server_is_right(artifacts) -> None:
    command = [sys.executable, "-m", "tests.bench.soak", "--seconds", "6", "--artifacts", artifacts, "--threads", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wrong answers: 0; other faults: 0" in done.stdout
    right = dict(re.findall(r"^\| ([^|]+) \| (\d+) \|", done.stdout, re.MULTILINE))
    assert right.keys() >= {*KINDS, *DISTURBANCES}
    assert sum(map(int, right.values())) > 0
    measures = re.findall(r"^\| [13] × \| ([a-zA-Z, -]+) \|", done.stdout, re.MULTILINE)
    assert measures == ["memory, MB", "threads", "descriptors", "event-loop lag, ms"] * 2


def test_a_wrong_answer_is_found() -> None:
    assert same([{3: 0.5, 7: 0.25}], [{3: 0.5001, 7: 0.25}])
    assert same([{3: 0.5, 8: 0.25}], [{3: 0.5, 7: 0.25}])  # two candidates with the same score
    assert not same([{3: 0.5, 7: 0.25}], [{3: 0.6, 7: 0.25}])
    assert not same([{3: 0.5}], [{3: 0.5, 7: 0.25}])
    assert not same([[1, 2, 3]], [[1, 2, 4]])
    assert not same(b"a list", b"a set")
