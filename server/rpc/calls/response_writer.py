"""Writes the responses of a stream, and ends the stream if its client does not read them.

gRPC completes a write when the response is in the client's flow-control window. While the window is full the write
waits: at most one response of a stream is in gRPC's memory, and the tasks merge or hold back what follows.
"""

import asyncio
import logging
import math
from typing import Any

from google.protobuf.message import Message

from server.admission.queue import Cancellation
from server.errors import SlowClient
from server.rpc.calls.context import GrpcContext

MIN_BYTES_PER_SECOND = 100_000  # a response that is larger than a window is written in parts, which takes time

log = logging.getLogger(__name__)


class ResponseWriter:
    """Writes to one call. `close` it in the end."""

    def __init__(self, context: GrpcContext, cancellation: Cancellation, *, slow_client_seconds: float) -> None:
        """0 seconds: wait for the client without limit."""
        self._context = context
        self._cancellation = cancellation
        self._slow_client_seconds = slow_client_seconds
        self._watchdog: Watchdog | None = None  # from the first write on

    async def write(self, response: Any) -> None:
        """Write a response. Raises SlowClient, and notes it as the reason of the cancellation, if it is not read."""
        if not self._slow_client_seconds:
            await self._context.write(response)
            return
        if self._watchdog is None:
            # Part of the first write otherwise: gRPC could not abort while that write waits.
            await self._context.send_initial_metadata(())
            self._watchdog = Watchdog()
        limit_s = time_to_read_s(response, self._slow_client_seconds)
        self._watchdog.start(limit_s)
        try:
            await self._context.write(response)
        except asyncio.CancelledError:
            if not self._watchdog.expired():
                raise
            log.info("ended a stream to %s: the client did not read for %.1f s", self._context.peer(), limit_s)
            self._cancellation.reason = "slow_client"
            raise SlowClient(f"the client did not read for {limit_s:.1f} s (--slow-client-seconds)") from None
        finally:
            self._watchdog.stop()

    def close(self) -> None:
        """Release the timer."""
        if self._watchdog is not None:
            self._watchdog.close()


class Watchdog:
    """Cancels the task that started it unless the task stops it in time; for many short waits of one task.

    The timer is not set again for each wait, as `asyncio.timeout` does it: it looks for the current wait when it ends.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._ends = math.inf  # when the current wait is too long, on the loop's clock
        self._timer: asyncio.TimerHandle | None = None
        self._cancelled = False
        self._cancelling = 0  # requests to cancel the task when the wait began

    def start(self, limit_s: float) -> None:
        """Begin a wait."""
        assert self._task is not None, "a watchdog outside a task; this is a bug"
        self._ends, self._cancelling = self._loop.time() + limit_s, self._task.cancelling()
        if self._timer is None or self._timer.when() > self._ends:
            self._set_timer()

    def stop(self) -> None:
        """End the wait."""
        self._ends = math.inf

    def expired(self) -> bool:
        """Whether this watchdog alone has cancelled the task. To be read once, when the task is cancelled."""
        return self._cancelled and self._task is not None and self._task.uncancel() <= self._cancelling

    def close(self) -> None:
        """End the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        self.close()
        self._timer = self._loop.call_at(self._ends, self._check)

    def _check(self) -> None:
        self._timer = None
        if self._loop.time() < self._ends < math.inf:  # of a wait that began after the timer was set
            self._set_timer()
        elif self._ends < math.inf and self._task is not None:
            self._cancelled = self._task.cancel()


def time_to_read_s(response: Any, slow_client_seconds: float) -> float:
    """How long the write of a response may take, in seconds: longer for a large one, which is read in many parts."""
    size = response.ByteSize() if isinstance(response, Message) else len(response)
    return slow_client_seconds + size / MIN_BYTES_PER_SECOND
