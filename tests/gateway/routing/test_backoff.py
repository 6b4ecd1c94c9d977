"""Waiting before another try, and the bound on how often that happens."""

from __future__ import annotations

from gateway.routing.backoff import DELAY_S_MAX, FIRST_DELAY_S, RetryBudget, delay_s


def test_delays_grow_and_are_spread() -> None:
    assert delay_s(1, 0.0) == 0.0
    assert delay_s(1, 0.5) == FIRST_DELAY_S / 2
    assert delay_s(3, 0.5) == FIRST_DELAY_S * 2
    assert delay_s(60, 0.999) == DELAY_S_MAX * 0.999


def test_a_target_that_names_a_time_is_given_it() -> None:
    assert delay_s(1, 0.9, retry_after_s=2) == 2
    assert delay_s(6, 0.9, retry_after_s=0.1) == 0.9 * DELAY_S_MAX
    assert delay_s(1, 0.0, retry_after_s=DELAY_S_MAX + 1) is None


def test_retries_add_a_tenth_of_the_load_at_most() -> None:
    budget, requests = RetryBudget(), 10_000
    retries = 0
    for _ in range(requests):
        budget.earn()
        while budget.spend():
            retries += 1
    assert requests // 10 < retries <= requests // 10 + 10


def test_a_quiet_time_is_saved_up_to_a_bound() -> None:
    budget = RetryBudget(saved_max=3)
    for _ in range(1000):
        budget.earn()
    assert [budget.spend() for _ in range(5)] == [True, True, True, False, False]


def test_ten_requests_are_a_retry() -> None:
    budget = RetryBudget(saved_max=1)
    assert budget.spend()
    for _ in range(10):
        assert not budget.spend()
        budget.earn()
    assert budget.spend()
