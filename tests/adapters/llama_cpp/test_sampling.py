"""Sampling against brute force, and against the statistics it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.llama_cpp.sampling import Recommended, Sampler, draw, log_normaliser, top
from adapters.types import Sampling

NONE = np.empty(0, np.int64)


def logits(size: int, seed: int = 0, spread: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def frequencies(sampling: Sampling, row: np.ndarray, draws: int = 20_000) -> np.ndarray:
    sampler = Sampler(sampling, NONE)
    return np.bincount([sampler.pick(row.copy()) for _ in range(draws)], minlength=len(row)) / draws


def expected(sampling: Sampling, row: np.ndarray) -> np.ndarray:
    """The distribution by the definition: sort, filter, renormalise."""
    weights = np.exp((row.astype(np.float64) - row.max()) / (sampling.temperature or 1.0))
    order = np.argsort(-weights, kind="stable")
    kept = np.ones(len(row), bool)
    if sampling.top_k:
        kept[order[sampling.top_k :]] = False
    kept &= weights >= (sampling.min_p or 0.0) * weights.max()
    weights = np.where(kept, weights, 0.0)
    before = np.cumsum(weights[order]) - weights[order]
    nucleus = np.zeros(len(row), bool)
    nucleus[order[before < (sampling.top_p or 1.0) * weights.sum()]] = True
    weights = np.where(nucleus, weights, 0.0)
    return np.asarray(weights / weights.sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=1),
        Sampling(seed=1, temperature=0.5, top_p=0.9),
        Sampling(seed=1, top_p=0.3),
        Sampling(seed=1, temperature=1.7, top_k=7),
        Sampling(seed=1, min_p=0.2),
        Sampling(seed=1, temperature=1.2, top_k=30, min_p=0.05, top_p=0.8),
    ],
)
@pytest.mark.parametrize("size", [50, 5000])
def test_draws_follow_the_defined_distribution(sampling: Sampling, size: int) -> None:
    row = logits(size)
    wanted = expected(sampling, row)
    draws = 20_000
    got = frequencies(sampling, row, draws)
    assert not got[wanted == 0].any(), "a filtered token was drawn"
    likely = wanted * draws >= 10
    tail = 1.0 - wanted[likely].sum()
    chi = (
        ((got - wanted)[likely] ** 2 / wanted[likely]).sum() + ((1 - got[likely].sum()) - tail) ** 2 / max(tail, 1e-9)
    ) * draws
    degrees = max(1, int(likely.sum()))
    assert chi < degrees + 5 * math.sqrt(2 * degrees) + 10


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 50), st.integers(0, 1000))
def test_top_equals_a_full_sort(size: int, count: int, seed: int) -> None:
    row = np.round(logits(size, seed), 1)
    assert top(row, count).tolist() == np.lexsort((np.arange(size), -row))[:count].tolist()


@settings(deadline=None)
@given(st.integers(1, 6000), st.floats(0.01, 1.0), st.integers(0, 1000))
def test_a_draw_is_in_the_nucleus(size: int, top_p: float, seed: int) -> None:
    weights = np.exp(logits(size, seed, 4.0))
    index = draw(weights, top_p, np.random.default_rng(seed))
    above = weights[weights > weights[index]].sum(dtype=np.float64)
    assert above <= top_p * weights.sum(dtype=np.float64) * (1 + 1e-5)


def test_zero_weights_are_never_drawn() -> None:
    weights = np.zeros(10_000, np.float32)
    weights[[3, 9_999]] = 1.0
    random = np.random.default_rng(0)
    assert {draw(weights, 1.0, random) for _ in range(100)} == {3, 9_999}


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(top_p=0), Sampling(top_k=1), Sampling(temperature=1e-9)]
)
def test_greedy_takes_the_largest(sampling: Sampling) -> None:
    row = logits(1000)
    assert Sampler(sampling, NONE).pick(row.copy()) == int(row.argmax())


def test_a_model_recommends_what_a_request_leaves_open() -> None:
    row = logits(1000)
    advised = Recommended(temperature=0.0)
    assert Sampler(Sampling(), NONE, advised).greedy
    assert not Sampler(Sampling(temperature=1.0), NONE, advised).greedy
    few = Sampler(Sampling(seed=1), NONE, Recommended(top_k=3))
    assert {few.pick(row.copy()) for _ in range(200)} == set(top(row, 3).tolist())


def test_the_same_seed_repeats_and_streams_differ() -> None:
    row = logits(1000)
    runs = []
    for seed, stream in ((7, 0), (7, 0), (7, 1), (-7, 0)):
        sampler = Sampler(Sampling(seed=seed), NONE, stream=stream)
        runs.append([sampler.pick(row.copy()) for _ in range(20)])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2] != runs[3]


def test_bias_and_bans() -> None:
    row = logits(100)
    best = int(row.argmax())
    assert Sampler(Sampling(temperature=0, logit_bias={5: 100.0}), NONE).pick(row.copy()) == 5
    assert Sampler(Sampling(temperature=0, logit_bias={best: -100.0}), NONE).pick(row.copy()) != best
    assert Sampler(Sampling(temperature=0), np.array([best])).pick(row.copy()) == int(np.argsort(row)[-2])


def test_penalties_lower_what_was_generated() -> None:
    row = np.array([3.0, 2.0, 1.0], np.float32)
    present = Sampler(Sampling(temperature=0, presence_penalty=1.5), NONE)
    assert [present.pick(row.copy()) for _ in range(3)] == [0, 1, 0]
    frequent = Sampler(Sampling(temperature=0, frequency_penalty=0.4), NONE)
    assert [frequent.pick(row.copy()) for _ in range(5)] == [0, 0, 0, 1, 0]


def test_log_normaliser_does_not_overflow() -> None:
    row = np.array([1e4, 1e4], np.float32)
    assert log_normaliser(row) == pytest.approx(1e4 + math.log(2))
