"""What is under way may finish; nothing new comes in."""

import asyncio

import pytest

from server.admission.in_flight import InFlight
from server.errors import NotReady


async def test_the_end_waits_for_the_last_request():
    in_flight = InFlight("the server is stopping")
    with in_flight.track():
        in_flight.close()
        waiting = asyncio.create_task(in_flight.wait_idle(60))
        await asyncio.wait([waiting], timeout=0)
        assert not waiting.done()
    assert await waiting


async def test_the_end_does_not_wait_for_ever():
    in_flight = InFlight("the server is stopping")
    with in_flight.track():
        assert not await in_flight.wait_idle(0)


async def test_nothing_new_comes_in():
    in_flight = InFlight("the server is stopping")
    in_flight.close()
    with pytest.raises(NotReady, match="stopping"), in_flight.track():
        pass
