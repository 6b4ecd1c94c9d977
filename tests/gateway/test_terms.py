from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from adapters.types import CompletionRequest, Generation, Served, Usage
from gateway.auth import Principal
from gateway.catalog import Price, Target
from gateway.config_limits import BudgetConfig, LimitsConfig, ScopeLimits
from gateway.errors import GatewayError
from gateway.limits.limiter import Limiter, LocalCounters
from gateway.metering import Metering
from gateway.terms import SERVED_MAX, Terms
from tests.fakes import HELLO, Scripted, no_balances
from tests.gateway.test_metering import Kept

HOUR_US = 3_600_000_000
WHO = Principal(tenant="t", key_id="k", name="n", price_ppm=500_000)
PRICE, CHEAP = Price(1_000_000, 500_000, 2_000_000), Price(2, 2, 2)
TARGET = Target("m", Scripted(HELLO), price=PRICE, prices={"cheap/x": CHEAP})


def test_each_target_of_a_route_has_its_price_and_its_name() -> None:
    terms = Terms(WHO, TARGET, "chat", None)
    assert (terms.entry.price, terms.entry.target) == (PRICE.times(500_000), "m")
    served = terms.served_by(Served("cheap/x", "cheap", "x", 2))
    assert (served.price, served.target, served.provider, served.attempts) == (CHEAP.times(500_000), "x", "cheap", 2)
    assert terms.served_by(Served("cheap/x", "cheap", "x", 2)) is served
    assert terms.served_by(Served("cheap/x", "cheap", "x", 1)).attempts == 1


def test_only_so_many_names_are_kept() -> None:
    terms = Terms(WHO, TARGET, "chat", None)
    first = terms.served_by(Served("p/0", "p", "0"))
    for number in range(SERVED_MAX + 1):
        assert terms.served_by(Served(f"p/{number}", "p", f"{number}")).target == f"{number}"
    assert terms.served_by(Served("p/0", "p", "0")) == first


class Bench:
    """A metering whose time of day is set; all entries that it wrote are kept."""

    def __init__(self) -> None:
        self.now_us, self.ledger = 0, Kept()
        limiter = Limiter(LimitsConfig(), LocalCounters(), no_balances, now_us=lambda: self.now_us, steady_us=lambda: 0)
        self.metering = Metering(limiter, self.ledger, now_us=lambda: self.now_us, steady_us=lambda: 0)

    async def request(self, principal: Principal, target: Target = TARGET) -> None:
        asked = CompletionRequest("m", ("hi",), generation=Generation(max_tokens=1))
        meter = await self.metering.open(principal, target, "r", "completion", asked)
        meter.end("ok", Usage(1, 1), estimated=False)


def test_a_new_period_is_a_new_account() -> None:
    async def scenario() -> None:
        bench = Bench()
        principal = replace(WHO, limits=ScopeLimits(budgets=(BudgetConfig(usd="1", period="hour"),)))
        for bench.now_us in (HOUR_US - 1, HOUR_US, 0):
            await bench.request(principal)
        assert [one.accounts for one in bench.ledger.kept] == [("key:k:h0",), ("key:k:h1",), ("key:k:h0",)]

    asyncio.run(scenario())


def test_whoever_changed_has_new_terms() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.request(WHO)
        await bench.request(replace(WHO, price_ppm=1_000_000))
        await bench.request(WHO, Target("m", Scripted(HELLO), price=CHEAP))
        assert [one.price for one in bench.ledger.kept] == [PRICE.times(500_000), PRICE, CHEAP.times(500_000)]
        with pytest.raises(GatewayError):
            await bench.request(replace(WHO, limits=ScopeLimits(concurrent_requests=0)))

    asyncio.run(scenario())
