"""What of a stream that is passed on waits for whoever reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from adapters.types import Outlet


class Backlog:
    """The part of a `Sink` that holds: its stream is asked to pause when more than `bytes_max` wait."""

    def __init__(self, bytes_max: int) -> None:
        # Something came, or something else happened that the reader waits for.
        self.changed = asyncio.Event()
        self._bytes_max = bytes_max
        self._pieces: list[bytes] = []
        self._size = 0
        self._then: Callable[[], None] | None = None

    def write(self, data: bytes, outputs: int) -> bool:
        self._pieces.append(data)
        self._size += len(data)
        self.changed.set()
        return self._size < self._bytes_max

    def when_drained(self, then: Callable[[], None]) -> None:
        self._then = then

    @property
    def waits(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._pieces)

    def take(self) -> bytes:
        """All that waits, which lets a stream go on that paused."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        if self._then is not None:
            then, self._then = self._then, None
            then()
        return data

    async def change(self) -> None:
        """Wait for the next change."""
        self.changed.clear()
        await self.changed.wait()


async def drained(outlet: Outlet) -> None:
    """Wait until more may be written, just after a `write` that asked for a pause."""
    open = asyncio.Event()
    outlet.when_drained(open.set)
    await open.wait()
