from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator

import pytest
from starlette.requests import Request

from gateway.api.edge import Edge
from gateway.api.http import Endpoint, EventStreamResponse, Response, json_response
from gateway.api.protocol import Wheel
from gateway.api.server import ListenError, Server, bind
from gateway.auth import Open
from gateway.config import LogConfig, ServerConfig
from gateway.logs import AccessLog
from gateway.telemetry import Telemetry
from tests.gateway.api.wire import Client, run

HELLO = b"GET /hello HTTP/1.1\r\nHost: h\r\n\r\n"
STREAM = b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n"


async def hello(request: Request) -> Response:
    return json_response(b'"hello"')


class Running:
    """A server in this process that signals end, with a stream whose events the test releases."""

    def __init__(self, limits: ServerConfig) -> None:
        self.events: asyncio.Queue[bytes | None] = asyncio.Queue()
        endpoints = [
            Endpoint("/hello", "GET", hello, "models.read"),
            Endpoint("/stream", "GET", self.stream, "inference"),
        ]
        edge = Edge(endpoints, Open(), Telemetry("test"), AccessLog(LogConfig(), io.StringIO()))
        self.sockets = bind("127.0.0.1", 0)
        self.port = self.sockets[0].getsockname()[1]
        self.started = asyncio.Event()
        self.server = Server(edge, Wheel(limits, lambda error, request_id: None), limits, self.started.set)
        self.task = asyncio.create_task(self.server.serve(self.sockets))

    async def stream(self, request: Request) -> Response:
        return EventStreamResponse(self.released())

    async def released(self) -> AsyncGenerator[bytes, None]:
        while (event := await self.events.get()) is not None:
            yield event

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        await self.started.wait()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()

    async def begin_stream(self, client: Client) -> None:
        await client.send(STREAM)
        self.events.put_nowait(b"data: 1\n\n")
        await client.head()
        assert await client.chunk() == b"data: 1\n\n"

    async def refuses_connections(self) -> None:
        """Wait until nothing listens any more."""
        with contextlib.suppress(ConnectionError):
            while True:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.transport.abort()
                await asyncio.sleep(0.01)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_an_idle_server_ends_at_once() -> None:
    async def main() -> None:
        running = Running(ServerConfig())
        async with running.client() as client:
            assert (await client.ask(HELLO)).status == 200
            began = time.monotonic()
            terminate()
            await running.task
            assert time.monotonic() - began < 5
            assert await client.closed()

    run(main())


def test_a_drain_lets_streams_finish_and_refuses_what_is_new() -> None:
    async def main() -> None:
        running = Running(ServerConfig())
        async with running.client() as stream, running.client() as kept:
            assert (await kept.ask(HELLO)).status == 200
            await running.begin_stream(stream)
            terminate()
            await running.refuses_connections()
            reply = await kept.ask(HELLO)
            assert (reply.status, reply.error["code"]) == (503, "shutting_down")
            assert not running.task.done()
            running.events.put_nowait(b"data: 2\n\n")
            running.events.put_nowait(None)
            assert [await stream.chunk(), await stream.chunk()] == [b"data: 2\n\n", b""]
            assert await stream.closed()
            await running.task

    run(main())


def test_a_stream_that_outlasts_the_drain_ends_with_an_error_event() -> None:
    async def main() -> None:
        running = Running(ServerConfig(drain_timeout_s=0.1))
        async with running.client() as stream:
            await running.begin_stream(stream)
            terminate()
            assert json.loads((await stream.chunk())[6:])["error"]["code"] == "shutting_down"
            assert await stream.chunk() == b""
            await running.task

    run(main())


def test_a_second_signal_does_not_wait() -> None:
    async def main() -> None:
        running = Running(ServerConfig(drain_timeout_s=60))
        async with running.client() as stream:
            await running.begin_stream(stream)
            terminate()
            await running.refuses_connections()
            began = time.monotonic()
            terminate()
            await running.task
            assert time.monotonic() - began < 5

    run(main())


def test_a_port_that_is_taken_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: address already in use$"):
            bind("127.0.0.1", port)
    with pytest.raises(ListenError, match=r"cannot listen on 192\.0\.2\.1:80"):
        bind("192.0.2.1", 80)
    with pytest.raises(ListenError, match=r"cannot listen on no\.such\.host\.invalid:80"):
        bind("no.such.host.invalid", 80)


def test_a_signal_is_heard_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("gateway.api.server.DATE_S", 3600.0)
        running = Running(ServerConfig())
        await running.started.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await running.task

    run(main())
