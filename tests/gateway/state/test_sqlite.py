"""The SQLite database: values, transactions, cancellation, the claim on the directory, and errors in our words."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.state import sqlite
from gateway.state.database import Conflict, Database, DatabaseUnavailable
from gateway.state.sqlite import DataDirInUse, Sqlite, integrity_problems, open_sqlite, wal_is_safe

TABLE = "CREATE TABLE t (id BIGINT PRIMARY KEY, text TEXT UNIQUE, flag BOOLEAN, raw BYTEA, ratio REAL)"
INSERT = "INSERT INTO t (id, text) VALUES ($1, $2)"


def with_database(tmp_path: Path, work: Callable[[Sqlite], Awaitable[None]]) -> None:
    async def run() -> None:
        database = await open_sqlite(tmp_path / "data", serve=True)
        try:
            await database.execute(TABLE)
            await work(database)
        finally:
            await database.close()

    asyncio.run(run())


def test_values_come_back_by_column_name(tmp_path: Path) -> None:
    async def work(database: Database) -> None:
        values = (2**60, "ü\x00'; DROP TABLE t", True, b"\x00\xff", 0.5)
        sql = "INSERT INTO t (id, text, flag, raw, ratio) VALUES ($1, $2, $3, $4, $5)"
        assert await database.execute(sql, *values) == 1
        rows = await database.query("SELECT id, text, flag, raw, ratio FROM t WHERE text = $1", values[1])
        assert rows == [{"id": 2**60, "text": values[1], "flag": 1, "raw": b"\x00\xff", "ratio": 0.5}]
        assert await database.execute("UPDATE t SET ratio = $2 WHERE id = $1 AND ratio = $3", 2**60, 1.5, 0.5) == 1
        assert await database.execute("DELETE FROM t WHERE id = $1", 7) == 0
        assert await database.query("SELECT id FROM t WHERE id = $1", 7) == []

    with_database(tmp_path, work)


def test_a_parameter_may_be_used_twice_and_ten_are_kept_apart(tmp_path: Path) -> None:
    async def work(database: Database) -> None:
        rows = await database.query(
            "SELECT $1 AS a, $10 AS j, $1 AS b, $2 AS c, $3, $4, $5, $6, $7, $8, $9", *range(1, 11)
        )
        assert (rows[0]["a"], rows[0]["b"], rows[0]["j"], rows[0]["c"]) == (1, 1, 10, 2)

    with_database(tmp_path, work)


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    async def work(database: Database) -> None:
        async with database.transaction() as inside:
            await inside.execute(INSERT, 1, "a")
            assert await inside.query("INSERT INTO t (id) VALUES (2) RETURNING id") == [{"id": 2}]
            assert await database.query("SELECT id FROM t") == [], "nobody sees it before the commit"
        assert len(await database.query("SELECT id FROM t")) == 2
        with pytest.raises(ZeroDivisionError):
            async with database.transaction() as inside:
                await inside.execute(INSERT, 3, "c")
                raise ZeroDivisionError
        with pytest.raises(Conflict):
            async with database.transaction() as inside:
                await inside.execute(INSERT, 4, "d")
                await inside.execute(INSERT, 5, "d")
        assert [row["id"] for row in await database.query("SELECT id FROM t ORDER BY id")] == [1, 2]

    with_database(tmp_path, work)


def test_writers_take_turns(tmp_path: Path) -> None:
    async def work(database: Database) -> None:
        await database.execute(INSERT, 0, "0")

        async def increment() -> None:
            async with database.transaction() as inside:
                rows = await inside.query("SELECT text FROM t WHERE id = 0")
                await inside.execute("UPDATE t SET text = $1 WHERE id = 0", str(int(str(rows[0]["text"])) + 1))

        await asyncio.gather(*(increment() for _ in range(50)))
        assert await database.query("SELECT text FROM t") == [{"text": "50"}]

    with_database(tmp_path, work)


def test_a_transaction_cancelled_anywhere_leaves_the_writer_usable(tmp_path: Path) -> None:
    async def work(database: Database) -> None:
        async def write(number: int) -> None:
            async with database.transaction() as inside:
                await inside.execute(INSERT, number, f"{number} a")
                await inside.execute(INSERT, -number, f"{number} b")

        # Cancelled once and again after a varying number of turns of the loop, so at every await of the transaction.
        for number in range(1, 40):
            task = asyncio.create_task(write(number))
            for _ in range(number % 13):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            async with database.transaction() as inside:
                await inside.execute("UPDATE t SET ratio = 1")
        counts = await database.query("SELECT count(*) AS n FROM t GROUP BY abs(id)")
        assert {row["n"] for row in counts} <= {2}

    with_database(tmp_path, work)


def test_outside_of_a_transaction_query_cannot_write(tmp_path: Path) -> None:
    async def work(database: Database) -> None:
        with pytest.raises(DatabaseUnavailable, match="readonly"):
            await database.query("INSERT INTO t (id) VALUES (1) RETURNING id")

    with_database(tmp_path, work)


def test_wrong_use_is_a_bug_and_not_an_outage(tmp_path: Path) -> None:
    async def work(database: Database) -> None:
        with pytest.raises(sqlite3.ProgrammingError):
            await database.query("SELECT $1, $2", 1)

    with_database(tmp_path, work)


def test_durable_and_checked(tmp_path: Path) -> None:
    async def work(database: Sqlite) -> None:
        async with database.transaction() as inside:
            for pragma, value in (("synchronous", 2), ("foreign_keys", 1)):
                assert list((await inside.query(f"PRAGMA {pragma}"))[0].values()) == [value]
            mode = (await inside.query("PRAGMA journal_mode"))[0]["journal_mode"]
        assert mode == ("wal" if wal_is_safe(sqlite3.sqlite_version_info) else "delete")
        assert await integrity_problems(database) == []

    with_database(tmp_path, work)


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 0), False),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 53, 1), True),
    ],
)
def test_versions_that_may_use_a_write_ahead_log(version: tuple[int, ...], safe: bool) -> None:
    assert wal_is_safe(version) is safe


def test_a_log_left_by_a_newer_version_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def mode(version: tuple[int, ...]) -> object:
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        database = await open_sqlite(tmp_path, serve=True)
        try:
            return (await database.query("PRAGMA journal_mode"))[0]["journal_mode"]
        finally:
            await database.close()

    assert asyncio.run(mode((3, 51, 3))) == "wal"
    assert asyncio.run(mode((3, 51, 2))) == "delete"


def test_one_process_serves_and_commands_work_beside_it(tmp_path: Path) -> None:
    async def run() -> None:
        server = await open_sqlite(tmp_path, serve=True)
        try:
            await server.execute(TABLE)
            with pytest.raises(DataDirInUse, match=rf"another gateway \(pid {os.getpid()}\) serves from {tmp_path}"):
                await open_sqlite(tmp_path, serve=True)
            command = await open_sqlite(tmp_path, serve=False)
            await command.execute(INSERT, 1, "from beside")
            await command.close()
            assert await server.query("SELECT text FROM t") == [{"text": "from beside"}]
        finally:
            await server.close()
        await (await open_sqlite(tmp_path, serve=True)).close()

    asyncio.run(run())


def test_a_killed_server_leaves_no_claim(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, sys; from pathlib import Path; from gateway.state.sqlite import open_sqlite\n"
        "async def run(): await open_sqlite(Path(sys.argv[1]), serve=True); os.kill(os.getpid(), 9)\n"
        "asyncio.run(run())"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=30)
    assert done.returncode == -9
    assert (tmp_path / sqlite.LOCK_NAME).read_text().strip().isdigit()

    async def run() -> None:
        await (await open_sqlite(tmp_path, serve=True)).close()

    asyncio.run(run())


def test_the_data_directory_is_private(tmp_path: Path) -> None:
    async def run() -> None:
        await (await open_sqlite(tmp_path / "a" / "b", serve=False)).close()

    asyncio.run(run())
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_unusable_files_are_unavailable(tmp_path: Path) -> None:
    async def run(data_dir: Path) -> None:
        with pytest.raises(DatabaseUnavailable):
            await (await open_sqlite(data_dir, serve=True)).close()

    (tmp_path / "file").write_text("")
    asyncio.run(run(tmp_path / "file"))
    (tmp_path / sqlite.FILE_NAME).write_bytes(b"not a database" * 100)
    asyncio.run(run(tmp_path))
    (tmp_path / "c" / sqlite.FILE_NAME).mkdir(parents=True)
    asyncio.run(run(tmp_path / "c"))


def test_a_closed_database_is_unavailable(tmp_path: Path) -> None:
    async def run() -> None:
        database = await open_sqlite(tmp_path, serve=True)
        await database.close()
        with pytest.raises(DatabaseUnavailable, match="closed"):
            await database.query("SELECT 1")
        with pytest.raises(DatabaseUnavailable, match="closed"):
            await database.execute("SELECT 1")
        with pytest.raises(DatabaseUnavailable, match="closed"):
            async with database.transaction():
                pass

    asyncio.run(run())
