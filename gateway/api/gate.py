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
        self._pieces: list[bytes | bytearray | memoryview] = []
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._pieces and self._burst.first():
            if not self._transport.is_closing():
                self._transport.write(data)
            return
        self._pieces.append(data)
        self._size += len(data)
        if self._size > WAITING_BYTES_MAX:
            self.flush()
        elif len(self._pieces) == 1:
            self._burst.add(self.flush)

    def flush(self) -> None:
        """Write what waits; for a connection that is closed by then it is nobody's any more."""
        pieces, self._pieces, self._size = self._pieces, [], 0
        if pieces and not self._transport.is_closing():
            self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._close()
