"""That every process serves what the database says, as far as it can be asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.config import Config, RouteConfig
from gateway.served import Served
from gateway.served.live import Live
from gateway.served.stock import Stock
from gateway.state.database import Database, DatabaseUnavailable
from gateway.state.memory import Memory
from tests.adapters.upstream import run, until
from tests.databases import open_migrated

CONFIG = msgspec.convert({"providers": [{"name": "house", "kind": "vllm", "base_url": "http://house/v1"}]}, Config)
SOON_S, NEVER_S = 0.01, 1000.0


def route(name: str) -> RouteConfig:
    return msgspec.convert({"name": name, "groups": [[{"provider": "house", "model": "m"}]]}, RouteConfig)


class Replica:
    """A process that serves, with its own view of the database, which may be away."""

    def __init__(self, database: Database, shared: Memory | None, look_s: float, config: Config = CONFIG) -> None:
        self.away = self.broken = False
        self.applied: list[list[str]] = []
        self.stock = Stock(database, config, shared)
        self._version = self.stock.version
        self.stock.version = self._maybe  # type: ignore[method-assign]
        self.live = Live(config, self._apply, self.stock, shared, look_s=look_s)

    def _apply(self, served: Served) -> None:
        if self.broken:
            raise RuntimeError("a bug of ours")
        self.applied.append([one.name for one in served.config.routes])

    async def _maybe(self) -> int:
        if self.away:
            raise DatabaseUnavailable("away")
        return await self._version()


def replicas(
    folder: Path, script: Callable[[Replica, Replica], Awaitable[Any]], look_s: float, shared: Memory | None = None
) -> None:
    async def main() -> None:
        database = await open_migrated(folder, serve=False)
        one, other = Replica(database, shared, look_s), Replica(database, shared, look_s)
        await one.live.open()
        await other.live.open()
        await script(one, other)
        await one.live.close()
        await other.live.close()
        await database.close()

    run(main())


def test_a_change_is_seen_without_announcements(tmp_path: Path) -> None:
    async def script(one: Replica, other: Replica) -> None:
        await one.stock.create(route("r"))
        await until(lambda: other.applied == [[], ["r"]])
        await one.stock.delete("route", "r")
        await until(lambda: other.applied == [[], ["r"], []])

    replicas(tmp_path, script, SOON_S)


def test_an_announced_change_is_seen_at_once(tmp_path: Path) -> None:
    async def script(one: Replica, other: Replica) -> None:
        await one.stock.create(route("r"))
        await until(lambda: one.applied == other.applied == [[], ["r"]])

    replicas(tmp_path, script, NEVER_S, Memory())


def test_without_the_database_the_last_is_served_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def script(one: Replica, other: Replica) -> None:
        other.away = True
        await one.stock.create(route("r"))
        with caplog.at_level(logging.WARNING):
            await until(lambda: "cannot be seen" in caplog.text)
        assert other.applied == [[]]
        other.away = False
        await until(lambda: other.applied == [[], ["r"]])

    replicas(tmp_path, script, SOON_S)


def test_a_bug_in_applying_neither_ends_the_watching_nor_counts_as_applied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(one: Replica, other: Replica) -> None:
        other.broken = True
        await one.stock.create(route("r"))
        await until(lambda: "could not be applied" in caplog.text)
        other.broken = False
        await until(lambda: other.applied == [[], ["r"]])

    replicas(tmp_path, script, SOON_S)


def test_a_replica_with_another_configuration_serves_what_fits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        database = await open_migrated(tmp_path, serve=False)
        await Stock(database, CONFIG).create(route("r"))
        bare = Replica(database, None, NEVER_S, Config())
        await bare.live.open()
        assert bare.applied == [[]]
        assert "route r is not served: there is no provider 'house'" in caplog.text
        await bare.stock.delete("route", "r")
        assert not (await bare.live.refresh()).items
        await bare.live.close()
        await database.close()

    run(main())


def test_without_a_database_there_is_the_configuration() -> None:
    async def main() -> None:
        seen: list[Served] = []
        live = Live(CONFIG, seen.append)
        await live.open()
        assert [item.name for item in (await live.refresh()).items] == ["house"]
        assert [served.config for served in seen] == [CONFIG]
        await live.close()

    asyncio.run(main())
