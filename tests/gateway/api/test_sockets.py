"""WebSockets: handshakes, frames, leaving, and clients that do not keep to the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import pytest

from gateway.api.sockets import CLOSE, PING, PONG, SWITCH, TEXT, TextSocket, frame
from gateway.errors import GatewayError

# The example of RFC 6455, section 1.3.
KEY, ACCEPT = b"dGhlIHNhbXBsZSBub25jZQ==", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
MASK = b"\x01\x02\x03\x04"


class Connection:
    """What the switch gives away: it keeps what is written, and lets a test say something."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False
        self.waiting_bytes = 0
        self.hear: Callable[[bytes], None] = lambda data: None

    def switch(self, hear: Callable[[bytes], None]) -> asyncio.Transport:
        self.hear = hear
        return cast(asyncio.Transport, self)

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return self.waiting_bytes


def scope(connection: Connection, **changed: bytes) -> dict[str, Any]:
    headers = {"host": b"h", "upgrade": b"websocket", "sec_websocket_version": b"13", "sec_websocket_key": KEY}
    named = [(name.replace("_", "-").encode(), value) for name, value in (headers | changed).items()]
    return {"type": "http", "method": "GET", "headers": named, "extensions": {SWITCH: connection.switch}}


def said(opcode: int, payload: bytes = b"") -> bytes:
    """A frame as a client sends it."""
    masked = bytes(byte ^ MASK[index % 4] for index, byte in enumerate(payload))
    return bytes((0x80 | opcode, 0x80 | len(payload))) + MASK + masked


class Texts:
    """What is sent: each text when a test says so."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.closed = False

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        try:
            while (text := await self.queue.get()) is not None:
                yield text
        finally:
            self.closed = True


async def serve(connection: Connection, texts: Texts, **changed: bytes) -> None:
    await TextSocket(texts())(scope(connection, **changed), None, None)  # type: ignore[arg-type]


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_texts_until_they_end() -> None:
    async def test() -> None:
        connection, texts = Connection(), Texts()
        serving = asyncio.create_task(serve(connection, texts))
        for text in (b"short", b"long" * 100, None):
            texts.queue.put_nowait(text)
        await serving
        head, *frames = connection.written
        assert head.startswith(b"HTTP/1.1 101 ") and b"sec-websocket-accept: " + ACCEPT + b"\r\n" in head
        assert frames == [frame(TEXT, b"short"), frame(TEXT, b"long" * 100), frame(CLOSE, b"\x03\xe8")]
        assert frames[1].startswith(b"\x81\x7e\x01\x90long")
        assert connection.closed and texts.closed

    asyncio.run(test())


@pytest.mark.parametrize("goodbye", [said(CLOSE, b"\x03\xe8"), b"", said(TEXT, b"x" * 126), b"\x81\x01x"])
def test_a_client_that_leaves_or_does_not_keep_to_the_protocol(goodbye: bytes) -> None:
    async def test() -> None:
        connection, texts = Connection(), Texts()
        serving = asyncio.create_task(serve(connection, texts))
        await settled()
        ping = said(PING, b"there?")
        connection.hear(ping[:5])
        connection.hear(ping[5:] + said(TEXT, b"ignored"))
        assert connection.written[-1] == frame(PONG, b"there?")
        connection.hear(goodbye)
        await serving
        assert connection.closed and texts.closed

    asyncio.run(test())


def test_a_client_that_reads_too_slowly_misses_texts() -> None:
    async def test() -> None:
        connection, texts = Connection(), Texts()
        serving = asyncio.create_task(serve(connection, texts))
        connection.waiting_bytes = 1 << 20
        texts.queue.put_nowait(b"missed")
        await settled()
        connection.waiting_bytes = 0
        texts.queue.put_nowait(b"seen")
        texts.queue.put_nowait(None)
        await serving
        assert connection.written[1:-1] == [frame(TEXT, b"seen")]

    asyncio.run(test())


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"sec_websocket_version": b"8"}, "bad_request"),
        ({"sec_websocket_key": b""}, "bad_request"),
        ({"origin": b"https://evil.example"}, "permission_denied"),
        ({"origin": b"null"}, "permission_denied"),
    ],
)
def test_handshakes_that_are_refused(changed: dict[str, bytes], code: str) -> None:
    connection = Connection()
    with pytest.raises(GatewayError) as refused:
        asyncio.run(serve(connection, Texts(), **changed))
    assert (refused.value.code, connection.written) == (code, [])


def test_the_server_ends() -> None:
    async def test() -> None:
        connection, texts = Connection(), Texts()
        serving = asyncio.create_task(serve(connection, texts))
        await settled()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert connection.closed and texts.closed

    asyncio.run(test())
