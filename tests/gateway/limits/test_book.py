from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.limits.book import Ask, Book, Budget, Charged, Gate, Grant, Missing, NotHeld, Rate, Refusal
from gateway.limits.rest import recall, save
from gateway.limits.windows import Room

MINUTE_US = 60_000_000
RPM = Rate("key:k:requests", "requests", 3, MINUTE_US)
TPM = Rate("key:k:tokens", "tokens", 100, MINUTE_US)
BUDGET = Budget("key:k:m", 1000)


def ask(identity: str, now_us: int = 0, **more: Any) -> Ask:
    return Ask(identity, now_us, now_us + 10 * MINUTE_US, **more)


def book(spent_nano: int = 0) -> Book:
    made = Book()
    made.load(BUDGET.account, spent_nano)
    return made


def granted(decision: Grant | Refusal | Missing) -> Grant:
    assert isinstance(decision, Grant), decision
    return decision


def refused(decision: Grant | Refusal | Missing) -> Refusal:
    assert isinstance(decision, Refusal), decision
    return decision


def test_a_rate_admits_its_limit_and_says_when_there_is_room_again() -> None:
    counters = book()
    for n in range(3):
        room = granted(counters.admit(ask(f"{n}", n * 1_000_000, rates=(RPM,)))).requests_room
        assert room is not None and (room.limit, room.remaining) == (3, 2 - n)
    refusal = refused(counters.admit(ask("x", 5_000_000, rates=(RPM,))))
    assert (refusal.kind, refusal.key, refusal.limit) == ("requests", RPM.key, 3)
    assert refusal.retry_us == 56_000_000, "the first request leaves with its slot of one second after a minute"
    assert isinstance(counters.admit(ask("y", 5_000_000 + 56_000_000 - 1, rates=(RPM,))), Refusal)
    granted(counters.admit(ask("z", 5_000_000 + 56_000_000, rates=(RPM,))))


def test_a_rate_is_whole_again_after_its_reset() -> None:
    counters = book()
    room = granted(counters.admit(ask("a", 500_000, rates=(RPM,)))).requests_room
    assert room == Room(3, 2, 60_500_000)
    for n in range(3):
        granted(counters.admit(ask(f"{n}", 500_000 + 60_500_000, rates=(RPM,))))


def test_reserved_tokens_come_back_when_they_were_not_used() -> None:
    counters = book()
    granted(counters.admit(ask("a", rates=(TPM,), input_tokens=20, output_tokens=80)))
    held = refused(counters.admit(ask("b", rates=(TPM,), input_tokens=1)))
    assert held.retry_us == 1_000_000, "what is held may come back at any time"
    counters.settle("a", 30, 0)
    room = granted(counters.admit(ask("c", rates=(TPM,), input_tokens=70))).tokens_room
    assert room is not None and room.remaining == 0


def test_tokens_that_were_used_stay_until_they_leave_the_window() -> None:
    counters = book()
    counters.admit(ask("a", rates=(TPM,), input_tokens=100))
    counters.settle("a", 500, 0)
    assert refused(counters.admit(ask("b", 1, rates=(TPM,), input_tokens=1))).retry_us == 61 * 1_000_000 - 1
    counters.admit(ask("b", 61_000_000, rates=(TPM,), input_tokens=100))


def test_a_request_over_the_whole_limit_is_told_not_to_wait() -> None:
    refusal = refused(book().admit(ask("a", rates=(TPM,), input_tokens=101)))
    assert (refusal.kind, refusal.retry_us) == ("tokens", None)


def test_concurrency() -> None:
    counters, gates = book(), (Gate("key:k", 2),)
    counters.admit(ask("a", gates=gates))
    counters.admit(ask("b", gates=gates))
    refusal = refused(counters.admit(ask("c", gates=gates)))
    assert (refusal.kind, refusal.limit, refusal.retry_us) == ("concurrency", 2, 1_000_000)
    counters.settle("a", 0, 0)
    granted(counters.admit(ask("c", gates=gates)))
    assert refused(book().admit(ask("a", gates=(Gate("key:k", 0),)))).retry_us is None


def test_a_budget_holds_the_worst_case_and_charges_what_it_was() -> None:
    counters = book()
    grant = granted(counters.admit(ask("a", budgets=(BUDGET,), input_nano=100, output_tokens=8, unit_nano=100)))
    assert (grant.nano, counters.standing(BUDGET.account)) == (900, (0, 900))
    busy = refused(counters.admit(ask("b", budgets=(BUDGET,), input_nano=101)))
    assert (busy.kind, busy.remaining, busy.retry_us) == ("budget", 100, 1_000_000)
    assert counters.settle("a", 0, 350) == (Charged(BUDGET.account, 350, 350),)
    assert counters.standing(BUDGET.account) == (350, 0)
    spent = refused(counters.admit(ask("c", budgets=(BUDGET,), input_nano=651)))
    assert spent.retry_us is None, "no wait brings back what is spent"


def test_a_charge_is_never_above_what_was_held() -> None:
    counters = book()
    counters.admit(ask("a", budgets=(BUDGET,), input_nano=100))
    assert counters.settle("a", 0, 10**12) == (Charged(BUDGET.account, 100, 100),)


def test_an_empty_account_is_closed_even_for_what_costs_nothing() -> None:
    assert isinstance(book(1000).admit(ask("a", budgets=(BUDGET,))), Refusal)
    granted(book(999).admit(ask("a", budgets=(BUDGET,))))


def test_an_answer_without_bound_is_cut_to_what_is_left() -> None:
    counters = book(400)
    cut = ask("a", budgets=(BUDGET,), input_nano=100, output_tokens=10_000, unit_nano=3, output_tokens_min=16)
    assert granted(counters.admit(cut)).output_tokens == 166
    counters = book(400)
    cut = ask("a", rates=(TPM,), input_tokens=20, output_tokens=10_000, choices=2, output_tokens_min=16)
    assert granted(counters.admit(cut)).output_tokens == 40
    small = ask("b", budgets=(BUDGET,), input_nano=590, output_tokens=10_000, unit_nano=3, output_tokens_min=16)
    assert refused(book(400).admit(small)).retry_us is None


def test_what_others_hold_makes_wait_but_does_not_cut() -> None:
    counters = book()
    counters.admit(ask("a", budgets=(BUDGET,), input_nano=600))
    cut = ask("b", budgets=(BUDGET,), output_tokens=500, unit_nano=1, output_tokens_min=16)
    assert refused(counters.admit(cut)).retry_us == 1_000_000
    counters.settle("a", 0, 600)
    assert granted(counters.admit(cut)).output_tokens == 400


def test_all_scopes_or_none() -> None:
    counters = book()
    counters.load("team:t:m", 990)
    both = (BUDGET, Budget("team:t:m", 1000))
    refusal = refused(counters.admit(ask("a", rates=(RPM,), gates=(Gate("g", 1),), budgets=both, input_nano=11)))
    assert (refusal.key, refusal.requests_room) == ("team:t:m", Room(3, 3, 0))
    assert counters.standing(BUDGET.account) == (0, 0)
    for n in range(3):
        granted(counters.admit(ask(f"{n}", rates=(RPM,), budgets=both, input_nano=3)))


def test_the_longest_wait_is_the_one_that_is_told() -> None:
    counters = book(1000)
    counters.admit(ask("0", gates=(Gate("g", 1),)))
    refusal = refused(counters.admit(ask("a", gates=(Gate("g", 1),), budgets=(BUDGET,), input_nano=1)))
    assert refusal.kind == "budget"


def test_an_account_is_loaded_once() -> None:
    counters = Book()
    assert counters.admit(ask("a", budgets=(BUDGET,), input_nano=1)) == Missing((BUDGET.account,))
    counters.load(BUDGET.account, 10)
    counters.load(BUDGET.account, 999)
    assert counters.standing(BUDGET.account) == (10, 0)


def test_a_hold_ends_once() -> None:
    counters = book()
    counters.admit(ask("a", budgets=(BUDGET,), input_nano=10))
    with pytest.raises(ValueError):
        counters.admit(ask("a"))
    counters.settle("a", 0, 5)
    for _ in range(2):
        with pytest.raises(NotHeld):
            counters.settle("a", 0, 5)
    assert counters.standing(BUDGET.account) == (5, 0)


def test_holds_expire_uncharged_and_cannot_be_settled_later() -> None:
    counters = book()
    counters.admit(ask("a", gates=(Gate("g", 1),), budgets=(BUDGET,), input_nano=10))
    assert counters.expire(10 * MINUTE_US - 1) == []
    assert [grant.id for grant in counters.expire(10 * MINUTE_US)] == ["a"]
    assert (counters.standing(BUDGET.account), counters.holds) == ((0, 0), 0)
    granted(counters.admit(ask("b", gates=(Gate("g", 1),))))
    with pytest.raises(NotHeld):
        counters.settle("a", 0, 10)


def test_a_late_settle_lands_in_the_period_that_held_it() -> None:
    counters = book()
    counters.admit(ask("a", budgets=(BUDGET,), input_nano=10))
    counters.load("key:k:next", 0)
    counters.admit(ask("b", 10**12, budgets=(Budget("key:k:next", 1000),), input_nano=10))
    assert counters.settle("a", 0, 7) == (Charged(BUDGET.account, 7, 7),)
    assert counters.standing("key:k:next") == (0, 10)


def test_running_requests_are_held_again_after_a_loss() -> None:
    counters = book()
    grant = granted(counters.admit(ask("a", rates=(TPM,), gates=(Gate("g", 1),), budgets=(BUDGET,), input_nano=600)))
    again = book(100)
    again.restore(grant)
    again.restore(grant)
    assert again.standing(BUDGET.account) == (100, 600)
    assert isinstance(again.admit(ask("b", gates=(Gate("g", 1),))), Refusal)
    assert again.settle("a", 0, 200) == (Charged(BUDGET.account, 200, 300),)


def test_what_is_idle_can_be_forgotten() -> None:
    counters = book(5)
    counters.admit(ask("a", rates=(RPM, TPM), budgets=(BUDGET,), input_tokens=1))
    counters.forget(1000 * MINUTE_US, MINUTE_US)
    assert counters.standing(BUDGET.account) == (5, 0), "an account with a holder stays, whatever it holds"
    counters.settle("a", 1, 0)
    counters.forget(1000 * MINUTE_US)
    assert counters.standing(BUDGET.account) == (5, 0)
    counters.forget(1000 * MINUTE_US, MINUTE_US)
    assert isinstance(counters.admit(ask("b", budgets=(BUDGET,))), Missing)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 5),
    st.sampled_from([60, 1_000_000, 61_000_007]),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 4)), max_size=60),
)
def test_no_window_ever_sees_more_than_the_limit(limit: int, window_us: int, steps: list[tuple[int, int]]) -> None:
    """Against the plain definition: every admission is the end of a window, whose admissions are counted."""
    counters = Book()
    rate = Rate("r", "requests", limit, window_us)
    now_us = 0
    admitted: list[int] = []
    for n, (forty, back) in enumerate(steps):
        now_us += forty * window_us // 40 - back
        decision = counters.admit(ask(f"{n}", max(now_us, 0), rates=(rate,)))
        if isinstance(decision, Grant):
            admitted.append(max(now_us, max(admitted, default=0)))
            assert sum(at > admitted[-1] - window_us for at in admitted) <= limit
        else:
            retry_us = refused(decision).retry_us
            assert retry_us is not None and 0 < retry_us <= window_us * 61 // 60 + 61


def test_rates_go_on_counting_after_a_restart_of_the_same_boot(tmp_path: Path) -> None:
    daily = Rate("key:k:requests:d", "requests", 5, 86_400_000_000, 10**15)
    first, path = book(), tmp_path / "rates.json"
    for n in range(2):
        granted(first.admit(ask(f"{n}", n * 1_000_000, rates=(RPM, daily))))
    first.settle("0", 0, 0)
    save(first, path, "boot")
    for boot, requests, day in (("boot", 0, 2), ("boot", 2, 4)):
        again = book()
        recall(again, path, boot)
        grant = granted(again.admit(ask("x", 5_000_000, rates=(RPM, daily))))
        assert grant.requests_room is not None and grant.requests_room.remaining == requests
        rooms = granted(again.admit(ask("y", 5_000_000, rates=(daily,)))).requests_room
        assert rooms is not None and rooms.remaining == day - 1
    save(first, path, "boot")
    other = book()
    recall(other, path, "another boot")
    assert other.saved() == [] and not path.exists()
    path.write_text("{")
    recall(other, path, "boot")
    assert other.saved() == []


def test_tokens_that_have_left_a_window_are_not_expected_back() -> None:
    counters = book()
    granted(counters.admit(ask("runs on", 0, rates=(TPM,), input_tokens=30)))
    granted(counters.admit(ask("done", 61_000_000, rates=(TPM,), input_tokens=80)))
    counters.settle("done", 80, 0)
    refusal = refused(counters.admit(ask("x", 61_000_000, rates=(TPM,), input_tokens=25)))
    assert refusal.retry_us == 61_000_000, "only the second request's tokens are in the way, and nobody holds them"


def test_what_is_known_of_limits_together_is_found_again_when_something_of_it_is_forgotten() -> None:
    counters, gate = book(), Gate("g", 1)
    rates, gates, budgets = (RPM,), (gate,), (BUDGET,)
    for turn in range(3):
        now_us = turn * 3 * MINUTE_US
        granted(counters.admit(ask(f"{turn}", now_us, rates=rates, gates=gates, budgets=budgets, input_nano=5)))
        assert isinstance(counters.admit(ask("x", now_us, rates=rates, gates=gates, budgets=budgets)), Refusal)
        counters.settle(f"{turn}", 0, 5)
        counters.forget(now_us + 2 * MINUTE_US, 0)
        assert isinstance(counters.admit(ask("x", now_us, rates=rates, gates=gates, budgets=budgets)), Missing)
        counters.load(BUDGET.account, 5 * turn + 5)
    assert counters.standing(BUDGET.account) == (15, 0)


def test_limits_share_what_they_have_in_common() -> None:
    counters = book()
    other = (Rate(RPM.key, "requests", 2, MINUTE_US),)
    granted(counters.admit(ask("a", rates=(RPM,), budgets=(BUDGET,), input_nano=700)))
    room = granted(counters.admit(ask("b", rates=other))).requests_room
    assert room is not None and (room.limit, room.remaining) == (2, 0)
    assert refused(counters.admit(ask("c", rates=other))).key == RPM.key
    assert refused(counters.admit(ask("d", budgets=(BUDGET,), input_nano=301))).kind == "budget"
    late = 62 * 1_000_000
    for number in range(2):
        granted(counters.admit(ask(f"late {number}", late, rates=(RPM,) if number else other)))
    assert isinstance(counters.admit(ask("too late", late, rates=other)), Refusal)
