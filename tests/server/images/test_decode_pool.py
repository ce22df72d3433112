"""The decode pool keeps its memory limit, also when callers are cancelled, and delays no other work."""

import asyncio
import threading

import pytest

from server.images.decode_pool import DecodePool

SECONDS = 30  # after which a test that hangs has failed


class Works:
    """Jobs that run in threads until the test ends them."""

    def __init__(self, pool):
        self.pool, self.most, self.running = pool, 0, set()
        self._lock, self._begun, self._ends = threading.Lock(), {}, {}

    def start(self, name, decoding_bytes):
        """A task that waits for the job."""
        self._begun[name], self._ends[name] = threading.Event(), threading.Event()
        return asyncio.create_task(self.pool.run(lambda: self._work(name), decoding_bytes=decoding_bytes))

    async def begun(self, name):
        assert await asyncio.to_thread(self._begun[name].wait, SECONDS)

    def end(self, *names):
        for name in names:
            self._ends[name].set()

    def _work(self, name):
        with self._lock:
            self.running.add(name)
            self.most = max(self.most, len(self.running))
        self._begun[name].set()
        assert self._ends[name].wait(SECONDS)
        with self._lock:
            self.running.discard(name)
        return name


@pytest.fixture
def works():
    """Three threads, and memory for two jobs of 50."""
    pool = DecodePool(3, decoding_bytes=100)
    yield Works(pool)
    pool.close()


async def test_jobs_that_exceed_the_memory_limit_wait(works):
    tasks = [works.start(number, 50) for number in range(6)]
    works.end(*range(6))
    assert await asyncio.gather(*tasks) == list(range(6))
    assert works.most <= 2


async def test_a_running_job_keeps_its_memory_after_its_caller_is_cancelled(works):
    given_up = [works.start(name, 50) for name in "ab"]
    await works.begun("a")
    await works.begun("b")
    for task in given_up:
        task.cancel()
    assert all(
        isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*given_up, return_exceptions=True)
    )
    assert works.running == {"a", "b"}  # without a caller
    following = [works.start(name, 50) for name in "cd"]
    works.end("c", "d", "a")
    await following[0]  # once a has ended
    works.end("b")
    assert await following[1] == "d"
    assert works.most == 2


async def test_a_caller_that_is_cancelled_before_its_job_starts_leaves_no_work_behind(works):
    begun = works.start("a", 100)
    await works.begun("a")
    waiting = works.start("b", 100)
    await asyncio.sleep(0)
    waiting.cancel()
    works.end("a")
    await begun
    last = works.start("c", 100)
    works.end("c")
    assert await last == "c"
    assert not works._begun["b"].is_set()


async def test_a_failed_job_frees_its_memory(works):
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            await works.pool.run(lambda: 1 / 0, decoding_bytes=100)


def test_the_loop_may_end_before_a_thread_does(caplog):
    pool, begun, end = DecodePool(1), threading.Event(), threading.Event()

    def work():
        begun.set()
        end.wait(SECONDS)

    async def abort():
        task = asyncio.create_task(pool.run(work, decoding_bytes=1))
        assert await asyncio.to_thread(begun.wait, SECONDS)
        task.cancel()

    asyncio.run(abort())
    end.set()
    pool.close()
    pool._threads.shutdown()  # waits for the thread
    assert not caplog.records
