"""Brings a database to the schema this code knows: numbered SQL files, forward only, each applied once."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gateway.state.database import Database, DatabaseError, NoSuchTable, Statements

_LEDGER = """CREATE TABLE IF NOT EXISTS migrations (
    number BIGINT PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_us BIGINT NOT NULL)"""


class MigrationError(DatabaseError):
    """The database and this code's migrations do not belong together."""


class Migration(msgspec.Struct, frozen=True):
    """One file `0001_name.sql`. Its statements end with a semicolon at the end of a line."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    def statements(self) -> list[str]:
        """The statements one by one; a trigger's inner semicolons do not end it."""
        found, current = [], ""
        for line in self.sql.splitlines(keepends=True):
            if not current and (not line.strip() or line.startswith("--")):
                continue
            current += line
            if sqlite3.complete_statement(current):
                found.append(current.strip())
                current = ""
        if current:
            raise MigrationError(f"{self.name}: the last statement has no end")
        return found


class _Applied(msgspec.Struct, frozen=True):
    number: int
    name: str
    checksum: str


def known() -> tuple[Migration, ...]:
    """The migrations that come with this code, in order."""
    files = sorted((Path(__file__).parent / "migrations").glob("[0-9]*.sql"))
    return tuple(Migration(int(file.name.split("_")[0]), file.name, file.read_text(encoding="utf-8")) for file in files)


async def migrate(database: Database, migrations: Sequence[Migration]) -> list[str]:
    """Apply what is missing, each in its own transaction that keeps others out; the names of what was applied.

    Raises MigrationError when the database is newer than this code or an applied file has changed since.
    """
    if not await pending(database, migrations):
        return []
    applied = []
    for migration in migrations:
        async with database.transaction() as inside:
            await inside.execute(_LEDGER)
            if migration.number in {row.number for row in await _history(inside, migrations)}:
                continue
            await apply(inside, migration)
        applied.append(migration.name)
    return applied


async def apply(inside: Statements, migration: Migration) -> None:
    """Run one migration and note that it was applied, as part of the caller's transaction."""
    for statement in migration.statements():
        await inside.execute(statement)
    await inside.execute(
        "INSERT INTO migrations (number, name, checksum, applied_us) VALUES ($1, $2, $3, $4)",
        migration.number,
        migration.name,
        migration.checksum,
        time.time_ns() // 1000,
    )


async def forget(inside: Statements) -> None:
    """Note that none was applied; the caller has removed what they made."""
    await inside.execute(_LEDGER)
    await inside.execute("DELETE FROM migrations")


async def pending(database: Database, migrations: Sequence[Migration]) -> list[str]:
    """The names of what `migrate` would apply, read only; raises as `migrate` does."""
    try:
        done = {row.number for row in await _history(database, migrations)}
    except NoSuchTable:
        done = set()
    return [migration.name for migration in migrations if migration.number not in done]


async def _history(statements: Statements, migrations: Sequence[Migration]) -> list[_Applied]:
    """What was applied, checked against the files."""
    rows = await statements.query("SELECT number, name, checksum FROM migrations ORDER BY number")
    history = msgspec.convert(rows, list[_Applied])
    by_number = {migration.number: migration for migration in migrations}
    for row in history:
        migration = by_number.get(row.number)
        if migration is None:
            newest = max(by_number, default=0)
            raise MigrationError(
                f"the database has schema {history[-1].number} and this gateway knows {newest}: "
                "run the newer gateway, or restore a copy of the database from before the upgrade"
            )
        if migration.checksum != row.checksum:
            raise MigrationError(f"{row.name} was changed after it was applied; a change needs a new migration")
    return history
