"""The gateway's end of what a worker process says: frames on its socket, and the last lines it wrote."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import cast

import msgspec

from adapters.errors import InvalidRequest
from adapters.llama_cpp.messages import Command, FrameError, FrameReader, Report, frame

logger = logging.getLogger(__name__)

STDERR_LINES_MAX = 20
STDERR_LINE_BYTES_MAX = 400


class Link(asyncio.Protocol):
    """The gateway's end of one worker's socket: frames in, frames out, and a future that ends with it."""

    def __init__(self, receive: Callable[[Report], None], lost: Callable[[str], None]) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._decode = msgspec.msgpack.Decoder(Report).decode
        self._encoder = msgspec.msgpack.Encoder()
        self._receive = receive
        self._lost = lost
        self._reason = "the worker closed its connection"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                self._receive(self._decode(payload))
        except (FrameError, msgspec.MsgspecError) as error:
            self.abort(f"the worker sent garbage: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)
        self._lost(f"{self._reason}: {exc}" if exc else self._reason)

    def send(self, command: Command) -> None:
        """Raises InvalidRequest for what is too large to be sent."""
        if self._transport is None:
            return
        try:
            self._transport.write(frame(command, self._encoder))
        except FrameError:
            raise InvalidRequest("The request is too large for a local model.", code="request_too_large") from None

    def abort(self, reason: str) -> None:
        """End it without waiting for what is unsent: a worker that reads no more would never let go."""
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()


class LastWords:
    """The last lines a worker wrote, with everything unprintable escaped.

    They are logged: a worker that is well writes none.
    """

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=STDERR_LINES_MAX)
        self._partial = b""

    async def drain(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(4096):
            *whole, self._partial = (self._partial + data).split(b"\n")
            self._partial = self._partial[:STDERR_LINE_BYTES_MAX]
            for line in whole:
                self._keep(line)
        self._keep(self._partial)

    def _keep(self, line: bytes) -> None:
        text = line[:STDERR_LINE_BYTES_MAX].decode("utf-8", "replace").strip().encode("unicode_escape").decode()
        if text:
            # What goes wrong again and again, as on a full disk, is told again only after many other lines.
            if text not in self.lines:
                logger.warning("a worker says: %s", text)
            self.lines.append(text)
