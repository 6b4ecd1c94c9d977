"""An upstream that answers with whatever bytes a test wants, on a loopback socket."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest
import uvloop

from adapters.connection import Flow, Headers
from adapters.http1 import Client, Origin, render_head

T = TypeVar("T")

Script = Callable[["Peer"], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"


def run(main: Coroutine[Any, Any, T], factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop) -> T:
    """`asyncio.run` on a loop of the caller's choice, with an end to tests that hang."""

    async def bounded() -> T:
        async with asyncio.timeout(20):
            return await main

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(bounded())


both_loops = pytest.mark.parametrize(
    "factory", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"]
)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds; a test must not depend on how long that takes."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


class Peer:
    """The upstream's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> tuple[bytes, bytes]:
        """The head and body of the next request."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head, await self.reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        self.writer.transport.abort()

    async def gone(self) -> bool:
        """Wait until the other side has closed."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        return True


class Upstream:
    """What a test looks at: how many connections there were, and every request as (head, body)."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.accepted = 0
        self.requests: list[tuple[bytes, bytes]] = []

    @property
    def origin(self) -> Origin:
        return Origin("http", "127.0.0.1", self.port)


@contextlib.asynccontextmanager
async def upstream(script: Script, *, context: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """Run `script` on every connection that is made."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(Peer(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    up = Upstream(0)
    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    up.port = server.sockets[0].getsockname()[1]
    try:
        yield up
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.sleep(0)


def answering(*answers: bytes, close: bool = False) -> Script:
    """One answer per request, the last one for all that follow."""
    left = list(answers)

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(left.pop(0) if len(left) > 1 else left[0])
            if close:
                return

    return script


def client(**settings: object) -> Client:
    """A client that knows no proxy."""
    return Client(proxies={}, **settings)  # type: ignore[arg-type]


def head_of(up: Upstream, path: str = "/v1/x") -> bytes:
    return render_head("POST", path, up.origin, [("content-type", "application/json")])


class Kept:
    """A receiver that keeps everything; `pausing` stops the reading at each piece until `flow.resume()`."""

    def __init__(self, *, pausing: bool = False) -> None:
        self.status = 0
        self.headers: Headers = {}
        self.data = b""
        self.pieces = 0
        self.pausing = pausing
        self.flow: Flow | None = None

    def on_head(self, status: int, headers: Headers, flow: Flow) -> None:
        self.status, self.headers, self.flow = status, headers, flow

    def on_data(self, data: bytes) -> None:
        self.data += data
        self.pieces += 1
        if self.pausing and self.flow is not None:
            self.flow.pause()
