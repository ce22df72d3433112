"""Samples the next tokens of a whole batch in one vectorised step. Knows nothing of slots, text or sessions.

The graph outputs the K most likely tokens and the log-sum-exp of all. This suffices for most requests. The logits of
the whole vocabulary are fetched only for requests that want more candidates, or that raise the scores of tokens that
may not be among the K.

The tokens of a request depend on its own scores, parameters and seed alone. Each request has its own stream of random
numbers, and uses one for each token, unless it always takes the most likely token.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.arrays import Floats, Floats64, Ids
from server.generation.decoder import Scores
from server.generation.request import MAX_BIAS, Sampling
from server.generation.sampling import sample_sorted, sample_unsorted

LARGEST_SCORE = 1e30  # after penalties and bias: sums and differences of such scores are finite in 32 bits


@dataclass(frozen=True)
class SampledToken:
    """The next token of a sequence. Log-probabilities are those of the model."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # the most likely tokens, if requested, in descending order


class SamplingState:
    """The sampling parameters of one sequence, its random numbers, and the tokens that it has generated so far."""

    def __init__(self, sampling: Sampling, prompt_ids: Ids, *, vocabulary: int, end_ids: Sequence[int]) -> None:
        self.sampling = sampling
        self.seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self.generated = 0
        self._random = np.random.Generator(np.random.Philox(self.seed))
        # Whether the score of a token may rise: then the K most likely tokens need not be those of the graph.
        raised = sampling.repetition_penalty < 1 or min(sampling.frequency_penalty, sampling.presence_penalty) < 0
        self.may_raise_scores = raised or any(bias > 0 for bias in sampling.logit_bias.values())
        # Banned before min_tokens, unless the vocabulary has no other tokens.
        self._end_ids = np.array(end_ids if len(set(end_ids)) < vocabulary else (), np.int64)
        self._offsets: Floats | None = None  # (vocabulary,), added to the scores
        self._seen: NDArray[np.bool_] | None = None  # (vocabulary,)
        self._counts: NDArray[np.int32] | None = None  # (vocabulary,), of the generated tokens
        if sampling.logit_bias or sampling.frequency_penalty or sampling.presence_penalty:
            self._offsets = np.zeros(vocabulary, np.float32)
            self._offsets[list(sampling.logit_bias)] = [_clamped(bias) for bias in sampling.logit_bias.values()]
            self._counts = np.zeros(vocabulary, np.int32)
        if sampling.repetition_penalty != 1:
            self._seen = np.zeros(vocabulary, np.bool_)
            self._seen[prompt_ids] = True

        self.may_adjust_scores = self._offsets is not None or self._seen is not None or self._ends_blocked

    @property
    def adjusts_scores(self) -> bool:
        """Whether scores change before the next token is sampled."""
        return self._offsets is not None or self._seen is not None or self._ends_blocked

    @property
    def _ends_blocked(self) -> bool:
        return self.generated < self.sampling.min_tokens and self._end_ids.size > 0

    def uniform(self) -> float:
        """The next random number of this sequence, in [0, 1)."""
        return self._random.random()

    def adjust(self, scores: Floats, ids: Ids) -> Floats:
        """The scores (c,) of the tokens `ids` (c,) with penalties, bias, and a ban of end tokens until `min_tokens`."""
        scores = scores.copy()
        if self._seen is not None:
            scores = np.where(self._seen[ids], self._repeated(scores), scores)
        if self._offsets is not None:
            scores += self._offsets[ids]
        if self._ends_blocked:
            scores[np.isin(ids, self._end_ids)] = -np.inf
        return scores

    def adjust_all(self, scores: Floats) -> None:
        """Like `adjust`, in place, for the scores (vocabulary,) of all tokens."""
        if self._seen is not None:
            seen = np.flatnonzero(self._seen)
            scores[seen] = self._repeated(scores[seen])
        if self._offsets is not None:
            scores += self._offsets
        if self._ends_blocked:
            scores[self._end_ids] = -np.inf

    def record(self, token_id: int) -> None:
        """Count a token as generated."""
        self.generated += 1
        if self._seen is not None:
            self._seen[token_id] = True
        if self._offsets is not None and self._counts is not None:
            first = self._counts[token_id] == 0
            penalty = self.sampling.frequency_penalty + first * self.sampling.presence_penalty
            self._offsets[token_id] = _bounded(float(self._offsets[token_id]) - penalty)
            self._counts[token_id] += 1

    def _repeated(self, scores: Floats) -> Floats:
        """The scores of tokens that have occurred, after the repetition penalty."""
        penalty = np.float32(_bounded(max(self.sampling.repetition_penalty, 1 / LARGEST_SCORE)))
        with np.errstate(over="ignore"):  # infinite results are clipped, too
            repeated = np.where(scores > 0, scores / penalty, scores * penalty)
        return np.asarray(repeated.clip(-LARGEST_SCORE, LARGEST_SCORE))


def _clamped(bias: float) -> float:
    return max(-MAX_BIAS, min(MAX_BIAS, bias))


def _bounded(value: float) -> float:
    return max(-LARGEST_SCORE, min(LARGEST_SCORE, value))


class Sampler:
    """Samples for one batch of n sequences. Another batch needs another sampler; the history is in `SamplingState`.

    `graph_top_k` is the number of most likely tokens, K, that the graph outputs.
    """

    def __init__(self, states: Sequence[SamplingState], *, graph_top_k: int, vocabulary: int) -> None:
        samplings = [state.sampling for state in states]
        self.states = states
        self._all_ranked = graph_top_k == vocabulary
        self._greedy = np.array([sampling.temperature == 0 for sampling in samplings])
        self._temperature = np.array([sampling.temperature or 1.0 for sampling in samplings])
        self._top_k = np.array(
            [min(sampling.top_k or vocabulary, vocabulary) if sampling.temperature else 1 for sampling in samplings]
        )
        self._top_p = np.array([sampling.top_p for sampling in samplings])
        self._min_p = np.array([sampling.min_p for sampling in samplings])
        self._rows, self._first_columns = np.arange(len(states)), np.zeros(len(states), np.int64)
        self._all_greedy = bool(self._greedy.all())
        self._adjusting = [row for row, state in enumerate(states) if state.may_adjust_scores]
        self._reporting = [row for row, sampling in enumerate(samplings) if sampling.logprobs]
        wide = (self._top_k > graph_top_k) & (self._top_k > 1)
        raised = np.array([state.may_raise_scores for state in states])
        self._need_logits = set() if self._all_ranked else set(np.flatnonzero(wide | raised).tolist())
        self._sorted_need_logits = sorted(self._need_logits)

    def sample(self, scores: Scores) -> list[SampledToken]:
        """One token for each of n rows, recorded in its state. Fetches the logits only of the rows that need them."""
        uniforms = np.array([] if self._all_greedy else [state.uniform() for state in self.states])
        top_scores, ids = scores.top_scores, scores.top_ids
        adjusted, order, need_logits = self._adjust(top_scores, ids)
        columns = self._sample_from_top(adjusted, uniforms)
        if order is not None:
            columns = order[self._rows, columns]
        tokens, token_scores = ids[self._rows, columns], top_scores[self._rows, columns]
        if need_logits:
            logits = scores.logits(need_logits)
            tokens[need_logits], token_scores[need_logits] = self._sample_from_all(need_logits, logits, uniforms)
        token_ids, logprobs = tokens.tolist(), (token_scores - scores.logsumexp).tolist()
        for state, token in zip(self.states, token_ids, strict=True):
            state.record(token)
        tops = self._top_logprobs(scores)
        return [
            SampledToken(token, logprob, tops.get(row, ()))
            for row, (token, logprob) in enumerate(zip(token_ids, logprobs, strict=True))
        ]

    def _adjust(self, top_scores: Floats, ids: Ids) -> tuple[Floats, Ids | None, list[int]]:
        """The adjusted scores (n, K) in descending order, their columns in `top_scores`, the rows that need the logits.

        The columns are None if no row changes.
        """
        changed = [row for row in self._adjusting if self.states[row].adjusts_scores and row not in self._need_logits]
        if not changed:
            return top_scores, None, self._sorted_need_logits
        need_logits = set(self._need_logits)
        adjusted, order = top_scores.copy(), np.tile(np.arange(top_scores.shape[1]), (len(top_scores), 1))
        for row in changed:
            scores = self.states[row].adjust(top_scores[row], ids[row])
            # No score was raised, so the scores above the K-th unadjusted one are still the highest of all.
            if not self._all_ranked and np.count_nonzero(scores > top_scores[row, -1]) < self._top_k[row]:
                need_logits.add(row)
                continue
            order[row] = np.lexsort((ids[row], -scores))
            adjusted[row] = scores[order[row]]
        return adjusted, order, sorted(need_logits)

    def _sample_from_all(self, rows: list[int], logits: Floats, uniforms: Floats64) -> tuple[Ids, Floats]:
        """A token of the whole vocabulary, and its score, for these m rows. `logits` are (m, vocabulary)."""
        adjusting = [index for index, row in enumerate(rows) if self.states[row].adjusts_scores]
        scores = logits.copy() if adjusting else logits
        for index in adjusting:
            self.states[rows[index]].adjust_all(scores[index])
        tokens = scores.argmax(axis=1)
        random = [index for index, row in enumerate(rows) if not self._greedy[row]]
        if random:
            random_rows = np.array(rows)[random]
            tokens[random] = sample_unsorted(
                scores if len(random) == len(rows) else scores[random],
                temperature=self._temperature[random_rows],
                top_k=self._top_k[random_rows],
                top_p=self._top_p[random_rows],
                min_p=self._min_p[random_rows],
                uniforms=uniforms[random_rows],
            )
        return tokens, np.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]

    def _sample_from_top(self, scores: Floats, uniforms: Floats64) -> Ids:
        """A column (n,) for each row of the scores (n, K)."""
        if self._all_greedy:
            return self._first_columns
        return sample_sorted(
            scores,
            temperature=self._temperature,
            top_k=self._top_k,
            top_p=self._top_p,
            min_p=self._min_p,
            uniforms=uniforms,
        )

    def _top_logprobs(self, scores: Scores) -> dict[int, tuple[tuple[int, float], ...]]:
        """The most likely tokens with their log-probabilities, by row, for the rows that requested them."""
        tops = {}
        for row in self._reporting:
            count = self.states[row].sampling.logprobs
            logprobs = scores.top_scores[row, :count] - scores.logsumexp[row]
            tops[row] = tuple(zip(scores.top_ids[row, :count].tolist(), logprobs.tolist(), strict=True))
        return tops
