"""uvicorn's HTTP/1.1 protocol with the limits it lacks.

Bounded are the head of a request (bytes, number of headers, URL), the time for it, the silence inside a body, the time
a client may leave an answer unread, pipelined requests and connections. Whatever is refused here is answered as a
complete HTTP response with an OpenAI-shaped error, unless an answer is already under way on the connection: then that
one is finished and nothing after it is read.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from typing import Any, Literal, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from adapters.bursts import Burst
from gateway import errors
from gateway.api.edge import new_request_id
from gateway.api.gate import Gate
from gateway.api.headings import CHANGES_MAX, Heading, Repeating, repeating
from gateway.api.http import HeaderList, error_response
from gateway.api.lane import Exchange, Lane
from gateway.api.sockets import SWITCH
from gateway.config import ServerConfig
from gateway.errors import GatewayError

# The parser is fed in pieces of this size, so that what it holds of an unfinished head stays below 64 KiB.
PIECE_BYTES = 16 * 1024
# Room for the request line, separators and line ends beside the URL and the header block.
HEAD_MARGIN_BYTES = 2 * 1024
PIPELINE_MAX = 16
# Connections over the limit that are told so; those beyond are cut without a word.
REFUSED_CONNECTIONS_MAX = 128
# How long a closing connection still takes (and drops) input. Closing at once would reset the connection while the
# client is sending, and the client would lose the answer that says why.
LINGER_S = 2.0

HOST = re.compile(rb"([A-Za-z0-9._~%!$&'()*+,;=-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{0,5})?")

Report = Callable[[GatewayError, str], None]


class Wheel:
    """What all connections of a server share: the limits, who is told of refusals, one timer for all deadlines, and the
    fast lane if there is one."""

    def __init__(self, limits: ServerConfig, report: Report) -> None:
        self.limits = limits
        self.report = report
        self.draining = False
        self.lane: Lane | None = None
        self.burst = Burst()
        self.connections: set[GatewayProtocol] = set()
        shortest_s = min(limits.header_timeout_s, limits.body_timeout_s, limits.write_stall_timeout_s)
        self._interval_s = min(1.0, max(0.02, shortest_s / 8))
        self._turning = False

    def add(self, connection: GatewayProtocol) -> None:
        self.connections.add(connection)
        if not self._turning:
            self._turning = True
            connection.loop.call_later(self._interval_s, self._turn, connection.loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._turning = bool(self.connections)
        if self._turning:
            now = loop.time()
            for connection in list(self.connections):
                connection.check(now)
            loop.call_later(self._interval_s, self._turn, loop)


class GatewayProtocol(HttpToolsProtocol):
    """One client connection.

    `_state` says what the parser expects: `idle` (a request may begin), `head`, `body`, or `deaf` (input is dropped
    until the answer under way is finished), `closing` (input is dropped, the deadline aborts).
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        wheel: Wheel,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._wheel = wheel
        self._limits = wheel.limits
        self._unfinished_max = self._limits.url_bytes_max + self._limits.header_bytes_max + HEAD_MARGIN_BYTES
        self._state: Literal["idle", "head", "body", "deaf", "closing"] = "idle"
        self._deadline = math.inf
        self._stalled_at: float | None = None
        self._refusal: GatewayError | None = None
        self._progress = False
        self._unfinished_bytes = 0
        self._header_bytes = 0
        self._dropped_bytes = 0
        self.exchange: Exchange | None = None
        self._taken: Callable[[bytes], None] | None = None
        # What is still to come of a body that is taken past the parser, which would copy it.
        self._left_bytes = 0
        self._repeating: Repeating | None = None
        self._changes = 0

    # From the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._gate = Gate(transport, self.close, self._wheel.burst)
        self._deadline = self.loop.time() + self._limits.header_timeout_s
        self._wheel.add(self)
        over = len(self._wheel.connections) - self._limits.connections_max
        if over > REFUSED_CONNECTIONS_MAX:
            transport.abort()
        elif over > 0:
            self._state = "head"
            self._refuse(errors.error("overloaded", "Too many connections are open."))

    def eof_received(self) -> None:
        # The transport closes with this.
        self._gate.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wheel.connections.discard(self)
        super().connection_lost(exc)
        if self.exchange is not None:
            self.exchange.leave()
        if self._taken is not None:
            self._taken(b"")

    def data_received(self, data: bytes) -> None:
        if self._repeating is not None and self._begin_repeated(self._repeating, data):
            return
        if self._state in ("deaf", "closing"):
            if self._taken is not None:
                self._taken(data)
            return
        if self._state == "body":
            self._deadline = self.loop.time() + self._limits.body_timeout_s
        fresh, before = self._state == "idle", self.cycle
        try:
            rest: bytes | memoryview = self._take(data) if self._left_bytes else data
            if len(rest) > PIECE_BYTES:
                rest = memoryview(rest)
            while rest:
                self._feed(rest[:PIECE_BYTES])
                rest = rest[PIECE_BYTES:]
                if self._state == "body" and self._go_past_parser():
                    rest = self._take(bytes(rest))
        except httptools.HttpParserUpgrade:
            # The request is served as if it had not asked for the upgrade; what follows it speaks another protocol.
            self.cycle.keep_alive = False
            self._state = "deaf"
        except (httptools.HttpParserError, GatewayError):
            refusal, self._refusal = self._refusal, None
            self._refuse(refusal or errors.error("bad_request", "The request is not valid HTTP/1.1."))
        else:
            if fresh and self.cycle is not before and self._changes < CHANGES_MAX:
                self._learn(data, self.cycle)

    def pause_writing(self) -> None:
        self._stalled_at = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stalled_at = None
        super().resume_writing()
        if self.exchange is not None:
            self.exchange.drained()

    # From the parser. What is raised here stops it, and `data_received` answers.

    def on_message_begin(self) -> None:
        # The scope, which uvicorn makes here, is only made for requests that need one.
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._state = "head"
        self._deadline = self.loop.time() + self._limits.header_timeout_s
        self._header_bytes = 0
        self._dropped_bytes = 0

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self._limits.url_bytes_max:
            self._stop("url_too_long", f"The URL is over the limit of {self._limits.url_bytes_max} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > self._limits.header_bytes_max:
            self._stop("headers_too_large", f"The headers are over {self._limits.header_bytes_max} bytes.")
        if self._state == "body":
            return  # A trailer must not become a header of the request that is being handled.
        if len(self.headers) >= self._limits.header_count_max:
            self._stop("headers_too_large", f"There are more than {self._limits.header_count_max} headers.")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._progress = True
        version, upgrade = self.parser.get_http_version(), self.parser.should_upgrade()
        if version not in ("1.0", "1.1"):
            self._stop("bad_request", "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
        self._check_host(version)
        if upgrade and any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers):
            self._stop("bad_request", "A request with a body cannot ask for an upgrade of the protocol.")
        if len(self.pipeline) >= PIPELINE_MAX:
            self._stop("bad_request", f"More than {PIPELINE_MAX} requests are waiting on this connection.")
        lane = self._wheel.lane
        plain = version == "1.1" and not upgrade
        if plain and lane is not None and self.url in lane.routes and self.parser.get_method() == b"POST":
            self._begin_exchange(lane)
        else:
            self.scope = self.scope_of(self.url, self.headers)  # type: ignore[assignment]
            if upgrade:
                cast(dict[str, Any], self.scope)["extensions"] = {SWITCH: self._switch}
            super().on_headers_complete()
            self.cycle.transport = self._gate
        if self._wheel.draining:
            self.cycle.keep_alive = False
        self._state = "body"
        self._deadline = self.loop.time() + self._limits.body_timeout_s

    def on_body(self, body: bytes) -> None:
        self._progress = True
        if self.cycle.response_complete:
            self._dropped_bytes += len(body)
            if self._dropped_bytes > self._limits.body_bytes_max:
                self._stop("request_too_large", "The body goes on after its answer.")
        elif type(self.cycle) is Exchange and not self.cycle.usual:
            self.cycle.add(body)
            return
        super().on_body(body)

    def on_chunk_header(self) -> None:
        self._progress = True

    def on_message_complete(self) -> None:
        self._progress = True
        super().on_message_complete()
        self._state = "idle"
        self._deadline = self._rest_deadline()

    # From uvicorn

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self._state == "closing" or self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._state == "idle":
            self._deadline = self.loop.time() + self._limits.keep_alive_timeout_s
        else:
            self._deadline = self._rest_deadline()

    def shutdown(self) -> None:
        """A drain begins: whatever is under way is the last thing answered here. `close` ends idle connections."""
        if self._responding():
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # A name of its own, which each task gets otherwise, would have to be written.
        task = asyncio.Task(cycle.run_asgi(app), loop=self.loop, name="request")
        self.tasks.add(task)
        if type(cycle) is Exchange:
            cycle.task = task  # It leaves the tasks itself.
        else:
            task.add_done_callback(self.tasks.discard)

    # The fast lane

    def _begin_exchange(self, lane: Lane) -> None:
        """As `super().on_headers_complete`, for a request that may do without a scope."""
        before = self.cycle
        self.cycle = Exchange(
            lane,
            self,
            self._gate,
            Heading(lane.routes[self.url], self.headers),
            self.server_state.default_headers,
            keep_alive=bool(self.parser.should_keep_alive()),
            expects=self.expect_100_continue,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _learn(self, data: bytes, cycle: RequestResponseCycle) -> None:
        """Note what to look for in the next request, after one whose head came in one piece."""
        self._changes += self._repeating is not None
        if isinstance(cycle, Exchange) and cycle.keep_alive and not cycle.heading.unusual and not cycle.too_large:
            self._repeating = repeating(data, cycle.heading)
        else:
            self._repeating = None

    def _begin_repeated(self, known: Repeating, data: bytes) -> bool:
        """Begin a request whose head came before, without parsing it again; False where that is not all there is to
        it."""
        lane = self._wheel.lane
        if self._state != "idle" or not self.cycle.response_complete or self._wheel.draining or lane is None:
            return False
        found = known.body_in(data)
        if found is None or found[1] > lane.passer.body_bytes_max:
            return False
        body, left = found
        self.cycle = Exchange(
            lane, self, self._gate, known.heading, self.server_state.default_headers, body=body, whole=not left
        )
        if left:
            self._state, self._left_bytes, self._dropped_bytes = "body", left, 0
            self._deadline = self.loop.time() + self._limits.body_timeout_s
        self._start_asgi_task(self.cycle, self.app)
        return True

    def _go_past_parser(self) -> bool:
        """Take the rest of the body that is being read past the parser, if its length is known; the request after it
        gets a new one."""
        cycle = self.cycle
        if type(cycle) is not Exchange or cycle.usual or cycle.left <= 0 or not cycle.keep_alive:
            return False
        self._left_bytes, self._unfinished_bytes = cycle.left, 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return True

    def _take(self, data: bytes) -> bytes:
        """Take what belongs to the body; what stands behind it is returned."""
        body, rest = data[: self._left_bytes], data[self._left_bytes :]
        self._left_bytes -= len(body)
        if body:
            self.on_body(body)
        if not self._left_bytes:
            self.on_message_complete()
        return rest

    def scope_of(self, url: bytes, headers: HeaderList) -> dict[str, Any]:
        """The scope that uvicorn makes when a message begins; the path is what the parser makes of the URL."""
        return {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "path": url.decode("latin-1"),
            "raw_path": url,
            "query_string": b"",
            "headers": headers,
            "state": self.app_state.copy(),
        }

    def _switch(self, taken: Callable[[bytes], None]) -> asyncio.Transport:
        """Give the connection to another protocol, which is told what comes, and writes for itself."""
        self.cycle.response_started = self.cycle.response_complete = True
        self._taken, self._deadline = taken, math.inf
        self._gate.flush()
        return self.transport

    # Decisions

    def check(self, now: float) -> None:
        """Act on a deadline that has passed."""
        if self._stalled_at is not None and now - self._stalled_at > self._limits.write_stall_timeout_s:
            self.transport.abort()
        elif now < self._deadline:
            return
        elif self._state == "closing":
            self.transport.abort()
        elif self._state == "body":
            self._check_body(now)
        elif self._responding():
            self._deadline = math.inf
        else:
            self._state = "idle"
            self.close()

    def close(self) -> None:
        """Close once what was written is out; with unread input only after the client had time to read it."""
        if self._state == "closing":
            return
        self._gate.flush()
        if self._state == "idle":
            self._deadline = self.loop.time() + self._limits.write_stall_timeout_s
            self.transport.close()
        else:
            self._deadline = self.loop.time() + LINGER_S
            self.flow.resume_reading()
            if not self.transport.is_closing() and self.transport.can_write_eof():
                self.transport.write_eof()
        self._state = "closing"

    def _feed(self, piece: bytes | memoryview) -> None:
        self._progress = False
        self.parser.feed_data(piece)
        self._unfinished_bytes = 0 if self._progress else self._unfinished_bytes + len(piece)
        if self._unfinished_bytes > self._unfinished_max:
            self._stop("headers_too_large", f"The headers are over {self._limits.header_bytes_max} bytes.")

    def _stop(self, code: str, message: str) -> None:
        """Raise a refusal out of the parser, which hides the exceptions of its callbacks."""
        self._refusal = errors.error(code, message)
        raise self._refusal

    def _check_host(self, version: str) -> None:
        hosts = [value for name, value in self.headers if name == b"host"]
        if not hosts and version == "1.0":
            return
        if len(hosts) != 1 or HOST.fullmatch(hosts[0]) is None:
            self._stop("bad_request", "Exactly one valid Host header is needed.")

    def _check_body(self, now: float) -> None:
        """The body's deadline has passed, which counts only if it was the client that kept us waiting."""
        if self.flow.read_paused or (self.cycle.waiting_for_100_continue and self._responding()):
            self._deadline = now + self._limits.body_timeout_s
        else:
            self._refuse(errors.error("request_timeout", "The rest of the body did not come in time."))

    def _responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _rest_deadline(self) -> float:
        """Until when the connection may stay as it is."""
        if self._responding():
            return math.inf
        timeouts_s = {"idle": self._limits.keep_alive_timeout_s, "head": self._limits.header_timeout_s}
        return self.loop.time() + timeouts_s.get(self._state, self._limits.body_timeout_s)

    def _refuse(self, error: GatewayError) -> None:
        """End the connection because of what came in, in the way that still is possible."""
        cycle = self.cycle
        if self._responding():
            cycle.keep_alive = False
            if self._state == "body":
                cycle.scope["state"]["refusal"] = error
                cycle.message_event.set()
            self._state = "deaf"
            return
        if self._state != "body":
            request_id = new_request_id()
            self._wheel.report(error, request_id)
            self._gate.write(self._render(error, request_id))
        self._state = "deaf"
        self.close()

    def _render(self, error: GatewayError, request_id: str) -> bytes:
        answer = error_response(error, request_id)
        headers = [
            *self.server_state.default_headers,
            *answer.headers,
            (b"content-length", b"%d" % len(answer.body)),
            (b"connection", b"close"),
        ]
        lines = [STATUS_LINE[error.status], *(b"%b: %b\r\n" % header for header in headers), b"\r\n", answer.body]
        return b"".join(lines)
