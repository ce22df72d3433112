"""The models of a server, without the server: what a front end finds behind it."""

from contextlib import asynccontextmanager

import pytest_asyncio

from server.repository import Repository
from server.settings import Settings


@asynccontextmanager
async def opened(artifacts, *models, observe=None, **settings):
    """A repository with these models loaded, drained in the end."""
    settings = Settings(**{"artifacts": artifacts, "models": models, "provider": "cpu", "threads": 1} | settings)
    repository = Repository(settings, observe) if observe else Repository(settings)
    try:
        await repository.load_all()
        yield repository
    finally:
        await repository.drain()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def repository(artifacts):
    """All encoders and vision models; its tests share their module's event loop with it."""
    names = ("tiny-bert", "tiny-classifier", "tiny-embedder", "tiny-vit", "tiny-mixer")
    async with opened(artifacts, *names) as repository:
        yield repository
