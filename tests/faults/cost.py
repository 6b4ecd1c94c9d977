"""What governing a request costs: processor time in the gateway, commands to Redis, and time until it is durable.

Figures to look at, never a verdict: they are as noisy as the machine.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import redis
import uvloop

from adapters.scripted import Answer, Script, Scripted
from adapters.types import CompletionRequest, Generation, Usage
from gateway.auth import Principal
from gateway.catalog import Price, Target
from gateway.config_limits import BudgetConfig, LimitsConfig, ScopeLimits
from gateway.ledger.store import Ledger
from gateway.limits.limiter import Balance, Counters, Limiter, LocalCounters, steady_us, wall_us
from gateway.limits.shared import SharedCounters
from gateway.metering import Metering
from gateway.state.journal import Journal
from gateway.state.migrate import known, migrate
from gateway.state.outbox import Outbox
from gateway.state.redis import open_redis
from gateway.state.shared import PATIENCE_S
from gateway.state.sqlite import open_sqlite
from tests.faults.race import Outcome
from tests.stores import Valkey

LIMITS = ScopeLimits(
    requests_per_minute=10**9,
    tokens_per_minute=10**9,
    concurrent_requests=10**6,
    budgets=(BudgetConfig(usd="999999", period="month"),),
)
ROUNDS, REQUESTS, TOGETHER = 12, 512, (1, 16, 64)
PER_S = 1000


async def nothing(accounts: Sequence[str]) -> dict[str, Balance]:
    """Of accounts that were never used."""
    return {}


async def _cpu_us(metering: Metering, principal: Principal, together: int) -> float:
    """Processor time of one request's reservation and end, in this process, with so many at a time."""
    target = Target("m", Scripted("m", Script(answers=(Answer(text="a"),))), price=Price(1000, 1000, 1000))
    request = CompletionRequest("m", ("one two",), generation=Generation(max_tokens=8))
    usage = Usage(7, 3)

    async def some() -> None:
        for number in range(REQUESTS // together):
            meter = await metering.open(principal, target, f"r{number}", "completion", request)
            meter.end("ok", usage, estimated=False)

    began_s = time.process_time()
    await asyncio.gather(*(some() for _ in range(together)))
    await asyncio.sleep(2 * PATIENCE_S)
    return (time.process_time() - began_s) / REQUESTS * 1e6


def governance(valkey: Valkey) -> Outcome:
    """What limits add to a request, in memory and with Redis: the quietest and the median of interleaved rounds, by how
    many requests there are at a time; and what Redis does for it."""

    async def measure(client: redis.Redis) -> dict[str, object]:
        shared = await open_redis(valkey.url)
        over: dict[str, Counters | None] = {
            "none": None,
            "memory": LocalCounters(),
            "redis": SharedCounters(shared, 1, steady_us, grace_s=0),
        }
        meterings = {
            name: Metering(
                None
                if counters is None
                else Limiter(LimitsConfig(), counters, nothing, now_us=wall_us, steady_us=steady_us)
            )
            for name, counters in over.items()
        }
        principal = Principal(tenant="t", key_id="k", name="n", limits=LIMITS)
        figures: dict[str, object] = {}
        for metering in meterings.values():
            await _cpu_us(metering, principal, TOGETHER[-1])
        for together in TOGETHER:
            times: dict[str, list[float]] = {name: [] for name in over}
            before = _work(client)
            for _ in range(ROUNDS):
                for name, metering in meterings.items():
                    times[name].append(await _cpu_us(metering, principal, together))
            calls, server_us = (
                (after - so_far) / (ROUNDS * REQUESTS) for after, so_far in zip(_work(client), before, strict=True)
            )
            added = {name: [one - min(times["none"]) for one in times[name]] for name in ("memory", "redis")}
            figures[f"with {together}"] = (
                f"{min(added['memory']):.0f} us in memory (median {statistics.median(added['memory']):.0f}), "
                f"{min(added['redis']):.0f} us with Redis (median {statistics.median(added['redis']):.0f}), "
                f"{calls:.2f} trips, {server_us:.0f} us there"
            )
        await shared.close()
        return figures

    with redis.Redis.from_url(valkey.url) as client:
        return Outcome(uvloop.run(measure(client)), [])


def _work(client: redis.Redis) -> tuple[int, float]:
    """How many scripts a server has run, and its processor time in microseconds."""
    calls = sum(one["calls"] for name, one in client.info("commandstats").items() if name.startswith("cmdstat_eval"))
    cpu = client.info("cpu")
    return calls, (cpu["used_cpu_user"] + cpu["used_cpu_sys"]) * 1e6


def durability(folder: Path, seconds: float) -> Outcome:
    """How long entries wait until they are durable when a thousand come each second, in a gateway that is alone."""

    async def measure() -> list[float]:
        database = await open_sqlite(folder, serve=True)
        await migrate(database, known())
        ledger = Ledger(database, Outbox(folder / "outbox"), Journal(folder / "running"), disk_first=True)
        await ledger.start()
        metering = Metering(None, ledger)
        principal = Principal(tenant="t", key_id="k", name="n")
        target = Target("m", Scripted("m", Script(answers=(Answer(text="a"),))), price=Price(1000, 1000, 1000))
        request = CompletionRequest("m", ("one two",), generation=Generation(max_tokens=8))
        waits_s: list[float] = []

        async def one(number: int) -> None:
            meter = await metering.open(principal, target, f"r{number}", "completion", request)
            meter.end("ok", Usage(7, 3), estimated=False)
            assert meter.durable is not None
            began_s = time.perf_counter()
            await meter.durable
            waits_s.append(time.perf_counter() - began_s)

        started_s = time.perf_counter()
        running = []
        for number in range(round(seconds * PER_S)):
            await asyncio.sleep(started_s + number / PER_S - time.perf_counter())
            running.append(asyncio.create_task(one(number)))
        await asyncio.gather(*running)
        await ledger.close()
        await database.close()
        return waits_s

    waits_s = uvloop.run(measure())
    cuts = statistics.quantiles(waits_s, n=100)
    figures: dict[str, object] = {
        "requests/s": PER_S,
        "median ms": round(cuts[49] * 1000, 1),
        "p90 ms": round(cuts[89] * 1000, 1),
        "p99 ms": round(cuts[98] * 1000, 1),
    }
    return Outcome(figures, [])
