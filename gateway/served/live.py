"""What is served on this process, kept as the database has it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from gateway.config import Config
from gateway.served import Served, Stored, combine
from gateway.served.stock import CHANNEL, Stock
from gateway.state.database import DatabaseError
from gateway.state.shared import SharedState

# With the time that a question may take, five seconds until a change made elsewhere is served here.
LOOK_S = 2.5

log = logging.getLogger(__name__)


class Live:
    """Applies every change: those announced at once, others within seconds. While the database is away, what was last
    applied stays. Without a `stock` there is only the configuration."""

    def __init__(
        self,
        config: Config,
        apply: Callable[[Served], None],
        stock: Stock | None = None,
        shared: SharedState | None = None,
        *,
        look_s: float = LOOK_S,
    ) -> None:
        self.served, _ = combine(config, Stored(), lambda sealed: None)
        self.stock = stock
        self._apply = apply
        self._look_s = look_s
        self._one_at_a_time = asyncio.Lock()
        self._heard = asyncio.Event()
        self._stop_listening = shared.listen(CHANNEL, lambda _: self._heard.set()) if shared is not None else None
        self._watching: asyncio.Task[None] | None = None
        self._away = False

    async def open(self) -> None:
        """Apply what there is, and from now on what changes."""
        if self.stock is None:
            self._apply(self.served)
            return
        served = await self.stock.read()
        for item in served.items:
            if item.problem is not None:
                log.warning("the %s %s is not served: %s", item.kind, item.name, item.problem.message)
        self._apply(served)
        self.served = served
        self._watching = asyncio.create_task(self._watch(self.stock))

    async def close(self) -> None:
        if self._stop_listening is not None:
            self._stop_listening()
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching

    async def refresh(self) -> Served:
        """Apply what the database says now; what is served then."""
        if self.stock is not None:
            async with self._one_at_a_time:
                served = await self.stock.read()
                if served.version != self.served.version:
                    self._apply(served)
                    self.served = served
        return self.served

    async def _watch(self, stock: Stock) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look_s):
                    await self._heard.wait()
            self._heard.clear()
            try:
                if await stock.version() != self.served.version:
                    await self.refresh()
                self._away = False
            except DatabaseError as error:
                if not self._away:
                    log.warning("whether routes have changed cannot be seen: %s", error)
                self._away = True
            except Exception:
                # A bug of ours must not end the watching for ever; what was served before is served on.
                log.exception("what has changed of the routes could not be applied")
