"""`python -m tests.bench.rolling` works, with tiny models and one deploy of each kind."""

import re
import shutil
import subprocess
import sys

from tests.serving import ROOT


def test_no_call_fails_in_a_rolling_restart_and_a_new_version(artifacts, tmp_path) -> None:
    for name in ("tiny-bert", "tiny-gpt"):
        shutil.copytree(artifacts / name, tmp_path / name)
    command = [sys.executable, "-m", "tests.bench.rolling", "--artifacts", tmp_path]
    command += ["--restarts", "1", "--versions", "1", "--calls", "200"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.findall(r"^.+: ([\d,]+) calls answered \(.*\), (\d+) failed", done.stdout, re.MULTILINE)
    assert len(counts) == 2, done.stdout
    assert all(int(answered.replace(",", "")) >= 200 and failed == "0" for answered, failed in counts)
