"""Requests in flight may finish, and new ones are refused."""

import asyncio

import pytest

from server.admission.in_flight import InFlight
from server.errors import NotReady


async def test_wait_idle_waits_for_the_last_request():
    in_flight = InFlight("the server is stopping")
    with in_flight.track():
        in_flight.close()
        waiting = asyncio.create_task(in_flight.wait_idle(60))
        await asyncio.wait([waiting], timeout=0)
        assert not waiting.done()
    assert await waiting


async def test_wait_idle_has_a_timeout():
    in_flight = InFlight("the server is stopping")
    with in_flight.track():
        assert not await in_flight.wait_idle(0)


async def test_requests_are_accepted_between_the_announcement_and_the_close():
    in_flight = InFlight("the server is stopping")
    in_flight.announce_close()
    assert in_flight.closing
    assert not in_flight.closed
    with in_flight.track():
        assert in_flight.count == 1


async def test_new_requests_are_refused_after_close():
    in_flight = InFlight("the server is stopping")
    in_flight.close()
    with pytest.raises(NotReady, match="stopping"), in_flight.track():
        pass
