"""The one door to durable state; SQLite is behind it today, Postgres can be."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

Value = None | bool | int | float | str | bytes
Row = dict[str, Value]


class DatabaseError(Exception):
    """Base of what the state layer raises on purpose."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot answer now: locked, full, unreadable or closed. Nothing was changed."""


class Conflict(DatabaseError):
    """A constraint (unique, foreign key, check) refused the change."""


class Statements(Protocol):
    """SQL that both SQLite and Postgres read: `$1` parameters, RETURNING, ON CONFLICT, times in integer microseconds,
    JSON as text. One statement per call."""

    async def query(self, sql: str, *parameters: Value) -> list[Row]:
        """The rows by column name. Outside of a transaction only for reading."""
        ...

    async def execute(self, sql: str, *parameters: Value) -> int:
        """Run a statement; the number of rows it changed."""
        ...


class Database(Statements, Protocol):
    """Raises DatabaseUnavailable and Conflict; any other exception is a bug in the caller's SQL."""

    def transaction(self) -> AbstractAsyncContextManager[Statements]:
        """All statements inside or none; writers take turns. Left with an exception, it is rolled back.

        When a caller is cancelled while the commit is under way, the commit may have happened.
        """
        ...

    async def close(self) -> None: ...
