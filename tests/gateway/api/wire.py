"""A real server on a loopback socket for tests of what is on the wire, and a client that speaks bytes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import uvicorn
import uvloop
from uvicorn.server import ServerState

from gateway.api.edge import Edge
from gateway.api.http import Endpoint
from gateway.api.lane import Lane
from gateway.api.passing import Passer
from gateway.api.protocol import GatewayProtocol, Wheel
from gateway.auth import Authenticator, Open
from gateway.config import LogConfig, ServerConfig
from gateway.errors import GatewayError
from gateway.logs import AccessLog
from gateway.networks import Networks
from gateway.telemetry import Telemetry

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on the loop the gateway runs on, with an end to tests that hang."""

    async def bounded() -> T:
        async with asyncio.timeout(60):
            return await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds; a test must not depend on how long that takes."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


def outcomes(telemetry: Telemetry) -> dict[str, float]:
    """How many inference requests ended how."""
    lines = telemetry.render().decode().splitlines()
    counted = [line for line in lines if line.startswith("gateway_inference_requests_total{")]
    return {line.split('outcome="')[1].split('"')[0]: float(line.split()[-1]) for line in counted}


class Reply:
    """One HTTP response read from a socket."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.headers = dict(headers)
        self.body = body

    @property
    def error(self) -> dict[str, Any]:
        """The error object; checks the shape and the request id that every error has."""
        assert self.headers["x-request-id"], self.headers
        assert self.headers["content-type"] == "application/json"
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return dict(error)


class Client:
    """A connection on which bytes are sent and responses read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, list[tuple[str, str]]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines[1:-2])]
        return int(lines[0].split(" ")[1]), headers

    async def reply(self, *, method: str = "GET") -> Reply:
        status, headers = await self.head()
        names = dict(headers)
        if method == "HEAD" or status == 100:
            return Reply(status, headers, b"")
        if names.get("transfer-encoding") == "chunked":
            parts = []
            while part := await self.chunk():
                parts.append(part)
            return Reply(status, headers, b"".join(parts))
        return Reply(status, headers, await self.reader.readexactly(int(names["content-length"])))

    async def chunk(self) -> bytes:
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        data = await self.reader.readexactly(size + 2)
        return data[:-2]

    async def ask(self, data: bytes) -> Reply:
        await self.send(data)
        return await self.reply(method=data.split(b" ", 1)[0].decode("latin-1"))

    async def closed(self) -> bool:
        """Whether the server closes the connection, without another byte, while we wait."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    def abort(self) -> None:
        self.writer.transport.abort()


class Served:
    """A running server with what a test looks at."""

    def __init__(self, port: int, edge: Edge, wheel: Wheel, telemetry: Telemetry, log: io.StringIO) -> None:
        self.port = port
        self.edge = edge
        self.wheel = wheel
        self.telemetry = telemetry
        self.log = log
        self.refusals: list[GatewayError] = []
        self.state = ServerState()

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()

    async def ask(self, data: bytes) -> Reply:
        async with self.client() as client:
            return await client.ask(data)


@contextlib.asynccontextmanager
async def serve(
    endpoints: Iterable[Endpoint],
    limits: ServerConfig | None = None,
    authenticator: Authenticator | None = None,
    *,
    loopback_only: bool = False,
    passer: Passer | None = None,
    lane: bool = True,
) -> AsyncIterator[Served]:
    """Serve `endpoints` through `Edge` and `GatewayProtocol` on a free port; with a `passer` in the fast `lane` too."""
    limits = limits or ServerConfig()
    telemetry = Telemetry("test")
    log = io.StringIO()
    edge = Edge(
        endpoints if passer is None else passer.wrap(endpoints),
        authenticator or Open(),
        telemetry,
        AccessLog(LogConfig(), log),
        loopback_only=loopback_only,
        proxies=Networks(limits.trusted_proxies),
    )
    wheel = Wheel(limits, lambda error, request_id: served.refusals.append(error))
    if passer is not None and lane:
        wheel.lane = Lane(edge, passer)
    served = Served(0, edge, wheel, telemetry, log)
    config = uvicorn.Config(edge, log_config=None, access_log=False, ws="none", proxy_headers=False, interface="asgi3")
    server = await asyncio.get_running_loop().create_server(
        lambda: GatewayProtocol(config, served.state, {}, wheel=wheel), "127.0.0.1", 0
    )
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for connection in list(wheel.connections):
            connection.transport.abort()
        await until(lambda: not wheel.connections and not served.state.tasks)
