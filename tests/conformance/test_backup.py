"""Copies of either database, restored into either."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.state.backup import BackupError, back_up, restore, tables
from gateway.state.migrate import Migration, known, migrate, pending
from gateway.state.postgres import Postgres, open_postgres
from gateway.state.sqlite import Sqlite, open_sqlite

FIRST = Migration(
    1,
    "0001_first.sql",
    """CREATE TABLE people (
    id TEXT PRIMARY KEY, -- a name, really
    active BOOLEAN NOT NULL,
    photo BYTEA,
    weight DOUBLE PRECISION CHECK (weight > 0 AND weight < 1000),
    born_us BIGINT
);
CREATE TABLE visits (
    person TEXT NOT NULL REFERENCES people (id),
    at_us BIGINT NOT NULL,
    note TEXT,
    PRIMARY KEY (person, at_us)
);
CREATE TABLE old (id BIGINT PRIMARY KEY);
INSERT INTO old VALUES (1);
""",
)
SECOND = Migration(
    2,
    "0002_second.sql",
    """ALTER TABLE people ADD COLUMN member BOOLEAN;
UPDATE people SET member = active;
DROP TABLE old;
""",
)

Store = Sqlite | Postgres
Opened = Callable[[], Awaitable[Store]]


@pytest.fixture(params=["sqlite", "postgres"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    return opener(request, tmp_path / "source")


@pytest.fixture(params=["sqlite", "postgres"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    return opener(request, tmp_path / "target")


def opener(request: pytest.FixtureRequest, directory: Path) -> Opened:
    if request.param == "sqlite":
        return lambda: open_sqlite(directory, serve=False)
    url = request.getfixturevalue("postgres").database()
    return lambda: open_postgres(url)


async def fill(database: Store) -> None:
    await migrate(database, [FIRST])
    async with database.transaction() as inside:
        for i in range(50):
            await inside.execute(
                "INSERT INTO people (id, active, photo, weight, born_us) VALUES ($1, $2, $3, $4, $5)",
                f"person \u00e9'{i}\n",
                i % 2 == 0,
                bytes(range(i)),
                i + 0.5,
                -(2**62) + i,
            )
        for i in range(4500):
            sql = "INSERT INTO visits (person, at_us, note) VALUES ($1, $2, $3)"
            await inside.execute(sql, f"person \u00e9'{i % 50}\n", i, None if i % 3 else f"{i}")


async def everything(database: Store) -> dict[str, list[dict[str, Any]]]:
    return {
        "people": await database.query("SELECT * FROM people ORDER BY born_us"),
        "visits": await database.query("SELECT * FROM visits ORDER BY at_us"),
    }


def test_all_of_it_comes_back_and_later_migrations_are_applied(tmp_path: Path, source: Opened, target: Opened) -> None:
    file = tmp_path / "copy"

    async def run() -> None:
        before, after = await source(), await target()
        try:
            await fill(before)
            summary = await back_up(before, file, [FIRST])
            assert summary.rows == {"people": 50, "visits": 4500, "old": 1}
            assert await restore(after, file, [FIRST, SECOND]) == summary
            wanted, found = await everything(before), await everything(after)
            assert [row.pop("member") for row in found["people"]] == [row["active"] for row in wanted["people"]]
            assert found == wanted
            assert await pending(after, [FIRST, SECOND]) == []
            assert file.stat().st_mode & 0o777 == 0o600
        finally:
            await before.close()
            await after.close()

    asyncio.run(run())


def test_data_is_replaced_only_by_force_and_all_or_nothing(tmp_path: Path, target: Opened) -> None:
    file = tmp_path / "copy"

    async def run() -> None:
        database = await target()
        try:
            await fill(database)
            await back_up(database, file, [FIRST])
            await database.execute("DELETE FROM visits WHERE at_us > 9")
            with pytest.raises(BackupError, match="--force"):
                await restore(database, file, [FIRST])
            broken = Migration(2, "0002_broken.sql", "INSERT INTO nowhere VALUES (1);\n")
            with pytest.raises(Exception, match="nowhere"):
                await restore(database, file, [FIRST, broken], force=True)
            assert len((await everything(database))["visits"]) == 10
            await restore(database, file, [FIRST], force=True)
            assert len((await everything(database))["visits"]) == 4500
        finally:
            await database.close()

    asyncio.run(run())


def test_a_copy_is_of_one_moment(tmp_path: Path, source: Opened) -> None:
    file = tmp_path / "copy"

    async def run() -> None:
        database = await source()
        try:
            await fill(database)
            writing = True

            async def write() -> None:
                # Always in both tables together.
                for i in range(100_000, 200_000):
                    if not writing:
                        return
                    async with database.transaction() as inside:
                        await inside.execute("INSERT INTO people (id, active) VALUES ($1, TRUE)", f"{i}")
                        await inside.execute("INSERT INTO visits (person, at_us) VALUES ($1, $2)", f"{i}", i)

            task = asyncio.create_task(write())
            await asyncio.sleep(0.1)
            summary = await back_up(database, file, [FIRST])
            writing = False
            await task
            assert summary.rows["people"] - 50 == summary.rows["visits"] - 4500 > 0
        finally:
            await database.close()

    asyncio.run(run())


def make(directory: Path) -> Path:
    async def run() -> None:
        database = await open_sqlite(directory, serve=False)
        await migrate(database, [FIRST])
        await database.execute("INSERT INTO people (id, active) VALUES ('a', TRUE) ON CONFLICT DO NOTHING")
        try:
            await back_up(database, directory / "copy", [FIRST])
        finally:
            await database.close()

    asyncio.run(run())
    return directory / "copy"


def refused(directory: Path, file: Path, migrations: list[Migration]) -> str:
    async def run() -> str:
        database = await open_sqlite(directory / "other", serve=False)
        try:
            with pytest.raises(BackupError) as caught:
                await restore(database, file, migrations)
            return str(caught.value)
        finally:
            await database.close()

    return asyncio.run(run())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    file = make(tmp_path)
    packed, plain = file.read_bytes(), gzip.decompress(file.read_bytes())
    lines = plain.splitlines(keepends=True)
    damaged = tmp_path / "damaged"
    cuts = [packed[:cut] for cut in range(0, len(packed), 7)]
    others = [
        b"no copy at all",
        plain,
        gzip.compress(b""),
        gzip.compress(lines[-1]),
        gzip.compress(b"".join(lines[:-1])),
    ]
    others += [gzip.compress(b"".join([*lines[:1], *lines[2:]])), gzip.compress(plain.replace(b'"a"', b'"b"'))]
    for data in cuts + others:
        damaged.write_bytes(data)
        assert "is not a sound copy" in refused(tmp_path, damaged, [FIRST])
    assert "there is no file" in refused(tmp_path, tmp_path / "none", [FIRST])


def test_copies_of_another_schema_are_refused(tmp_path: Path) -> None:
    file = make(tmp_path)
    changed = Migration(1, FIRST.name, FIRST.sql + "-- More.\n")
    assert "does not know" in refused(tmp_path, file, [changed])
    assert "does not know" in refused(tmp_path, file, [])


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    file = make(tmp_path)
    before = file.read_bytes()
    with pytest.raises(BackupError, match="exists already"):
        make(tmp_path)
    assert file.read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_every_table_of_this_code_can_be_copied() -> None:
    assert {"keys", "facts"} <= {table.name for table in tables(known())}
    assert all(table.key for table in tables(known()))
    (keys,) = [table for table in tables(known()) if table.name == "keys"]
    assert (keys.key, keys.booleans) == (("id",), frozenset({"admin"}))
