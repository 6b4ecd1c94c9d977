"""The one door to durable state; SQLite or PostgreSQL is behind it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

Value = None | bool | int | float | str | bytes
Row = dict[str, Value]


class DatabaseError(Exception):
    """Base of what the state layer raises on purpose."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot answer now: away, locked, full, unreadable or closed.

    Nothing was changed, unless it went away during a commit: then nobody knows, so a retry has to be idempotent.
    """


class NoSuchTable(DatabaseError):
    """A table that the schema of this code would have is not there."""


class Conflict(DatabaseError):
    """A constraint (unique, foreign key, check) refused the change."""


class Statements(Protocol):
    """SQL that both SQLite and PostgreSQL read: `$1` parameters, RETURNING, ON CONFLICT, times in integer microseconds,
    JSON as text. One statement per call. Text holds no NUL character, and a truth value may come back as 0 or 1."""

    async def query(self, sql: str, *parameters: Value) -> list[Row]:
        """The rows by column name. Outside of a transaction only for reading."""
        ...

    async def execute(self, sql: str, *parameters: Value) -> int:
        """Run a statement; the number of rows it changed."""
        ...

    async def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
        """Add rows, which are not there yet. Outside of a transaction some may be added and some not."""
        ...


class Database(Statements, Protocol):
    """Raises DatabaseUnavailable, Conflict and NoSuchTable; any other exception is a bug in the caller's SQL."""

    def transaction(self, *, concurrent: bool = False) -> AbstractAsyncContextManager[Statements]:
        """All statements inside or none. Left with an exception, it is rolled back; after one inside, leave it.

        Transactions take turns, also across replicas. A `concurrent` one only takes turns on the rows it changes, where
        the database can do that: others may commit between its statements, so it has to be right by its constraints and
        by updates that check what they change, and to touch rows in one order. When a caller is cancelled while the
        commit is under way, the commit may have happened.
        """
        ...

    async def run(self, work: Callable[[Statements], Coroutine[Any, Any, T]]) -> T:
        """A `concurrent` transaction in as few trips to the database as it allows. `work` awaits nothing but the
        statements that it is given."""
        ...

    async def close(self) -> None: ...
