"""What is under way may finish; nothing new comes in."""

import asyncio

import pytest

from server.admission.in_flight import UnderWay
from server.errors import NotReady


async def test_the_end_waits_for_the_last_request():
    under_way = UnderWay("the server is stopping")
    with under_way.one():
        under_way.close()
        waiting = asyncio.create_task(under_way.finished(60))
        await asyncio.wait([waiting], timeout=0)
        assert not waiting.done()
    assert await waiting


async def test_the_end_does_not_wait_for_ever():
    under_way = UnderWay("the server is stopping")
    with under_way.one():
        assert not await under_way.finished(0)


async def test_nothing_new_comes_in():
    under_way = UnderWay("the server is stopping")
    under_way.close()
    with pytest.raises(NotReady, match="stopping"), under_way.one():
        pass
