"""The watchdog of writes, without a server."""

import asyncio

import pytest

from server.rpc.calls.response_writer import Watchdog

LONG_S, SHORT_S = 3600.0, 0.001


async def test_short_waits_do_not_end_the_task():
    watchdog = Watchdog()
    for limit_s in (LONG_S, SHORT_S, LONG_S):
        watchdog.start(limit_s)
        watchdog.stop()
    await asyncio.sleep(10 * SHORT_S)
    watchdog.close()


@pytest.mark.parametrize("earlier", [(), (LONG_S,), (SHORT_S, LONG_S)])
async def test_a_wait_beyond_its_limit_is_cancelled(earlier):
    watchdog = Watchdog()
    for limit_s in earlier:
        watchdog.start(limit_s)
        watchdog.stop()
    watchdog.start(SHORT_S)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.Event().wait()
    assert watchdog.expired()
    assert asyncio.current_task().cancelling() == 0


async def test_a_cancellation_by_others_is_not_the_watchdogs():
    started, found = asyncio.Event(), []

    async def wait():
        watchdog = Watchdog()
        watchdog.start(LONG_S)
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            found.append(watchdog.expired())
            watchdog.close()

    task = asyncio.create_task(wait())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert found == [False]
