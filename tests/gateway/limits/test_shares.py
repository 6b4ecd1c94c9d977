"""What replicas let in without their shared counters, when they have heard from each other before."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.limits.book import Ask, Book, Grant, Rate, Refusal, Unit
from gateway.limits.hearsay import KEYS_MAX, PEERS_MAX, Hearsay, Slots
from gateway.limits.shares import Share

WINDOW_US = 60_000_000
RATE = Rate("r", "requests", 120, WINDOW_US)


class Replica:
    """A share with a clock of its own."""

    def __init__(self, number: int, replicas: int, ahead_us: int) -> None:
        self.hearsay = Hearsay(f"replica-{number}")
        self.share = Share(replicas, self.hearsay)
        self.ahead_us = ahead_us

    def ask(self, identity: str, at_us: int, tokens: int, rate: Rate) -> Ask:
        now_us = at_us + self.ahead_us
        return Ask(identity, now_us, now_us + WINDOW_US, rates=(rate,), input_tokens=tokens)


def gossip(replicas: list[Replica], at_us: int) -> None:
    for one in replicas:
        for message in one.hearsay.messages(one.share.changed(), at_us + one.ahead_us):
            for other in replicas:
                other.hearsay.hear(message, at_us + other.ahead_us)


def most(admitted: list[tuple[int, int]]) -> int:
    """The most that was let in during any time of the window's length, of (when, how much)."""
    return max(sum(n for at_us, n in admitted if since_us <= at_us < since_us + WINDOW_US) for since_us, _ in admitted)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["requests", "tokens"]), st.integers(2, 5))
def test_an_outage_lets_in_no_more_than_the_limit_whoever_was_busy_before(
    rng: random.Random, unit: Unit, count: int
) -> None:
    rate = Rate("r", unit, 120, WINDOW_US)
    replicas = [Replica(number, count, rng.randrange(10**9)) for number in range(count)]
    together, admitted, at_us = Book(), list[tuple[int, int]](), 1_000_000_000
    weights = [rng.random() ** 4 for _ in replicas]
    for step in range(400):
        at_us += rng.randrange(WINDOW_US // 60)
        (one,) = rng.choices(replicas, weights)
        tokens = rng.randint(1, 5)
        amount = 1 if unit == "requests" else tokens
        ask = one.ask(f"{step}", at_us, tokens, rate)
        if step < 200:
            if isinstance(together.admit(Ask(f"{step}", at_us, at_us + 1, rates=(rate,), input_tokens=tokens)), Grant):
                one.share.count(ask, tokens)
                admitted.append((at_us, amount))
            gossip(replicas, at_us)
            continue
        if step == 200:
            weights = [rng.random() for _ in replicas]
        if isinstance(one.share.admit(ask), Grant):
            admitted.append((at_us, amount))
    assert most(admitted) <= rate.limit


def test_who_was_idle_has_a_part_of_what_the_others_left() -> None:
    busy, idle = replicas = [Replica(0, 2, 7), Replica(1, 2, 10**9)]
    for number in range(100):
        busy.share.count(busy.ask(f"{number}", 0, 1, RATE), 1)
    gossip(replicas, 0)
    decisions = [idle.share.admit(idle.ask(f"i{number}", 0, 1, RATE)) for number in range(11)]
    assert [type(one) for one in decisions] == [Grant] * 10 + [Refusal]
    refusal = decisions[-1]
    assert isinstance(refusal, Refusal) and refusal.retry_us
    assert isinstance(busy.share.admit(busy.ask("b", 0, 1, RATE)), Refusal)
    # What was let in before has left the window, so that each has its whole part again.
    later_us = WINDOW_US + WINDOW_US // 60 + 1
    assert isinstance(busy.share.admit(busy.ask("later", later_us, 1, RATE)), Grant)


def test_what_is_let_in_alone_is_said_when_it_was_told() -> None:
    one, other = replicas = [Replica(0, 2, 0), Replica(1, 2, 0)]
    assert isinstance(one.share.admit(one.ask("a", 0, 1, RATE)), Grant)
    gossip(replicas, 0)
    assert other.hearsay.used("r", 0) == 0, "the shared counters do not know it yet"
    one.share.take(0, everything=False)
    gossip(replicas, 0)
    assert other.hearsay.used("r", 0) == 1


def test_a_part_of_nothing_is_refused_with_a_time() -> None:
    busy, idle = replicas = [Replica(0, 2, 0), Replica(1, 2, 0)]
    rate = Rate("t", "tokens", 100, WINDOW_US)
    busy.share.count(busy.ask("a", 0, 100, rate), 100)
    gossip(replicas, 0)
    refusal = idle.share.admit(idle.ask("b", 0, 60, rate))
    assert isinstance(refusal, Refusal) and refusal.retry_us
    never = idle.share.admit(idle.ask("c", 0, 101, rate))
    assert isinstance(never, Refusal) and never.retry_us is None


def test_saying_twice_changes_nothing_and_corrections_arrive() -> None:
    one, other = Replica(0, 2, 0), Replica(1, 2, 0)
    rate = Rate("t", "tokens", 100, WINDOW_US)
    slots = one.share.count(one.ask("a", 0, 90, rate), 90)
    (message,) = one.hearsay.messages(one.share.changed(), 0)
    for _ in range(2):
        other.hearsay.hear(message, 0)
        one.hearsay.hear(message, 0)
    assert (other.hearsay.used("t", 0), one.hearsay.used("t", 0)) == (90, 0)
    one.share.uncount(slots, 80)
    gossip([one, other], 0)
    assert other.hearsay.used("t", 0) == 10
    assert one.share.changed() == []
    other.hearsay.forget(2 * WINDOW_US, 0)
    assert other.hearsay.used("t", 0) == 0


def test_what_is_heard_is_bounded_and_nonsense_is_an_error() -> None:
    hearsay, talker = Hearsay("here"), Hearsay("there")
    windows = [Slots(f"{number}", 1000, None, ((0, 1),)) for number in range(KEYS_MAX + 1)]
    assert len(list(talker.messages(windows, 0))) == 2
    for number in range(PEERS_MAX + 1):
        for message in Hearsay(f"{number}").messages(windows[:1], 0):
            hearsay.hear(message, 0)
    assert hearsay.used("0", 0) == PEERS_MAX
    with pytest.raises(msgspec.DecodeError):
        hearsay.hear(b"\x93\x01\x02", 0)
