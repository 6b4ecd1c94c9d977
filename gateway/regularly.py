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

    The first time is after `first_s`, or somewhere in the first part of the interval; the intervals differ by `jitter`.
    """

    def __init__(
        self,
        act: Callable[[], Awaitable[None]],
        interval_s: float,
        *,
        first_s: float | None = None,
        jitter: float = JITTER,
        draw: Callable[[], float] = random.random,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._act = act
        self._interval_s = interval_s
        self._first_s = first_s
        self._jitter = jitter
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
        first_s = self._interval_s * self._draw() * self._jitter if self._first_s is None else self._first_s
        if first_s > 0:
            await self._pause(first_s)
        while True:
            try:
                await self._act()
            except Exception:
                log.exception("what is done regularly failed unexpectedly")
            await self._pause(self._interval_s * (1 + self._jitter * (self._draw() - 0.5)))
