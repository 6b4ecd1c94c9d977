"""The lists of wallets, statements and entries that administrators page through, on both databases."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.ledger.store import Filter, Ledger
from gateway.limits.wallets import Wallets
from gateway.state.database import Database
from gateway.state.migrate import known, migrate
from gateway.state.postgres import open_postgres
from gateway.state.sqlite import open_sqlite
from tests.gateway.ledger.test_entries import entry
from tests.stores import Postgres


async def page_through(database: Database) -> None:
    await migrate(database, known())
    wallets, ledger = Wallets(database), Ledger(database)
    for name in ("c", "a", "b"):
        await wallets.open(name, "t" if name != "b" else "u", 1)
    found, more = await wallets.page(None, 2)
    assert ([one.id for one in found], more) == (["a", "b"], True)
    found, more = await wallets.page("t", 2, "a")
    assert ([one.id for one in found], more) == (["c"], False)
    for n in range(5):
        await wallets.top_up("a", n + 1, f"k{n}", 7 + n // 2)
    seen, after = [], None
    while lines := await wallets.statement("a", limit=2, after=after):
        seen += [line.amount_nano for line in lines]
        after = lines[-1].id
    assert seen == [5, 3, 4, 1, 2]
    places: tuple[dict[str, str], ...] = ({"org_id": "o"}, {"team_id": "x"}, {"user_id": "y"}, {})
    await ledger.commit([entry(f"{n}", at_us=n // 2, key_id=f"k{n % 4}", **places[n % 4]) for n in range(8)])
    some = Filter(any_of=(("org_id", "o"), ("user_id", "y")))
    ids: list[str] = []
    cursor, more = None, True
    while more:
        entries, more = await ledger.page(some, 3, cursor)
        ids += [one.id for one in entries]
        cursor = ids[-1]
    assert ids == ["6", "4", "2", "0"]
    assert (await ledger.summary((), some))[0]["requests"] == 4
    assert (await ledger.page(Filter(any_of=()), 3)) == ([], False)


def test_on_sqlite(tmp_path: Path) -> None:
    async def main() -> None:
        database = await open_sqlite(tmp_path, serve=True)
        try:
            await page_through(database)
        finally:
            await database.close()

    asyncio.run(main())


def test_on_postgres(postgres: Postgres) -> None:
    async def main() -> None:
        database = await open_postgres(postgres.database(), alone=False)
        try:
            await page_through(database)
        finally:
            await database.close()

    asyncio.run(main())
