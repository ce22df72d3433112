"""Runs one step on the device: copies slots, runs the model, samples tokens. Decides nothing."""

from collections.abc import Iterable, Sequence

import numpy as np

from server.generation.decoder import Decoder
from server.generation.prefix import Copy
from server.generation.sampler import SampledToken, Sampler, SamplingState
from server.generation.sequence import Decode, Prefill
from server.generation.stream import Stream


class Runner:
    """A decoder, and the sampler of the decoding batch. Not thread-safe."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._sampler: Sampler | None = None  # of the last decode step

    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy tokens from slot to slot."""
        for copy in copies:
            self.decoder.cache.copy(source=copy.source, target=copy.target, tokens=copy.tokens)

    def run(self, step: Prefill | Decode, streams: Sequence[Stream]) -> list[SampledToken]:
        """The next token of each stream; none after a prefill step that does not reach the end of the prompt."""
        states = [stream.sampling_state for stream in streams]
        if isinstance(step, Prefill):
            token_ids = step.sequence.prompt[step.start : step.stop]
            scores = self.decoder.prefill(step.sequence.slot, token_ids, step.start)
            return self._sampler_of(states).sample(scores) if step.last else []
        # Each row writes one token, a padding row after the tokens to keep in its slot.
        token_ids = np.array([*(stream.last_token for stream in streams), *(0 for _ in step.kept_tokens)], np.int64)
        present = [*(stream.sequence.computed_tokens for stream in streams), *step.kept_tokens]
        scores = self.decoder.decode(token_ids, np.array(present, np.int32) + 1).first(len(streams))
        if self._sampler is None or self._sampler.states != states:
            self._sampler = self._sampler_of(states)
        return self._sampler.sample(scores)

    def _sampler_of(self, states: list[SamplingState]) -> Sampler:
        return Sampler(states, graph_top_k=self.decoder.graph_top_k, vocabulary=self.decoder.vocabulary)
