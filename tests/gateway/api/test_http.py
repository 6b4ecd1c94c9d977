from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

import pytest
from starlette.requests import Request
from starlette.types import Message

from adapters.errors import EngineFailed, InvalidRequest, QueueFull
from gateway import errors
from gateway.api.http import (
    CONNECTION,
    Endpoint,
    EventStreamResponse,
    Response,
    encode_headers,
    json_response,
    read_json_body,
    run_until_disconnect,
)
from tests.gateway.api.wire import Client, Served, run, serve, until

T = TypeVar("T")
JSON = b"Content-Type: application/json\r\n"


def get(path: bytes) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(headers: bytes, body: bytes = b"{}") -> bytes:
    return b"POST / HTTP/1.1\r\nHost: h\r\n" + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def echo(request: Request) -> Response:
    return json_response(await read_json_body(request, 1000), headers={"x-model": "naïve\r\nx-evil: 1"})


def endpoint(handler: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Endpoint:
    return Endpoint("/", "POST" if method == "POST" else "GET", handler, "public")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (post(JSON), 200, None),
        (post(b"Content-Type: Application/JSON ; charset=utf-8\r\n"), 200, None),
        (post(JSON + b"Content-Encoding: identity\r\n"), 200, None),
        (post(JSON, b"x" * 1000), 200, None),
        (post(JSON, b"x" * 1001), 413, "request_too_large"),
        (post(b""), 415, "unsupported_media_type"),
        (post(b"Content-Type: application/x-www-form-urlencoded\r\n"), 415, "unsupported_media_type"),
        (post(b"Content-Type: text/plain\r\n"), 415, "unsupported_media_type"),
        (post(JSON + b"Content-Encoding: gzip\r\n"), 415, "unsupported_media_type"),
    ],
)
def test_bodies(data: bytes, status: int, code: str | None) -> None:
    async def main() -> None:
        async with serve([endpoint(echo, "POST")]) as served:
            reply = await served.ask(data)
            assert reply.status == status
            if code is None:
                assert reply.headers["x-model"] == "na\\xefvex-evil: 1"
                assert len(reply.headers["x-request-id"]) == 24
            else:
                assert reply.error["code"] == code

    run(main())


def test_a_form_is_told_which_header_to_send() -> None:
    async def main() -> None:
        async with serve([endpoint(echo, "POST")]) as served:
            reply = await served.ask(post(b"Content-Type: application/x-www-form-urlencoded\r\n"))
            assert "send the header `Content-Type: application/json`" in reply.error["message"]

    run(main())


def test_header_values_cannot_break_out() -> None:
    assert encode_headers({"X-A": "b\r\nc\x00é漢"}) == [(b"x-a", b"bc\\xe9\\u6f22")]


class Source:
    """A handler whose events come from a queue; None ends them, an exception is raised. Notes how they ended."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.ended_at = 0.0
        self.ended = asyncio.Event()

    async def __call__(self, request: Request) -> Response:
        return EventStreamResponse(self.events(), {"x-a": "b"})

    async def events(self) -> AsyncGenerator[bytes, None]:
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.ended_at = time.perf_counter()
            self.ended.set()


async def rest(client: Client) -> list[bytes]:
    parts = []
    while part := await client.chunk():
        parts.append(part)
    return parts


def test_a_stream_is_sent_event_by_event() -> None:
    async def main() -> None:
        source = Source()
        async with serve([endpoint(source)]) as served, served.client() as client:
            await client.send(get(b"/"))
            source.queue.put_nowait(b"data: 1\n\n")
            status, headers = await client.head()
            assert status == 200
            assert dict(headers)["content-type"] == "text/event-stream; charset=utf-8"
            assert dict(headers)["x-a"] == "b"
            assert dict(headers)["x-request-id"]
            assert await client.chunk() == b"data: 1\n\n"
            source.queue.put_nowait(b"data: [DONE]\n\n")
            source.queue.put_nowait(None)
            assert await rest(client) == [b"data: [DONE]\n\n"]
            source.queue.put_nowait(None)
            assert (await client.ask(get(b"/"))).status == 200

    run(main())


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (InvalidRequest("too long", code="context_length_exceeded", param="messages"), 400, "context_length_exceeded"),
        (QueueFull("full", retry_after_s=7), 429, "queue_full"),
        (errors.error("model_loading", "soon"), 503, "model_loading"),
        (ValueError("/a/secret/path"), 500, "internal_error"),
    ],
)
def test_a_failure_before_the_first_event_is_a_status(failure: Exception, status: int, code: str) -> None:
    async def main() -> None:
        source = Source()
        async with serve([endpoint(source)]) as served:
            source.queue.put_nowait(failure)
            reply = await served.ask(get(b"/"))
            assert (reply.status, reply.error["code"]) == (status, code)
            assert "secret" not in reply.error["message"]

    run(main())


def test_a_failure_after_the_first_event_is_an_event_and_the_end() -> None:
    async def main() -> None:
        source = Source()
        async with serve([endpoint(source)]) as served, served.client() as client:
            source.queue.put_nowait(b"data: 1\n\n")
            source.queue.put_nowait(EngineFailed("The engine died."))
            await client.send(get(b"/"))
            await client.head()
            first, last = await rest(client)
            assert first == b"data: 1\n\n"
            assert last.startswith(b"data: {") and last.endswith(b"}\n\n")
            assert json.loads(last[6:])["error"]["code"] == "model_unavailable"
            await until(lambda: "status=200" in served.log.getvalue())
            assert "error=model_unavailable" in served.log.getvalue()

    run(main())


class Open:
    """A connection in memory, and a source of events in it that may be written at once. Notes which way each took."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.sent: list[tuple[str, bytes]] = []
        self.last = b""
        self.write: Callable[[bytes], bool] | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self.sent.append(("send", message["body"]))

    async def receive(self) -> Message:
        await asyncio.Event().wait()
        raise AssertionError("the client stays")

    def taker(self, render: Callable[[T], bytes], note: Callable[[T], None]) -> Callable[[T], bool]:
        def take(event: T) -> bool:
            self.last = render(event)
            self.sent.append(("put", self.last))
            return True

        return take

    def __aiter__(self) -> Open:
        return self

    async def __anext__(self) -> bytes:
        item = await self.queue.get()
        if item is None:
            raise EngineFailed("The engine died.")
        return item

    def divert(self, taker: Callable[..., Callable[[bytes], bool]]) -> None:
        assert taker == self.taker
        self.write = taker(bytes, lambda _: None)

    async def aclose(self) -> None: ...


@pytest.mark.parametrize("own", [True, False])
def test_events_are_only_written_past_a_send_that_is_the_connections_own(own: bool) -> None:
    async def main() -> None:
        source = Open()
        state = {"request_id": "r"}
        scope = {"type": "http", "raw_path": b"/", "headers": [], "extensions": {CONNECTION: source}, "state": state}

        async def seen(message: Message) -> None:
            await source.send(message)

        answer = EventStreamResponse(source)
        task = asyncio.create_task(answer(scope, source.receive, source.send if own else seen))
        source.queue.put_nowait(b"event: response.created\ndata: {}\n\n")
        await until(lambda: len(source.sent) == 1)
        assert (source.write is not None) is own
        if source.write is not None:
            source.write(b'event: response.delta\ndata: {"sequence_number":7}\n\n')
        source.queue.put_nowait(None)
        await task
        ways = [way for way, _ in source.sent]
        assert ways == ["send", *["put"] * own, "send", "send"]
        # The error goes by what was last sent, whichever way it went.
        assert (b'"sequence_number":8' in source.sent[-2][1]) is own

    run(main())


class Unclosable:
    """A source that must be closed by its `aclose`, as it is no generator; `blocked` says that it was asked."""

    def __init__(self) -> None:
        self.blocked = asyncio.Event()
        self.closed = asyncio.Event()

    def __aiter__(self) -> Unclosable:
        return self

    async def __anext__(self) -> bytes:
        if self.blocked.is_set():
            await asyncio.Event().wait()
        self.blocked.set()
        return b"data: 1\n\n"

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.closed.set()


def test_a_source_that_waits_is_closed_when_the_client_leaves() -> None:
    async def main() -> None:
        for events in (0, 1):
            source = Source()
            async with serve([endpoint(source)]) as served, served.client() as client:
                await client.send(get(b"/"))
                for _ in range(events):
                    source.queue.put_nowait(b"data: 1\n\n")
                    await client.head()
                await asyncio.sleep(0.02)
                assert not source.ended.is_set()
                left = time.perf_counter()
                client.abort()
                await source.ended.wait()
                assert source.ended_at - left < 0.25
                await gone(served)

    run(main())


def test_a_source_that_is_no_generator_is_closed_too() -> None:
    async def main() -> None:
        source = Unclosable()

        async def handler(request: Request) -> Response:
            return EventStreamResponse(source)

        async with serve([endpoint(handler)]) as served, served.client() as client:
            await client.send(get(b"/"))
            await client.head()
            client.abort()
            await source.closed.wait()
            await gone(served)

    run(main())


async def gone(served: Served) -> None:
    """Wait until the request is over; it must be noted as left by its client."""
    await until(lambda: not served.state.tasks)
    await until(lambda: "status=499" in served.log.getvalue())


def test_a_unary_answer_is_cancelled_when_the_client_leaves() -> None:
    async def main() -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def work() -> bytes:
            started.set()
            try:
                await asyncio.Event().wait()
                return b""
            finally:
                cancelled.set()

        async def handler(request: Request) -> Response:
            return json_response(await run_until_disconnect(request, work()))

        async with serve([endpoint(handler)]) as served, served.client() as client:
            await client.send(get(b"/"))
            await started.wait()
            left = time.perf_counter()
            client.abort()
            await cancelled.wait()
            assert time.perf_counter() - left < 0.25
            await gone(served)

    run(main())


def test_a_unary_answer_that_is_not_left_is_sent_on_a_kept_connection() -> None:
    async def main() -> None:
        async def work() -> bytes:
            await asyncio.sleep(0.01)
            return b"1"

        async def handler(request: Request) -> Response:
            return json_response(await run_until_disconnect(request, work()))

        async with serve([endpoint(handler)]) as served, served.client() as client:
            for _ in range(3):
                assert (await client.ask(get(b"/"))).body == b"1"

    run(main())


def test_the_end_of_a_drain_ends_a_stream_with_an_event_and_a_unary_answer_with_503() -> None:
    async def main() -> None:
        source = Source()

        async def unary(request: Request) -> Response:
            await run_until_disconnect(request, asyncio.Event().wait())
            return json_response(b"1")

        endpoints = [endpoint(source), Endpoint("/unary", "GET", unary, "public")]
        async with serve(endpoints) as served, served.client() as stream, served.client() as single:
            source.queue.put_nowait(b"data: 1\n\n")
            await stream.send(get(b"/"))
            await stream.head()
            await single.send(get(b"/unary"))
            await asyncio.sleep(0.02)
            for task in served.state.tasks:
                task.cancel()
            assert json.loads((await rest(stream))[-1][6:])["error"]["code"] == "shutting_down"
            assert source.ended.is_set()
            reply = await single.reply()
            assert (reply.status, reply.error["code"]) == (503, "shutting_down")

    run(main())
