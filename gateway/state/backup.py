"""A copy of every table in one file, from either database and into either: gzip over lines of JSON.

The first line says which migrations the rows belong to, the last one how many rows there are and the SHA-256 of all
lines before it. Restoring happens in one transaction: the old tables go, the migrations of the copy are applied, its
rows inserted, and then the migrations that came later.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import os
import re
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway.state.database import Database, DatabaseError, NoSuchTable, Row, Statements, Value
from gateway.state.migrate import Migration, apply, forget, pending
from gateway.state.postgres import Postgres
from gateway.state.sqlite import Sqlite

PAGE_ROWS = 2000
PARAMETERS_MAX = 20_000
LINE_BYTES_MAX = 64 << 20


class BackupError(DatabaseError):
    """The file cannot be written, is no sound copy, or must not be restored here."""


class Table(msgspec.Struct, frozen=True):
    """A table as the migrations leave it. Its rows are read in the order of `key`."""

    name: str
    key: tuple[str, ...]
    booleans: frozenset[str]


class Summary(msgspec.Struct, frozen=True):
    """What a copy holds: rows by table, in the order of the tables."""

    created_us: int
    rows: dict[str, int]


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    created_us: int
    migrations: list[tuple[int, str, str]]
    format: int = 1


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    table: str
    row: dict[str, Any]


class _End(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rows: int
    sha256: str


def tables(migrations: Sequence[Migration]) -> list[Table]:
    """The tables these migrations make, in an order in which they can be filled."""
    found: dict[str, Table] = {}
    for statement in (statement for migration in migrations for statement in migration.statements()):
        if match := re.match(r"CREATE TABLE (\w+)\s*\((.*)\)[^)]*\Z", statement, re.DOTALL):
            found[match[1]] = _table(match[1], _parts(match[2]))
        elif match := re.match(r"ALTER TABLE (\w+) ADD COLUMN (\w+) BOOLEAN", statement):
            table = found[match[1]]
            found[match[1]] = Table(table.name, table.key, table.booleans | {match[2]})
        elif match := re.match(r"DROP TABLE (\w+)", statement):
            del found[match[1]]
    return list(found.values())


def _table(name: str, parts: Sequence[str]) -> Table:
    key: tuple[str, ...] = ()
    for part in parts:
        if match := re.match(r"PRIMARY KEY \(([^)]*)\)", part):
            key = tuple(column.strip() for column in match[1].split(","))
        elif " PRIMARY KEY" in part:
            key = (part.split()[0],)
    return Table(name, key, frozenset(part.split()[0] for part in parts if part.split()[1:2] == ["BOOLEAN"]))


def _parts(body: str) -> list[str]:
    """The columns and constraints between the outermost commas."""
    depth, parts = 0, [""]
    for character in re.sub(r"--[^\n]*", "", body):
        depth += (character == "(") - (character == ")")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


async def back_up(database: Sqlite | Postgres, path: Path, migrations: Sequence[Migration]) -> Summary:
    """Write a copy of everything as of one moment to the new file `path`, beside a running gateway.

    Raises BackupError when the file exists or cannot be written, DatabaseError when the database cannot be read.
    """
    head = _Head(time.time_ns() // 1000, [(each.number, each.name, each.checksum) for each in migrations])
    counts: dict[str, int] = {}
    with _new_file(path) as write:
        write(head)
        async with database.snapshot() as moment:
            for table in tables(migrations):
                counts[table.name] = 0
                async for row in _rows(moment, table):
                    write(_Line(table.name, _plain(row, table)))
                    counts[table.name] += 1
    return Summary(head.created_us, counts)


async def _rows(moment: Statements, table: Table) -> AsyncIterator[Row]:
    """All rows, a page at a time."""
    columns = ", ".join(table.key)
    where, after = "", tuple[Value, ...]()
    while True:
        sql = f"SELECT * FROM {table.name} {where} ORDER BY {columns} LIMIT {PAGE_ROWS}"
        page = await moment.query(sql, *after)
        for row in page:
            yield row
        if len(page) < PAGE_ROWS:
            return
        after = tuple(page[-1][column] for column in table.key)
        where = f"WHERE ({columns}) > ({', '.join(f'${i}' for i in range(1, len(after) + 1))})"


def _plain(row: Row, table: Table) -> dict[str, Any]:
    """A row as JSON: truth values are `true` and `false` whatever the database calls them, bytes are base64."""
    plain: dict[str, Any] = {}
    for name, value in row.items():
        if name in table.booleans and value is not None:
            plain[name] = bool(value)
        else:
            plain[name] = {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
    return plain


def _value(plain: Any) -> Value:
    value: Value = base64.b64decode(plain["base64"]) if isinstance(plain, dict) else plain
    return value


async def restore(
    database: Sqlite | Postgres, path: Path, migrations: Sequence[Migration], *, force: bool = False
) -> Summary:
    """Put the copy in the place of everything that is in the database; no gateway may be using it.

    Raises BackupError when the file is damaged or newer than this code, or the database holds rows and `force` is not
    set; then nothing was changed.
    """
    head, summary = _verify(path)
    applied = _known(head, migrations)
    await pending(database, migrations)
    if not force and await _holds_rows(database, migrations):
        raise BackupError("the database holds data; with --force the copy takes its place")
    async with database.transaction() as inside:
        for name in reversed(_ever_made(migrations)):
            await inside.execute(f"DROP TABLE IF EXISTS {name}")
        await forget(inside)
        for migration in applied:
            await apply(inside, migration)
        for table in reversed(tables(applied)):
            await inside.execute(f"DELETE FROM {table.name}")
        await _insert(inside, path)
        for migration in migrations[len(applied) :]:
            await apply(inside, migration)
    return summary


def _known(head: _Head, migrations: Sequence[Migration]) -> Sequence[Migration]:
    """The migrations of the copy, which are the first ones of this code."""
    ours = [(each.number, each.name, each.checksum) for each in migrations[: len(head.migrations)]]
    if ours != head.migrations:
        raise BackupError(
            f"the copy has schema {len(head.migrations)}, which this gateway (schema {len(migrations)}) does not know: "
            "restore it with the version that wrote it, or a later one"
        )
    return migrations[: len(ours)]


async def _holds_rows(database: Database, migrations: Sequence[Migration]) -> bool:
    for name in _ever_made(migrations):
        with contextlib.suppress(NoSuchTable):
            if await database.query(f"SELECT 1 AS one FROM {name} LIMIT 1"):
                return True
    return False


def _ever_made(migrations: Sequence[Migration]) -> list[str]:
    """All tables that any of the migrations made, in order."""
    statements = (statement for migration in migrations for statement in migration.statements())
    return [match[1] for statement in statements if (match := re.match(r"CREATE TABLE (\w+)", statement))]


async def _insert(inside: Statements, path: Path) -> None:
    batch: list[dict[str, Any]] = []
    name = ""
    for line in _lines(path):
        if not isinstance(line, _Line):
            continue
        if batch and (line.table != name or (len(batch) + 1) * len(line.row) > PARAMETERS_MAX):
            await _insert_batch(inside, name, batch)
            batch = []
        name = line.table
        batch.append(line.row)
    if batch:
        await _insert_batch(inside, name, batch)


async def _insert_batch(inside: Statements, name: str, rows: Sequence[dict[str, Any]]) -> None:
    columns, width = tuple(rows[0]), len(rows[0])
    groups = [f"({', '.join(f'${i * width + j + 1}' for j in range(width))})" for i in range(len(rows))]
    values = [_value(row[column]) for row in rows for column in columns]
    await inside.execute(f"INSERT INTO {name} ({', '.join(columns)}) VALUES {', '.join(groups)}", *values)


def _verify(path: Path) -> tuple[_Head, Summary]:
    """Read the whole file and check it against its last line."""
    head: _Head | None = None
    rows: dict[str, int] = {}
    for line in _lines(path):
        if isinstance(line, _Head):
            head = line
        elif isinstance(line, _Line):
            rows[line.table] = rows.get(line.table, 0) + 1
    if head is None:
        raise BackupError(f"{path} is not a sound copy: it has no beginning")
    return head, Summary(head.created_us, rows)


def _lines(path: Path) -> Iterator[_Head | _Line]:
    """The lines of a sound file. Raises BackupError where it is not; the last line vouches for all before it."""
    digest, count = hashlib.sha256(), -1
    try:
        with gzip.open(path, "rb") as file:
            line = file.readline(LINE_BYTES_MAX)
            kind: type[_Head | _Line] = _Head
            while following := file.readline(LINE_BYTES_MAX):
                digest.update(line)
                count += 1
                yield msgspec.json.decode(line, type=kind)
                line, kind = following, _Line
            end = msgspec.json.decode(line, type=_End)
    except FileNotFoundError:
        raise BackupError(f"there is no file {path}") from None
    except (OSError, EOFError, zlib.error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BackupError(f"{path} is not a sound copy: {error}") from None
    if (end.rows, end.sha256) != (count, digest.hexdigest()):
        raise BackupError(f"{path} is not a sound copy: its last line does not fit the others")


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Callable[[msgspec.Struct], None]]:
    """Writes lines to a file that is there, complete and synced, at the end, or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        if path.exists():
            raise BackupError(f"{path} exists already")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            with gzip.GzipFile(fileobj=file, mode="wb", filename="") as packed:
                yield from _writing(packed)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        raise BackupError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _writing(packed: gzip.GzipFile) -> Iterator[Callable[[msgspec.Struct], None]]:
    digest, count = hashlib.sha256(), -1

    def write(line: msgspec.Struct) -> None:
        nonlocal count
        data = msgspec.json.encode(line) + b"\n"
        digest.update(data)
        count += 1
        packed.write(data)

    yield write
    packed.write(msgspec.json.encode(_End(count, digest.hexdigest())) + b"\n")
