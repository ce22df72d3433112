"""One version of one model, ready to answer requests."""

from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar

from server.admission.in_flight import InFlight
from server.admission.queue import Limits
from server.artifact import Artifact
from server.errors import WrongTask
from server.runtime.golden_check import GoldenInputs, Parity
from server.runtime.session import Session
from server.tasks.build import Backend, Handlers, Task, TensorTask
from server.tasks.registry import names_of
from server.text.encode import TokenCounter

TaskT = TypeVar("TaskT")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A checked session, and the tasks over it. `provider` and `precision` are those that the session computes with."""

    artifact: Artifact
    session: Session  # with several devices, the one that `parity` is about
    parity: Parity  # of the session with the largest difference from PyTorch
    handlers: Handlers = field(repr=False)
    prepare: Executor = field(repr=False)  # threads for work that would block the event loop
    in_flight: InFlight = field(repr=False)  # counts the requests of this model; its back-end shares it

    @property
    def name(self) -> str:
        return self.artifact.name

    @property
    def version(self) -> str:
        return self.artifact.version

    @property
    def task(self) -> Task:
        return self.handlers.task

    def task_as(self, task_class: type[TaskT]) -> TaskT:
        """The task, which is of that class; WrongTask if it is another one."""
        if not isinstance(self.task, task_class):
            found = self.artifact.manifest.task
            raise WrongTask(f"model {self.name}: found task {found}, expected {' or '.join(names_of(task_class))}")
        return self.task

    @property
    def raw(self) -> TensorTask:
        return self.handlers.raw

    @property
    def counter(self) -> TokenCounter | None:
        return self.handlers.counter

    @property
    def backend(self) -> Backend:
        return self.handlers.backend

    @property
    def golden_inputs(self) -> GoldenInputs:
        return self.handlers.golden_inputs

    @property
    def limits(self) -> Limits:
        """The limits of the queue, and therefore of one request."""
        return self.backend.admission.limits

    @property
    def provider(self) -> str:
        return self.session.provider

    @property
    def precision(self) -> str:
        return self.session.precision

    async def start(self) -> None:
        await self.backend.start()

    async def drain(self) -> None:
        """Answer the requests in flight, then refuse all others.

        To be called when the model can no longer be found: a request that found it before may still be on its way to
        the back-end, which must not refuse it.
        """
        await self.in_flight.wait_idle()
        await self.backend.drain()

    def abort(self) -> None:
        """End the requests in flight: generation with the text so far, everything else with NotReady."""
        self.backend.abort()
