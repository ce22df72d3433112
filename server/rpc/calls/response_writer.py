"""Writes the responses of a stream, and ends the stream if its client does not read them.

gRPC completes a write when the response is in the client's flow-control window. While the window is full the write
waits: at most one response of a stream is in gRPC's memory, and the tasks merge or hold back what follows.
"""

import asyncio
import logging
from typing import Any

from google.protobuf.message import Message

from server.admission.queue import Cancellation
from server.errors import SlowClient
from server.rpc.calls.context import GrpcContext

MIN_BYTES_PER_SECOND = 100_000  # a response that is larger than a window is written in parts, which takes time

log = logging.getLogger(__name__)


class ResponseWriter:
    """Writes to one call."""

    def __init__(self, context: GrpcContext, cancellation: Cancellation, *, slow_client_seconds: float) -> None:
        """0 seconds: wait for the client without limit."""
        self._context = context
        self._cancellation = cancellation
        self._slow_client_seconds = slow_client_seconds
        self._begun = False

    async def write(self, response: Any) -> None:
        """Write a response. Raises SlowClient, and notes it as the reason of the cancellation, if it is not read."""
        if not self._slow_client_seconds:
            await self._context.write(response)
            return
        if not self._begun:  # part of the first write otherwise: gRPC could not abort while that write waits
            await self._context.send_initial_metadata(())
            self._begun = True
        limit_s = time_to_read_s(response, self._slow_client_seconds)
        try:
            async with asyncio.timeout(limit_s):
                await self._context.write(response)
        except TimeoutError:
            log.info("ended a stream to %s: the client did not read for %.1f s", self._context.peer(), limit_s)
            self._cancellation.reason = "slow_client"
            raise SlowClient(f"the client did not read for {limit_s:.1f} s (--slow-client-seconds)") from None


def time_to_read_s(response: Any, slow_client_seconds: float) -> float:
    """How long the write of a response may take, in seconds: longer for a large one, which is read in many parts."""
    size = response.ByteSize() if isinstance(response, Message) else len(response)
    return slow_client_seconds + size / MIN_BYTES_PER_SECOND
