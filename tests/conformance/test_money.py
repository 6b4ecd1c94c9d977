"""Limits and ledger on real stores: Lua on Valkey decides as the book does, the ledger's SQL runs on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from redis.asyncio import Redis

from gateway.catalog import Price
from gateway.ledger.retention import drop_entries
from gateway.ledger.store import Filter, Ledger
from gateway.limits.wallets import Wallets, sweep_windows
from gateway.state.migrate import known, migrate
from gateway.state.postgres import open_postgres
from gateway.state.redis import open_redis
from gateway.state.shared import SharedState
from tests.gateway.ledger.test_entries import PRICE, entry
from tests.gateway.limits.histories import (
    START_US,
    Outcome,
    Step,
    histories,
    play_book,
    play_deaths,
    play_orphans,
    play_renewal,
    play_return,
    play_scripts,
    play_telling,
)
from tests.stores import Postgres, Valkey


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories)
def test_lua_decides_as_the_book_does(valkey: Valkey, history: list[Step]) -> None:
    async def play() -> list[Outcome]:
        async with Redis.from_url(valkey.url) as client:
            await client.flushall()
        clock = [START_US]
        state = await open_redis(valkey.url, now_us=lambda: clock[0])
        try:
            return await play_scripts(history, state, clock)
        finally:
            await state.close()

    assert asyncio.run(play()) == play_book(history)


@pytest.mark.parametrize("scenario", [play_renewal, play_orphans, play_deaths, play_return, play_telling])
def test_lua_does_as_its_twin(valkey: Valkey, scenario: Callable[[SharedState, list[int]], Awaitable[None]]) -> None:
    async def play() -> None:
        async with Redis.from_url(valkey.url) as client:
            await client.flushall()
        clock = [START_US]
        state = await open_redis(valkey.url, now_us=lambda: clock[0])
        try:
            await scenario(state, clock)
        finally:
            await state.close()

    asyncio.run(play())


def test_the_ledger_on_postgres(postgres: Postgres) -> None:
    async def scenario() -> None:
        database = await open_postgres(postgres.database(), alone=False)
        try:
            await migrate(database, known())
            ledgers = [Ledger(database) for _ in range(3)]
            for ledger in ledgers:
                await ledger.start()
            more = {"prompt_tokens": 10, "price": PRICE, "cost_nano": 1500, "charged_nano": 1500}
            accounts = ("key:k:m", "wallet:w")
            waiting = [
                ledgers[n % 3].add(entry(f"{n}", at_us=n, accounts=accounts, estimated=n % 2 == 0, **more))
                for n in range(600)
            ]
            # The same entries once more, by another replica: none may count twice.
            waiting += [ledgers[0].add(entry(f"{n}", at_us=n, accounts=accounts, **more)) for n in range(50)]
            await asyncio.gather(*waiting)
            wallets = Wallets(database)
            balances = await wallets.balances(list(accounts))
            assert {balance.debits_nano for balance in balances.values()} == {600 * 1500}
            found = [one async for one in ledgers[0].entries(Filter())]
            assert len(found) == 600 and found[100].price == PRICE and found[100].estimated
            days = await ledgers[0].summary(("day", "model"), Filter(model="m"))
            assert [(row["requests"], row["cost_nano"]) for row in days] == [(600, 600 * 1500)]
            assert await ledgers[0].reprice({"m": Price(0, 0, 0)}.get, Filter(until_us=2), 5) == (2, -3000)
            await wallets.open("w", "t", 1, bonus_nano=5)
            assert await wallets.top_up("w", 70, "invoice", 2) and not await wallets.top_up("w", 70, "invoice", 3)
            assert (await wallets.get("w")).balance_nano == 75 + 3000 - 600 * 1500
            assert len(await wallets.statement("w", limit=7)) == 7
            assert await drop_entries(database, 100, 10**12) == 100 + 2
            assert (await ledgers[0].summary(("org_id",), Filter()))[0]["requests"] == 600
            assert await sweep_windows(database, 10**15) == 0
            for ledger in ledgers:
                await ledger.close()
            assert await wallets.problems() == await ledgers[0].problems() == []
        finally:
            await database.close()

    asyncio.run(scenario())
