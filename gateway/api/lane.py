"""The fast lane: requests of the busiest routes, served on the connection itself before an ASGI scope is built.

What it serves are requests that are passed on as they came; all others, and whatever is unusual, go on as ASGI
requests. What the ASGI side promises is promised here too: it asks the same edge for access, opens the same passages,
and the limits of the connection stay those of `protocol.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from adapters.types import DialectName, Relayed, Served
from gateway import errors
from gateway.api.edge import LEFT, Edge, new_request_ids, shutting_down
from gateway.api.headings import Heading
from gateway.api.http import (
    CONNECTION,
    ClientDisconnected,
    HeaderList,
    check_body_headers,
    encode_headers,
    error_event,
    error_response,
    too_large,
)
from gateway.api.passing import LOOKED_AT, PATHS, Passer, changing_lines, fixed_headers, usage_fields
from gateway.errors import GatewayError
from gateway.logs import Fields
from gateway.streams import Passage

T = TypeVar("T")
STREAM_HEADERS = b"cache-control: no-cache\r\nx-accel-buffering: no\r\ntransfer-encoding: chunked\r\n"
# Targets whose headers are kept as they were rendered.
SAID_MAX = 1024


class Connection(Protocol):
    """The part of `GatewayProtocol` that an exchange needs."""

    flow: FlowControl
    client: tuple[str, int] | None
    exchange: Exchange | None
    tasks: set[asyncio.Task[None]]
    logger: logging.Logger
    access_logger: logging.Logger

    def scope_of(self, url: bytes, headers: HeaderList) -> Scope: ...

    def on_response_complete(self) -> None: ...


class Lane:
    """What all connections share of it."""

    def __init__(self, edge: Edge, passer: Passer) -> None:
        self.edge = edge
        self.passer = passer
        self.routes = {path.encode(): path for path in PATHS}
        self.permissions = {path: edge.permission("POST", path) for path in PATHS}
        self.request_ids = new_request_ids()
        # For requests that have arrived as a whole, of which nobody waits for more.
        self.unheard = asyncio.Event()
        self._common: tuple[HeaderList, bytes] = ([], b"")
        self._said: dict[tuple[str, Served | None, DialectName], bytes] = {}

    def common(self, headers: HeaderList) -> bytes:
        """The headers of every answer as lines; uvicorn makes a new list of them each second."""
        if self._common[0] is not headers:
            self._common = headers, lines(headers)
        return self._common[1]

    def said(self, passage: Passage, dialect: DialectName) -> bytes:
        """The headers that all answers of a target in a dialect have, as lines."""
        place = passage.target.name, passage.meter.served, dialect
        known = self._said.get(place)
        if known is None:
            if len(self._said) >= SAID_MAX:
                self._said.clear()
            known = self._said[place] = lines(encode_headers(fixed_headers(passage, dialect)))
        return known


class Exchange(RequestResponseCycle):
    """One request and its answer, in the place of uvicorn's cycle, which it can become.

    It is a sink too: what an upstream sends goes to the client's transport in the same call. Once it is `usual` it is
    uvicorn's and goes through ASGI.
    """

    # What most requests leave as it is. What else uvicorn's cycle has is made when a request becomes usual.
    usual = disconnected = response_started = response_complete = False
    task: asyncio.Task[Any] | None = None
    _scope: Scope | None = None
    _wanted = False
    _left = False
    _then: Callable[[], None] | None = None
    _head = last = b""
    _passage: Passage
    _arrived_s: float
    _request_id: str

    def __init__(
        self,
        lane: Lane,
        connection: Connection,
        transport: asyncio.Transport,
        heading: Heading,
        default_headers: HeaderList,
        *,
        body: bytes = b"",
        whole: bool = False,
        keep_alive: bool = True,
        expects: bool = False,
    ) -> None:
        """Of a `body` that is not `whole` more is to come; who `expects` a word waits for it before he sends that."""
        self.heading = heading
        self.transport = transport
        self.flow = connection.flow
        self.default_headers = default_headers
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = expects
        self._lane = lane
        self._connection = connection
        self._state: dict[str, Any] = {}
        self._parts = [body] if body else []
        self._size = len(body)
        self.more_body = not whole
        self.message_event = lane.unheard if whole else asyncio.Event()

    @property
    def scope(self) -> Any:
        """The ASGI scope, made when somebody asks for it."""
        if self._scope is None:
            heading = self.heading
            self._scope = self._connection.scope_of(heading.path.encode(), heading.headers)
        return self._scope

    @scope.setter
    def scope(self, value: object) -> None:
        pass

    @property
    def left(self) -> int:
        """How much of the body is still to come, if the head is its own; not above 0 where that does not say."""
        return self.heading.length - self._size

    @property
    def too_large(self) -> bool:
        """Whether its head says so."""
        return self.heading.length > self._lane.passer.body_bytes_max

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
        task, tasks = self.task, self._connection.tasks
        try:
            if self.heading.unusual or not await self._serve():
                self._become_usual()
                await super().run_asgi(app)  # type: ignore[arg-type]
        finally:
            tasks.discard(task)
            # The scope knows this exchange: neither would go before the garbage collector comes.
            self._scope = None

    def _become_usual(self) -> None:
        more_body, disconnected, connection = self.more_body, self.disconnected, self._connection
        super().__init__(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=connection.logger,
            access_logger=connection.access_logger,
            access_log=False,
            default_headers=self.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.waiting_for_100_continue,
            keep_alive=self.keep_alive,
            on_response=connection.on_response_complete,
        )
        self.usual = True
        self.more_body, self.disconnected = more_body, disconnected
        self.body = bytearray(b"".join(self._parts))
        self._parts.clear()
        if self.body or not more_body or disconnected or self._refusal() is not None:
            self.message_event.set()
        self.scope["extensions"] = {CONNECTION: self}

    # What goes through ASGI, as `http.Connection`

    def taker(self, render: Callable[[T], bytes], note: Callable[[T], None]) -> Callable[[T], bool]:
        """One function of our own for each token of a stream, as each costs more than what it does."""
        flow, write = self.flow, self.transport.write

        def take(event: T) -> bool:
            if flow.write_paused or self.disconnected or self.chunked_encoding is not True:
                return False
            if part := render(event):
                self.last = part
                write(b"%x\r\n%b\r\n" % (len(part), part))
            note(event)
            return True

        return take

    # The request

    async def _serve(self) -> bool:
        """Answer; False: the request goes on as an ASGI request."""
        started = time.perf_counter()
        request_id = self.heading.request_id or next(self._lane.request_ids)
        log: Fields = {}
        status, failure = 200, None
        self._connection.exchange = self
        try:
            if self.disconnected:
                raise ClientDisconnected
            if not await self._answer(request_id, log):
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
        duration_s = time.perf_counter() - started
        if failure is None:
            self._lane.edge.count(self.heading.path, "POST", self.heading.path, status, duration_s, log, request_id)
        else:
            self._note_failure(status, failure, duration_s, log, request_id)
        return True

    async def _answer(self, request_id: str, log: Fields) -> bool:
        lane, heading = self._lane, self.heading
        edge, passer = lane.edge, lane.passer
        if heading.visitor is None:
            address = edge.client(self._connection.client, heading.headers)[0]
            heading.visitor = edge.visitor(heading.headers, address, heading.hostname)
        principal = edge.known(heading.visitor)
        if principal is None:
            principal = await edge.admit(lane.permissions[heading.path], heading.visitor, self._state)
        self._state["principal"] = principal
        log["key"] = principal.key_id
        if self.more_body or self._size > passer.body_bytes_max or not heading.is_json:
            check_body_headers(heading.texts(), passer.body_bytes_max)
            await self._read(passer.body_bytes_max)
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        arrived_s = time.perf_counter()
        opened = await passer.open(heading.path, body, principal, request_id, heading.named)
        if opened is None:
            self._parts = [body]
            self.scope["state"][LOOKED_AT] = True
            return False
        passage, _ = opened
        log["model"] = passage.target.name
        self._passage, self._arrived_s, self._request_id = passage, arrived_s, request_id
        relayed = await passage.run(self)
        log |= usage_fields(passage.meter, relayed)
        self._finish(relayed)
        return True

    async def _read(self, limit: int) -> None:
        """Wait for the whole body."""
        if self.waiting_for_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        self._wanted = True
        self.flow.resume_reading()
        while self.more_body and self._size <= limit:
            if self.disconnected:
                raise ClientDisconnected
            if (refusal := self._refusal()) is not None:
                raise refusal
            self.message_event.clear()
            await self.message_event.wait()
        if self._size > limit:
            raise too_large(limit)

    def _refusal(self) -> GatewayError | None:
        """Why no more of the body is read, if that is so; it may be known before anybody waits for the body."""
        return None if self._scope is None else self._scope["state"].get("refusal")

    # The answer

    def begin(self, content_type: str) -> None:
        self.response_started = True
        fields = b"content-type: %b\r\n%b%b" % (content_type.encode(), STREAM_HEADERS, self._fields())
        self._head = self._rendered(200, fields)

    def write(self, data: bytes, outputs: int) -> bool:
        if not self.disconnected:
            self.transport.write(b"%b%x\r\n%b\r\n" % (self._head, len(data), data))
            self._head, self.last = b"", data
        return not self.flow.write_paused

    def when_drained(self, then: Callable[[], None]) -> None:
        self._then = then

    def _finish(self, relayed: Relayed) -> None:
        rest = relayed.rest
        if self.response_started:
            self._end(b"%b%x\r\n%b\r\n0\r\n\r\n" % (self._head, len(rest), rest))
            return
        fields = b"content-type: %b\r\ncontent-length: %d\r\n%b" % (
            relayed.content_type.encode(),
            len(rest),
            self._fields(),
        )
        self._end(self._rendered(200, fields, rest))

    def _fields(self) -> bytes:
        """What the gateway says of a request, as lines."""
        passage, request_id = self._passage, self._request_id
        dialect = PATHS[self.heading.path]
        if self.heading.anthropic:
            own = f"request-id: {request_id}\r\n"
        else:
            own = f"openai-processing-ms: {int((time.perf_counter() - self._arrived_s) * 1000)}\r\n"
        changing = changing_lines(passage, dialect)
        return self._lane.said(passage, dialect) + f"{changing}{own}x-request-id: {request_id}\r\n".encode()

    def _fail(self, error: GatewayError, request_id: str) -> tuple[int, str]:
        """The error as a status while there is none yet, else as the last event."""
        if self.response_started:
            event = error_event(error, request_id, anthropic=self.heading.anthropic, last=self.last)
            self._end(b"%b%x\r\n%b\r\n0\r\n\r\n" % (self._head, len(event), event))
            return 200, error.code
        answer = error_response(error, request_id, anthropic=self.heading.anthropic)
        self.keep_alive = self.keep_alive and (b"connection", b"close") not in answer.headers
        headers = [pair for pair in answer.headers if pair[0] != b"connection"]
        fields = b"%bcontent-length: %d\r\n" % (lines(headers), len(answer.body))
        self._end(self._rendered(error.status, fields, answer.body))
        return error.status, error.code

    def _rendered(self, status: int, fields: bytes, body: bytes = b"") -> bytes:
        close = b"" if self.keep_alive else b"connection: close\r\n"
        return b"%b%b%b%b\r\n%b" % (STATUS_LINE[status], self._lane.common(self.default_headers), fields, close, body)

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
        self._connection.on_response_complete()

    def _note_failure(self, status: int, failure: str, duration_s: float, log: Fields, request_id: str) -> None:
        scope, heading = self.scope, self.heading
        scope["client"] = self._lane.edge.client(self._connection.client, heading.headers)
        scope["route_path"] = heading.path
        scope["state"] |= {"request_id": request_id, "log": log, **self._state}
        self._lane.edge.note(scope, status, failure, duration_s)


def lines(headers: HeaderList) -> bytes:
    """Headers as they go over the wire."""
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])
