from __future__ import annotations

import asyncio
import datetime
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from gateway.auth import Principal
from gateway.catalog import Price
from gateway.config_limits import BudgetConfig, LimitsConfig, RateConfig, RuleConfig, ScopeLimits
from gateway.errors import GatewayError
from gateway.limits.book import Refusal
from gateway.limits.limiter import (
    Alert,
    Balance,
    Limiter,
    LocalCounters,
    Need,
    Reservation,
)
from gateway.limits.told import rate_headers, refusal_error
from gateway.limits.windows import Room

PRICE = Price(1_000_000, 500_000, 2_000_000)  # 1 nano-USD for a token of input, 2 for one of output.
TEN = Need(10)
START_US = int(datetime.datetime(2026, 11, 30, 23, 59, tzinfo=datetime.UTC).timestamp()) * 1_000_000


class Bench:
    """A limiter with a clock and durable balances that a test can set."""

    def __init__(self, *rules: RuleConfig, time_zone: str = "UTC") -> None:
        self.now_us = START_US
        self.balances: dict[str, Balance] = {}
        self.alerts: list[Alert] = []
        self.asked = 0
        self.numbers = 0
        self.complete = False
        self.counters = LocalCounters(lambda: self.complete)
        self.limiter = Limiter(
            LimitsConfig(time_zone=time_zone, rules=rules),
            self.counters,
            self.read,
            now_us=lambda: self.now_us,
            steady_us=lambda: self.now_us,
            alert=self.hear,
            wallet_low_nano=15,
        )

    def hear(self, alert: Alert) -> None:
        if alert.id not in [one.id for one in self.alerts]:
            self.alerts.append(alert)

    async def read(self, accounts: Sequence[str]) -> dict[str, Balance]:
        self.asked += 1
        return {account: self.balances[account] for account in accounts if account in self.balances}

    def reserve(
        self, principal: Principal, need: Need = TEN, price: Price | None = PRICE, model: str = "m"
    ) -> Reservation | Refusal:
        self.numbers += 1
        plan = self.limiter.plan(principal, model)
        return asyncio.run(self.limiter.reserve(f"r{self.numbers}", plan, need, price))

    def error(self, principal: Principal, need: Need = TEN, model: str = "m") -> GatewayError:
        refusal = self.reserve(principal, need, model=model)
        assert isinstance(refusal, Refusal)
        return refusal_error(refusal)

    def held(self, principal: Principal, need: Need = TEN, model: str = "m") -> Reservation:
        reservation = self.reserve(principal, need, model=model)
        assert isinstance(reservation, Reservation), reservation
        return reservation


def who(key: str = "k", limits: ScopeLimits | None = None, **more: Any) -> Principal:
    return msgspec.structs.replace(Principal(tenant="t", key_id=key, name="n", limits=limits), **more)


def budget(usd: str, **more: Any) -> ScopeLimits:
    return ScopeLimits(budgets=(msgspec.structs.replace(BudgetConfig(usd=usd), **more),))


def test_a_rule_for_each_counts_each_apart_and_one_of_its_own_replaces_it() -> None:
    bench = Bench(
        RuleConfig(scope="key", requests_per_minute=1),
        RuleConfig(scope="key", id="big", requests_per_minute=3),
    )
    for key, times in (("a", 1), ("b", 1), ("big", 3), ("own", 2)):
        principal = who(key, ScopeLimits(requests_per_minute=2) if key == "own" else None)
        for _ in range(times):
            bench.held(principal)
        error = bench.error(principal)
        assert (error.status, error.code, error.headers["x-ratelimit-limit-requests"]) == (
            429,
            "rate_limit_exceeded",
            str(times),
        )
        assert error.retry_after_s is not None and 60 <= error.retry_after_s <= 61


@pytest.mark.parametrize(
    ("scope", "more"),
    [
        ("user", {"user_id": "x"}),
        ("team", {"team_id": "x"}),
        ("org", {"org_id": "x"}),
        ("tag", {"tags": ("y", "x")}),
        ("tenant", {"tenant": "x"}),
    ],
)
def test_scopes_are_shared_by_the_keys_in_them(scope: str, more: dict[str, Any]) -> None:
    bench = Bench(msgspec.convert({"scope": scope, "id": "x", "requests_per_minute": 2}, RuleConfig))
    bench.held(who("a", **more))
    bench.held(who("b", **more))
    assert bench.error(who("c", **more)).code == "rate_limit_exceeded"
    bench.held(who("d"))


def test_a_models_limit_counts_all_who_use_it() -> None:
    bench = Bench(RuleConfig(scope="model", id="m", rates=(RateConfig(unit="tokens", limit=25, window_s=3600),)))
    bench.held(who("a"))
    bench.held(who("b"))
    error = bench.error(who("c"))
    assert "limit of your model is 25 in 3600 seconds, with 5 left" in error.message
    bench.held(who("c"), model="other")


def test_a_budget_begins_anew_with_its_period_and_a_late_settle_stays_in_the_old_one() -> None:
    bench, principal = Bench(), who(limits=budget("0.000000010"))
    late = bench.held(principal)
    assert late.grant.accounts == ("key:k:m2026-11-01",)
    assert bench.error(principal).code == "rate_limit_exceeded", "held, not spent"
    bench.now_us += 60_000_000
    new = bench.held(principal)
    assert new.grant.accounts == ("key:k:m2026-12-01",)
    bench.limiter.settle(late, 10, 10)
    bench.limiter.settle(new, 10, 4)
    assert bench.counters.book.standing("key:k:m2026-11-01") == (10, 0)
    assert bench.counters.book.standing("key:k:m2026-12-01") == (4, 0)
    error = bench.error(principal)
    assert (error.code, error.kind, error.retry_after_s) == ("insufficient_quota", "insufficient_quota", 31 * 86_400)
    assert error.wire_headers()["x-should-retry"] == "false"


def test_what_was_spent_before_a_restart_is_read_from_durable_state_once() -> None:
    bench, principal = Bench(), who(limits=budget("0.000000100"))
    bench.balances["key:k:m2026-11-01"] = Balance(95)
    assert bench.error(principal).code == "insufficient_quota"
    bench.held(principal, Need(5))
    assert bench.asked == 1


def test_a_budget_needs_a_price() -> None:
    bench = Bench()
    with pytest.raises(GatewayError) as refused:
        bench.reserve(who(limits=budget("1")), price=None)
    assert (refused.value.status, refused.value.code) == (403, "model_price_unknown")
    assert isinstance(bench.reserve(who("other"), price=None), Reservation)
    assert isinstance(bench.reserve(who(limits=budget("1")), price=Price(0, 0, 0)), Reservation)


def test_an_answer_is_cut_only_where_its_author_set_no_bound() -> None:
    bench, principal = Bench(), who(limits=budget("0.000000110"))
    assert bench.error(principal, Need(10, 1000)).code == "insufficient_quota"
    reservation = bench.held(principal, Need(10, 1000, cuttable=True))
    assert (reservation.grant.output_tokens, reservation.grant.nano) == (50, 110)


def test_a_request_that_can_never_fit_is_not_told_to_wait() -> None:
    error = Bench().error(who(limits=ScopeLimits(tokens_per_minute=9)))
    assert (error.code, error.retry_after_s) == ("rate_limit_exceeded", None)
    assert error.wire_headers()["x-should-retry"] == "false"


def test_alerts_tell_each_threshold_once() -> None:
    bench, principal = Bench(), who(limits=budget("0.000000100", alert_percents=(50, 80, 100)))
    for tokens in (40, 9, 1, 40, 9, 1):
        bench.limiter.settle(bench.held(principal, Need(tokens)), 0, tokens)
    assert [(alert.percent, alert.spent_nano) for alert in bench.alerts] == [(50, 50), (80, 90), (100, 100)]
    assert bench.alerts[0].subject == "key:k"


def test_a_wallet_is_a_budget_and_pauses_at_zero() -> None:
    bench, principal = Bench(), who(limits=ScopeLimits(wallet="w"))
    bench.balances["wallet:w"] = Balance(100, 100)
    assert bench.error(principal).code == "insufficient_quota"
    bench.balances["wallet:w"] = Balance(100, 120)
    bench.limiter.settle(bench.held(principal, Need(20)), 20, 20)
    assert [(alert.percent, alert.kind) for alert in bench.alerts] == [(100, "paused")]
    assert "wallet is empty" in bench.error(principal, Need(1)).message
    bench.balances["wallet:w"] = Balance(120, 150)
    last = bench.held(principal, Need(30))
    assert last.grant.accounts == ("wallet:w",)
    bench.limiter.settle(last, 20, 20)
    assert [(alert.percent, alert.kind) for alert in bench.alerts[1:]] == [(93, "low")]


def test_plans_follow_a_key_whose_limits_change() -> None:
    bench = Bench()
    bench.held(who(limits=ScopeLimits(concurrent_requests=1)))
    assert bench.error(who(limits=ScopeLimits(concurrent_requests=1))).code == "rate_limit_exceeded"
    bench.held(who(limits=ScopeLimits(concurrent_requests=2)))


def test_a_sliding_budget_frees_what_leaves_its_window() -> None:
    bench, principal = Bench(), who(limits=budget("0.000000100", window_s=3600))
    first = bench.held(principal, Need(60))
    slot = START_US // 60_000_000
    assert first.grant.durable_accounts == (f"key:k:3600s:{slot}",)
    bench.limiter.settle(first, 0, 60)
    bench.now_us += 1_800_000_000
    bench.limiter.settle(bench.held(principal, Need(40)), 0, 30)
    assert [alert.percent for alert in bench.alerts] == [80]
    error = bench.error(principal, Need(11))
    assert (error.status, error.code, error.message) == (
        429,
        "rate_limit_exceeded",
        "The budget of your key is used up for now.",
    )
    assert error.retry_after_s == 1800 + 60, "the slot of the first request leaves a minute after the hour"
    bench.now_us += 1_860_000_000
    assert isinstance(bench.reserve(principal, Need(71)), Refusal)
    bench.held(principal, Need(70))


def test_a_sliding_budget_is_read_from_the_ledger_after_a_restart() -> None:
    bench, principal = Bench(), who(limits=budget("0.000000100", window_s=3600))
    slot = START_US // 60_000_000
    bench.balances = {f"key:k:3600s:{slot - back}": Balance(20) for back in (0, 59, 60, 61, 90)}
    assert isinstance(bench.reserve(principal, Need(41)), Refusal), "three of the five are in the window"
    bench.held(principal, Need(40))
    (standing,) = asyncio.run(bench.limiter.standings(principal))
    assert (standing.account, standing.spent_nano, standing.ends_us) == ("key:k:3600s", 60, None)


def test_a_request_over_a_whole_sliding_budget_is_not_told_to_wait() -> None:
    error = Bench().error(who(limits=budget("0.000000100", window_s=60)), Need(101))
    assert (error.code, error.retry_after_s) == ("insufficient_quota", None)


def test_calendar_rates_begin_anew_at_midnight_in_their_zone() -> None:
    rate = RateConfig(unit="requests", limit=2, period="day")
    bench, principal = Bench(), who(limits=ScopeLimits(rates=(rate,), time_zone="Europe/Berlin"))
    for remaining in (1, 0):
        room = bench.held(principal).grant.requests_room
        assert room is not None and (room.remaining, room.reset_us) == (remaining, (23 * 60 + 1) * 60_000_000)
    error = bench.error(principal)
    assert (error.message, error.retry_after_s) == (
        "Too many requests: the limit of your key is 2 per day, with 0 left.",
        (23 * 60 + 1) * 60,
    )
    bench.now_us += 60_000_000  # Midnight in UTC.
    assert isinstance(bench.reserve(principal), Refusal)
    bench.now_us += 23 * 3600 * 1_000_000
    bench.held(principal)


@pytest.mark.parametrize(
    "limits",
    [
        {"rates": [{"unit": "tokens", "limit": 1}]},
        {"rates": [{"unit": "tokens", "limit": 1, "window_s": 1, "period": "day"}]},
        {"budgets": [{"usd": "1", "window_s": 60, "period": "day"}]},
        {"budgets": [{"usd": "1", "window_s": 59}]},
        {"time_zone": "Europe/Atlantis"},
    ],
)
def test_windows_that_cannot_be_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(limits, ScopeLimits)


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (999_000, "999ms"),
        (8_640_000, "8.64s"),
        (60_000_000, "1m0s"),
        (54_248_851_000, "15h4m8.851s"),
        (3_600_000_000, "1h0m0s"),
    ],
)
def test_lengths_of_time_as_openai_writes_them(us: int, text: str) -> None:
    assert rate_headers(Room(1, 1, us), None)["x-ratelimit-reset-requests"] == text


def test_money_that_a_correction_gave_back_can_be_spent_after_a_minute() -> None:
    bench, principal = Bench(), who(limits=budget("0.000000100", period="total"))
    held = bench.held(principal, Need(100))
    bench.limiter.settle(held, 0, 100)
    (account,) = held.grant.accounts
    bench.balances[account], bench.complete = Balance(100), True
    assert isinstance(bench.reserve(principal, Need(1)), Refusal)
    bench.balances[account] = Balance(30)
    bench.now_us += 59_000_000
    assert isinstance(bench.reserve(principal, Need(1)), Refusal), "it was looked at just now"
    bench.now_us += 1_000_000
    bench.held(principal, Need(70))
    assert isinstance(bench.reserve(principal, Need(1)), Refusal)
    assert bench.asked == 3


def test_a_request_that_is_more_than_all_of_a_limit_is_told_how_it_was_counted() -> None:
    bench = Bench()
    tokens = ScopeLimits(tokens_per_minute=9)
    error = bench.error(who(limits=tokens))
    assert error.message.startswith(
        "Too many tokens: the limit of your key is 9 in one minute, with 9 left. This request "
    )
    assert error.message.endswith("1,024 for a template and the longest answer that it asks for.")
    assert error.wire_headers()["x-should-retry"] == "false" and "retry-after" not in error.wire_headers()
    closed = bench.error(who("other", ScopeLimits(requests_per_minute=0)))
    assert closed.message.endswith(" This request alone is over it.")
