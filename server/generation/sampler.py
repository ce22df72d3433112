"""From scores to tokens, for the whole batch in one vectorised step. Knows nothing of slots, text or sessions.

The model gives the K likeliest tokens and the log-sum-exp of all. Most requests need no more. Those that do, because
they want more candidates, or lift tokens that may not be among the K, get the logits of the whole vocabulary.

A request's tokens depend on its own scores, parameters and seed alone: each has its own stream of random numbers and
takes one of it for each token.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.arrays import Floats, Ids
from server.generation.decoder import Scores
from server.generation.request import Sampling
from server.generation.sampling import Doubles, draw, draw_from_all

LARGEST_SCORE = 1e30  # after penalties and bias: sums and differences of such scores are finite in 32 bits


@dataclass(frozen=True)
class SampledToken:
    """The next token of one row; log-probabilities are the model's own."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # the likeliest, if asked for


class SamplingState:
    """What one request needs to choose its tokens: parameters, random numbers, and what it has generated so far."""

    def __init__(self, sampling: Sampling, prompt_ids: Ids, *, vocabulary: int, end_ids: Sequence[int]) -> None:
        self.sampling = sampling
        self.seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self.generated = 0
        self._random = np.random.Generator(np.random.Philox(self.seed))
        # Whether a token's score can rise, so that the likeliest K need not be among the model's K.
        raised = sampling.repetition_penalty < 1 or min(sampling.frequency_penalty, sampling.presence_penalty) < 0
        self.lifts = raised or any(bias > 0 for bias in sampling.logit_bias.values())
        # Not before min_tokens, unless no other token is left.
        self._end_ids = np.array(end_ids if len(set(end_ids)) < vocabulary else (), np.int64)
        self._offsets: Floats | None = None  # (vocabulary,), added to the scores
        self._seen: NDArray[np.bool_] | None = None  # (vocabulary,)
        self._counts: NDArray[np.int32] | None = None  # (vocabulary,), of what was generated
        if sampling.logit_bias or sampling.frequency_penalty or sampling.presence_penalty:
            self._offsets = np.zeros(vocabulary, np.float32)
            self._offsets[list(sampling.logit_bias)] = [_bounded(bias) for bias in sampling.logit_bias.values()]
            self._counts = np.zeros(vocabulary, np.int32)
        if sampling.repetition_penalty != 1:
            self._seen = np.zeros(vocabulary, np.bool_)
            self._seen[prompt_ids] = True

    @property
    def adjusts(self) -> bool:
        """Whether scores change at all before a token is chosen."""
        return self._offsets is not None or self._seen is not None or self._ends_blocked

    @property
    def _ends_blocked(self) -> bool:
        return self.generated < self.sampling.min_tokens and self._end_ids.size > 0

    def uniform(self) -> float:
        """The next random number of this request, in [0, 1)."""
        return self._random.random()

    def adjust(self, scores: Floats, ids: Ids) -> Floats:
        """The scores (c,) of the tokens `ids` (c,) after penalties, bias and the ban on ending too early."""
        scores = scores.copy()
        if self._seen is not None:
            scores = np.where(self._seen[ids], self._repeated(scores), scores)
        if self._offsets is not None:
            scores += self._offsets[ids]
        if self._ends_blocked:
            scores[np.isin(ids, self._end_ids)] = -np.inf
        return scores

    def adjust_all(self, scores: Floats) -> None:
        """The same for the whole vocabulary, in place."""
        if self._seen is not None:
            seen = np.flatnonzero(self._seen)
            scores[seen] = self._repeated(scores[seen])
        if self._offsets is not None:
            scores += self._offsets
        if self._ends_blocked:
            scores[self._end_ids] = -np.inf

    def record(self, token_id: int) -> None:
        """The token was chosen."""
        self.generated += 1
        if self._seen is not None:
            self._seen[token_id] = True
        if self._offsets is not None and self._counts is not None:
            first = self._counts[token_id] == 0
            penalty = self.sampling.frequency_penalty + first * self.sampling.presence_penalty
            self._offsets[token_id] = _bounded(float(self._offsets[token_id]) - penalty)
            self._counts[token_id] += 1

    def _repeated(self, scores: Floats) -> Floats:
        """The scores of tokens that occurred before, after the repetition penalty."""
        penalty = np.float32(_bounded(max(self.sampling.repetition_penalty, 1 / LARGEST_SCORE)))
        with np.errstate(over="ignore"):  # what is infinite is bounded, too
            repeated = np.where(scores > 0, scores / penalty, scores * penalty)
        return np.asarray(repeated.clip(-LARGEST_SCORE, LARGEST_SCORE))


def _bounded(value: float) -> float:
    return max(-LARGEST_SCORE, min(LARGEST_SCORE, value))


class Sampler:
    """Samples for one batch of rows. A change of the rows needs a new sampler: their history is in `SamplingState`."""

    def __init__(self, rows: Sequence[SamplingState], *, likeliest: int, vocabulary: int) -> None:
        asked = [row.sampling for row in rows]
        self.rows = rows
        self._all_known = likeliest == vocabulary
        self._greedy = np.array([sampling.temperature == 0 for sampling in asked])
        self._temperature = np.array([sampling.temperature or 1.0 for sampling in asked])
        self._top_k = np.array([1 if not sampling.temperature else sampling.top_k or vocabulary for sampling in asked])
        self._top_p = np.array([sampling.top_p for sampling in asked])
        self._min_p = np.array([sampling.min_p for sampling in asked])
        self._reporting = [index for index, sampling in enumerate(asked) if sampling.logprobs]
        wide = (self._top_k > likeliest) & (self._top_k > 1)
        lifted = np.array([row.lifts for row in rows])
        self._whole = set() if self._all_known else set(np.flatnonzero(wide | lifted).tolist())

    def choose(self, scores: Scores) -> list[SampledToken]:
        """One token for each row, recorded in its `SamplingState`. Fetches the logits only if a row needs them."""
        uniforms = np.array([row.uniform() for row in self.rows])
        raw, ids = scores.top_scores, scores.top_ids
        adjusted, order, whole = self._adjust(raw, ids)
        columns = self._pick(adjusted, uniforms)[:, None]
        if order is not None:
            columns = np.take_along_axis(order, columns, axis=1)
        tokens = np.take_along_axis(ids, columns, axis=1)[:, 0]
        chosen_scores = np.take_along_axis(raw, columns, axis=1)[:, 0]
        if whole:
            tokens[whole], chosen_scores[whole] = self._choose_from_all(whole, scores.logits(whole), uniforms)
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.record(token)
        logprobs = (chosen_scores - scores.logsumexp).tolist()
        tops = self._report(scores)
        return [
            SampledToken(token, logprob, tops.get(index, ()))
            for index, (token, logprob) in enumerate(zip(tokens.tolist(), logprobs, strict=True))
        ]

    def _adjust(self, raw: Floats, ids: Ids) -> tuple[Floats, Ids | None, list[int]]:
        """Scores to choose from, in which column each stood before, and the rows for which the K do not suffice."""
        whole = set(self._whole)
        touched = [index for index, row in enumerate(self.rows) if row.adjusts and index not in whole]
        if not touched:
            return raw, None, sorted(whole)
        adjusted, order = raw.copy(), np.tile(np.arange(raw.shape[1]), (len(raw), 1))
        for index in touched:
            scores = self.rows[index].adjust(raw[index], ids[index])
            # Nothing was lifted: what is above the K-th score still comes before everything that is not among the K.
            if not self._all_known and np.count_nonzero(scores > raw[index, -1]) < self._top_k[index]:
                whole.add(index)
                continue
            order[index] = np.lexsort((ids[index], -scores))
            adjusted[index] = scores[order[index]]
        return adjusted, order, sorted(whole)

    def _choose_from_all(self, rows: list[int], logits: Floats, uniforms: Doubles) -> tuple[Ids, Floats]:
        """Of each of these rows a token out of the whole vocabulary, and its score. `logits` are (rows, vocabulary)."""
        adjusting = [at for at, row in enumerate(rows) if self.rows[row].adjusts]
        scores = logits.copy() if adjusting else logits
        for at in adjusting:
            self.rows[rows[at]].adjust_all(scores[at])
        tokens = scores.argmax(axis=1)
        drawn = [at for at, row in enumerate(rows) if not self._greedy[row]]
        if drawn:
            which = np.array(rows)[drawn]
            tokens[drawn] = draw_from_all(
                scores if len(drawn) == len(rows) else scores[drawn],
                temperature=self._temperature[which],
                top_k=self._top_k[which],
                top_p=self._top_p[which],
                min_p=self._min_p[which],
                uniforms=uniforms[which],
            )
        return tokens, np.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]

    def _pick(self, scores: Floats, uniforms: Doubles) -> Ids:
        """The column chosen in each row."""
        if self._greedy.all():
            return np.asarray(scores.argmax(axis=1))
        return draw(
            scores,
            temperature=self._temperature,
            top_k=self._top_k,
            top_p=self._top_p,
            min_p=self._min_p,
            uniforms=uniforms,
        )

    def _report(self, scores: Scores) -> dict[int, tuple[tuple[int, float], ...]]:
        """The likeliest tokens with their log-probabilities, by row, for the rows that want to know."""
        reports = {}
        for index in self._reporting:
            count = self.rows[index].sampling.logprobs
            logprobs = scores.top_scores[index, :count] - scores.logsumexp[index]
            reports[index] = tuple(zip(scores.top_ids[index, :count].tolist(), logprobs.tolist(), strict=True))
        return reports
