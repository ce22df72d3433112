"""The scheduling priority of threads."""

import os
import sys
import threading
from contextlib import suppress

STEPS = 5  # of niceness: beside a thread without them, about a quarter of a CPU


def yield_to_event_loop() -> None:
    """Give the calling thread, and those that it starts from now on, a lower priority than the main thread (Linux).

    The event loop runs in the main thread. It needs little CPU time, but needs it at once: while the models keep all
    CPUs busy it must still accept, refuse and answer calls.
    """
    if sys.platform == "linux":  # only there a priority belongs to a thread
        with suppress(OSError):
            own = os.getpriority(os.PRIO_PROCESS, os.getpid())
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), own + STEPS)
