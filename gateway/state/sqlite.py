"""SQLite as the database of one machine: one serving process, one writer, durable at every commit.

The serving process holds a lock on the data directory. Short commands such as `gateway keys create` open the same file
beside it for a moment, which SQLite's own file locks make safe; the server notices their changes within seconds.

WAL is used only where it is safe: SQLite up to 3.51.2 can corrupt a file when one connection resets the log while
another one checkpoints (fixed in 3.51.3, 3.50.7 and 3.44.6). Older versions get a rollback journal, which is slower to
commit and has no such race.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import re
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO, TypeVar

import aiosqlite

from gateway.state.database import Conflict, DatabaseError, DatabaseUnavailable, NoSuchTable, Row, Statements, Value

T = TypeVar("T")

FILE_NAME = "gateway.db"
LOCK_NAME = "gateway.lock"
BUSY_TIMEOUT_S = 5
ROWS_TOGETHER = (100, 10, 1)

_PARAMETER = re.compile(r"\$(\d+)")


class DataDirInUse(DatabaseError):
    """Another process serves from this data directory."""


def wal_is_safe(version: tuple[int, ...]) -> bool:
    """Whether this SQLite has the fix for the corruption at a WAL reset (https://sqlite.org/wal.html#walresetbug)."""
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


async def open_sqlite(data_dir: Path, *, serve: bool) -> Sqlite:
    """Open, or create, the database in `data_dir`; `serve` claims the directory for this process until `close`.

    Raises DataDirInUse when another process serves from it, DatabaseUnavailable when the file cannot be used.
    """
    opened = contextlib.AsyncExitStack()
    try:
        claim = _prepare(data_dir, serve)
        if claim is not None:
            opened.callback(claim.close)
        writer = await _connect(data_dir / FILE_NAME)
        opened.push_async_callback(writer.close)
        if serve:
            await _set_journal_mode(writer)
        reader = await _connect(data_dir / FILE_NAME)
        opened.push_async_callback(reader.close)
        await _pragma(reader, "query_only=ON")
    except BaseException:
        await opened.aclose()
        raise
    return Sqlite(data_dir, reader, writer, opened)


class Sqlite:
    """`Database` over two connections: a writer whose users take turns, and a reader that never waits for them."""

    def __init__(
        self,
        data_dir: Path,
        reader: aiosqlite.Connection,
        writer: aiosqlite.Connection,
        resources: contextlib.AsyncExitStack,
    ) -> None:
        self._data_dir = data_dir
        self._reader = reader
        self._writer = writer
        self._resources = resources
        self._turn = asyncio.Lock()

    async def query(self, sql: str, *parameters: Value) -> list[Row]:
        return await _fetch(self._reader, sql, parameters)

    async def execute(self, sql: str, *parameters: Value) -> int:
        async with self._turn:
            return await _run(self._writer, sql, parameters)

    async def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
        async with self._turn:
            await _Inside(self._writer).insert(table, columns, rows)

    @contextlib.asynccontextmanager
    async def transaction(self, *, concurrent: bool = False) -> AsyncIterator[Statements]:
        async with self._turn:
            try:
                await _run(self._writer, "BEGIN IMMEDIATE", ())
                yield _Inside(self._writer)
                await _run(self._writer, "COMMIT", ())
            except BaseException:
                # Not shielded: the roll-back is in the connection's queue before this can be cancelled once more, so it
                # comes before whatever the next owner of the turn sends.
                with _translated():
                    await self._writer.rollback()
                raise

    async def run(self, work: Callable[[Statements], Coroutine[Any, Any, T]]) -> T:
        """All of it in one visit to the connection's thread: while the event loop is busy, each visit takes long."""
        async with self._turn:
            with _translated():
                done: T = await self._writer._execute(_at_once, self._writer._conn, work)  # type: ignore[no-untyped-call]
                return done

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Statements]:
        """Reading only, everything as of one moment: from a copy, because a long reader would keep writers waiting.

        The copy lies beside the database for that time and is as large.
        """
        with _translated(), tempfile.TemporaryDirectory(dir=self._data_dir, prefix="snapshot-") as directory:
            copy = await _connect(Path(directory) / FILE_NAME)
            try:
                await self._reader.backup(copy)
                yield _Inside(copy)
            finally:
                await copy.close()

    async def close(self) -> None:
        """Wait for the running transaction, close both connections and give the data directory back."""
        async with self._turn:
            with _translated():
                await self._resources.aclose()


class _Inside:
    """The statements of one transaction."""

    def __init__(self, writer: aiosqlite.Connection) -> None:
        self._writer = writer

    async def query(self, sql: str, *parameters: Value) -> list[Row]:
        return await _fetch(self._writer, sql, parameters)

    async def execute(self, sql: str, *parameters: Value) -> int:
        return await _run(self._writer, sql, parameters)

    async def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
        for sql, parameters in _insertions(table, columns, rows):
            await _run(self._writer, sql, tuple(parameters))


class _AtOnce:
    """The statements of one transaction, for work that runs in the connection's own thread: nothing here waits."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def query(self, sql: str, *parameters: Value) -> list[Row]:
        with _translated():
            return [dict(row) for row in self._connection.execute(_numbered(sql), parameters)]

    async def execute(self, sql: str, *parameters: Value) -> int:
        with _translated():
            return max(self._connection.execute(_numbered(sql), parameters).rowcount, 0)

    async def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
        with _translated():
            for sql, parameters in _insertions(table, columns, rows):
                self._connection.execute(sql, parameters)


def _at_once(connection: sqlite3.Connection, work: Callable[[Statements], Coroutine[Any, Any, T]]) -> T:
    """Run `work` to its end, which it reaches in one step because nothing that it awaits waits."""
    connection.execute("BEGIN IMMEDIATE")
    running = work(_AtOnce(connection))
    try:
        result = _outcome(running)
        connection.execute("COMMIT")
    except BaseException:
        running.close()
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def _outcome(running: Coroutine[Any, Any, T]) -> T:
    try:
        running.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("work in a transaction awaits its statements only")


def _prepare(data_dir: Path, serve: bool) -> TextIO | None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _claim(data_dir / LOCK_NAME) if serve else None
    except OSError as error:
        raise DatabaseUnavailable(f"the data directory {data_dir} cannot be used: {error.strerror}") from None


def _claim(path: Path) -> TextIO:
    """The locked file; the lock lives exactly as long as it is open. The file names the process that holds it."""
    file = path.open("a+", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(20).strip() or "unknown"
        file.close()
        raise DataDirInUse(
            f"another gateway (pid {holder}) serves from {path.parent}; stop it, or choose another --data-dir"
        ) from None
    except BaseException:
        file.close()
        raise
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


async def _connect(path: Path) -> aiosqlite.Connection:
    # None stays what it is. The library would ask each one that is written how to adapt it, by two exceptions.
    sqlite3.register_adapter(type(None), {None: None}.get)
    connection = aiosqlite.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    try:
        with _translated():
            await connection
    except BaseException:
        # The library tells its thread to stop and does not wait; the thread must not outlive the loop it answers to.
        await asyncio.to_thread(connection._thread.join)
        raise
    try:
        connection.row_factory = sqlite3.Row
        for setting in ("synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
            await _pragma(connection, setting)
    except BaseException:
        await connection.close()
        raise
    return connection


async def _set_journal_mode(connection: aiosqlite.Connection) -> None:
    wanted = "wal" if wal_is_safe(sqlite3.sqlite_version_info) else "delete"
    rows = await _pragma(connection, f"journal_mode={wanted}")
    if wanted == "delete" and rows[0]["journal_mode"] == "wal":
        raise DatabaseUnavailable(f"SQLite {sqlite3.sqlite_version} cannot leave WAL mode while others use the file")


async def _pragma(connection: aiosqlite.Connection, setting: str) -> list[Row]:
    return await _fetch(connection, f"PRAGMA {setting}", ())


async def _fetch(connection: aiosqlite.Connection, sql: str, parameters: tuple[Value, ...]) -> list[Row]:
    with _translated():
        return [dict(row) for row in await connection.execute_fetchall(_numbered(sql), parameters)]


async def _run(connection: aiosqlite.Connection, sql: str, parameters: tuple[Value, ...]) -> int:
    with _translated():
        cursor = await connection.execute(_numbered(sql), parameters)
        await cursor.close()
    return max(cursor.rowcount, 0)


def _insertions(
    table: str, columns: Sequence[str], rows: Iterable[Sequence[Value]]
) -> Iterator[tuple[str, list[Value]]]:
    """Statements that add rows, and their parameters.

    Each statement gives up the interpreter and has to get it back from a busy event loop, so they add many rows; their
    numbers of rows are few, so that SQLite knows the statements already. Rows are taken as they are needed: to make
    all of them at once would keep the event loop waiting for longer.
    """
    left = iter(rows)
    while some := list(islice(left, ROWS_TOGETHER[0])):
        start = 0
        for many in ROWS_TOGETHER:
            sql = _insertion(table, tuple(columns), many)
            while len(some) - start >= many:
                yield sql, list(chain.from_iterable(some[start : start + many]))
                start += many


@functools.lru_cache(maxsize=16)
def _insertion(table: str, columns: tuple[str, ...], rows: int) -> str:
    places = f"({','.join('?' * len(columns))})"
    return f"INSERT INTO {table} ({','.join(columns)}) VALUES {','.join([places] * rows)}"


@functools.lru_cache(maxsize=256)
def _numbered(sql: str) -> str:
    """SQLite reads `$1` as a parameter whose name is "1", and looks for each among all names before it; `?1` is the
    first one."""
    return _PARAMETER.sub(r"?\1", sql)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """The library's errors as ours."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise Conflict(str(error)) from error
    except (sqlite3.ProgrammingError, sqlite3.NotSupportedError):
        raise
    except sqlite3.DatabaseError as error:
        if str(error).startswith("no such table"):
            raise NoSuchTable(str(error)) from error
        raise DatabaseUnavailable(f"database: {error}") from error
    except ValueError as error:
        if str(error) not in ("Connection closed", "no active connection"):
            raise
        raise DatabaseUnavailable("the database is closed") from error


async def integrity_problems(database: Sqlite) -> list[str]:
    """What SQLite's own check finds wrong with the file; nothing when it is sound."""
    rows = await database.query("PRAGMA integrity_check(10)")
    return [str(value) for row in rows for value in row.values() if value != "ok"]
