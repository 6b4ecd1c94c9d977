"""PostgreSQL as the database of several replicas: a bounded pool that reconnects by itself, and time limits."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import asyncpg
import msgspec

from gateway.state.database import Conflict, DatabaseError, DatabaseUnavailable, NoSuchTable, Row, Statements, Value

T = TypeVar("T")

IDLE_S = 300.0
SERVER_VERSION_MIN = 130_000
# Classes of SQLSTATE in which the server says that it cannot, rather than that the statement is wrong: connection, no
# transaction now (read only, in doubt, rolled back), out of resources, object in use, operator, system.
_AWAY = ("08", "25", "40", "53", "55", "57", "58")

Connection = Any  # asyncpg's own type has a parameter for records that its pool does not agree with.


class ServerFacts(msgspec.Struct, frozen=True):
    """What a server says about itself. `clock_ahead_s` is its clock minus ours."""

    version: str
    clock_ahead_s: float


class DatabaseInUse(DatabaseError):
    """Another gateway uses this database, and nothing lets the two share their limits."""


async def open_postgres(
    url: str, *, timeout_s: float = 10.0, connections_max: int = 10, alone: bool = False
) -> Postgres:
    """Open the database at `url`; `alone` claims it for this process until `close`.

    Raises DatabaseUnavailable when it cannot be used, DatabaseInUse when another process has claimed it.
    """
    async with contextlib.AsyncExitStack() as opened:
        with _translated():
            pool = asyncpg.create_pool(
                url,
                min_size=0,
                max_size=connections_max,
                max_inactive_connection_lifetime=IDLE_S,
                timeout=timeout_s,
                command_timeout=timeout_s,
                init=_prepare,
                reset=_leave_as_is,
                server_settings=_settings(timeout_s),
            )
            opened.callback(pool.terminate)
            await pool
        database = Postgres(pool, timeout_s)
        try:
            version = (await database.query("SELECT current_setting('server_version_num') AS number"))[0]["number"]
        except ValueError:
            # Not repeated, as it may hold a password.
            raise DatabaseUnavailable("state.database is no address of a PostgreSQL server") from None
        if int(str(version)) < SERVER_VERSION_MIN:
            raise DatabaseUnavailable(f"PostgreSQL {version!r} is too old; 13 is the oldest that will do")
        if alone:
            await database.claim()
        opened.pop_all()
    return database


def _settings(timeout_s: float) -> dict[str, str]:
    limit_ms = str(max(1, round(timeout_s * 1000)))
    return {
        "application_name": "gateway",
        "statement_timeout": limit_ms,
        "lock_timeout": limit_ms,
        "idle_in_transaction_session_timeout": limit_ms,
        "synchronous_commit": "on",
        "timezone": "UTC",
    }


async def _prepare(connection: Connection) -> None:
    """Sums of BIGINT are NUMERIC; they come back as the integers they are."""
    await connection.set_type_codec("numeric", schema="pg_catalog", encoder=str, decoder=_number, format="text")


async def _leave_as_is(connection: Connection) -> None:
    """Nothing here changes a session's settings, so giving a connection back needs no round trip to reset them."""


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)


class Postgres:
    """`Database` over a pool."""

    def __init__(self, pool: Connection, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._claim: Connection = None

    async def query(self, sql: str, *parameters: Value) -> list[Row]:
        with _translated():
            return [dict(row) for row in await self._pool.fetch(sql, *parameters)]

    async def execute(self, sql: str, *parameters: Value) -> int:
        with _translated():
            return _changed(await self._pool.execute(sql, *parameters))

    async def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
        with _translated():
            await self._pool.executemany(_insertion(table, columns), rows)

    @contextlib.asynccontextmanager
    async def transaction(self, *, concurrent: bool = False) -> AsyncIterator[Statements]:
        async with self._inside("read_committed", read_only=False) as connection:
            inside = _Inside(connection)
            if not concurrent:
                await inside.query("SELECT pg_advisory_xact_lock($1)", _lock("transaction"))
            yield inside

    async def run(self, work: Callable[[Statements], Coroutine[Any, Any, T]]) -> T:
        async with self.transaction(concurrent=True) as inside:
            return await work(inside)

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Statements]:
        """Reading only, everything as of one moment, beside all writers."""
        async with self._inside("repeatable_read", read_only=True) as connection:
            yield _Inside(connection)

    async def facts(self) -> ServerFacts:
        (row,) = await self.query(
            "SELECT current_setting('server_version') AS version, extract(epoch FROM clock_timestamp()) AS now_s"
        )
        return ServerFacts(str(row["version"]), float(str(row["now_s"])) - time.time())

    async def claim(self) -> None:
        """Be the only process that has claimed this database, until `close` or until the connection is lost."""
        with _translated():
            self._claim = await self._pool.acquire(timeout=self._timeout_s)
            if not await self._claim.fetchval("SELECT pg_try_advisory_lock($1)", _lock("alone")):
                raise DatabaseInUse(
                    "another gateway uses this database; several need Redis for the limits they share: "
                    "set state.redis and state.replicas"
                )

    async def close(self) -> None:
        """Wait for running statements, as long as one may take, and close all connections."""
        with _translated():
            if self._claim is not None:
                await self._pool.release(self._claim)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._pool.close()
            except TimeoutError:
                self._pool.terminate()

    @contextlib.asynccontextmanager
    async def _inside(self, isolation: str, *, read_only: bool) -> AsyncIterator[Connection]:
        """A connection in a transaction. Errors of the body pass through as they are."""
        with _translated():
            connection = await self._pool.acquire(timeout=self._timeout_s)
        try:
            transaction = connection.transaction(isolation=isolation, readonly=read_only)
            with _translated():
                await transaction.start()
            try:
                yield connection
            except BaseException:
                # A lost connection has been rolled back by the server; what the body raised says more.
                with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    await transaction.rollback()
                raise
            with _translated():
                await transaction.commit()
        finally:
            await self._pool.release(connection)


class _Inside:
    """The statements of one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def query(self, sql: str, *parameters: Value) -> list[Row]:
        with _translated():
            return [dict(row) for row in await self._connection.fetch(sql, *parameters)]

    async def execute(self, sql: str, *parameters: Value) -> int:
        with _translated():
            return _changed(await self._connection.execute(sql, *parameters))

    async def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
        with _translated():
            await self._connection.executemany(_insertion(table, columns), rows)


def _insertion(table: str, columns: Sequence[str]) -> str:
    values = ",".join(f"${number}" for number in range(1, len(columns) + 1))
    return f"INSERT INTO {table} ({','.join(columns)}) VALUES ({values})"


def _lock(name: str) -> int:
    """The number of an advisory lock: signed, 64 bits, the same in every release."""
    return int.from_bytes(hashlib.blake2b(f"gateway {name}".encode(), digest_size=8).digest(), "big", signed=True)


def _changed(status: str) -> int:
    """The rows that a command tag such as `UPDATE 3` speaks of."""
    count = status.rpartition(" ")[2]
    return int(count) if count.isdigit() else 0


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """The library's errors as ours. What is left is a bug in the SQL or its parameters."""
    try:
        yield
    except asyncpg.IntegrityConstraintViolationError as error:
        raise Conflict(str(error)) from error
    except asyncpg.UndefinedTableError as error:
        raise NoSuchTable(str(error)) from error
    except asyncpg.PostgresError as error:
        if not str(error.sqlstate or "08").startswith(_AWAY) and not _refused(error):
            raise
        raise DatabaseUnavailable(f"database: {error}") from error
    except asyncpg.InterfaceError as error:
        if "clos" not in str(error):
            raise
        raise DatabaseUnavailable("the database is closed") from error
    except asyncpg.InternalClientError as error:
        # A server that shuts down has said so on a connection that was about to be used.
        raise DatabaseUnavailable(f"database: {error}") from error
    except OSError as error:
        # asyncio's time-out is an OSError too, and has no text.
        raise DatabaseUnavailable(f"database: {error or 'it does not answer in time'}") from error


def _refused(error: asyncpg.PostgresError) -> bool:
    """Whether the server does not let us in: wrong password, no such user or database, no right to a table."""
    return isinstance(
        error,
        asyncpg.InvalidAuthorizationSpecificationError
        | asyncpg.InvalidCatalogNameError
        | asyncpg.InsufficientPrivilegeError,
    )
