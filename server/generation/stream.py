"""One request on its way: from its prompt to the steps its caller reads. Knows nothing of other requests."""

from collections.abc import Callable
from dataclasses import dataclass

from server.arrays import Ids
from server.generation.request import Sampling, TokenOutput
from server.generation.sampler import SampledToken, SamplingState
from server.generation.scheduler import SequenceState
from server.observability.observer import Usage

# Called on the event loop with what comes, in order; must return at once and never raise. True: no more is wanted, for
# the text has come to its end.
Take = Callable[[TokenOutput | Exception], bool]


@dataclass(frozen=True)
class Entrant:
    """A prompt at the door: what errors call it, its tokens (t,), and who takes what comes."""

    name: str
    ids: Ids
    take: Take


@dataclass(eq=False, kw_only=True)
class Stream:
    """A sequence of the scheduler, what it chooses with, and who takes its steps."""

    sequence: SequenceState
    draws: SamplingState
    end_ids: frozenset[int]  # tokens after which it ends
    take: Take
    last_token: int = -1
    stopped: bool = False  # its caller wants no more; belongs to the event loop

    @property
    def sampling(self) -> Sampling:
        return self.draws.sampling

    def accept(self, chosen: SampledToken, now: float) -> TokenOutput:
        """The step of a token that was chosen."""
        self.last_token = chosen.token_id
        reason, stop_reason = self._ending(chosen.token_id)
        return TokenOutput(
            token_id=chosen.token_id,
            logprob=chosen.logprob,
            top=chosen.top,
            finish_reason=reason,
            stop_reason=stop_reason,
            seed=self.draws.seed,
            usage=self.usage(now),
        )

    def cancelled(self, now: float) -> TokenOutput:
        """The last step of a request that the server gave up."""
        return TokenOutput(token_id=None, finish_reason="cancelled", seed=self.draws.seed, usage=self.usage(now))

    def usage(self, now: float) -> Usage:
        started = self.sequence.started if self.sequence.slot >= 0 else now
        return Usage(
            prompt_tokens=self.sequence.prompt_tokens,
            completion_tokens=self.draws.generated,
            cached_tokens=self.sequence.reused,
            queue_seconds=started - self.sequence.arrived,
            inference_seconds=now - started,
        )

    def _ending(self, token_id: int) -> tuple[str, str]:
        if token_id in self.end_ids:
            return "stop", str(token_id) if token_id in self.sampling.stop_token_ids else ""
        return ("length", "") if self.draws.generated == self.sequence.max_tokens else ("", "")
