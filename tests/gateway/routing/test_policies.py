"""Each policy does what it says, over many requests."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import get_args

import pytest
from msgspec.structs import replace

from gateway.routing.policies import Candidate, Policy, Wish, address, order, turns

REQUESTS = 6000


def targets(*weights: float) -> list[Candidate]:
    return [Candidate(identity=f"target-{i}", weight=weight) for i, weight in enumerate(weights)]


def wish(dice: random.Random, conversation: str | None = None) -> Wish:
    return Wish(draws=tuple(dice.random() for _ in range(8)), conversation=conversation)


def first_choices(policy: Policy, candidates: Sequence[Candidate], name: Callable[[int], str | None]) -> Counter[int]:
    """How often each candidate is tried first, `name` telling each request's conversation."""
    dice = random.Random(7)
    return Counter(order(policy, candidates, wish(dice, name(i)))[0] for i in range(REQUESTS))


@pytest.mark.parametrize("policy", get_args(Policy))
def test_every_policy_orders_all_of_them(policy: Policy) -> None:
    dice = random.Random(1)
    for count in range(1, 6):
        assert sorted(order(policy, targets(*range(1, count + 1)), wish(dice, "talk"))) == list(range(count))


def test_round_robin_is_exact_and_smooth() -> None:
    candidates, chosen = targets(5, 1, 1), []
    for _ in range(14):
        first = order("weighted", candidates, Wish(draws=(0.0,) * 3))[0]
        chosen.append(first)
        candidates = [replace(one, turn=turn) for one, turn in zip(candidates, turns(candidates, first), strict=True)]
    assert chosen == [0, 0, 1, 0, 2, 0, 0] * 2


def test_chance_follows_the_weights() -> None:
    counts = first_choices("random", targets(6, 3, 1), lambda i: None)
    assert [counts[i] / REQUESTS for i in range(3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


def test_priority_is_the_order_of_the_list() -> None:
    assert order("priority", targets(1, 9, 5), Wish(draws=(0.9, 0.1, 0.5))) == [0, 1, 2]


def test_the_least_busy_is_so_for_its_weight() -> None:
    candidates = [replace(one, running=running) for one, running in zip(targets(1, 4, 1), (2, 3, 1), strict=True)]
    assert order("least_busy", candidates, Wish(draws=(0.0,) * 3)) == [1, 2, 0]


def test_equally_busy_ones_share() -> None:
    counts = first_choices("least_busy", targets(1, 1), lambda i: None)
    assert counts[0] / REQUESTS == pytest.approx(0.5, abs=0.03)


def test_the_slowest_is_never_chosen_and_the_fastest_most() -> None:
    candidates = [
        replace(one, first_output_s=first_s) for one, first_s in zip(targets(1, 1, 1), (0.1, 0.2, 0.9), strict=True)
    ]
    counts = first_choices("fastest", candidates, lambda i: None)
    assert counts[2] == 0
    assert counts[0] / REQUESTS == pytest.approx(2 / 3, abs=0.03)


def test_one_that_was_never_measured_is_tried() -> None:
    candidates = [replace(targets(1)[0], first_output_s=0.1, running=1), targets(1, 1)[1]]
    assert order("fastest", candidates, Wish(draws=(0.1, 0.2)))[0] == 1


def test_the_cheapest_comes_first_and_those_without_a_price_last() -> None:
    candidates = [replace(one, cost_nano=nano) for one, nano in zip(targets(1, 1, 1), (None, 7, 3), strict=True)]
    assert order("cheapest", candidates, Wish(draws=(0.0,) * 3)) == [2, 1, 0]


def test_conversations_stay_where_they_are_and_spread_by_weight() -> None:
    candidates = targets(2, 1, 1)
    counts = first_choices("sticky", candidates, str)
    assert [counts[i] / REQUESTS for i in range(3)] == pytest.approx([0.5, 0.25, 0.25], abs=0.03)
    dice = random.Random(3)
    for talk in map(str, range(100)):
        assert len({order("sticky", candidates, wish(dice, talk))[0] for _ in range(5)}) == 1


def test_a_target_that_goes_moves_only_its_own_conversations() -> None:
    candidates, left = targets(1, 1, 1, 1), targets(1, 1, 1, 1)[:3]
    dice = random.Random(3)
    for talk in map(str, range(300)):
        before, after = (order("sticky", some, wish(dice, talk)) for some in (candidates, left))
        assert after[0] == (before[0] if before[0] != 3 else before[1])


def test_without_a_conversation_the_sticky_policy_takes_turns() -> None:
    candidates = [replace(one, turn=turn) for one, turn in zip(targets(1, 1), (-1, 1), strict=True)]
    assert order("sticky", candidates, Wish(draws=(0.0, 0.0)))[0] == 1


@pytest.mark.parametrize(("etas", "first"), [((1, None), 0), ((6, None), 1), ((6, 7), 0), ((None, 1), 0)])
def test_it_overflows_when_the_queue_is_too_long(etas: tuple[float | None, ...], first: int) -> None:
    candidates = [replace(one, eta_s=eta_s) for one, eta_s in zip(targets(1, 1), etas, strict=True)]
    assert order("overflow", candidates, Wish(draws=(0.0, 0.0), eta_s_max=5))[0] == first


def test_a_canary_gets_exactly_its_share_of_requests() -> None:
    candidates, chosen = targets(99, 1), []
    for _ in range(1000):
        first = order("weighted", candidates, Wish(draws=(0.0,) * 2))[0]
        chosen.append(first)
        candidates = [replace(one, turn=turn) for one, turn in zip(candidates, turns(candidates, first), strict=True)]
    assert {sum(chosen[at : at + 100]) for at in range(901)} == {1}


def test_a_canary_gets_its_share_of_conversations_and_keeps_them_when_it_grows() -> None:
    small, grown, dice = targets(99, 1), targets(90, 10), random.Random(3)
    first = {talk: order("sticky", small, wish(dice, str(talk)))[0] for talk in range(20_000)}
    # Five standard deviations of 20,000 draws.
    assert sum(first.values()) / 20_000 == pytest.approx(0.01, abs=0.0035)
    later = {talk: order("sticky", grown, wish(dice, str(talk)))[0] for talk in range(20_000)}
    assert sum(later.values()) / 20_000 == pytest.approx(0.1, abs=0.011)
    assert all(later[talk] for talk, side in first.items() if side)


def test_a_new_address_gets_its_part_little_by_little() -> None:
    dice = random.Random(5)
    for warmth in (0.1, 0.5, 1.0):
        addresses = targets(1, 1, warmth)
        taken = Counter(address(addresses, wish(dice)) for _ in range(REQUESTS))
        assert taken[2] / REQUESTS == pytest.approx(warmth / 3, abs=0.02)
        busy = [replace(one, running=3 * (i < 2)) for i, one in enumerate(addresses)]
        taken = Counter(address(busy, wish(dice)) for _ in range(REQUESTS))
        assert taken[2] / REQUESTS == pytest.approx(warmth, abs=0.03)
    assert address(targets(0.1, 0.1), Wish(draws=(0.9, 0.8))) == 1


def test_conversations_move_to_a_new_address_once_and_only_there() -> None:
    dice = random.Random(5)
    for talk in map(str, range(200)):
        stays = [address(targets(1, 1, warmth), wish(dice, talk)) for warmth in (1e-9, 0.1, 0.4, 0.7, 1.0)]
        moves = [after for before, after in itertools.pairwise(stays) if after != before]
        assert moves in ([], [2])
