"""Clients of the server, for threads and for asyncio. `python -m server.client` is the command line.

with Client("127.0.0.1:8001") as client:
    for candidate in client.fill_mask(["The [MASK] statement raises an exception."])[0].masks[0].candidates:
        print(candidate.token_str, candidate.score)

async with AsyncClient("127.0.0.1:8001") as client:
    async for response in client.generate("A list is", max_tokens=40):
        print(response.text, end="")

`tasks` and `catalogue` say which calls a method sends and how it reads the responses; `sync` and `aio` send them.
"""

from server.client.aio import AsyncClient, AsyncStream
from server.client.catalogue import ServedModel
from server.client.connection import DEFAULT_SERVER, Tls
from server.client.errors import CallFailed, Cause, Unreachable
from server.client.sync import Client, Stream

__all__ = [
    "DEFAULT_SERVER",
    "AsyncClient",
    "AsyncStream",
    "CallFailed",
    "Cause",
    "Client",
    "ServedModel",
    "Stream",
    "Tls",
    "Unreachable",
]
