"""Responses of upstreams as a whole, or piece by piece for whoever reads them at his own pace."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec

from adapters.connection import Body, Flow, Headers, Timeouts
from adapters.errors import UpstreamInvalid
from adapters.http1 import Wire

HIGH_WATER_BYTES = 64 * 1024


class Answer(msgspec.Struct, frozen=True):
    """A whole response."""

    status: int
    headers: Headers
    body: bytes


def as_text(headers: Headers) -> dict[str, str]:
    """Headers for those who read them as text."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}


def check_encoding(headers: Headers) -> None:
    """Raises for a body that nobody here can read."""
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding.lower() != b"identity":
        raise UpstreamInvalid("The provider compressed its answer, which was not asked for.")


class Whole(msgspec.Struct, eq=False):
    """A receiver that keeps a body of at most so many bytes."""

    _left: int
    status: int = 0
    headers: Headers = {}
    _parts: list[bytes] = []

    @property
    def body(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def on_head(self, status: int, headers: Headers, flow: Flow) -> None:
        self.status, self.headers = status, headers

    def on_data(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise UpstreamInvalid("The upstream's answer is too large.")
        self._parts.append(data)


async def fetch(wire: Wire, head: bytes, body: Body, *, bytes_max: int, timeouts: Timeouts | None = None) -> Answer:
    """The whole response to a request; raises `UpstreamInvalid` when its body is over `bytes_max`."""
    whole = Whole(bytes_max)
    await wire.send(head, body, whole, timeouts)
    return Answer(whole.status, whole.headers, whole.body)


class Reading:
    """A response being read: iterate over it for the pieces of its body."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = {}
        self._flow: Flow | None = None
        self._pieces: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._ended = False
        self._changed = asyncio.Event()

    def on_head(self, status: int, headers: Headers, flow: Flow) -> None:
        self.status, self.headers, self._flow = status, headers, flow
        self._changed.set()

    def on_data(self, data: bytes) -> None:
        self._pieces.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > HIGH_WATER_BYTES and self._flow is not None:
            self._flow.pause()
        self._changed.set()

    def end(self, failed: bool) -> None:
        """Nothing more comes; what came before a failure is of no use any more."""
        self._ended = True
        if failed:
            self._pieces.clear()
        self._changed.set()

    async def head(self) -> None:
        """Wait for the status, or for the end that came instead."""
        while not self.status and not self._ended:
            await self._next()

    async def over(self, seconds: float) -> None:
        """Wait so long for the end, behind which the connection can have another request; nobody wants the rest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._ended:
                    self._pieces.clear()
                    await self._next()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The next piece; when the response has failed, iteration ends and `streamed` raises why."""
        while not self._pieces:
            if self._ended:
                raise StopAsyncIteration
            await self._next()
        piece = self._pieces.popleft()
        self._waiting_bytes -= len(piece)
        if self._waiting_bytes <= HIGH_WATER_BYTES // 2 and self._flow is not None:
            self._flow.resume()
        return piece

    async def _next(self) -> None:
        self._changed.clear()
        await self._changed.wait()


@asynccontextmanager
async def streamed(wire: Wire, head: bytes, body: Body, timeouts: Timeouts | None = None) -> AsyncIterator[Reading]:
    """The response to a request, from its head on. Leaving early drops the connection.

    What fails after the head ends the iteration and is raised on leaving, in place of whatever the body made of it.
    """
    reading = Reading()
    sending = asyncio.ensure_future(wire.send(head, body, reading, timeouts))
    sending.add_done_callback(lambda task: reading.end(task.cancelled() or task.exception() is not None))
    try:
        await reading.head()
        if not reading.status:
            sending.result()
        yield reading
        if sending.done():
            sending.result()
    except Exception:
        if sending.done() and not sending.cancelled() and (failure := sending.exception()) is not None:
            raise failure from None
        raise
    finally:
        sending.cancel()
