"""Migrations: applied once, in order, all or nothing, and refused where they do not fit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.state.database import DatabaseUnavailable
from gateway.state.migrate import Migration, MigrationError, known, migrate, pending
from gateway.state.sqlite import Sqlite, open_sqlite

ONE = Migration(1, "0001_one.sql", "-- Why.\nCREATE TABLE one (id BIGINT);\nINSERT INTO one VALUES (1);\n")
TWO = Migration(2, "0002_two.sql", "CREATE TABLE two (id BIGINT);\n")


def with_database(tmp_path: Path, work: Callable[[Sqlite], Awaitable[None]]) -> None:
    async def run() -> None:
        database = await open_sqlite(tmp_path, serve=False)
        try:
            await work(database)
        finally:
            await database.close()

    asyncio.run(run())


def test_each_is_applied_once(tmp_path: Path) -> None:
    async def work(database: Sqlite) -> None:
        assert await migrate(database, [ONE]) == ["0001_one.sql"]
        assert await pending(database, [ONE, TWO]) == ["0002_two.sql"]
        assert await migrate(database, [ONE, TWO]) == ["0002_two.sql"]
        assert await migrate(database, [ONE, TWO]) == []
        assert await pending(database, [ONE, TWO]) == []
        assert await database.query("SELECT id FROM one") == [{"id": 1}]

    with_database(tmp_path, work)


def test_one_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async def work(database: Sqlite) -> None:
        broken = Migration(2, "0002_broken.sql", "CREATE TABLE two (id BIGINT);\nCREATE TABLE one (id BIGINT);\n")
        with pytest.raises(DatabaseUnavailable, match="table one already exists"):
            await migrate(database, [ONE, broken])
        assert await migrate(database, [ONE, TWO]) == ["0002_two.sql"]

    with_database(tmp_path, work)


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    async def work(database: Sqlite) -> None:
        await migrate(database, [ONE, TWO])
        for ask in (migrate, pending):
            with pytest.raises(
                MigrationError, match="the database has schema 2 and this gateway knows 1: run the newer"
            ):
                await ask(database, [ONE])

    with_database(tmp_path, work)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    async def work(database: Sqlite) -> None:
        await migrate(database, [ONE])
        with pytest.raises(MigrationError, match=r"0001_one\.sql was changed after it was applied"):
            await migrate(database, [Migration(1, ONE.name, ONE.sql + "-- More.\n")])

    with_database(tmp_path, work)


def test_statements_end_where_sql_says() -> None:
    trigger = "CREATE TRIGGER t AFTER INSERT ON one\nBEGIN\n  DELETE FROM one;\n  DELETE FROM two;\nEND;"
    text = f"-- A comment; with a semicolon.\n\nCREATE TABLE one (\n  id BIGINT -- inner; comment\n);\n{trigger}\n\n"
    assert Migration(1, "x", text).statements() == ["CREATE TABLE one (\n  id BIGINT -- inner; comment\n);", trigger]
    with pytest.raises(MigrationError, match="x: the last statement has no end"):
        Migration(1, "x", "CREATE TABLE one (id BIGINT)").statements()


def test_the_files_of_this_code_are_numbered_without_a_gap() -> None:
    assert [migration.number for migration in known()] == list(range(1, len(known()) + 1))
