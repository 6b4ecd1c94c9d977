"""Opens the stores that the configuration names: SQLite or PostgreSQL, and memory or Redis."""

from __future__ import annotations

from pathlib import Path

from gateway.config import Config
from gateway.state.memory import Memory
from gateway.state.postgres import Postgres, open_postgres
from gateway.state.redis import open_redis
from gateway.state.shared import SharedState
from gateway.state.sqlite import Sqlite, open_sqlite


async def open_database(config: Config, *, serve: bool) -> Sqlite | Postgres:
    """The database; `serve` is for the process that answers requests, and keeps a second one out where two cannot be.

    Raises DatabaseError.
    """
    state = config.state
    if state.database is None:
        return await open_sqlite(Path(config.data_dir), serve=serve)
    return await open_postgres(
        state.database.reveal(),
        timeout_s=state.database_timeout_s,
        connections_max=state.database_connections_max,
        alone=serve and state.redis is None,
    )


async def open_shared(config: Config) -> SharedState:
    """The shared state; raises SharedStateMisused when Redis is set up in a way that loses counters."""
    if config.state.redis is None:
        return Memory()
    return await open_redis(config.state.redis.reveal(), timeout_s=config.state.redis_timeout_s)
