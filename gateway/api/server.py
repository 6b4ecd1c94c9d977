"""The listening server: uvicorn with our protocol, and a drain that keeps its promises."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn

from gateway.api.edge import Edge
from gateway.api.protocol import GatewayProtocol, Wheel
from gateway.config import ServerConfig

# How long cancelled requests have to say that they were cut, and written bytes to leave.
FAREWELL_S = 2.0
POLL_S = 0.02
DATE_S = 1.0

log = logging.getLogger(__name__)


class ListenError(Exception):
    """The address cannot be listened on; the message says why in one line."""


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to every address of `host`; raises ListenError."""
    sockets: list[socket.socket] = []
    problem = "it has no address"
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                sockets.append(_bind_one(family, kind, protocol, address))
            except OSError as exc:
                if exc.errno == errno.EADDRINUSE:
                    raise
                problem = (exc.strerror or str(exc)).lower()
    except OSError as exc:
        for opened in sockets:
            opened.close()
        raise ListenError(f"cannot listen on {host}:{port}: {(exc.strerror or str(exc)).lower()}") from None
    if not sockets:
        raise ListenError(f"cannot listen on {host}:{port}: {problem}")
    return sockets


def _bind_one(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        found.bind(address)
    except OSError:
        found.close()
        raise
    return found


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends at once what still runs.

    While it drains no connection is accepted, new requests on open ones get 503, and running requests may finish for
    `drain_timeout_s`; what then still runs is cancelled, which tells its client so.
    """

    def __init__(self, edge: Edge, wheel: Wheel, config: ServerConfig, on_started: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                edge,
                http=cast(type[asyncio.Protocol], partial(GatewayProtocol, wheel=wheel)),
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
            )
        )
        self._edge = edge
        self._wheel = wheel
        self._drain_timeout_s = config.drain_timeout_s
        self._on_started = on_started
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked_to_exit = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not calling the base class keeps the signal from being raised again at the end, so the exit code is ours.
        self.force_exit = self.should_exit
        self.should_exit = True
        self._edge.draining = self._wheel.draining = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._asked_to_exit.set)

    async def main_loop(self) -> None:
        """Renew the date of answers each second until a signal comes. uvicorn's own loop looks for that ten times a
        second, which costs as much as a token of a stream each time."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(DATE_S):
                    await self._asked_to_exit.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._edge.draining = self._wheel.draining = True
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        connections, tasks = self._wheel.connections, self.server_state.tasks
        for connection in list(connections):
            connection.shutdown()
        if running := sum(not task.done() for task in tasks):
            log.info("stopping: %d requests have %g s to finish", running, self._drain_timeout_s)
        await self._wait(lambda: all(task.done() for task in tasks), self._drain_timeout_s)
        for task in list(tasks):
            task.cancel()
        self.force_exit = False
        await self._wait(lambda: all(task.done() for task in tasks), FAREWELL_S)
        for connection in list(connections):
            connection.close()
        await self._wait(lambda: not connections, FAREWELL_S)
        for connection in list(connections):
            connection.transport.abort()

    async def _wait(self, over: Callable[[], bool], timeout_s: float) -> None:
        for _ in range(math.ceil(timeout_s / POLL_S)):
            if over() or self.force_exit:
                return
            await asyncio.sleep(POLL_S)
