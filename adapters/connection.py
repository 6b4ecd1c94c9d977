"""One HTTP/1.1 connection to an upstream: one request at a time, and what comes back, with every size bounded.

What arrives goes to the request's receiver straight from `data_received`. A connection is used again only when the
response ended where it said, both sides want to keep it, and nothing came behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Literal, Protocol, cast

import httptools
import msgspec

from adapters.bursts import Burst
from adapters.errors import BrokeOff, Timeout, UpstreamInvalid

# By names in lower case; of several of a name the first.
Headers = Mapping[bytes, bytes]
_LENGTHS = (b"content-length", b"transfer-encoding")
# A body, or its pieces in order.
Body = bytes | tuple[bytes | memoryview, ...]


class Bounds(msgspec.Struct, frozen=True):
    """What a response may have beside its body. An unfinished line of any kind counts as a part of the head."""

    header_bytes_max: int = 64 * 1024
    header_count_max: int = 200


class Timeouts(msgspec.Struct, frozen=True):
    """How long a connection may take, the head of a response, the silence inside its body, and all of it."""

    connect_s: float = 10.0
    first_byte_s: float = 600.0
    idle_s: float = 120.0
    total_s: float = 3600.0


class Flow(Protocol):
    """Holds up what is still to come of a response, or gives it no more than some seconds from now."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def hurry(self, seconds: float) -> None: ...


class Receiver(Protocol):
    """Takes a response as it comes: its head, then pieces of its body. An `AdapterError` raised here ends it."""

    def on_head(self, status: int, headers: Headers, flow: Flow) -> None: ...

    def on_data(self, data: bytes) -> None: ...


class Connection(asyncio.Protocol):
    """`ended` is told when the connection has no more request, with whether it may have another. Requests go out with
    the others of a `burst`.

    Nothing here sets a timer: `check` is called now and then.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bounds: Bounds,
        ended: Callable[[Connection, bool], None],
        burst: Burst,
    ) -> None:
        self._loop = loop
        self._bounds = bounds
        self._ended = ended
        self._burst = burst
        # A request that is still to be sent.
        self._unsent: Body = b""
        self._pieces: list[bytes] = []
        self._fields: dict[bytes, bytes] = {}
        # What the parser finds of a body and of headers; it asks for these once.
        self.on_body = self._pieces.append
        self.on_header = self._fields.setdefault
        self._parser = httptools.HttpResponseParser(self)
        self._receiver: Receiver | None = None
        self._timeouts = Timeouts()
        self._done: asyncio.Future[None] = loop.create_future()
        self._unfinished_bytes = 0
        self._state: Literal["idle", "head", "interim", "body", "complete", "closed"] = "idle"
        self._until_close = self._keep = False
        self._paused = False
        self._stirred = False
        self._error: BaseException | None = None
        self._since_s = self._last_s = self._due_s = self.opened_s = loop.time()
        self.answered = False

    # What a request does

    async def run(self, request: Body, receiver: Receiver, timeouts: Timeouts) -> None:
        """Send a request and hand its response to `receiver`; whoever is cancelled here drops the connection."""
        self.answered = False
        if self._state == "closed" or self._transport.is_closing():
            self._ended(self, False)  # It may have closed before its keeper had it.
            raise BrokeOff("The connection to the upstream broke off.")
        self._receiver, self._timeouts = receiver, timeouts
        self._state, self._until_close = "head", False
        self._fields.clear()
        self._unfinished_bytes = 0
        self._since_s = self._last_s = now_s = self._loop.time()
        self._done = done = self._loop.create_future()
        self._due_s = now_s + timeouts.total_s
        self._unsent = request
        if self._burst.first():
            self.flush()
        else:
            self._burst.wait(self)
        try:
            await done
        except asyncio.CancelledError:
            if not done.cancelled():
                done.exception()
            if self._done is done:  # Else the response was complete, and the connection has another request.
                self._fail(BrokeOff("The request was given up."))
            raise

    def flush(self) -> None:
        """Send the request."""
        request, self._unsent = self._unsent, b""
        if self._state == "closed":
            return
        if isinstance(request, bytes):
            self._transport.write(request)
        else:
            self._transport.writelines(request)

    def pause(self) -> None:
        if not self._paused and self._state == "body":
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if self._state != "closed":
                self._transport.resume_reading()

    def hurry(self, seconds: float) -> None:
        self._due_s = min(self._due_s, self._loop.time() + seconds)

    # What its keeper does

    @property
    def idle_s(self) -> float:
        """When it was used last, by the loop's clock."""
        return self._last_s

    @property
    def waited_s(self) -> float:
        """How long its latest request was under way until now."""
        return self._loop.time() - self._since_s

    def close(self) -> None:
        if self._state != "closed":
            self._state = "closed"
            self._transport.abort()

    def check(self, now_s: float) -> None:
        """Give up a request that takes too long. While reading is paused it is the receiver who is slow."""
        if self._receiver is None:
            return
        if self._stirred or self._paused:
            self._stirred = False
            self._last_s = now_s
        if now_s > self._due_s:
            self._fail(Timeout("The upstream took too long for its whole answer."))
        elif self._state != "body":
            if now_s - self._since_s > self._timeouts.first_byte_s:
                self._fail(Timeout("The upstream did not answer in time."))
        elif now_s - self._last_s > self._timeouts.idle_s:
            self._fail(Timeout("The upstream fell silent in the middle of its answer."))

    # From the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._receiver is None:
            # Nobody asked, and the next request would take it for its answer.
            self.close()
            self._ended(self, False)
            return
        if self._unsent:
            self._fail(BrokeOff("The upstream said something before it was asked."))
            return
        self.answered = self._stirred = True
        self._unfinished_bytes += len(data)
        error: BaseException | None = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            error = UpstreamInvalid("The upstream wants to speak another protocol.")
        except httptools.HttpParserError:
            if self._state != "complete":
                error = self._error or UpstreamInvalid("The upstream's answer is not valid HTTP.")
            self._keep = False  # What stands behind a complete answer spoils the connection, not the answer.
        if pieces := self._pieces:
            self._unfinished_bytes = 0
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            try:
                self._receiver.on_data(body)
            except Exception as exc:
                error = exc
        if error is not None:
            self._fail(error)
        elif self._state == "complete":
            self._finish(self._keep)
        elif self._unfinished_bytes > self._bounds.header_bytes_max:
            self._fail(UpstreamInvalid("A line of the upstream's answer is too long."))
        elif len(self._fields) > self._bounds.header_count_max:
            self._fail(UpstreamInvalid("The upstream's answer has too many headers."))

    def eof_received(self) -> None:
        self._over(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._over(exc)

    # From the parser, which stops when something is raised here

    def on_message_begin(self) -> None:
        if self._state == "complete":
            raise UpstreamInvalid("Something came behind the upstream's answer.")

    def on_headers_complete(self) -> None:
        status: int = self._parser.get_status_code()
        if status < 200:
            self._state = "interim"
            return
        assert self._receiver is not None
        headers = {name.lower(): value for name, value in reversed(self._fields.items())}
        if len(headers) > self._bounds.header_count_max or self._head_is_too_large():
            self._stop(UpstreamInvalid("The head of the upstream's answer is too large."))
        self._state = "body"
        self._unfinished_bytes = 0
        self._keep = bool(self._parser.should_keep_alive())
        if not self._keep:
            self._until_close = headers.keys().isdisjoint(_LENGTHS) and status not in (204, 304)
        try:
            self._receiver.on_head(status, headers, self)
        except Exception as exc:
            self._stop(exc)

    def on_message_complete(self) -> None:
        if self._state == "interim":
            self._state = "head"
            self._fields.clear()
        else:
            self._state = "complete"
            self._unfinished_bytes = 0

    # How it ends

    def _head_is_too_large(self) -> bool:
        """Whether the headers are, of which all that came so far is the most they can be."""
        bytes_max = self._bounds.header_bytes_max
        return self._unfinished_bytes > bytes_max and sum(map(len, chain(*self._fields.items()))) > bytes_max

    def _stop(self, error: Exception) -> None:
        """Raise out of the parser, which hides the exceptions of its callbacks."""
        self._error = error
        raise error

    def _over(self, exc: Exception | None) -> None:
        """The other side has ended the connection."""
        if self._receiver is None:
            if self._state != "closed":
                self.close()
                self._ended(self, False)
        elif exc is None and self._state == "body" and self._until_close:
            self._finish(False)
        else:
            self._fail(BrokeOff("The connection to the upstream broke off."))

    def _finish(self, keep: bool) -> None:
        """The response is complete. While the request is still going out, the connection is of no further use."""
        self._receiver = None
        if self._paused:
            self._paused = False
            if keep:
                self._transport.resume_reading()
        self._last_s = self._loop.time()
        if not self._done.done():
            self._done.set_result(None)
        if keep and not self._transport.is_closing() and self._transport.get_write_buffer_size() == 0:
            self._state = "idle"
            self._ended(self, True)
        else:
            self.close()
            self._ended(self, False)

    def _fail(self, error: BaseException) -> None:
        if self._receiver is None:
            return
        self._receiver = None
        if not self._done.done():
            self._done.set_exception(error)
        self.close()
        self._ended(self, False)
