"""One prompt of a request, from admission to its last token. Knows nothing of other requests."""

from collections.abc import Callable
from dataclasses import dataclass

from server.arrays import Ids
from server.errors import DeadlineExceeded, Overloaded
from server.generation.request import TokenOutput
from server.generation.sampler import SampledToken, SamplingState
from server.generation.sequence import SequenceState
from server.observability.observer import Usage

# Receives the outputs of a prompt, in order, on the event loop. Must return at once and never raise. Returns True when
# the text has ended, for example with a stop string, and no more outputs are wanted.
OutputCallback = Callable[[TokenOutput | Exception], bool]


@dataclass(frozen=True)
class TokensPrompt:
    """A prompt to continue."""

    name: str  # in errors
    ids: Ids  # (t,)
    on_output: OutputCallback


@dataclass(eq=False, kw_only=True)
class Stream:
    """A sequence of the scheduler, its sampling state, and the callback for its outputs."""

    sequence: SequenceState
    sampling_state: SamplingState
    end_ids: frozenset[int]  # tokens that end the sequence
    on_output: OutputCallback
    last_token: int = -1
    stopped: bool = False  # the callback wants no more; used on the event loop only

    def accept(self, sampled: SampledToken, now: float) -> TokenOutput:
        """Record a sampled token and return its output."""
        self.last_token = sampled.token_id
        reason, stop_reason = self._finish_reason(sampled.token_id)
        return TokenOutput(
            token_id=sampled.token_id,
            logprob=sampled.logprob,
            top=sampled.top,
            finish_reason=reason,
            stop_reason=stop_reason,
            seed=self.sampling_state.seed,
            usage=self.usage(now),
        )

    def output_of_cancellation(self, now: float) -> TokenOutput:
        """The last output of a sequence that the server cancelled. It has no token."""
        seed = self.sampling_state.seed
        return TokenOutput(token_id=None, finish_reason="cancelled", seed=seed, usage=self.usage(now))

    def output_of_removal(self, now: float, *, retry_after_s: float | None) -> TokenOutput | Exception:
        """The last output of a sequence that was removed; with `retry_after_s`, because of overload."""
        if self.sequence.cancelled:
            return self.output_of_cancellation(now)
        if retry_after_s is None:
            return DeadlineExceeded("the deadline of the request passed before its last token was generated")
        waited_s = now - self.sequence.arrived
        return Overloaded(
            f"overloaded: the request has waited for {waited_s:.1f} s, and its first token would come too late",
            retry_after_s=retry_after_s,
        )

    def usage(self, now: float) -> Usage:
        started = self.sequence.started if self.sequence.slot >= 0 else now
        return Usage(
            prompt_tokens=self.sequence.prompt_tokens,
            completion_tokens=self.sampling_state.generated,
            cached_tokens=self.sequence.cached_tokens,
            queue_seconds=started - self.sequence.arrived,
            inference_seconds=now - started,
        )

    def _finish_reason(self, token_id: int) -> tuple[str, str]:
        """The finish reason and the stop reason after a token; empty if the sequence continues."""
        if token_id in self.end_ids:
            return "stop", str(token_id) if token_id in self.sampling_state.sampling.stop_token_ids else ""
        return ("length", "") if self.sampling_state.generated == self.sequence.max_tokens else ("", "")
