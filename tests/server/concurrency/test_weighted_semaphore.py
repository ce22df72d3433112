"""Work waits for the semaphore in order."""

import asyncio

from server.concurrency.weighted_semaphore import WeightedSemaphore


class Works:
    """Tasks that hold the semaphore until they are ended."""

    def __init__(self, semaphore):
        self.semaphore, self.tasks, self.running, self.ends = semaphore, {}, set(), {}

    async def start(self, name, size):
        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._work(name, size))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def end(self, name):
        self.ends[name].set()
        await self.tasks[name]
        await asyncio.sleep(0)

    async def abort(self, name):
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)
        await asyncio.sleep(0)

    async def _work(self, name, size):
        async with self.semaphore.hold(size):
            self.running.add(name)
            try:
                await self.ends[name].wait()
            finally:
                self.running.discard(name)


async def test_work_that_fits_starts_and_the_rest_waits_in_order():
    works = Works(WeightedSemaphore(10))
    for name, size in (("a", 4), ("b", 4), ("large", 8), ("small", 1)):
        await works.start(name, size)
    assert works.running == {"a", "b"}  # the small one would fit, but could delay the large one for ever
    await works.end("a")
    assert works.running == {"b"}
    await works.end("b")
    assert works.running == {"large", "small"}


async def test_work_larger_than_the_capacity_runs_alone():
    works = Works(WeightedSemaphore(10))
    await works.start("huge", 99)
    await works.start("small", 1)
    assert works.running == {"huge"}
    await works.end("huge")
    assert works.running == {"small"}


async def test_cancelled_work_neither_delays_others_nor_keeps_capacity():
    semaphore = WeightedSemaphore(10)
    works = Works(semaphore)
    for name, size in (("a", 10), ("b", 9), ("c", 10)):
        await works.start(name, size)
    await works.abort("b")
    await works.abort("a")
    assert works.running == {"c"}
    await works.end("c")
    assert semaphore.free == 10
