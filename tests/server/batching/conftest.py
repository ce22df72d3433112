"""Fixtures for tests of the batcher."""

import contextlib

import pytest

from server.admission.queue import Limits
from server.batching.batcher import Batcher
from server.batching.scheduler import Budget
from tests.server.batching.fakes import BatcherEvents, SumSession


@pytest.fixture
def session():
    return SumSession()


@pytest.fixture
def events():
    return BatcherEvents()


@pytest.fixture
async def make(session, events, monkeypatch):
    """Makes and starts batchers, and drains them after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def made(*, items=8, tokens=64, limits=None, sessions=None, **settings):
            monkeypatch.setattr("server.batching.batcher.SMALL_TOKENS", 0)  # collate all batches ahead of time
            batcher = Batcher(
                sessions or [session],
                name="sums",
                budget=Budget(items=items, tokens=tokens, logit_positions=64, padding=0.5),
                limits=limits or Limits(inputs=2000, tokens=100_000),
                observer=events,
                **settings,
            )
            await batcher.start()
            stack.push_async_callback(batcher.drain)
            stack.callback(session.open.set)
            return batcher

        yield made
