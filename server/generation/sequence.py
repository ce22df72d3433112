"""A sequence as the scheduler sees it, and the steps that it plans."""

from dataclasses import dataclass
from typing import ClassVar

from server.admission.queue import RequestContext
from server.arrays import Ids
from server.generation.prefix import Copy


@dataclass(frozen=True)
class Size:
    """The part of a sequence that is still to do."""

    prompt_tokens: int
    new_tokens: int


@dataclass(eq=False, kw_only=True)
class SequenceState:
    """The scheduler's view of one sequence: a prompt to process, then one token per step. Compared by identity."""

    prompt: Ids  # (t,)
    max_tokens: int  # a slot has space for the prompt and these
    context: RequestContext
    arrived: float  # seconds, on the clock of `Scheduler.plan`
    slot: int = -1
    computed_tokens: int = 0  # tokens whose keys and values are in the slot
    cached_tokens: int = 0  # of these, prompt tokens that were copied from another sequence's slot
    started: float = 0.0  # when it got its slot
    cancelled: bool = False
    predicted_first: float | None = None  # seconds, when the first and the last token were predicted
    predicted_finish: float | None = None

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def computed_prompt(self) -> Ids:
        """The part of the prompt that is in the slot."""
        return self.prompt[: self.computed_tokens]

    @property
    def reserved_tokens(self) -> int:
        return self.prompt_tokens + self.max_tokens

    @property
    def remaining(self) -> Size:
        """The tokens that are still to be processed and may still be generated."""
        generated = max(0, self.computed_tokens - self.prompt_tokens)
        return Size(max(0, self.prompt_tokens - self.computed_tokens), self.max_tokens - generated)


@dataclass(frozen=True)
class Prefill:
    """Process the tokens [start, stop) of one prompt."""

    kind: ClassVar = "prefill"
    sequence: SequenceState
    start: int
    stop: int

    @property
    def sequences(self) -> tuple[SequenceState, ...]:
        return (self.sequence,)

    @property
    def tokens(self) -> int:
        return self.stop - self.start

    @property
    def last(self) -> bool:
        return self.stop == self.sequence.prompt_tokens


@dataclass(frozen=True)
class Decode:
    """Generate one token for each sequence; `sequences[i]` is in slot i.

    `kept_tokens` has one number for each padding row: the tokens in its slot that the step must not overwrite.
    """

    kind: ClassVar = "decode"
    sequences: tuple[SequenceState, ...]
    kept_tokens: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return len(self.sequences)


@dataclass(frozen=True)
class Plan:
    """What to do, in this order: report the removed sequences, copy, run the step. No step: there is nothing to run."""

    cancelled: tuple[SequenceState, ...] = ()
    expired: tuple[SequenceState, ...] = ()
    refused: tuple[SequenceState, ...] = ()
    copies: tuple[Copy, ...] = ()
    step: Prefill | Decode | None = None
