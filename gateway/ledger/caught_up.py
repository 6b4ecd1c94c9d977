"""The database as it is when it has all that was recorded before, where entries are durable before they are in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gateway.state.database import Database, Row, Statements, T, Value


class CaughtUp:
    """`Database` over another one, for whoever reads what entries of the ledger change."""

    def __init__(self, database: Database, caught_up: Callable[[], Awaitable[None]]) -> None:
        self._database = database
        self._caught_up = caught_up

    async def query(self, sql: str, *parameters: Value) -> list[Row]:
        await self._caught_up()
        return await self._database.query(sql, *parameters)

    async def execute(self, sql: str, *parameters: Value) -> int:
        await self._caught_up()
        return await self._database.execute(sql, *parameters)

    async def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
        await self._caught_up()
        await self._database.insert(table, columns, rows)

    @asynccontextmanager
    async def transaction(self, *, concurrent: bool = False) -> AsyncIterator[Statements]:
        await self._caught_up()
        async with self._database.transaction(concurrent=concurrent) as inside:
            yield inside

    async def run(self, work: Callable[[Statements], Coroutine[Any, Any, T]]) -> T:
        await self._caught_up()
        return await self._database.run(work)

    async def close(self) -> None:
        """The database belongs to somebody else."""
