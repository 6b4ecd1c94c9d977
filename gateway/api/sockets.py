"""Texts over a WebSocket (RFC 6455), from the server to the client."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterator
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from gateway import errors
from gateway.api.http import HeaderList

# What a connection that asks to be upgraded offers in its scope: the connection itself, for somebody who hears what
# comes from then on (nothing: it has ended).
SWITCH = "gateway.switch"
Switch = Callable[[Callable[[bytes], None]], asyncio.Transport]

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
LENGTH_MAX = 125
WAITING_BYTES_MAX = 64 * 1024
NORMAL, TOO_BIG = 1000, 1009


def wanted(request: Request) -> bool:
    """Whether the client asks for a WebSocket."""
    return request.headers.get("upgrade", "").lower() == "websocket"


class TextSocket:
    """Sends texts until there are no more or the client leaves. Of what the client says only pings are answered, and
    its goodbye. A client that reads too slowly misses some of them."""

    def __init__(self, texts: AsyncGenerator[bytes, None]) -> None:
        self.status = 101
        self.headers: HeaderList = []
        self._texts = texts
        self._heard = b""
        self._left = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        accept, switch = _accepted(Request(scope)), scope["extensions"][SWITCH]
        self._task = asyncio.current_task()
        self._transport: asyncio.Transport = switch(self._hear)
        head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        own = b"".join(b"%b: %b\r\n" % header for header in self.headers)
        self._transport.write(head + b"sec-websocket-accept: %b\r\n" % accept + own + b"\r\n")
        try:
            async for text in self._texts:
                if self._transport.get_write_buffer_size() < WAITING_BYTES_MAX:
                    self._transport.write(frame(TEXT, text))
        except asyncio.CancelledError:
            if not self._left or self._task is None or self._task.uncancel():
                raise
        finally:
            self._transport.write(frame(CLOSE, NORMAL.to_bytes(2)))
            self._transport.close()
            await asyncio.shield(asyncio.ensure_future(self._texts.aclose()))

    def _hear(self, data: bytes) -> None:
        if not data:
            self._leave()
        self._heard += data
        for opcode, payload in self._frames():
            if opcode == PING:
                self._transport.write(frame(PONG, payload))
            elif opcode == CLOSE:
                self._leave()

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        """The whole frames that were heard. One that is longer than a goodbye may be ends the conversation."""
        while len(self._heard) >= 2 and not self._left:
            opcode, length = self._heard[0] & 0x0F, self._heard[1] & 0x7F
            if length > LENGTH_MAX or not self._heard[1] & 0x80:
                self._transport.write(frame(CLOSE, TOO_BIG.to_bytes(2)))
                self._leave()
                return
            if len(self._heard) < 6 + length:
                return
            mask, payload = self._heard[2:6], self._heard[6 : 6 + length]
            self._heard = self._heard[6 + length :]
            yield opcode, bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))

    def _leave(self) -> None:
        if not self._left and self._task is not None:
            self._left = True
            self._task.cancel()


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole message as a server sends it."""
    if len(payload) <= LENGTH_MAX:
        return bytes((0x80 | opcode, len(payload))) + payload
    return bytes((0x80 | opcode, 126)) + len(payload).to_bytes(2) + payload


def _accepted(request: Request) -> bytes:
    """What the handshake is answered with. A page of another site has no business here, though browsers let it ask."""
    headers = request.headers
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        raise errors.error("permission_denied", "A page of another site cannot open a WebSocket here.")
    key = headers.get("sec-websocket-key", "")
    if SWITCH not in request.scope.get("extensions", {}) or not key or headers.get("sec-websocket-version") != "13":
        raise errors.error("bad_request", "This is no handshake of a WebSocket as RFC 6455 has it.")
    return base64.b64encode(hashlib.sha1(key.encode("latin-1") + GUID, usedforsecurity=False).digest())
