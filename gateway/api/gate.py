"""A client's connection as its requests write to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from adapters.bursts import Burst

# What of an answer waits at most to be written with others: with more, the transport has to know of it.
WAITING_BYTES_MAX = 16 * 1024


class Gate(asyncio.Transport):
    """The transport as a request sees it: what is written goes out with the others of a `burst`, in one piece, and
    closing goes through the connection, which may have to linger."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None], burst: Burst) -> None:
        self._transport = transport
        self._close = close
        self._burst = burst
        self._waiting = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._waiting:
            self._waiting += data
        elif self._burst.first():
            if not self._transport.is_closing():
                self._transport.write(data)
            return
        else:
            self._waiting = bytes(data)
            self._burst.wait(self)
        if len(self._waiting) > WAITING_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write what waits; for a connection that is closed by then it is nobody's any more."""
        waiting, self._waiting = self._waiting, b""
        if waiting and not self._transport.is_closing():
            self._transport.write(waiting)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._close()
