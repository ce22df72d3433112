"""Output goes to where it can go, and what cannot be written neither stops nor hangs a process."""

import os
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from server.host.standard_files import Output
from tests.serving import ROOT

PATIENCE_S = 60


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    for descriptor in (read, write):
        with suppress(OSError):
            os.close(descriptor)


def test_text_is_written_whole_and_in_any_characters(pipe):
    assert Output(pipe[1]).write("größer \udc80\n")
    assert os.read(pipe[0], 100) == "größer \\udc80\n".encode()


def test_long_text_waits_for_its_reader(pipe):
    text = "x" * 1_000_000
    received = []

    def read_all():
        while len(b"".join(received)) < len(text):
            received.append(os.read(pipe[0], 1 << 16))

    reader = threading.Thread(target=read_all)
    reader.start()
    assert Output(pipe[1], patience_ms=PATIENCE_S * 1000).write(text)
    reader.join()
    assert b"".join(received) == text.encode()


def test_lines_that_no_process_reads_are_lost_until_one_does(pipe):
    output, line = Output(pipe[1]), "x" * 999 + "\n"
    written = 0
    while output.write(line):
        written += 1
    assert not output.write(line)
    received = b""
    while len(received) < written * len(line):
        received += os.read(pipe[0], 1 << 16)
    assert output.write("again\n")
    assert os.read(pipe[0], 1 << 16).endswith(b"again\n")


@pytest.mark.parametrize("kind", ["closed", "full", "no reader"])
def test_output_that_cannot_be_written_is_lost(kind, pipe):
    if kind == "closed":
        os.close(pipe[1])
        assert not Output(pipe[1]).write("x\n")
    elif kind == "full":
        with open("/dev/full", "wb") as full:
            assert not Output(full.fileno()).write("x\n")
    else:
        os.close(pipe[0])
        assert not Output(pipe[1]).write("x\n")


COMMANDS = [
    ["server", "--help"],
    ["server.client", "health", "--server", "127.0.0.1:1"],
    ["export", "--list"],
    ["export", "--help"],
    ["export", "nowhere/nothing/at/all"],
]


def shell(command, redirected):
    line = " ".join([sys.executable, "-m", *command, redirected])
    return subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("redirected", ["| head -c 1", "2>&1 | true", "> /dev/full", "<&- >&- 2>&-"])
def test_commands_end_without_a_traceback_whatever_their_output_is(command, redirected):
    done = shell(command, redirected)
    assert done.returncode in (0, 1, 2)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "Broken" not in done.stderr
    if redirected == "> /dev/full" and "--list" in command:
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "standard output: No space left on device" in done.stderr
