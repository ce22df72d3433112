"""One step of the batch on the device: move, run, choose. Decides nothing and knows no callers."""

from collections.abc import Iterable, Sequence

import numpy as np

from server.generation.decoder import Decoder
from server.generation.prefix import Copy
from server.generation.sampler import SampledToken, Sampler, SamplingState
from server.generation.scheduler import Decode, Prefill
from server.generation.stream import Stream


class Runner:
    """A decoder, and the sampler for the rows that decode. To be used by one thread at a time."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._sampler: Sampler | None = None  # of the last decode step

    def copy(self, copies: Iterable[Copy]) -> None:
        """Move tokens from slot to slot."""
        for copy in copies:
            self.decoder.cache.copy(source=copy.source, target=copy.target, tokens=copy.tokens)

    def run(self, step: Prefill | Decode, rows: Sequence[Stream]) -> list[SampledToken]:
        """The next token of each row; none while a prompt is not read to its end."""
        draws = [row.draws for row in rows]
        if isinstance(step, Prefill):
            token_ids = step.sequence.prompt[step.start : step.stop]
            scores = self.decoder.prefill(step.sequence.slot, token_ids, step.start)
            return self._sampler_of(draws).choose(scores) if step.last else []
        idle = step.idle  # they run, too, and write behind what their slots hold
        scores = self.decoder.decode(
            np.array([*(row.last_token for row in rows), *(0 for _ in idle)], np.int64),
            np.array([*(row.sequence.cached + 1 for row in rows), *(held + 1 for held in idle)], np.int32),
        ).first(len(rows))
        if self._sampler is None or self._sampler.rows != draws:
            self._sampler = self._sampler_of(draws)
        return self._sampler.choose(scores)

    def _sampler_of(self, draws: list[SamplingState]) -> Sampler:
        return Sampler(draws, likeliest=self.decoder.likeliest, vocabulary=self.decoder.vocabulary)
