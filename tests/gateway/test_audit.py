"""The audit log: its chain, its bounds, and that an outage neither blocks nor repeats anything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from gateway.audit import (
    GROUP_MAX,
    PENDING_MAX,
    REPEATED_MAX,
    START,
    TEXT_LENGTH_MAX,
    Audit,
    Entry,
    Event,
    Filter,
    append,
    entry_of,
    note,
    verify,
)
from gateway.errors import GatewayError
from gateway.state.database import DatabaseUnavailable, Statements, T
from gateway.state.sqlite import Sqlite
from tests.databases import open_migrated

MINUTE_US = 60_000_000


class Flaky:
    """A database that is away while `away`, and that loses its answer to the commit while `forgetful`."""

    def __init__(self, database: Sqlite) -> None:
        self._database = database
        self.query = database.query
        self.execute = database.execute
        self.insert = database.insert
        self.close = database.close
        self.away = False
        self.forgetful = False
        self.refused = asyncio.Event()
        self.forgot = asyncio.Event()

    async def run(self, work: Callable[[Statements], Coroutine[Any, Any, T]]) -> T:
        async with self.transaction(concurrent=True) as inside:
            return await work(inside)

    @contextlib.asynccontextmanager
    async def transaction(self, *, concurrent: bool = False) -> AsyncIterator[Statements]:
        if self.away:
            self.refused.set()
            raise DatabaseUnavailable("away")
        async with self._database.transaction(concurrent=concurrent) as inside:
            yield inside
        if self.forgetful:
            self.forgetful = False
            self.forgot.set()
            raise DatabaseUnavailable("went away during the commit")


def play(tmp_path: Path, scenario: Callable[[Flaky], Awaitable[None]]) -> None:
    async def run() -> None:
        database = await open_migrated(tmp_path, serve=True)
        try:
            await scenario(Flaky(database))
        finally:
            await database.close()

    asyncio.run(run())


async def fill(database: Flaky, count: int = 5) -> None:
    async with database.transaction() as inside:
        await append(inside, [entry_of(Event(action="key.create", subject=f"k{n}"), n) for n in range(count)])


async def entries(database: Flaky, **wanted: str) -> list[Entry]:
    return (await Audit(database).page(Filter(**wanted), 1000))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("statements", "sound", "problem"),
    [
        (["UPDATE audit SET actor = 'nobody' WHERE number = 3"], 2, "entry 3 is not as it was written"),
        (["UPDATE audit SET at_us = at_us + 1 WHERE number = 1"], 0, "entry 1 is not as it was written"),
        (["DELETE FROM audit WHERE number = 2"], 1, "entry 2 is missing"),
        (["DELETE FROM audit WHERE number = 5"], 4, "the newest entry should be 5 and is 4"),
        (["DELETE FROM audit_head"], 5, "the newest entry should be 0 and is 5"),
        (["DELETE FROM audit"], 0, "the newest entry should be 5 and is 0"),
        (
            [
                "UPDATE audit SET number = 99 WHERE number = 2",
                "UPDATE audit SET number = 2 WHERE number = 3",
                "UPDATE audit SET number = 3 WHERE number = 99",
            ],
            1,
            "entry 2 is not as it was written",
        ),
        (
            ["DELETE FROM audit WHERE number = 2", "UPDATE audit SET number = number - 1 WHERE number > 2"],
            1,
            "entry 2 is not as it was written",
        ),
    ],
)
def test_the_chain_shows_what_was_changed(tmp_path: Path, statements: list[str], sound: int, problem: str) -> None:
    async def scenario(database: Flaky) -> None:
        await fill(database)
        assert (await verify(database)).problem is None
        for statement in statements:
            await database.execute(statement)
        chain = await verify(database)
        assert (chain.count, chain.problem) == (sound, problem)

    play(tmp_path, scenario)


def test_a_chain_that_was_written_anew_does_not_have_the_hash_one_remembers(tmp_path: Path) -> None:
    async def scenario(database: Flaky) -> None:
        assert (await verify(database)).count == 0
        await fill(database)
        remembered = (await verify(database)).hash
        await note(database, "key.revoke", "k1", reason="lost")
        assert (await verify(database, remembered)).problem is None
        await database.execute("DELETE FROM audit")
        await database.execute("DELETE FROM audit_head")
        await fill(database)
        assert (await verify(database)).problem is None
        assert "written anew" in str((await verify(database, remembered)).problem)

    play(tmp_path, scenario)


def test_entries_wait_for_the_database_in_order_and_are_written_once(tmp_path: Path) -> None:
    async def scenario(database: Flaky) -> None:
        audit = Audit(database, retry_s=0.001, tick_s=0.001)
        audit.start()
        database.away = True
        for n in range(GROUP_MAX + 50):
            audit.add(Event(action="key.create", subject=f"k{n}"))
        await database.refused.wait()
        assert (audit.pending, audit.written) == (GROUP_MAX + 50, 0)
        database.away, database.forgetful = False, True
        await asyncio.wait_for(database.forgot.wait(), 30)
        await audit.close()
        found = await entries(database)
        assert [entry.subject for entry in reversed(found)] == [f"k{n}" for n in range(GROUP_MAX + 50)]
        assert (await verify(database)).problem is None and audit.lost == 0

    play(tmp_path, scenario)


def test_what_has_no_room_is_counted_as_lost(tmp_path: Path) -> None:
    async def scenario(database: Flaky) -> None:
        audit = Audit(database)
        database.away = True
        for _ in range(PENDING_MAX + 3):
            audit.add(Event(action="key.create"))
        assert (audit.pending, audit.lost) == (PENDING_MAX, 3)
        await audit.close()
        assert audit.lost == PENDING_MAX + 3

    play(tmp_path, scenario)


def test_a_flood_makes_a_bounded_number_of_entries(tmp_path: Path) -> None:
    async def scenario(database: Flaky) -> None:
        clock = [5 * MINUTE_US]
        audit = Audit(database, now_us=lambda: clock[0])
        for _ in range(1000):
            audit.add_repeatable(Event(action="authenticate", address="1.2.3.4", outcome="invalid_api_key"))
        for n in range(1000):
            audit.add_repeatable(Event(action="authenticate", address=f"10.0.0.{n}", outcome="invalid_api_key"))
        assert audit.pending == REPEATED_MAX
        clock[0] += MINUTE_US
        audit.add_repeatable(Event(action="authenticate", address="1.2.3.4", outcome="invalid_api_key"))
        await audit.close()
        found = await entries(database)
        details = [(entry.address, entry.details) for entry in found if entry.details != "{}"]
        assert details == [("", '{"repeated":901}'), ("1.2.3.4", '{"repeated":999}')]
        assert len(found) == REPEATED_MAX + 3

    play(tmp_path, scenario)


def test_texts_of_clients_are_made_short_and_printable(tmp_path: Path) -> None:
    async def scenario(database: Flaky) -> None:
        await note(database, "key.revoke", "a\0\n\ud800b" + "c" * 1000, reason="\0" + "d" * 1000, number=3)
        (entry,) = await entries(database)
        assert entry.subject == ("a\ufffd\ufffd\ufffdb" + "c" * 1000)[:TEXT_LENGTH_MAX]
        assert len(entry.details) < TEXT_LENGTH_MAX + 40 and '"number":3' in entry.details

    play(tmp_path, scenario)


def test_filters_and_pages(tmp_path: Path) -> None:
    async def scenario(database: Flaky) -> None:
        audit = Audit(database, now_us=lambda: 7)
        for n in range(6):
            actor, outcome = ("a", "ok") if n % 2 else ("b", "not_found")
            audit.add(Event(action=f"session.{n}", actor=actor, tenant=f"t{n}", outcome=outcome))
        audit.add(Event(action="sess%on.x"))
        await audit.close()
        first, more = await audit.page(Filter(action="session."), 4)
        rest, end = await audit.page(Filter(action="session."), 4, first[-1].id)
        assert ([entry.number for entry in first + rest], more, end) == ([6, 5, 4, 3, 2, 1], True, False)
        assert [entry.tenant for entry in await entries(database, actor="a")] == ["t5", "t3", "t1"]
        assert [entry.tenant for entry in await entries(database, tenant="t2", outcome="not_found")] == ["t2"]
        assert await audit.page(Filter(since_us=8), 10) == await audit.page(Filter(until_us=7), 10) == ([], False)
        with pytest.raises(GatewayError, match="no entry"):
            await audit.page(Filter(), 1, "audit_none")

    play(tmp_path, scenario)


def test_without_a_database_nothing_is_kept() -> None:
    async def scenario() -> None:
        audit = Audit(None)
        audit.start()
        audit.add_repeatable(Event(action="access"))
        await audit.close()
        assert (await audit.page(Filter(), 5), audit.pending, audit.lost) == (([], False), 0, 0)

    asyncio.run(scenario())


def test_the_hash_before_the_first_entry_is_none_that_one_remembers(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = await open_migrated(tmp_path, serve=True)
        try:
            async with database.transaction() as inside:
                await append(inside, [entry_of(Event(action="key.create"), 1)])
            assert (await verify(database, START)).problem is not None
        finally:
            await database.close()

    asyncio.run(scenario())
