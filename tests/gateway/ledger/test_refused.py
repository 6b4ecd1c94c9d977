from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.app.workers import left_behind
from gateway.ledger import Entry
from gateway.ledger.refused import Refused
from gateway.ledger.store import Ledger
from gateway.state.database import DatabaseUnavailable
from tests.gateway.ledger.test_disk_first import with_ledger
from tests.gateway.ledger.test_entries import entry
from tests.gateway.ledger.test_store import Flaky, all_entries, emptied
from tests.gateway.ledger.test_store import with_ledger as with_database_first

# More than an integer of the database can be.
BAD = entry("bad", prompt_tokens=2**63)


class Table:
    """A database that takes all but some entries, each once."""

    def __init__(self, *refused: str) -> None:
        self.refused = set(refused)
        self.away = False
        self.rows: list[str] = []

    async def write(self, entries: Sequence[Entry]) -> None:
        if self.away:
            raise DatabaseUnavailable("away")
        if any(one.id in self.refused for one in entries):
            raise OverflowError("too large")
        self.rows += [one.id for one in entries if one.id not in self.rows]


def counted(table: Table, folder: Path, ids: str | None = None) -> int:
    """How many entries are refused when these are committed, or (None) by a start."""

    async def run() -> int:
        refused = Refused(table.write, folder)
        try:
            await (refused.start() if ids is None else refused.commit([entry(one) for one in ids]))
        finally:
            refused.close()
        return refused.count

    return asyncio.run(run())


def test_what_is_refused_is_set_aside_and_tried_again_by_each_start(tmp_path: Path) -> None:
    table = Table("b", "d")
    assert counted(table, tmp_path, "abcd") == 2 and table.rows == ["a", "c"]
    assert counted(table, tmp_path) == 2
    table.refused = {"d"}
    assert counted(table, tmp_path) == 1 and table.rows == ["a", "c", "b"]
    table.refused = set()
    assert counted(table, tmp_path) == 0 and table.rows == ["a", "c", "b", "d"]
    assert counted(table, tmp_path) == 0


@pytest.mark.parametrize("ids", ["a", "ab"])
def test_nothing_is_set_aside_while_everything_is_refused(tmp_path: Path, ids: str) -> None:
    table = Table("a", "b")
    with pytest.raises(OverflowError):
        counted(table, tmp_path, ids)
    assert counted(table, tmp_path) == 0


def test_a_database_that_is_away_refuses_nothing(tmp_path: Path) -> None:
    table = Table("a")
    assert counted(table, tmp_path, "ab") == 1
    table.away = True
    for ids in ("cd", None):
        with pytest.raises(DatabaseUnavailable):
            counted(table, tmp_path, ids)
    table.away, table.refused = False, set()
    assert counted(table, tmp_path) == 0 and table.rows == ["b", "a"]


def test_an_entry_that_no_database_takes_keeps_nobody_waiting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        await asyncio.gather(*(ledger.add(one) for one in (entry("a"), BAD, entry("b"))))
        assert [one.id for one in await all_entries(ledger)] == ["a", "b"]
        assert (ledger.refused, ledger.complete) == (1, True)

    with_ledger(tmp_path, scenario)
    assert "refuses the ledger's entry bad: " in caplog.text
    assert left_behind(tmp_path, 0) is None
    (tmp_path / "outbox").rename(tmp_path / "outbox-3")
    assert left_behind(tmp_path, 2) == 4


def test_neither_does_it_where_the_database_comes_first(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        await asyncio.gather(*(ledger.add(one) for one in (entry("a"), BAD, entry("b"))))
        await emptied(ledger)
        assert [one.id for one in await all_entries(ledger)] == ["a", "b"]
        assert (ledger.refused, ledger.pending) == (1, 0)

    with_database_first(tmp_path, scenario, with_outbox=True)
