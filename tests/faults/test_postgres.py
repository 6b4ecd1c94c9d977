"""PostgreSQL while it is stopped, crashed or silent: an outage of its own kind, and it comes back by itself."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from gateway.state.database import DatabaseUnavailable
from gateway.state.postgres import DatabaseInUse, Postgres, _translated, open_postgres
from tests import stores

INSERT = "INSERT INTO t (id) VALUES ($1)"


def with_own_server(work: Callable[[Postgres, stores.Postgres], Awaitable[None]], timeout_s: float = 10) -> None:
    with stores.Postgres() as server:

        async def run() -> None:
            database = await open_postgres(server.database(), timeout_s=timeout_s, connections_max=3)
            try:
                await database.execute("CREATE TABLE t (id BIGINT PRIMARY KEY)")
                await work(database, server)
            finally:
                await database.close()

        asyncio.run(run())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_away_and_back(how: signal.Signals) -> None:
    async def work(database: Postgres, server: stores.Postgres) -> None:
        async with database.transaction() as inside:
            await inside.execute(INSERT, 1)
        with pytest.raises(DatabaseUnavailable):
            async with database.transaction() as inside:
                await inside.execute(INSERT, 2)
                await asyncio.to_thread(server.stop, how)
        for call in (database.query("SELECT 1"), database.execute(INSERT, 3), database.execute(INSERT, 3)):
            with pytest.raises(DatabaseUnavailable):
                await call
        with pytest.raises(DatabaseUnavailable):
            async with database.transaction():
                pass
        await asyncio.to_thread(server.start)
        assert await database.query("SELECT id FROM t") == [{"id": 1}]
        await database.execute(INSERT, 4)

    with_own_server(work)


def test_whoever_asks_while_it_stops_is_told_that_it_is_away() -> None:
    async def work(database: Postgres, server: stores.Postgres) -> None:
        async def ask() -> None:
            with pytest.raises(DatabaseUnavailable):
                while True:
                    await database.run(lambda inside: inside.query("SELECT 1"))

        asking = [asyncio.create_task(ask()) for _ in range(8)]
        await asyncio.sleep(0)
        await asyncio.to_thread(server.stop, signal.SIGINT)
        await asyncio.gather(*asking)

    with_own_server(work)


def test_a_connection_that_was_told_of_the_end_before_it_was_used_is_an_outage() -> None:
    with pytest.raises(DatabaseUnavailable), _translated():
        raise asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")


def test_silent_is_away_within_the_time_limit() -> None:
    async def work(database: Postgres, server: stores.Postgres) -> None:
        server.stall()
        try:
            replies = await asyncio.gather(*(database.query("SELECT 1") for _ in range(8)), return_exceptions=True)
            assert {type(reply) for reply in replies} == {DatabaseUnavailable}
        finally:
            server.go_on()
        assert await database.query("SELECT count(*) AS n FROM t") == [{"n": 0}]

    with_own_server(work, timeout_s=0.5)


def test_a_statement_has_a_time_limit(postgres: stores.Postgres) -> None:
    async def run() -> None:
        database = await open_postgres(postgres.database(), timeout_s=0.3)
        try:
            with pytest.raises(DatabaseUnavailable):
                await database.query("SELECT pg_sleep(60)")
            assert await database.query("SELECT 1 AS one") == [{"one": 1}]
        finally:
            await database.close()

    asyncio.run(run())


def test_one_gateway_without_redis_keeps_a_second_one_out(postgres: stores.Postgres) -> None:
    async def run() -> None:
        url = postgres.database()
        first = await open_postgres(url, alone=True)
        with pytest.raises(DatabaseInUse, match=r"set state\.redis"):
            await open_postgres(url, alone=True)
        await (await open_postgres(url)).close()
        await first.close()
        await (await open_postgres(url, alone=True)).close()

    asyncio.run(run())


@pytest.mark.parametrize("url", ["postgresql://u:pass@word:hidden@h/d", "postgresql://h:hidden/d"])
def test_what_is_no_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        asyncio.run(open_postgres(url, timeout_s=2))
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["port", "database", "user"])
def test_what_cannot_be_opened_is_unavailable_and_shows_no_password(postgres: stores.Postgres, wrong: str) -> None:
    port = stores.free_port() if wrong == "port" else postgres.port
    user = "nobody-known" if wrong == "user" else "postgres"
    url = f"postgresql://{user}:hidden@127.0.0.1:{port}/" + ("nowhere" if wrong == "database" else "postgres")

    async def run() -> None:
        with pytest.raises(DatabaseUnavailable) as caught:
            await open_postgres(url, timeout_s=2)
        assert "hidden" not in str(caught.value)

    asyncio.run(run())
