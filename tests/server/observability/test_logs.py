"""Every line of a JSON log is one JSON object, whichever code wrote it, and up to a crash none is lost."""

import json
import logging
import os
import subprocess
import sys
import textwrap

import pytest

from server.host.standard_files import Output
from server.observability.logs import Json, LineHandler
from server.observability.native_lines import record_of
from tests.serving import ROOT

PATIENCE_S = 60
PIPE_BYTES = 1 << 20  # more than any process here writes: no line is lost while the machine is busy
BEGIN = """
import logging, os, sys, threading, warnings
from server.host.standard_files import STDERR
from server.observability import logs, native_lines

log = logging.getLogger("server")
logs.configure("info", "json")
with native_lines.as_json(STDERR):
"""


def lines_of(code, before=""):
    """The exit status and the objects that a process writes to stderr."""
    program = BEGIN.replace("with native", f"{before}\nwith native") + textwrap.indent(textwrap.dedent(code), "    ")
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, pipesize=PIPE_BYTES, timeout=PATIENCE_S, check=False)
    lines = [json.loads(line) for line in done.stderr.decode().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    return done.returncode, lines


def messages(lines):
    return [line["message"] for line in lines]


def test_lines_of_native_code_become_objects():
    code, lines = lines_of(r"""
    os.write(2, b"from native code\n\nin parts, ")
    os.write(2, b"and \xff without an end")
    """)
    assert code == 0
    assert messages(lines) == ["from native code", "in parts, and \ufffd without an end"]
    assert {line["logger"] for line in lines} == {"stderr"}


@pytest.mark.parametrize(
    "end", ["os.abort()", "os.kill(os.getpid(), 9)", "os._exit(7)", "import ctypes; ctypes.string_at(0)"]
)
def test_lines_before_a_crash_are_not_lost(end):
    code, lines = lines_of(f"""
    for number in range(2000):
        os.write(2, b"native %d\\n" % number)
        log.info("own %d", number)
    os.write(2, b"the last")
    {end}
    """)
    assert code != 0
    assert messages(lines).count("the last") == 1
    for kind in ("native", "own"):
        assert [text for text in messages(lines) if text.startswith(kind)] == [f"{kind} {n}" for n in range(2000)]


def test_lines_at_the_very_end_become_objects():
    code, lines = lines_of("""
    import atexit
    atexit.register(os.write, 2, b"at exit")
    os.write(2, b"before, ")
    """)
    assert code == 0
    assert messages(lines) == ["before, ", "at exit"]


def test_lines_written_before_the_end_are_there_when_it_comes():
    read, write = os.pipe()
    program = BEGIN + "    os.write(2, b'a line')\nos.write(int(sys.argv[1]), b'left')\nsys.stdin.read()"
    command = [sys.executable, "-c", program, str(write)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[write]
    ) as process:
        assert os.read(read, 4) == b"left"
        os.set_blocking(process.stderr.fileno(), False)
        assert json.loads(process.stderr.read())["message"] == "a line"
        process.stdin.close()
    os.close(read)
    os.close(write)


def test_a_process_that_does_not_start_is_a_warning(tmp_path):
    code, lines = lines_of("pass", before=f"sys.executable = {str(tmp_path / 'nothing')!r}")
    assert code == 0
    [line] = lines
    assert line["message"].startswith("lines of native code will not be JSON")


def test_long_lines_of_both_kinds_stay_whole():
    code, lines = lines_of("""
    def native():
        for number in range(9):
            os.write(2, b"n" * 20_000 + b"\\n")
    thread = threading.Thread(target=native)
    thread.start()
    for number in range(9):
        log.info("o" * 20_000)
    thread.join()
    """)
    assert code == 0
    assert sorted(messages(lines)) == ["n" * 20_000] * 9 + ["o" * 20_000] * 9


def test_warnings_and_exceptions_of_python_become_objects():
    code, lines = lines_of("""
    warnings.warn("be careful", RuntimeWarning)
    class Fragile:
        def __del__(self):
            raise ValueError("in a finaliser")
    Fragile()
    def fail():
        raise ValueError("in a thread")
    thread = threading.Thread(target=fail, name="worker")
    thread.start()
    thread.join()
    logging.getLogger("asyncio").error("of a library")
    logging.getLogger("other").info("of no interest")
    log.info("%d", "not a number")
    print("on stderr", file=sys.stderr)
    raise ValueError("in the main thread")
    """)
    assert code == 1
    found = " ".join(messages(lines))
    for text in ("RuntimeWarning: be careful", "the thread worker", "of a library", "on stderr"):
        assert text in found
    assert "of no interest" not in found
    tracebacks = " ".join(line.get("traceback", "") for line in lines)
    for text in ("ValueError: in a finaliser", "ValueError: in a thread"):
        assert text in tracebacks
    assert "ValueError: in the main thread" in tracebacks + found


@pytest.mark.parametrize(
    ("line", "logger", "level"),
    [
        ("E0000 00:00:1764129000.123456   12345 chttp2_transport.cc:1182] GOAWAY", "grpc", "ERROR"),
        ("I1126 04:00:00.123456 12 server.cc:9] started", "grpc", "INFO"),
        (
            "\x1b[0;93m2026-11-26 04:00:00.12 [W:onnxruntime:Default, file.cc:164 F] text\x1b[m",
            "onnxruntime",
            "WARNING",
        ),
        ("2026-11-26 04:00:00.12 [E:onnxruntime:, file.cc:1 F] text", "onnxruntime", "ERROR"),
        ("free(): invalid pointer", "stderr", "WARNING"),
        ("Error: something", "stderr", "WARNING"),
    ],
)
def test_lines_keep_the_level_that_they_state(line, logger, level):
    record = record_of(line)
    assert (record.name, record.levelname) == (logger, level)
    assert "\x1b" not in record.getMessage()


def test_lost_lines_are_counted():
    read, write = os.pipe()
    handler = LineHandler(Output(write), Json())
    record = logging.LogRecord("server", logging.INFO, "", 0, "x" * 3000, None, None)
    written = 0
    while not handler.lost:
        handler.emit(record)
        written += 1
    handler.emit(record)
    received = b""
    while received.count(b"\n") < written - 1:
        received += os.read(read, 1 << 16)
    handler.emit(record)
    received += os.read(read, 1 << 16)
    os.close(read)
    os.close(write)
    report, line = map(json.loads, received.splitlines()[-2:])
    assert report["message"] == "2 lines before this one were lost: stderr could not be written"
    assert line["message"] == "x" * 3000
    assert handler.lost == 0


def test_grpc_quotes_no_header_that_is_not_utf8():
    """A header with an invalid byte can have a token, and any client could fill the log with them."""
    status, lines = lines_of(
        """
        import grpc, socket
        from concurrent.futures import ThreadPoolExecutor
        from tests.frames import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, FrameReader, frame

        def field(name, value):  # RFC 7541, 6.2.2
            return bytes((0, len(name))) + name + bytes((len(value),)) + value

        server = grpc.server(ThreadPoolExecutor(1))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        block = b"".join(
            field(name, value)
            for name, value in (
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", b"/a/b"),
                (b":authority", b"x"),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"authorization", b"Bearer s3cret\\xff"),
            )
        )
        answers = []
        reader = FrameReader(lambda kind, flags, payload: answers.append(kind))
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(30)
            client.sendall(PREFACE + frame(SETTINGS) + frame(HEADERS, block, flags=END_HEADERS, stream=1))
            client.sendall(frame(DATA, bytes(5), flags=END_STREAM, stream=1))
            while HEADERS not in answers:
                reader.feed(client.recv(1 << 16))
        server.stop(0).wait()
        log.info("answered")
        """
    )
    assert status == 0
    assert [line["message"] for line in lines] == ["answered"]


def test_grpc_reports_no_cancelled_call_as_a_fault():
    """A call that is cancelled before its task has run, as at a stop."""
    code, lines = lines_of("""
    import asyncio
    for error in (asyncio.CancelledError(), ValueError("a fault")):
        try:
            raise error
        except BaseException:
            logging.getLogger(logs.GRPC).exception("Exception not handled in servicer method [/M]")
    """)
    assert code == 0
    assert ["a fault" in line["traceback"] for line in lines] == [True]
