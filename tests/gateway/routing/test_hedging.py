"""When a second target is asked, and that the cap holds whatever comes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing.hedging import SAVED_MAX, HedgeSettings, Hedging

COSTS = st.one_of(st.none(), st.integers(0, 10**6))


def test_a_fixed_time_is_known_at_once() -> None:
    assert Hedging(HedgeSettings(after_s=0.3)).after_s == 0.3


def test_a_percentile_is_learnt_and_forgotten() -> None:
    hedging = Hedging(HedgeSettings(percentile=90))
    for i in range(19):
        hedging.learn(i / 100)
    assert [hedging.after_s] == [None]
    hedging.learn(0.19)
    assert hedging.after_s == 0.18
    for _ in range(300):
        hedging.learn(2.0)
    assert hedging.after_s == 2.0


@given(
    st.lists(st.tuples(COSTS, COSTS), max_size=200),
    st.sampled_from([0.01, 0.05, 0.1, 0.5, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_second_calls_never_are_more_than_their_share(
    requests: list[tuple[int | None, int | None]], share: float
) -> None:
    """Of the requests and of what they may cost, at every moment."""
    hedging, paid, spent = Hedging(HedgeSettings(after_s=1, share_max=share)), 0, 0
    for count, (first, second) in enumerate(requests, 1):
        hedging.earn(first)
        paid += first or 0
        if hedging.spend(second):
            spent += second or 0
        assert hedging.started <= share * count + 1e-6
        assert spent <= share * paid + 1e-3
    assert hedging.started + hedging.refused == len(requests)


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_the_share_is_used_when_everything_is_slow(share: float) -> None:
    hedging = Hedging(HedgeSettings(after_s=1, share_max=share))
    for _ in range(1000):
        hedging.earn(100)
        hedging.spend(100)
    assert hedging.started == pytest.approx(1000 * share, abs=1)


def test_what_was_saved_in_calm_times_is_bounded() -> None:
    hedging = Hedging(HedgeSettings(after_s=1, share_max=0.5))
    for _ in range(10_000):
        hedging.earn(1)
    assert sum(hedging.spend(1) for _ in range(100)) == SAVED_MAX


def test_a_long_tail_is_cut_at_little_cost() -> None:
    """One request in twenty takes a hundred times as long, whoever answers it."""
    dice, hedging = random.Random(5), Hedging(HedgeSettings(percentile=95, share_max=0.1))

    def takes_s() -> float:
        return dice.uniform(0.05, 0.15) * (100 if dice.random() < 0.05 else 1)

    alone: list[float] = []
    hedged: list[float] = []
    for _ in range(4000):
        first_s, second_s, after_s = takes_s(), takes_s(), hedging.after_s
        hedging.earn(10)
        alone.append(first_s)
        shown_s = first_s
        if after_s is not None and first_s > after_s and hedging.spend(10):
            shown_s = min(first_s, after_s + second_s)
        hedging.learn(shown_s)
        hedged.append(shown_s)
    late = sorted(alone)[3920], sorted(hedged)[3920]
    assert late[0] > 4 and late[1] < 1
    assert hedging.started < 400
