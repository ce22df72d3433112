"""One version of a model that is ready to answer requests."""

from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar

from server.admission.in_flight import InFlight
from server.admission.queue import Limits
from server.artifact import Artifact
from server.errors import WrongTask
from server.runtime.golden_check import Parity, PreprocessingParity
from server.runtime.session import Session
from server.tasks.build import Backend, Task, TensorTask
from server.tasks.registry import names_of
from server.text.encode import TokenCounter
from server.tuning.tuner import Tuning

TaskT = TypeVar("TaskT")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A checked session, and the tasks that use it."""

    artifact: Artifact
    session: Session  # of several devices, the session with the largest error
    parity: Parity  # the errors of `session`
    tuning: Tuning | None  # None: not measured
    task: Task = field(repr=False)
    raw: TensorTask = field(repr=False)  # runs the graph on tensors of the caller
    counter: TokenCounter | None = field(repr=False)  # of models on text
    backend: Backend = field(repr=False)
    preprocessing_parity: PreprocessingParity
    threads: Executor = field(repr=False)  # for work that would block the event loop
    in_flight: InFlight = field(repr=False)  # counts the requests of this model; its back-end shares it

    @property
    def name(self) -> str:
        return self.artifact.name

    @property
    def version(self) -> str:
        return self.artifact.version

    def task_as(self, *task_classes: type[TaskT]) -> TaskT:
        """The task, as one of these classes. Raises WrongTask if it has another class."""
        if not isinstance(self.task, task_classes):
            found, expected = self.artifact.manifest.task, " or ".join(names_of(*task_classes))
            raise WrongTask(f"model {self.name}: found task {found}, expected {expected}")
        return self.task

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

        Call this after the model was removed from the repository. Requests that found the model before may not have
        reached the back-end yet, which must not refuse them.
        """
        await self.in_flight.wait_idle()
        await self.backend.drain()

    def abort(self) -> None:
        """End the requests in flight: generation with the text so far, everything else with NotReady."""
        self.backend.abort()
