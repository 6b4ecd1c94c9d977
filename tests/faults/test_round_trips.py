"""How often a governed request goes to Redis: not more than once, and together with all others of its moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis as Client

from adapters.scripted import Answer, Script, Scripted
from adapters.types import CompletionRequest, Generation, Usage
from gateway.auth import Principal
from gateway.catalog import Price, Target
from gateway.config_limits import LimitsConfig, ScopeLimits
from gateway.errors import GatewayError
from gateway.limits.limiter import Limiter, steady_us, wall_us
from gateway.limits.shared import SharedCounters
from gateway.metering import Meter, Metering
from gateway.state.redis import open_redis
from tests.faults.cost import LIMITS, nothing
from tests.stores import Valkey

LATER_S = 3600.0
ONE_AT_A_TIME = ScopeLimits(concurrent_requests=1)
TARGET = Target("m", Scripted("m", Script(answers=(Answer(text="a"),))), price=Price(1000, 1000, 1000))
REQUEST = CompletionRequest("m", ("one two",), generation=Generation(max_tokens=8))


class Replica:
    """A gateway's limits over a Redis, and how often it went there."""

    def __init__(self, counters: SharedCounters, client: Client) -> None:
        self.counters = counters
        self._client = client
        limiter = Limiter(LimitsConfig(), counters, nothing, now_us=wall_us, steady_us=steady_us)
        self._metering = Metering(limiter)
        self.principal = Principal(tenant="t", key_id="k", name="n", limits=LIMITS)

    async def begin(self) -> Meter:
        return await self._metering.open(self.principal, TARGET, "r", "completion", REQUEST)

    async def request(self) -> None:
        meter = await self.begin()
        meter.end("ok", Usage(7, 3), estimated=False)

    async def trips(self) -> int:
        """Calls of scripts since the last time."""
        stats = await self._client.info("commandstats")
        await self._client.config_resetstat()
        return sum(one["calls"] for name, one in stats.items() if name in ("cmdstat_evalsha", "cmdstat_eval"))


Scenario = Callable[[Replica], Awaitable[None]]


def run(valkey: Valkey, scenario: Scenario) -> None:
    async def inside() -> None:
        client = Client.from_url(valkey.url)
        await client.flushall()
        state = await open_redis(valkey.url)
        replica = Replica(SharedCounters(state, 2, steady_us, grace_s=0), client)
        await replica.request()  # It opens the account.
        await replica.trips()
        try:
            await scenario(replica)
        finally:
            await state.close()
            await client.aclose()

    asyncio.run(inside())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settlements wait for ever for an admission to travel with."""
    monkeypatch.setattr("gateway.state.redis_trips.PATIENCE_S", LATER_S)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("clients", "trips"), [(1, 64), (16, 4), (64, 1)])
def test_requests_that_come_together_share_one_trip(valkey: Valkey, clients: int, trips: int) -> None:
    async def scenario(replica: Replica) -> None:
        for _ in range(64 // clients):
            await asyncio.gather(*(replica.request() for _ in range(clients)))
        assert await replica.trips() == trips
        assert replica.counters.holds == clients, "their settlements wait for the next admission"
        await replica.request()
        assert replica.counters.holds == 1
        assert await replica.trips() == 1

    run(valkey, scenario)


def test_a_settlement_that_nobody_follows_goes_by_itself(valkey: Valkey) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.request()
        while replica.counters.holds:  # noqa: ASYNC110 - the condition is the server's.
            await asyncio.sleep(0.01)
        assert await replica.trips() == 2

    run(valkey, scenario)


@pytest.mark.usefixtures("patient")
def test_what_a_request_held_is_free_for_the_next_one(valkey: Valkey) -> None:
    async def scenario(replica: Replica) -> None:
        replica.principal = Principal(tenant="t", key_id="one", name="n", limits=ONE_AT_A_TIME)
        for _ in range(10):
            await replica.request()
        meter = await replica.begin()
        with pytest.raises(GatewayError):
            await replica.begin()
        meter.end("ok", None, estimated=False)
        await replica.request()

    run(valkey, scenario)
