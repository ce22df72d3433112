"""The sampler, compared with a reference that handles one sequence, step by step, on the whole vocabulary."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from server.generation.decoder import Scores
from server.generation.request import Sampling
from server.generation.sampler import Sampler, SamplingState

VOCABULARY, GRAPH_TOP_K = 60, 16
END = 7
PROMPT = np.array([3, 4, 5, 5])


def scores_of(logits: np.ndarray, graph_top_k: int = GRAPH_TOP_K) -> Scores:
    """The outputs of a graph with these logits (n, vocabulary)."""
    logits = logits.astype(np.float32)
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :graph_top_k]
    largest = logits.max(axis=1)
    logsumexp = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    return Scores(np.take_along_axis(logits, ids, axis=1), ids, logsumexp.astype(np.float32), lambda rows: logits[rows])


def without_logits(scores: Scores) -> Scores:
    def refuse(rows):
        raise AssertionError("the logits were fetched")

    return Scores(scores.top_scores, scores.top_ids, scores.logsumexp, refuse)


def state_of(sampling: Sampling) -> SamplingState:
    return SamplingState(sampling, PROMPT, vocabulary=VOCABULARY, end_ids=[END])


def sampler_of(*states: SamplingState, graph_top_k: int = GRAPH_TOP_K) -> Sampler:
    return Sampler(states, graph_top_k=graph_top_k, vocabulary=VOCABULARY)


def reference(logits: np.ndarray, sampling: Sampling, generated: list[int]) -> dict[int, float]:
    """The probability of each token that may be sampled."""
    scores = {token: float(np.float32(score)) for token, score in enumerate(logits)}
    for token in {*PROMPT.tolist(), *generated}:
        penalty = sampling.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token in generated:
        scores[token] -= sampling.frequency_penalty
    for token in set(generated):
        scores[token] -= sampling.presence_penalty
    for token, bias in sampling.logit_bias.items():
        scores[token] += bias
    if len(generated) < sampling.min_tokens:
        scores[END] = -math.inf
    ranked = sorted(scores, key=lambda token: (-scores[token], token))
    if sampling.temperature == 0:
        return {ranked[0]: 1.0}
    weights = {t: math.exp((scores[t] - scores[ranked[0]]) / sampling.temperature) for t in ranked}
    kept = ranked[: sampling.top_k or None]
    total, before, nucleus = sum(weights[t] for t in kept), 0.0, []
    for token in kept:
        if before < sampling.top_p * total:
            nucleus.append(token)
        before += weights[token]
    kept = [token for token in nucleus if weights[token] >= sampling.min_p]
    total = sum(weights[t] for t in kept)
    return {token: weights[token] / total for token in kept}


CASES = {
    "defaults": {},
    "greedy": {"temperature": 0},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 3.0},
    "top_k": {"top_k": 5},
    "whole vocabulary": {"top_k": 0},
    "more than the graph ranks": {"top_k": 30},
    "top_p": {"top_p": 0.7},
    "top_p of the whole vocabulary": {"top_k": 0, "top_p": 0.9},
    "min_p": {"min_p": 0.2},
    "min_p of the whole vocabulary": {"top_k": 0, "min_p": 0.05},
    "all at once": {"top_k": 12, "top_p": 0.9, "min_p": 0.05, "temperature": 1.5},
    "repetition": {"repetition_penalty": 1.8},
    "repetition below 1": {"repetition_penalty": 0.5},
    "frequency": {"frequency_penalty": 1.5},
    "presence": {"presence_penalty": 1.5, "top_k": 4},
    "negative presence": {"presence_penalty": -2.0},
    "positive bias": {"logit_bias": {11: 4.0, 12: -3.0}},
    "negative bias": {"logit_bias": {11: -4.0}, "top_k": 10},
    "greedy with negative bias": {"logit_bias": dict.fromkeys(range(0, 60, 2), -50.0), "temperature": 0},
    "min_tokens": {"min_tokens": 6, "top_k": 8},
}


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=VOCABULARY) * 2


@pytest.mark.parametrize("case", CASES)
def test_samples_follow_the_reference_distribution(case, logits):
    samples = 4000
    states = [state_of(Sampling(**{"top_k": 10, **CASES[case]}, max_tokens=9, seed=seed)) for seed in range(samples)]
    generated = [11, 11, 20]
    for state in states:
        for token in generated:
            state.record(token)
    expected = reference(logits, states[0].sampling, generated)
    found = [chosen.token_id for chosen in sampler_of(*states).sample(scores_of(np.tile(logits, (samples, 1))))]
    counts = np.bincount(found, minlength=VOCABULARY)
    assert set(np.flatnonzero(counts)) <= set(expected)
    wanted = np.array([expected.get(token, 0.0) for token in range(VOCABULARY)]) * samples
    often = wanted >= 5  # the test needs frequent tokens; the rare ones form one more class
    wanted = np.append(wanted[often], max(wanted[~often].sum(), 1e-9))
    counts = np.append(counts[often], counts[~often].sum())
    chi_square, freedom = float(((counts - wanted) ** 2 / wanted).sum()), max(len(wanted) - 1, 1)
    assert chi_square < freedom + 4.5 * math.sqrt(2 * freedom)


SAMPLING = st.builds(
    Sampling,
    max_tokens=st.just(20),
    min_tokens=st.sampled_from([0, 2, 20]),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, GRAPH_TOP_K, 40, 200]),
    top_p=st.sampled_from([0.1, 0.5, 1.0]),
    min_p=st.sampled_from([0.0, 0.3]),
    repetition_penalty=st.sampled_from([0.7, 1.0, 1.5]),
    frequency_penalty=st.sampled_from([-1.0, 0.0, 1.0]),
    presence_penalty=st.sampled_from([-1.0, 0.0, 1.0]),
    logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-5, 5), max_size=3),
    seed=st.integers(0, 2**64 - 1),
)
LOGITS = arrays.arrays(np.float32, VOCABULARY, elements=st.integers(-40, 40).map(lambda n: n / 8), unique=False)


@given(rows=st.lists(st.tuples(SAMPLING, LOGITS), min_size=1, max_size=6), steps=st.integers(1, 4))
def test_a_sequence_gets_the_same_tokens_alone_and_in_a_batch_and_only_possible_ones(rows, steps):
    together, alone = [state_of(sampling) for sampling, _ in rows], [state_of(sampling) for sampling, _ in rows]
    sampler = sampler_of(*together)
    generated: list[list[int]] = [[] for _ in rows]
    for _ in range(steps):
        chosen = sampler.sample(scores_of(np.stack([logits for _, logits in rows])))
        for index, (sampling, logits) in enumerate(rows):
            (own,) = sampler_of(alone[index]).sample(scores_of(logits[None]))
            assert own.token_id == chosen[index].token_id
            allowed = reference(logits, sampling, generated[index])
            assert own.token_id in set(allowed) | _on_the_border(logits, sampling, generated[index])
            generated[index].append(own.token_id)


def _on_the_border(logits, sampling, generated):
    """Tokens that rounding may allow: those within slightly wider limits, and ties with the last."""
    loose = replace(sampling, top_p=min(1.0, sampling.top_p + 1e-5), min_p=max(0.0, sampling.min_p - 1e-5))
    return set(reference(logits, loose, generated)) | set(_ties(logits, sampling, generated))


def _ties(logits, sampling, generated):
    wide = reference(logits, replace(sampling, top_k=0, top_p=1.0, min_p=0.0), generated)
    lowest = min(wide[token] for token in reference(logits, sampling, generated) if token in wide)
    return [token for token, probability in wide.items() if math.isclose(probability, lowest, rel_tol=1e-4)]


@pytest.mark.parametrize(
    "case",
    ["defaults", "greedy", "top_p", "repetition", "frequency", "negative bias", "min_tokens", "all at once"],
)
def test_most_parameters_need_no_logits(case, logits):
    row = state_of(Sampling(**{"top_k": 10, **CASES[case]}, max_tokens=9))
    sampler_of(row).sample(without_logits(scores_of(logits[None])))


@pytest.mark.parametrize(
    "case", ["whole vocabulary", "more than the graph ranks", "positive bias", "repetition below 1"]
)
def test_logits_are_fetched_where_the_top_tokens_do_not_suffice(case, logits):
    row = state_of(Sampling(**{"top_k": 10, **CASES[case]}, max_tokens=9))
    with pytest.raises(AssertionError, match="fetched"):
        sampler_of(row).sample(without_logits(scores_of(logits[None])))


def test_logits_are_fetched_if_all_top_tokens_have_a_negative_bias(logits):
    top_tokens = np.argsort(-logits)[: GRAPH_TOP_K + 2]
    row = state_of(Sampling(temperature=0, logit_bias=dict.fromkeys(top_tokens.tolist(), -50.0)))
    (chosen,) = sampler_of(row).sample(scores_of(logits[None]))
    assert chosen.token_id == np.argsort(-logits)[GRAPH_TOP_K + 2]


def test_no_logits_are_fetched_if_the_graph_ranks_the_whole_vocabulary(logits):
    row = state_of(Sampling(top_k=0, logit_bias={2: 3.0}, logprobs=20))
    scores = without_logits(scores_of(logits[None], graph_top_k=VOCABULARY))
    assert len(sampler_of(row, graph_top_k=VOCABULARY).sample(scores)[0].top) == 20


def test_greedy_sampling_takes_the_lowest_id_of_equal_scores():
    (chosen,) = sampler_of(state_of(Sampling(temperature=0))).sample(scores_of(np.zeros((1, VOCABULARY))))
    assert chosen.token_id == 0


@pytest.mark.parametrize("count", [1, 5, GRAPH_TOP_K])
@pytest.mark.parametrize("case", ["hot", "whole vocabulary", "positive bias"])
def test_log_probabilities_are_those_of_the_model(case, count, logits):
    row = state_of(Sampling(**{**CASES[case]}, logprobs=count, seed=1))
    (chosen,) = sampler_of(row).sample(scores_of(logits[None]))
    expected = logits - np.log(np.exp(logits).sum())
    assert chosen.logprob == pytest.approx(expected[chosen.token_id], abs=1e-5)
    assert [token for token, _ in chosen.top] == np.argsort(-logits)[:count].tolist()
    assert [logprob for _, logprob in chosen.top] == pytest.approx(sorted(expected)[: -count - 1 : -1], abs=1e-5)


def test_equal_seeds_give_equal_tokens_and_others_give_others(logits):
    def tokens(seed):
        row = state_of(Sampling(seed=seed, max_tokens=30, temperature=2.0))
        sampler = sampler_of(row)
        return [sampler.sample(scores_of(logits[None]))[0].token_id for _ in range(30)]

    assert tokens(5) == tokens(5) != tokens(6)


def test_without_a_seed_a_random_one_is_chosen():
    seeds = {state_of(Sampling()).seed for _ in range(20)}
    assert len(seeds) == 20


@pytest.mark.parametrize("top_k", [5, 0])
@pytest.mark.parametrize("temperature", [1e-300, 1e-46, 1e39, 1e300])
def test_extreme_temperatures_give_valid_tokens(temperature, top_k, logits):
    row = state_of(Sampling(temperature=temperature, top_k=top_k, min_tokens=20, max_tokens=20, seed=1))
    sampler, best = sampler_of(row), [token for token in np.argsort(-logits) if token != END]
    chosen = {sampler.sample(scores_of(logits[None]))[0].token_id for _ in range(20)}
    if temperature < 1:
        assert chosen == {best[0]}
    else:
        assert len(chosen) > 1
        assert chosen <= set(best[: top_k or None])


EXTREMES = {
    "strong repetition": {"repetition_penalty": 1e300},
    "weak repetition": {"repetition_penalty": 5e-324},
    "colder than 32 bits": {"temperature": 5e-324},
    "cold": {"temperature": 1e-30, "repetition_penalty": 1e-38},
    "hot": {"temperature": 1.7e308, "repetition_penalty": 1e38},
    "bias": {"logit_bias": {3: 1e38, 4: -1e38, 11: 1e300, 12: -1e300}},
    "penalties": {"frequency_penalty": 1e38, "presence_penalty": 1e300},
    "rewards": {"frequency_penalty": -1e38, "presence_penalty": -1e300, "temperature": 0.5},
    "all at once": {"repetition_penalty": 1e300, "logit_bias": {3: -1e38}, "presence_penalty": -1e38, "top_p": 0.5},
}


def unchecked(**values) -> Sampling:
    """Parameters that the checks of a request would refuse."""
    sampling = Sampling(max_tokens=20, min_tokens=20, seed=1)
    for name, value in values.items():
        object.__setattr__(sampling, name, value)
    return sampling


@pytest.mark.parametrize("drawn", [{"top_k": 5}, {"top_k": 0}, {"top_k": 40, "top_p": 0.9}, {"temperature": 0.0}])
@pytest.mark.parametrize("scale", [1, 1e4, 1e38])
@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_parameters_choose_the_same_valid_tokens_each_time_without_a_warning(case, scale, drawn, logits):
    scores = scores_of((logits / np.abs(logits).max() * scale)[None])
    runs = []
    for graph_top_k in (GRAPH_TOP_K, GRAPH_TOP_K, VOCABULARY):
        sampler = sampler_of(state_of(unchecked(**{**EXTREMES[case], **drawn})), graph_top_k=graph_top_k)
        scores = scores_of(scores.logits([0]), graph_top_k=graph_top_k)
        runs.append([sampler.sample(scores)[0] for _ in range(12)])
    assert [chosen.token_id for chosen in runs[0]] == [chosen.token_id for chosen in runs[1]]
    assert all(0 <= chosen.token_id < VOCABULARY and chosen.token_id != END for run in runs for chosen in run)
    assert not any(math.isnan(chosen.logprob) for run in runs for chosen in run)


def test_a_ban_on_every_token_bans_none(logits):
    sampling = Sampling(min_tokens=5, max_tokens=5, top_k=0, seed=1)
    row = SamplingState(sampling, PROMPT, vocabulary=VOCABULARY, end_ids=range(VOCABULARY))
    sampler = sampler_of(row)
    assert all(0 <= sampler.sample(scores_of(logits[None]))[0].token_id < VOCABULARY for _ in range(5))
