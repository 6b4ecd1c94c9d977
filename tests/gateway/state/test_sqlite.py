"""What only SQLite has: a journal mode, a claim on the directory, and a file that can be unusable."""

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
from gateway.state.database import Database, DatabaseUnavailable
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
