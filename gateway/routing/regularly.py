"""What is done again and again while the gateway runs."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

log = logging.getLogger(__name__)

# What many origins and replicas do at the same interval spreads by this part of it.
JITTER = 0.2


class Regularly:
    """Does something once each `interval_s`, one time after the other, from `start` to `close`, even when it fails.

    The first time is at once, or after a part of the interval when it should be `spread`.
    """

    def __init__(
        self,
        act: Callable[[], Awaitable[None]],
        interval_s: float,
        *,
        spread: bool = True,
        draw: Callable[[], float] = random.random,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._act = act
        self._interval_s = interval_s
        self._spread = spread
        self._draw = draw
        self._pause = pause
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running

    async def _run(self) -> None:
        if self._spread:
            await self._pause(self._interval_s * self._draw() * JITTER)
        while True:
            try:
                await self._act()
            except Exception:
                log.exception("what is done regularly failed unexpectedly")
            await self._pause(self._interval_s * (1 + JITTER * (self._draw() - 0.5)))
