from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.catalog import Price
from gateway.ledger import Entry
from gateway.ledger.store import Filter, Ledger
from gateway.ledger.writer import DatabaseFirst
from gateway.limits.wallets import Wallets
from gateway.state.database import DatabaseUnavailable, Row, Statements, T, Value
from gateway.state.journal import Journal
from gateway.state.outbox import Outbox
from gateway.state.sqlite import Sqlite
from tests.databases import open_migrated
from tests.gateway.ledger.test_entries import PRICE, entry

ALL = Filter()
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


class Flaky:
    """A database whose next transactions fail, before or after they were committed."""

    def __init__(self, inner: Sqlite) -> None:
        self._inner = inner
        self.failures: list[str] = []

    async def query(self, sql: str, *parameters: Value) -> list[Row]:
        return await self._inner.query(sql, *parameters)

    async def execute(self, sql: str, *parameters: Value) -> int:
        return await self._inner.execute(sql, *parameters)

    async def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
        await self._inner.insert(table, columns, rows)

    async def run(self, work: Callable[[Statements], Coroutine[Any, Any, T]]) -> T:
        async with self.transaction(concurrent=True) as inside:
            return await work(inside)

    def transaction(self, *, concurrent: bool = False) -> AbstractAsyncContextManager[Statements]:
        @asynccontextmanager
        async def attempt():  # type: ignore[no-untyped-def]
            failure = self.failures.pop(0) if self.failures else ""
            if failure == "before":
                raise DatabaseUnavailable("away")
            async with self._inner.transaction(concurrent=concurrent) as inside:
                yield inside
            if failure == "after":
                raise DatabaseUnavailable("the answer to the commit was lost")

        return attempt()

    async def close(self) -> None:
        await self._inner.close()


def with_ledger(
    data_dir: Path, scenario: Callable[[Ledger, Flaky], Awaitable[None]], *, with_outbox: bool = False
) -> None:
    async def run() -> None:
        database = Flaky(await open_migrated(data_dir, serve=True))
        try:
            outbox = Outbox(data_dir / "outbox") if with_outbox else None
            ledger = Ledger(database, outbox, retry_s=0)
            await ledger.start()
            await scenario(ledger, database)
            await ledger.close()
            assert await ledger.problems() == []
            assert await Wallets(database).problems() == []
        finally:
            await database.close()

    asyncio.run(run())


async def all_entries(ledger: Ledger, wanted: Filter = ALL) -> list[Entry]:
    return [one async for one in ledger.entries(wanted)]


async def emptied(ledger: Ledger) -> None:
    """The outbox was brought to the database."""
    assert isinstance(ledger.keeper, DatabaseFirst)
    if ledger.keeper._emptying is not None:
        await asyncio.wait([ledger.keeper._emptying])


def test_an_entry_is_durable_when_its_future_is_done(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        whole = entry(
            price=PRICE, cost_nano=9, charged_nano=9, accounts=("key:k:m", "wallet:w"), estimated=True, user_id="u"
        )
        await ledger.add(whole)
        assert await all_entries(ledger) == [whole]
        assert await ledger.find("r", tenant="t") == [whole]
        assert await ledger.find("r", tenant="other") == []
        balances = await Wallets(database).balances(["key:k:m", "wallet:w"])
        assert {name: balance.debits_nano for name, balance in balances.items()} == {"key:k:m": 9, "wallet:w": 9}

    with_ledger(tmp_path, scenario)


def test_many_entries_share_commits(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        await asyncio.gather(*(ledger.add(entry(f"{n}", at_us=n)) for n in range(1500)))
        assert (ledger.written, ledger.pending) == (1500, 0)
        assert [one.at_us for one in await all_entries(ledger)] == list(range(1500))
        (sums,) = await ledger.summary((), Filter())
        assert sums["requests"] == 1500

    with_ledger(tmp_path, scenario)


@pytest.mark.parametrize("with_outbox", [False, True])
@pytest.mark.parametrize("failures", [["before"] * 3, ["after"], ["after", "before", "after"]])
def test_a_database_that_fails_loses_and_doubles_nothing(
    tmp_path: Path, failures: list[str], with_outbox: bool
) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        database.failures = failures
        await asyncio.gather(
            *(ledger.add(entry(f"{n}", charged_nano=n, cost_nano=n, accounts=("a", "wallet:w"))) for n in range(50))
        )
        await emptied(ledger)
        balances = await Wallets(database).balances(["a", "wallet:w"])
        assert {balance.debits_nano for balance in balances.values()} == {sum(range(50))}
        assert len(await all_entries(ledger)) == 50

    with_ledger(tmp_path, scenario, with_outbox=with_outbox)


def test_what_a_killed_process_left_in_the_outbox_is_brought_in_by_the_next(tmp_path: Path) -> None:
    left = Outbox(tmp_path / "outbox")
    left.append([msgspec.json.encode(entry(f"{n}", cost_nano=1, charged_nano=1, accounts=("a",))) for n in range(3)])
    left.close()

    async def scenario(ledger: Ledger, database: Flaky) -> None:
        assert (len(await all_entries(ledger)), ledger.waiting_bytes) == (3, 0)

    with_ledger(tmp_path, scenario, with_outbox=True)


def test_an_entry_is_durable_in_the_outbox_while_the_database_is_away(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        database.failures = ["before"] * 10_000
        await ledger.add(entry("a"))
        await ledger.add(entry("b"))
        assert (ledger.waiting_bytes > 0, ledger.complete, ledger.pending) == (True, False, 0)
        database.failures = []
        await emptied(ledger)
        assert [one.id for one in await all_entries(ledger)] == ["a", "b"]

    with_ledger(tmp_path, scenario, with_outbox=True)


def test_while_nothing_can_be_recorded_it_is_full(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        database.failures = ["before"] * 10_000
        waiting = ledger.add(entry("a"))
        while not ledger.full:  # noqa: ASYNC110 - nobody tells.
            await asyncio.sleep(0)
        database.failures = []
        await waiting
        assert not ledger.full

    with_ledger(tmp_path, scenario)


def test_the_outbox_is_emptied_also_while_entries_keep_coming(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        database.failures = ["before"]
        done = False

        async def keep_adding(name: int) -> None:
            nonlocal done
            for number in range(100):
                await ledger.add(entry(f"{name} {number}"))
                done = done or (number > 0 and not ledger.waiting_bytes)
                if done:
                    return

        await asyncio.gather(*map(keep_adding, range(10)))
        assert done

    with_ledger(tmp_path, scenario, with_outbox=True)


def test_an_outbox_that_the_database_refuses_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        commit, tries = ledger.commit, 0

        async def refuse(entries: Sequence[Entry]) -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise DatabaseUnavailable("away")
            if tries == 2:
                raise ValueError("a bug")
            await commit(entries)

        monkeypatch.setattr(ledger.keeper, "_commit", refuse)
        await ledger.add(entry("a"))
        await emptied(ledger)
        assert [one.id for one in await all_entries(ledger)] == ["a"]

    with_ledger(tmp_path, scenario, with_outbox=True)
    assert "a bug" in caplog.text


def test_summaries_by_time_and_dimension(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        for n, at_us in enumerate((0, HOUR_US - 1, HOUR_US, DAY_US, 31 * DAY_US)):
            await ledger.add(entry(f"{n}", at_us=at_us, cost_nano=10**n, model="a" if n % 2 else "b"))
        hours = await ledger.summary(("hour",), Filter())
        assert [(row["hour_us"], row["cost_nano"]) for row in hours][:2] == [(0, 11), (HOUR_US, 100)]
        months = await ledger.summary(("month",), Filter())
        assert [(row["hour_us"], row["cost_nano"]) for row in months] == [(0, 1111), (31 * DAY_US, 10_000)]
        days = await ledger.summary(("day", "model"), Filter(model="a"))
        assert [(row["hour_us"], row["model"], row["cost_nano"]) for row in days] == [(0, "a", 10), (DAY_US, "a", 1000)]
        (none,) = await ledger.summary((), Filter(tenant="nobody"))
        assert none["requests"] == 0

    with_ledger(tmp_path, scenario)


def test_a_price_fix_is_corrected_once(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        for n in range(3):
            more = {"prompt_tokens": 10, "price": PRICE, "cost_nano": 1500, "charged_nano": 1500}
            await ledger.add(entry(f"{n}", accounts=("wallet:w",), model=f"m{n % 2}", **more))
        fixed = Price(100_000_000, 0, 0, "v2")
        prices = {"m0": fixed}.get
        assert await ledger.reprice(prices, Filter(), 5) == (2, -1000)
        assert await ledger.reprice(prices, Filter(), 6) == (0, 0)
        (wallet,) = (await Wallets(database).balances(["wallet:w"])).values()
        assert wallet.debits_nano - wallet.credits_nano == 3500

    with_ledger(tmp_path, scenario)


def test_what_died_with_a_process_is_expired_once_unless_it_was_settled(tmp_path: Path) -> None:
    async def scenario(_: Ledger, database: Flaky) -> None:
        for _turn in range(2):
            journal = Journal(tmp_path / "j")
            dying = Ledger(database, None, journal, retry_s=0)
            await dying.start()
            for name in ("lost", "settled", "ended"):
                dying.begin(entry(name, status="voided", outcome=""))
            await asyncio.shield(dying.add(entry("ended")))
            # It was committed, and the process died before it could note that.
            await dying.commit([entry("settled")])
            journal.flush()
            next_one = Ledger(database, None, Journal(tmp_path / "j"), retry_s=0)
            await next_one.start()
            await next_one.close()
            found = {one.id: (one.status, one.outcome) async for one in next_one.entries(ALL)}
            assert found == {"lost": ("expired", "lost"), "settled": ("posted", "ok"), "ended": ("posted", "ok")}
            assert Journal(tmp_path / "j").left == {}
            await dying.close()

    with_ledger(tmp_path / "d", scenario)
