"""Large work waits for semaphore, in order; small work beside it does not wait longer than it must."""

import asyncio

from server.concurrency.weighted_semaphore import WeightedSemaphore


class Works:
    """Work that stays in the semaphore until it is told to go."""

    def __init__(self, semaphore):
        self.semaphore, self.tasks, self.inside, self.ends = semaphore, {}, set(), {}

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
            self.inside.add(name)
            try:
                await self.ends[name].wait()
            finally:
                self.inside.discard(name)


async def test_what_fits_goes_in_and_the_rest_waits_in_order():
    works = Works(WeightedSemaphore(10))
    for name, size in (("a", 4), ("b", 4), ("large", 8), ("small", 1)):
        await works.start(name, size)
    assert works.inside == {"a", "b"}  # the small one would fit, but then the large one might wait for ever
    await works.end("a")
    assert works.inside == {"b"}
    await works.end("b")
    assert works.inside == {"large", "small"}


async def test_what_is_larger_than_the_room_is_done_alone():
    works = Works(WeightedSemaphore(10))
    await works.start("huge", 99)
    await works.start("small", 1)
    assert works.inside == {"huge"}
    await works.end("huge")
    assert works.inside == {"small"}


async def test_who_gives_up_holds_up_nobody_and_leaves_no_hole():
    semaphore = WeightedSemaphore(10)
    works = Works(semaphore)
    for name, size in (("a", 10), ("b", 9), ("c", 10)):
        await works.start(name, size)
    await works.abort("b")
    await works.abort("a")
    assert works.inside == {"c"}
    await works.end("c")
    assert semaphore.free == 10
