from __future__ import annotations

import asyncio

from msgspec.structs import replace

from gateway.canary import sing
from gateway.config_limits import LimitsConfig
from gateway.limits.book import Ask, Grant, Missing, Refusal
from gateway.limits.limiter import LocalCounters


class Generous(LocalCounters):
    """Forgets what budgets are limited to."""

    def decide(self, ask: Ask) -> Grant | Refusal | Missing:
        return super().decide(replace(ask, budgets=tuple(replace(one, limit_nano=10**9) for one in ask.budgets)))


class Broken(LocalCounters):
    """Refuses for another reason."""

    def decide(self, ask: Ask) -> Grant | Refusal | Missing:
        return Refusal("concurrency", "key:canary", 1, 0, 1)


def test_a_key_without_a_budget_is_refused() -> None:
    assert asyncio.run(sing(LimitsConfig(), LocalCounters(), None)) is None


def test_it_is_noticed_when_that_does_not_happen() -> None:
    assert "was let in" in (asyncio.run(sing(LimitsConfig(), Generous(), None)) or "")
    assert "at the same time" in (asyncio.run(sing(LimitsConfig(), Broken(), None)) or "")
