"""A read-write lock: many threads read, one writes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from server.runtime.capture_lock import CAPTURE_LOCK, CaptureLock, cuda_read_lock

PATIENCE_S = 60


@pytest.fixture
def captures():
    return CaptureLock()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(6) as pool:
        yield pool


def test_many_threads_read_at_once(captures, pool):
    together = threading.Barrier(6, timeout=PATIENCE_S)

    def share():
        with captures.read():
            together.wait()

    for done in [pool.submit(share) for _ in range(6)]:
        done.result(PATIENCE_S)


def test_a_writer_excludes_all_other_threads(captures, pool):
    sharing, capturing = [], []

    def work(seed):
        random = Random(seed)
        for _ in range(300):
            if random.random() < 0.2:
                with captures.write():
                    assert (sharing, capturing) == ([], [])
                    capturing.append(seed)
                    with captures.read():
                        assert (sharing, capturing.pop()) == ([], seed)
            else:
                with captures.read():
                    sharing.append(seed)
                    assert capturing == []
                    sharing.remove(seed)

    for done in [pool.submit(work, seed) for seed in range(6)]:
        done.result(PATIENCE_S)


def test_a_reader_may_read_again_while_a_writer_waits(captures, pool):
    wanted = threading.Event()

    class Waits(threading.Condition):
        def wait(self, timeout=None):
            wanted.set()
            return super().wait(timeout)

    def capture():
        with captures.write():
            pass

    captures._changed = Waits()
    with captures.read():
        capturing = pool.submit(capture)
        assert wanted.wait(PATIENCE_S)
        with captures.read():
            assert not capturing.done()
    capturing.result(PATIENCE_S)


def test_an_error_releases_the_lock(captures):
    for enter in (captures.write, captures.read, captures.write):
        with pytest.raises(RuntimeError), enter():
            raise RuntimeError


def test_runs_on_a_cpu_do_not_wait(pool):
    def run():
        with cuda_read_lock("cpu"):
            return "done"

    with CAPTURE_LOCK.write():
        assert pool.submit(run).result(PATIENCE_S) == "done"
