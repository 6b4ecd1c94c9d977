"""What route handlers use: reading a body, answering in JSON, streaming events, and noticing that the client left.

A handler is `async def handler(request) -> Response`; it may raise `GatewayError`, `AdapterError` or
`ClientDisconnected`, which `gateway/api/edge.py` turns into answers. `request.state.principal` is set for every route
that is not public, `request.state.request_id` always. `request.state.log` is a dict whose items (numbers and
short text, never a key or a prompt) are added to the request's line in the access log.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from gateway import errors
from gateway.audit import Event
from gateway.auth import Principal
from gateway.auth.roles import PUBLIC, TABLE
from gateway.errors import GatewayError

T = TypeVar("T")
HeaderList = list[tuple[bytes, bytes]]

log = logging.getLogger("gateway.http")
# How events of the Responses API are numbered.
_NUMBERS = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})\b')
# The extension of a scope with the connection that its answer goes to.
CONNECTION = "gateway.connection"
CONTROL_CHARACTERS = dict.fromkeys([*range(0x20), 0x7F], "")


class ClientDisconnected(Exception):
    """The client went away before its answer was complete. There is nobody to tell; only the log notes it."""


def event_of(scope: Scope, action: str, subject: str, outcome: str = "ok", **details: str | int | bool) -> Event:
    """Something that a request did or was refused, for the audit log."""
    principal: Principal | None = scope["state"].get("principal")
    return Event(
        action=action,
        actor="" if principal is None else principal.key_id,
        tenant="" if principal is None else principal.tenant,
        address=(scope.get("client") or ("",))[0],
        subject=subject,
        outcome=outcome,
        request_id=scope["state"]["request_id"],
        details=details,
    )


class Response(Protocol):
    """An answer that can still be given headers: an ASGI application that sends the whole of it."""

    status: int
    headers: HeaderList

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class Doc(msgspec.Struct, frozen=True):
    """What the OpenAPI document says of a route besides its path and summary.

    `query`, `body` and `answer` are types; `body` and `answer` can also be JSON Schemas, written by hand where no type
    is decoded or encoded. An `answer` `list[T]` is a page of them. `media` are the types the answer can have,
    `headers` those of the request that mean something, with their meaning, `example` a body to begin with.
    """

    tag: str = ""
    query: type | None = None
    body: Any = None
    answer: Any = None
    status: int = 200
    media: tuple[str, ...] = ("application/json",)
    headers: dict[str, str] = {}
    example: Any = None
    description: str = ""


class Endpoint(msgspec.Struct, frozen=True):
    """One route. Literal parts of `path` match byte for byte; `{name}` takes one segment, `{name:path}` the rest,
    `{name:text}` one segment of any text, where an encoded slash is a letter like any other.

    `permission` is one of `gateway/auth/roles.py`, or `PUBLIC` for what needs no key. It is enforced before the handler
    runs: whoever has it for nothing at all never gets there.
    """

    path: str
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    handler: Callable[[Request], Awaitable[Response]]
    permission: str
    summary: str = ""
    doc: Doc = Doc()

    def __post_init__(self) -> None:
        if self.permission != PUBLIC and self.permission not in TABLE:
            raise ValueError(f"{self.method} {self.path}: there is no permission {self.permission!r}")

    @property
    def shown(self) -> str:
        """The path as people read it, without what only routing needs to know."""
        return self.path.replace(":path}", "}").replace(":text}", "}")


class Answer:
    """A complete answer held in memory."""

    def __init__(self, status: int, headers: HeaderList, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = (b"content-length", str(len(self.body)).encode())
        body = b"" if scope["method"] == "HEAD" else self.body
        await send({"type": "http.response.start", "status": self.status, "headers": [*self.headers, length]})
        await send({"type": "http.response.body", "body": body})


def encode_headers(headers: Mapping[str, str]) -> HeaderList:
    """Header pairs as bytes. Values are made safe: control characters vanish, what is not ASCII is escaped."""
    return [
        (name.lower().encode(), value.translate(CONTROL_CHARACTERS).encode("ascii", "backslashreplace"))
        for name, value in headers.items()
    ]


def respond(body: bytes, content_type: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer of any content type."""
    return Answer(status, [(b"content-type", content_type.encode()), *encode_headers(headers or {})], body)


def json_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer whose body is JSON already."""
    return respond(body, "application/json", status, headers)


def error_response(error: GatewayError, request_id: str | None = None, *, anthropic: bool = False) -> Answer:
    """The error as an answer in OpenAI's shape or Anthropic's; with a request id it carries the id itself."""
    headers = error.wire_headers()
    if request_id is not None:
        headers |= {"x-request-id": request_id} | ({"request-id": request_id} if anthropic else {})
    status, body = error.in_anthropic(request_id) if anthropic else (error.status, error.body())
    return json_response(msgspec.json.encode(body), status, headers)


def error_event(error: GatewayError, request_id: str, *, anthropic: bool = False, last: bytes = b"") -> bytes:
    """The error as the last event of a stream, in the shape of the events before it, of which `last` are the latest."""
    kind, body = b"", error.body()
    if anthropic:
        kind, body = b"event: error\n", error.in_anthropic(request_id)[1]
    elif last.startswith(b"event: response."):
        numbers = _NUMBERS.findall(last)
        kind, body = b"event: error\n", error.in_responses(int(numbers[-1]) + 1 if numbers else 0)
    return b"%bdata: %b\n\n" % (kind, msgspec.json.encode(body))


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a request is one of Anthropic's API, whose errors have another shape: by its path or by its header."""
    path: bytes = scope["raw_path"]
    return path.startswith(b"/v1/messages") or any(name == b"anthropic-version" for name, _ in scope["headers"])


async def read_json_body(request: Request, limit: int) -> bytes:
    """The whole request body of at most `limit` bytes, which the headers call JSON; 400, 408, 413 or 415 otherwise.

    The connection is closed after a 413, as the rest of the body is not wanted. `gateway/api/protocol.py` watches the
    clock: it ends a stalled or broken body by putting the error into `request.state.refusal`.
    """
    check_body_headers(request.headers, limit)
    return await read_body(request, limit)


async def read_body(request: Request, limit: int) -> bytes:
    """The same of any type."""
    _check_size(request.headers, limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        if (refusal := request.scope["state"].get("refusal")) is not None:
            raise refusal
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return part if len(parts) == 1 else b"".join(parts)


def check_body_headers(headers: Mapping[str, str], limit: int) -> None:
    """Raise what is wrong with a body before any of it is read."""
    given = headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise errors.error(
            "unsupported_media_type",
            f"The body must be JSON and say so: send the header `Content-Type: application/json`{_instead_of(given)}.",
        )
    _check_size(headers, limit)


def _check_size(headers: Mapping[str, str], limit: int) -> None:
    encoding = headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("identity", ""):
        raise errors.error(
            "unsupported_media_type", "Compressed bodies are not accepted: send it without `Content-Encoding`."
        )
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large(limit)


def _instead_of(content_type: str) -> str:
    return f" instead of {content_type[:100]!r}" if content_type else ""


def too_large(limit: int) -> GatewayError:
    """The answer to a body over the limit."""
    return errors.error(
        "request_too_large", f"The body is over the limit of {limit} bytes.", headers={"connection": "close"}
    )


class CancelOnDisconnect:
    """While it is entered, a client that leaves cancels the task; on exit that becomes `ClientDisconnected`.

    It must only be entered after the body has been read, because it drops what else the client sends.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._left = False
        self._over = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._over:
            self._left = True
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over = True
        self._watcher.cancel()
        if self._left and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise ClientDisconnected from None


async def run_until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client leaves (then raises `ClientDisconnected`)."""
    with CancelOnDisconnect(request.receive):
        return await work


class EventSource(Protocol):
    """Ready server-sent events, each `data: ...\\n\\n`; several may come as one item. Async generators are ones."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


class Connection(Protocol):
    """Where `send` leads, for parts of an answer that go there without waiting. Its own `send` says whether a request's
    is that one, or somebody's who wants to see what is sent."""

    send: Send
    # What went out last, whichever way; whoever sends beside a taker says so here.
    last: bytes

    def taker(self, render: Callable[[T], bytes], note: Callable[[T], None]) -> Callable[[T], bool]:
        """What writes events of the answer that is under way as `render` makes them, and notes them; it declines
        (False) what cannot be written now."""
        ...


class EventStreamResponse:
    """Streams events. The head goes out with the first one, so an error before it is still a plain HTTP status.

    A source that can `divert` its events has those that come while it is waited for written at once.

    When the client leaves, whoever waits for the next event is cancelled at once and the source is closed; a source
    that is a generator must therefore close in its own `finally` what it reads from. Any failure after the first event
    becomes an error event, after which the stream ends; `failure` tells which it was. A cancellation from outside is
    the server's shutdown.
    """

    def __init__(self, events: EventSource, headers: Mapping[str, str] | None = None) -> None:
        self.status = 200
        self.headers: HeaderList = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *encode_headers(headers or {}),
        ]
        self.failure: GatewayError | None = None
        self._events = events
        self._connection: Connection | None = None
        self._started = False
        self._last = b""
        self._tells = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with CancelOnDisconnect(receive):
                self._connection = _connection(scope, send)
                await self._relay(send)
        except ClientDisconnected:
            await self._close()
            raise
        except asyncio.CancelledError:
            self.failure = errors.error("shutting_down", "The server is shutting down.")
        except Exception as exc:
            self.failure = errors.from_exception(exc, scope["state"]["request_id"])
        if self.failure is not None:
            await self._close()
            if not self._started:
                raise self.failure
            if not self._tells:
                return
            request_id, anthropic = scope["state"]["request_id"], speaks_anthropic(scope)
            event = error_event(self.failure, request_id, anthropic=anthropic, last=self._sent_last())
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _relay(self, send: Send) -> None:
        connection = self._connection
        async for event in self._events:
            begins = not self._started
            if begins:
                self._started = True
                await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
            await send({"type": "http.response.body", "body": event, "more_body": True})
            if connection is None:
                self._last = event
                continue
            connection.last = event
            if begins and hasattr(self._events, "divert"):
                self._events.divert(connection.taker)
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": self.status, "headers": self.headers})

    def _sent_last(self) -> bytes:
        return self._last if self._connection is None else self._connection.last

    async def _close(self) -> None:
        """Close the source; the closing goes on when this task is cancelled once more."""
        await asyncio.shield(asyncio.ensure_future(self._close_source()))

    async def _close_source(self) -> None:
        try:
            await self._events.aclose()
        except Exception:
            log.exception("closing an event stream failed")


def _connection(scope: Scope, send: Send) -> Connection | None:
    """The connection that `send` leads to, if it is one that can be written to."""
    connection: Connection | None = scope.get("extensions", {}).get(CONNECTION)
    return connection if connection is not None and connection.send == send else None


class Download(EventStreamResponse):
    """Streams a file. After a failure there is no end to it: the connection is cut, so nobody takes a part for all."""

    def __init__(self, parts: EventSource, content_type: str, name: str) -> None:
        super().__init__(parts)
        self.headers = encode_headers(
            {"content-type": content_type, "content-disposition": f'attachment; filename="{name}"'}
        )
        self._tells = False
