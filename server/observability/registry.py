"""A registry for metrics that change with every step: their updates are made later, many at a time.

Between two steps the weights of a model displace the code and data of a metric from the CPU's caches. An update alone
then takes several times as long as one of many.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import RestrictedRegistry

MAX_DEFERRED = 32  # half a millisecond of work

Update = Callable[..., None]


class Registry(CollectorRegistry):
    """Makes all updates before it is read. An update may run in the thread of the reader."""

    def __init__(self) -> None:
        super().__init__(auto_describe=True)
        self._updates: deque[tuple[Update, tuple[Any, ...]]] = deque()
        self._updating = threading.Lock()

    def defer(self, update: Update, *arguments: Any) -> None:
        """Call `update` with the arguments, soon."""
        self._updates.append((update, arguments))
        if len(self._updates) >= MAX_DEFERRED:
            self.update()

    def update(self) -> None:
        """Make all updates now."""
        with self._updating:
            while self._updates:
                update, arguments = self._updates.popleft()
                update(*arguments)

    def collect(self) -> Iterable[Metric]:
        self.update()
        return super().collect()

    def restricted_registry(self, names: Iterable[str]) -> RestrictedRegistry:
        self.update()
        return super().restricted_registry(names)
