"""Connections that reach the public internet and nothing else.

Each name is resolved once, every address it has is checked, and the connection goes to the checked address itself, so a
name that changes its mind between check and connect (DNS rebinding) gains nothing. TLS still verifies the name.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import httpcore

from adapters.public import is_public

Resolve = Callable[[str, int], Awaitable[list[str]]]
# How a connection fails, beside what the operating system says.
FAILURES = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)


async def resolve(host: str, port: int) -> list[str]:
    """All addresses of a name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only."""

    def __init__(self, resolve: Resolve, network: httpcore.AsyncNetworkBackend) -> None:
        self._resolve = resolve
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature.
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        if not addresses or not all(map(is_public, addresses)):
            raise httpcore.ConnectError("not a public address")
        return await self._network.connect_tcp(addresses[0], port, timeout, local_address, socket_options)


def network_to(
    *, private_addresses: bool, resolve: Resolve, network: httpcore.AsyncNetworkBackend | None
) -> httpcore.AsyncNetworkBackend:
    """The way to addresses that somebody configured: over `network`, or else the system's; to public ones only, unless
    private ones are allowed."""
    network = network or httpcore.AnyIOBackend()
    return network if private_addresses else PublicNetwork(resolve, network)
