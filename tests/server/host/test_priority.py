"""The priority of the threads that compute."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.host.priority import STEPS, yield_to_event_loop

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads exist on Linux only")


def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def lowest(own):
    return min(own + STEPS, 19)


def test_a_thread_and_those_that_it_starts_yield_to_the_others():
    own = niceness()
    with ThreadPoolExecutor(1, initializer=yield_to_event_loop) as pool:
        assert pool.submit(niceness).result() == lowest(own)
        with pool.submit(ThreadPoolExecutor, 1).result() as inner:
            assert pool.submit(lambda: inner.submit(niceness).result()).result() == lowest(own)
    assert niceness() == own


def test_only_the_threads_that_compute_have_a_lower_priority(server):
    threads = [int(name) for name in os.listdir(f"/proc/{server.process.pid}/task")]
    found = {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
    assert found[server.process.pid] == niceness()  # the event loop runs in the main thread
    assert max(found.values()) == lowest(niceness())
