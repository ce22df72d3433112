"""Reads the requests of calls, and refuses those without a message and with a message that cannot be parsed.

gRPC itself ends a call with UNKNOWN if its message cannot be parsed, and does not end a unary call without a message
before its deadline. Neither would appear in the metrics.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any

import grpc

from server.errors import InvalidRequest
from server.rpc.calls.context import GrpcContext

Deserializer = Callable[[bytes], Any]

FIELD = "the message of the call"
CANCEL_S = 0.05  # if a client cancels its call, gRPC ends the messages first, and cancels the handler a little later


class Unreadable:
    """Takes the place of a message that cannot be parsed."""


def unreadable_as_value(deserialize: Deserializer | None) -> Deserializer | None:
    """The deserializer, which returns Unreadable instead of raising an error."""
    if deserialize is None:
        return None

    def parse(message: bytes) -> Any:
        try:
            return deserialize(message)
        except Exception:  # protobuf's DecodeError; other libraries have their own
            return Unreadable()

    return parse


async def read_one(_: AsyncIterable[Any], context: GrpcContext) -> Any:
    """The only message of a call. Raises InvalidRequest."""
    message = await context.read()
    if message is grpc.aio.EOF:
        await asyncio.sleep(CANCEL_S)
        raise InvalidRequest(FIELD, "none", "one")
    return _readable(message)


async def read_each(messages: AsyncIterable[Any], _: GrpcContext) -> AsyncIterator[Any]:
    """The messages of a call that streams them. Each raises InvalidRequest when its turn comes."""
    return (_readable(message) async for message in messages)


def _readable(message: Any) -> Any:
    if isinstance(message, Unreadable):
        expected = "a message of the method's type; strings have to be UTF-8"
        raise InvalidRequest(FIELD, "bytes that cannot be parsed", expected)
    return message
