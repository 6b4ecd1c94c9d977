"""Requests whose target speaks their dialect, passed on as they came: in front of the handlers that translate."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping

from msgspec.structs import replace
from starlette.requests import Request
from starlette.types import Message

from adapters.backlog import Backlog
from adapters.errors import InvalidRequest
from adapters.relay import PASSING
from adapters.types import DialectName, Inbound, Relayed
from gateway.api.http import (
    Endpoint,
    EventStreamResponse,
    Response,
    json_response,
    read_json_body,
    run_until_disconnect,
)
from gateway.api.openai.generation import (
    OPENAI_VERSION,
    caller_with,
    cost_headers,
    room_headers,
    served_fields,
    served_headers,
    timing_headers,
)
from gateway.auth import Principal
from gateway.inference import Inference
from gateway.limits.told import rate_headers, rate_lines
from gateway.metering import Meter
from gateway.streams import Passage

PATHS: Mapping[str, DialectName] = {
    "/v1/chat/completions": "openai_chat",
    "/v1/completions": "openai_completions",
    "/v1/embeddings": "openai_embeddings",
    "/v1/responses": "openai_responses",
    "/v1/responses/compact": "openai_compaction",
    "/v1/messages": "anthropic_messages",
}
# What clients say in headers of what belongs to their dialect.
HEADERS: Mapping[DialectName, tuple[str, ...]] = {"anthropic_messages": ("anthropic-version", "anthropic-beta")}
HEADER_CHARS_MAX = 1024
QUEUED_BYTES_MAX = 64 * 1024
# What the state of a request holds for which a passage was looked for already.
LOOKED_AT = "passage_looked_for"


class Passer:
    """Opens passages, and wraps the endpoints whose requests can have one."""

    def __init__(self, inference: Inference, body_bytes_max: int) -> None:
        self._inference = inference
        self.body_bytes_max = body_bytes_max

    async def open(
        self, path: str, body: bytes, principal: Principal, request_id: str, headers: Mapping[str, str]
    ) -> tuple[Passage, Inbound] | None:
        """The passage of a request, held and not yet begun; None when it is the handler's to answer or to refuse."""
        dialect = PATHS[path]
        try:
            head = PASSING[dialect].read_head(body)
            inbound = Inbound(dialect, body, head, headers=_headers_of(dialect, headers) if headers else ())
        except InvalidRequest:
            return None
        if PASSING[dialect].inside(inbound):
            return None
        caller = caller_with(principal, request_id, headers, head.session_key)
        passage = await self._inference.passage(principal, inbound, caller)
        return None if passage is None else (passage, inbound)

    def wrap(self, endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
        """The endpoints; those in PATHS pass on what they can."""
        return tuple(self._wrapped(one) if one.path in PATHS else one for one in endpoints)

    def _wrapped(self, endpoint: Endpoint) -> Endpoint:
        async def handler(request: Request) -> Response:
            if LOOKED_AT in request.scope["state"]:
                return await endpoint.handler(request)
            body = await read_json_body(request, self.body_bytes_max)
            answer = await run_until_disconnect(request, self._answer(endpoint.path, request, body))
            return answer or await endpoint.handler(_read_again(request, body))

        return replace(endpoint, handler=handler)

    async def _answer(self, path: str, request: Request, body: bytes) -> Response | None:
        arrived_s = time.perf_counter()
        state = request.state
        opened = await self.open(path, body, state.principal, state.request_id, request.headers)
        if opened is None:
            return None
        passage, inbound = opened
        state.log["model"] = passage.target.name
        queue = Queue(passage, state.log)
        if inbound.head.stream:
            await queue.begun()
            return EventStreamResponse(queue, passage_headers(passage, arrived_s, inbound.dialect))
        relayed = await passage.run(queue)
        state.log.update(usage_fields(passage.meter, relayed))
        return json_response(relayed.rest, headers=passage_headers(passage, arrived_s, inbound.dialect))


def _headers_of(dialect: DialectName, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The client's headers that go with a request; those that cannot be right stay behind."""
    given = ((name, headers.get(name, "")) for name in HEADERS.get(dialect, ()))
    return tuple(
        (name, value)
        for name, value in given
        if value and len(value) <= HEADER_CHARS_MAX and value.isascii() and value.isprintable()
    )


def passage_headers(passage: Passage, arrived_s: float, dialect: DialectName = "openai_chat") -> dict[str, str]:
    """What the gateway says of a request that was passed on."""
    headers = fixed_headers(passage, dialect) | rate_headers(*passage.meter.rooms) | _numbers(passage.meter, dialect)
    if dialect != "anthropic_messages":
        headers["openai-processing-ms"] = str(round((time.perf_counter() - arrived_s) * 1000))
    return headers


def fixed_headers(passage: Passage, dialect: DialectName = "openai_chat") -> dict[str, str]:
    """Those that only depend on who answers in a dialect."""
    version = {} if dialect == "anthropic_messages" else {"openai-version": OPENAI_VERSION}
    return version | {"x-gateway-model": passage.target.name} | served_headers(passage.meter.served)


def changing_lines(passage: Passage, dialect: DialectName = "openai_chat") -> str:
    """Those made of numbers that are others in each answer, as they go over the wire."""
    text = rate_lines(*passage.meter.rooms)
    for name, value in _numbers(passage.meter, dialect).items():
        text = f"{text}{name}: {value}\r\n"
    return text


def _numbers(meter: Meter, dialect: DialectName) -> dict[str, str]:
    """All of them but those that say how rates stand as OpenAI names it."""
    headers = cost_headers(meter)
    if dialect == "anthropic_messages":
        headers |= room_headers(meter)
    if meter.timings is not None:
        headers |= timing_headers(meter.timings, meter.cached_tokens)
    return headers


def usage_fields(meter: Meter, relayed: Relayed) -> dict[str, str | int | float]:
    """What the access log says of who answered a request, and of its use."""
    usage = relayed.finished.usage
    tokens: dict[str, str | int | float] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }
    return tokens | served_fields(meter.served)


class Queue:
    """A sink whose stream is read as an event source."""

    def __init__(self, passage: Passage, log: dict[str, str | int | float]) -> None:
        self._log = log
        self._backlog = Backlog(QUEUED_BYTES_MAX)
        self.write = self._backlog.write
        self.when_drained = self._backlog.when_drained
        self._started = False
        self._passage = passage
        self._running: asyncio.Task[None] | None = None

    def begin(self, content_type: str) -> None:
        self._started = True
        self._backlog.changed.set()

    async def begun(self) -> None:
        """Run the passage until its stream begins; raises what came instead."""
        self._running = running = asyncio.create_task(self._run())
        running.add_done_callback(lambda _: self._backlog.changed.set())
        try:
            while not self._started and not running.done():
                await self._backlog.change()
        except asyncio.CancelledError:
            running.cancel()
            raise
        if not self._started:
            running.result()

    async def _run(self) -> None:
        relayed = await self._passage.run(self)
        self._log.update(usage_fields(self._passage.meter, relayed))
        self._backlog.write(relayed.rest, 0)

    def __aiter__(self) -> Queue:
        return self

    async def __anext__(self) -> bytes:
        assert self._running is not None
        while not self._backlog.waits:
            if self._running.done():
                self._running.result()
                raise StopAsyncIteration
            await self._backlog.change()
        return self._backlog.take()

    async def aclose(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])


def _read_again(request: Request, body: bytes) -> Request:
    """The request with its body to read once more."""
    messages: deque[Message] = deque([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        return messages.popleft() if messages else await request.receive()

    return Request(request.scope, receive)
