"""The circuit breaker: when it opens, whom it lets try, when it closes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.breaker import Breaker, BreakerSettings

SETTINGS = BreakerSettings(failures=3, requests_min=10, window_s=30, open_s=5, open_s_max=20)


def opened(now_s: float = 0.0) -> Breaker:
    breaker = Breaker(SETTINGS)
    for _ in range(3):
        assert breaker.try_enter(now_s)
        breaker.failed(now_s)
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = opened()
    assert breaker.state(0) == "open"
    assert not breaker.try_enter(4.9)
    assert breaker.wait_s(1) == 4


def test_a_success_between_failures_keeps_it_closed() -> None:
    breaker = Breaker(SETTINGS)
    for _ in range(3):
        breaker.failed(0)
        breaker.failed(0)
        breaker.succeeded(0)
    assert breaker.state(0) == "closed"


def test_half_of_many_requests_open_it() -> None:
    breaker = Breaker(SETTINGS)
    for _ in range(5):
        breaker.succeeded(0)
        breaker.failed(1)
    assert breaker.state(1) == "open"


def test_what_failed_long_ago_counts_no_more() -> None:
    breaker = Breaker(SETTINGS)
    for turn in range(20):
        breaker.failed(turn * 20.0)
        breaker.succeeded(turn * 20.0)
    assert breaker.state(400) == "closed"


def test_one_trial_at_a_time_closes_or_opens_it() -> None:
    breaker = opened()
    assert breaker.state(5) == "half_open"
    assert breaker.try_enter(5)
    assert not breaker.try_enter(5)
    breaker.failed(6)
    assert not breaker.try_enter(15.9)
    assert breaker.try_enter(16)
    breaker.succeeded(17)
    assert breaker.state(17) == "closed"
    assert breaker.try_enter(17)
    assert breaker.try_enter(17)


def test_an_answer_that_has_begun_lets_others_in_until_the_next_failure() -> None:
    breaker = opened()
    assert breaker.try_enter(5)
    breaker.begun()
    assert breaker.try_enter(5) and breaker.try_enter(5)
    breaker.left()
    assert breaker.state(6) == "closed"
    breaker.failed(6)
    assert breaker.state(6) == "open"
    assert breaker.try_enter(11)
    breaker.begun()
    breaker.succeeded(12)
    breaker.failed(13)
    assert breaker.state(13) == "closed"


def test_a_client_that_leaves_a_trial_frees_its_place() -> None:
    breaker = opened()
    assert breaker.try_enter(5)
    breaker.left()
    assert breaker.state(5) == "half_open"
    assert breaker.try_enter(5)


def test_each_failed_trial_doubles_the_wait_up_to_a_bound() -> None:
    breaker, now_s, waits = opened(), 0.0, []
    for _ in range(4):
        now_s += breaker.wait_s(now_s)
        assert breaker.try_enter(now_s)
        breaker.failed(now_s)
        waits.append(breaker.wait_s(now_s))
    assert waits == [10, 20, 20, 20]


def test_a_target_that_asks_to_be_left_alone_is() -> None:
    breaker = Breaker(SETTINGS)
    breaker.failed(0, retry_after_s=7)
    assert not breaker.try_enter(6.9)
    assert breaker.try_enter(7)
    breaker.failed(8, retry_after_s=1000)
    assert breaker.wait_s(8) == 20


def test_what_began_before_it_opened_does_not_change_its_wait() -> None:
    breaker = opened()
    breaker.failed(1, retry_after_s=0.5)
    for _ in range(10):
        breaker.failed(1)
    assert breaker.wait_s(1) == 4


@given(st.lists(st.tuples(st.sampled_from(["enter", "begin", "ok", "fail", "left"]), st.floats(0, 10))))
def test_it_never_stays_shut(steps: list[tuple[str, float]]) -> None:
    """Whatever happens, everybody who was let in ends, and then somebody is let in again within the longest wait."""
    breaker, now_s, inside = Breaker(SETTINGS), 0.0, 0
    for step, wait_s in steps:
        now_s += wait_s
        if step == "enter":
            inside += breaker.try_enter(now_s)
        elif step == "begin":
            breaker.begun()
        elif inside:
            if step == "ok":
                breaker.succeeded(now_s)
            elif step == "fail":
                breaker.failed(now_s)
            else:
                breaker.left()
            inside -= 1
    for _ in range(inside):
        breaker.left()
    assert breaker.wait_s(now_s) <= SETTINGS.open_s_max
    assert breaker.try_enter(now_s + breaker.wait_s(now_s))
