"""Administration routes over a real database, asked by people."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

from gateway.api.admin.routes import Admin, Route
from gateway.api.edge import Edge
from gateway.config import LogConfig
from gateway.logs import AccessLog
from gateway.state.database import Database
from gateway.telemetry import Telemetry
from tests.databases import open_migrated
from tests.gateway.api.admin.people import Door, Heard


class Desk:
    """Where people ask, and what the audit log heard of it."""

    def __init__(self) -> None:
        self.audit = Heard()

    def serve(self, routes: Iterable[Route]) -> None:
        log = AccessLog(LogConfig(level="error"), io.StringIO())
        endpoints = Admin(self.audit, 100_000).endpoints(routes)
        self._edge = Edge(endpoints, Door(), Telemetry("1"), log, audit=self.audit)

    async def ask(self, who: str, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        transport = httpx.ASGITransport(self._edge)
        async with httpx.AsyncClient(transport=transport, base_url="http://test/admin/v1") as client:
            headers["Authorization"] = f"Bearer {who}"
            return await client.request(method, path, json=body, headers=headers)


def at_desk(folder: Path, script: Callable[[Desk, Database], Awaitable[None]]) -> None:
    """Run `script` with a new database in `folder`."""

    async def main() -> None:
        database = await open_migrated(folder, serve=False)
        try:
            await script(Desk(), database)
        finally:
            await database.close()

    asyncio.run(main())
