"""Opens the stores that the configuration names: SQLite or PostgreSQL, and memory or Redis.

The clients of PostgreSQL and Redis are loaded where they are used: a gateway that is alone starts without them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gateway.config import Config
from gateway.state.memory import Memory
from gateway.state.shared import SharedState
from gateway.state.sqlite import Sqlite, open_sqlite

if TYPE_CHECKING:
    from gateway.state.postgres import Postgres

T = TypeVar("T")


async def open_database(config: Config, *, serve: bool) -> Sqlite | Postgres:
    """The database; `serve` is for the process that answers requests, and keeps a second one out where two cannot be.

    Raises DatabaseError.
    """
    state = config.state
    if state.database is None:
        return await open_sqlite(Path(config.data_dir), serve=serve)
    from gateway.state.postgres import open_postgres

    return await open_postgres(
        state.database.reveal(),
        timeout_s=state.database_timeout_s,
        connections_max=state.database_connections_max,
        alone=serve and state.redis is None,
    )


def with_database(config: Config, work: Callable[[Sqlite | Postgres], Awaitable[T]], *, serve: bool = False) -> T:
    """Do `work` on the database in a loop of its own, as commands do."""

    async def run() -> T:
        database = await open_database(config, serve=serve)
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())


async def open_shared(config: Config) -> SharedState:
    """The shared state; raises SharedStateMisused when Redis is set up in a way that loses counters."""
    if config.state.redis is None:
        return Memory()
    from gateway.state.redis import open_redis

    return await open_redis(config.state.redis.reveal(), timeout_s=config.state.redis_timeout_s)
