"""What the methods of both clients share: their documentation, and how far a request with many inputs is."""

import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from server.client.calls import Call

OnProgress = Callable[[int, int], None]  # takes the number of inputs that are done, and of all
MethodT = TypeVar("MethodT", bound=Callable[..., Any])


def documented(method: MethodT, steps: Callable[..., Any], returned: Callable[[Any], Any]) -> MethodT:
    """The method with the name, documentation and signature of its steps. `returned` maps the type of their result."""
    signature = inspect.signature(steps)
    result = typing.get_args(signature.return_annotation)[-1]
    method.__name__, method.__doc__ = steps.__name__, steps.__doc__
    method.__signature__ = signature.replace(return_annotation=returned(result))  # type: ignore[attr-defined]
    return method


class Progress:
    """Counts the inputs of calls that have finished."""

    def __init__(self, calls: Sequence[Call[Any]], report: OnProgress | None) -> None:
        self._report = report if len(calls) > 1 else None
        self._done, self._all = 0, sum(call.inputs for call in calls)

    def finished(self, call: Call[Any]) -> None:
        """Report that a call has finished, unless it is the only one or has no inputs of the user."""
        self._done += call.inputs
        if self._report is not None and self._all:
            self._report(self._done, self._all)
