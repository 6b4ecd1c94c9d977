"""The fast lane: requests of the busiest routes, served on the connection itself before an ASGI scope is built.

What it serves are requests that are passed on as they came; all others, and whatever is unusual, go on as ASGI
requests. What the ASGI side promises is promised here too: it asks the same edge for access, opens the same passages,
and the limits of the connection stay those of `protocol.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from adapters.types import Relayed
from gateway import errors
from gateway.api.edge import LEFT, Edge, new_request_id, request_id_of, shutting_down
from gateway.api.http import (
    ClientDisconnected,
    HeaderList,
    check_body_headers,
    encode_headers,
    error_event,
    error_response,
    too_large,
)
from gateway.api.passing import PATHS as PASSED
from gateway.api.passing import Passer, passage_headers, usage_fields
from gateway.errors import GatewayError
from gateway.logs import Fields
from gateway.streams import Passage

# Errors on other paths have other shapes, which ASGI gives them.
PATHS = tuple(path for path, dialect in PASSED.items() if dialect.startswith("openai"))
STREAM_HEADERS = "cache-control: no-cache\r\nx-accel-buffering: no\r\ntransfer-encoding: chunked\r\n"
# A request that has any of these goes the usual way.
UNUSUAL = frozenset(
    (b"cookie", b"idempotency-key", b"content-encoding", b"x-gateway-explain", b"anthropic-version", b"cache-control")
)


class Connection(Protocol):
    """The part of `GatewayProtocol` that an exchange needs."""

    url: bytes
    headers: HeaderList
    flow: FlowControl
    client: tuple[str, int] | None
    exchange: Exchange | None

    def scope_of(self, url: bytes, headers: HeaderList) -> Scope: ...


class Lane:
    """What all connections share of it."""

    def __init__(self, edge: Edge, passer: Passer) -> None:
        self.edge = edge
        self.passer = passer
        self.routes = {path.encode(): path for path in PATHS}
        self.permissions = {path: edge.permission("POST", path) for path in PATHS}
        self._common: tuple[HeaderList, bytes] = ([], b"")

    def common(self, headers: HeaderList) -> bytes:
        """The headers of every answer as lines; uvicorn makes a new list of them each second."""
        if self._common[0] is not headers:
            self._common = headers, b"".join([b"%b: %b\r\n" % pair for pair in headers])
        return self._common[1]


class Exchange(RequestResponseCycle):
    """One request and its answer, in the place of uvicorn's cycle, which it can become.

    It is a sink too: what an upstream sends goes to the client's transport in the same call. Once it is `usual` it is
    uvicorn's and goes through ASGI.
    """

    def __init__(self, lane: Lane, connection: Connection, transport: asyncio.Transport, **cycle: Any) -> None:
        self._lane = lane
        self._connection = connection
        self._url, self._headers = connection.url, connection.headers
        self._path = lane.routes[connection.url]
        self._scope: Scope | None = None
        self._state: dict[str, Any] = {}
        self._parts: list[bytes] = []
        self._size = 0
        self._wanted = False
        self.usual = False
        self.task: asyncio.Task[Any] | None = None
        self._left = False
        self._then: Callable[[], None] | None = None
        self._head = self._last = b""
        self._headers_of_stream: Callable[[], str] = str
        super().__init__(scope={}, transport=transport, flow=connection.flow, message_event=asyncio.Event(), **cycle)  # type: ignore[typeddict-item]

    @property
    def scope(self) -> Any:
        """The ASGI scope, made when somebody asks for it."""
        if self._scope is None:
            self._scope = self._connection.scope_of(self._url, self._headers)
        return self._scope

    @scope.setter
    def scope(self, value: object) -> None:
        pass

    @property
    def left(self) -> int:
        """How much of the body is still to come, 0 where its head does not say."""
        length = next((value for name, value in self._headers if name == b"content-length"), b"0")
        return int(length) - self._size

    # From the connection

    def add(self, data: bytes) -> None:
        """Take a piece of the body. Before the caller is known, only so much of it is read."""
        self._parts.append(data)
        self._size += len(data)
        if self._size > self._lane.passer.body_bytes_max:
            self.message_event.set()
        if not self._wanted and self._size > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def leave(self) -> None:
        """The client is gone."""
        self.disconnected = True
        if self.task is not None:
            self._left = True
            self.task.cancel()

    def drained(self) -> None:
        """More may be written."""
        if self._then is not None:
            then, self._then = self._then, None
            then()

    async def run_asgi(self, app: ASGIApp) -> None:  # type: ignore[override]
        if not await self._serve():
            self.usual = True
            self.body = bytearray(b"".join(self._parts))
            self._parts.clear()
            if self.body or not self.more_body:
                self.message_event.set()
            await super().run_asgi(app)  # type: ignore[arg-type]

    # The request

    async def _serve(self) -> bool:
        """Answer; False: the request goes on as an ASGI request."""
        started = time.perf_counter()
        headers = dict(reversed(self._headers))  # Of two headers of a name the first counts.
        if not UNUSUAL.isdisjoint(headers):
            return False
        given = headers.get(b"x-request-id")
        request_id = new_request_id() if given is None else request_id_of(self._headers)
        log: Fields = {}
        status, failure = 200, None
        self._connection.exchange = self
        try:
            if self.disconnected:
                raise ClientDisconnected
            if not await self._answer(headers, request_id, log):
                return False
        except ClientDisconnected:
            status, failure = LEFT, "client_disconnected"
        except asyncio.CancelledError:
            if self._left:
                status, failure = LEFT, "client_disconnected"
            else:
                status, failure = self._fail(shutting_down(), request_id)
        except Exception as exc:
            status, failure = self._fail(errors.from_exception(exc, request_id), request_id)
        finally:
            self._connection.exchange = self.task = None
        self._note(status, failure, time.perf_counter() - started, log, request_id)
        return True

    async def _answer(self, headers: Mapping[bytes, bytes], request_id: str, log: Fields) -> bool:
        edge, passer = self._lane.edge, self._lane.passer
        client = edge.client(self._connection.client, self._headers)
        permission, host = self._lane.permissions[self._path], hostname_of(headers[b"host"])
        principal = await edge.admit(permission, self._headers, client[0], host, self._state)
        if headers.get(b"content-type") != b"application/json" or len(headers.get(b"content-length", b"")) > 6:
            check_body_headers(_named(headers), passer.body_bytes_max)
        named = _named(headers) if b"x-session-id" in headers else {}
        body = await self._read(passer.body_bytes_max)
        arrived_s = time.perf_counter()
        opened = await passer.open(self._path, body, principal, request_id, named)
        if opened is None:
            self._parts = [body]
            return False
        passage, _ = opened
        log["model"] = passage.target.name
        self._headers_of_stream = lambda: rendered(passage, arrived_s, request_id)
        relayed = await passage.run(self)
        log.update(usage_fields(relayed))
        self._finish(relayed, passage, arrived_s, request_id)
        return True

    async def _read(self, limit: int) -> bytes:
        """The whole body."""
        if self.waiting_for_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        self._wanted = True
        self.flow.resume_reading()
        while self.more_body and self._size <= limit:
            self.message_event.clear()
            await self.message_event.wait()
            if self.disconnected:
                raise ClientDisconnected
            if self._scope is not None and (refusal := self._scope["state"].get("refusal")) is not None:
                raise refusal
        if self._size > limit:
            raise too_large(limit)
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    # The answer

    def begin(self, content_type: str) -> None:
        self.response_started = True
        self._head = self._rendered(200, f"content-type: {content_type}\r\n{STREAM_HEADERS}{self._headers_of_stream()}")

    def write(self, data: bytes, outputs: int) -> bool:
        if not self.disconnected:
            self.transport.write(b"%b%x\r\n%b\r\n" % (self._head, len(data), data))
            self._head, self._last = b"", data
        return not self.flow.write_paused

    def when_drained(self, then: Callable[[], None]) -> None:
        self._then = then

    def _finish(self, relayed: Relayed, passage: Passage, arrived_s: float, request_id: str) -> None:
        rest = relayed.rest
        if self.response_started:
            self._end(b"%b%x\r\n%b\r\n0\r\n\r\n" % (self._head, len(rest), rest))
            return
        fields = f"content-type: {relayed.content_type}\r\ncontent-length: {len(rest)}\r\n"
        self._end(self._rendered(200, fields + rendered(passage, arrived_s, request_id)) + rest)

    def _fail(self, error: GatewayError, request_id: str) -> tuple[int, str]:
        """The error as a status while there is none yet, else as the last event."""
        if self.response_started:
            event = error_event(error, request_id, last=self._last)
            self._end(b"%b%x\r\n%b\r\n0\r\n\r\n" % (self._head, len(event), event))
            return 200, error.code
        answer = error_response(error, request_id)
        self.keep_alive = self.keep_alive and (b"connection", b"close") not in answer.headers
        fields = "".join(
            f"{name.decode('latin-1')}: {value.decode('latin-1')}\r\n"
            for name, value in answer.headers
            if name != b"connection"
        )
        head = self._rendered(error.status, f"{fields}content-length: {len(answer.body)}\r\n")
        self._end(head + answer.body)
        return error.status, error.code

    def _rendered(self, status: int, fields: str) -> bytes:
        close = b"" if self.keep_alive else b"connection: close\r\n"
        common = self._lane.common(self.default_headers)
        return b"%b%b%b%b\r\n" % (STATUS_LINE[status], common, fields.encode("latin-1"), close)

    def _end(self, data: bytes) -> None:
        """Write the last of the answer. The connection is free with it: a quick client's next request is here before
        this task is over."""
        self._connection.exchange = self.task = None
        self.response_started = self.response_complete = True
        if self.disconnected:
            return
        self.transport.write(data)
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _note(self, status: int, failure: str | None, duration_s: float, log: Fields, request_id: str) -> None:
        if failure is None:
            self._lane.edge.count(self._path, "POST", self._path, status, duration_s, log, request_id)
            return
        scope = self.scope
        scope["client"] = self._lane.edge.client(self._connection.client, self._headers)
        scope["route_path"] = self._path
        scope["state"] |= {"request_id": request_id, "log": log, **self._state}
        self._lane.edge.note(scope, status, failure, duration_s)


def rendered(passage: Passage, arrived_s: float, request_id: str) -> str:
    """What the gateway says of a request, as lines."""
    headers = passage_headers(passage, arrived_s)
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if not lines.isascii() or lines.count("\r") + lines.count("\n") != 2 * len(headers):
        lines = "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in encode_headers(headers))
    return f"{lines}x-request-id: {request_id}\r\n"


def _named(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}


def hostname_of(host: bytes) -> str:
    """The name in a valid Host header."""
    text = host.decode("latin-1")
    return text[1 : text.index("]")] if text.startswith("[") else text.partition(":")[0]
