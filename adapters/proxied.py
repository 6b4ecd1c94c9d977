"""Requests through a proxy of the environment, with httpx: slower than `http1.py`, and with the same outcome."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Mapping

import httpx

from adapters.connection import Body, Receiver, Timeouts
from adapters.errors import AdapterError, BrokeOff, Timeout, Unreachable, UpstreamInvalid
from adapters.http1 import Origin

# The nearest class of httpx's tree decides.
ERRORS: Mapping[type[Exception], tuple[type[AdapterError], str]] = {
    httpx.ConnectTimeout: (Timeout, "The upstream did not accept a connection in time."),
    httpx.PoolTimeout: (Timeout, "No connection to the upstream became free in time."),
    httpx.TimeoutException: (Timeout, "The upstream did not answer in time."),
    httpx.ConnectError: (Unreachable, "The upstream cannot be reached."),
    httpx.ProxyError: (Unreachable, "The proxy does not let requests through to the upstream."),
    httpx.UnsupportedProtocol: (Unreachable, "The upstream cannot be reached."),
    httpx.NetworkError: (BrokeOff, "The connection to the upstream broke off."),
    httpx.RemoteProtocolError: (UpstreamInvalid, "The upstream's answer is not valid HTTP."),
    httpx.TransportError: (BrokeOff, "The connection to the upstream broke off."),
    httpx.HTTPError: (UpstreamInvalid, "The upstream's answer is not valid HTTP."),
    httpx.InvalidURL: (Unreachable, "The upstream cannot be reached."),
    httpx.StreamError: (BrokeOff, "The connection to the upstream broke off."),
    httpx.CookieConflict: (UpstreamInvalid, "The upstream's answer is not valid HTTP."),
}

# httpx's words for a connection that ended before anything came.
DISCONNECTED = "Server disconnected without sending a response."


def translated(exc: Exception) -> AdapterError:
    """An exception of httpx in our tree; anything else is raised as it is."""
    if isinstance(exc, httpx.RemoteProtocolError) and str(exc) == DISCONNECTED:
        exc = httpx.ReadError(DISCONNECTED)
    for kind in type(exc).__mro__:
        if kind in ERRORS:
            ours, message = ERRORS[kind]
            return ours(message)
    raise exc


class Gap:
    """Holds up the reading of one response."""

    def __init__(self, timeout: asyncio.Timeout) -> None:
        self._timeout = timeout
        self.free = asyncio.Event()
        self.free.set()

    def pause(self) -> None:
        self.free.clear()

    def resume(self) -> None:
        self.free.set()

    def hurry(self, seconds: float) -> None:
        self._timeout.reschedule(min(self._timeout.when() or math.inf, asyncio.get_running_loop().time() + seconds))


class Opened:
    """Whether a connection was opened for a request."""

    anew = False

    async def trace(self, event: str, _: object) -> None:
        self.anew = self.anew or event == "connection.connect_tcp.started"


class Proxied:
    """The way to one origin through a proxy."""

    def __init__(self, origin: Origin, proxy: str, timeouts: Timeouts, context: ssl.SSLContext) -> None:
        self._url = f"{origin.scheme}://{origin.authority}"
        self._timeouts = timeouts
        self._client = httpx.AsyncClient(proxy=proxy, verify=context, trust_env=False, follow_redirects=False)
        self.connections = 0

    async def send(self, head: bytes, body: Body, receiver: Receiver, timeouts: Timeouts | None = None) -> None:
        self.connections += 1
        try:
            await self._send(head, body, receiver, timeouts or self._timeouts)
        finally:
            self.connections -= 1

    async def _send(self, head: bytes, body: Body, receiver: Receiver, timeouts: Timeouts) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")[:-1]
        method, target, _ = first.split(" ")
        request = self._client.build_request(
            method,
            self._url + target,
            content=body if isinstance(body, bytes) else b"".join(body),
            headers=[(name, value) for name, _, value in (line.partition(": ") for line in lines)],
            timeout=httpx.Timeout(timeouts.idle_s, connect=timeouts.connect_s, read=timeouts.first_byte_s),
        )
        try:
            async with asyncio.timeout(timeouts.total_s) as whole:
                gap = Gap(whole)
                response = await self._answered(request)
                try:
                    names = {name.lower(): value for name, value in reversed(response.headers.raw)}
                    receiver.on_head(response.status_code, names, gap)
                    async for data in response.aiter_raw():
                        receiver.on_data(data)
                        await gap.free.wait()
                finally:
                    await asyncio.shield(response.aclose())
        except TimeoutError:
            raise Timeout("The upstream took too long for its whole answer.") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as exc:
            raise translated(exc) from None

    async def _answered(self, request: httpx.Request) -> httpx.Response:
        """A kept connection may have died unnoticed: then, if nothing came back, the request is sent once more."""
        opened = Opened()
        request.extensions["trace"] = opened.trace
        try:
            return await self._client.send(request, stream=True)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as exc:
            if opened.anew or (isinstance(exc, httpx.RemoteProtocolError) and str(exc) != DISCONNECTED):
                raise
        return await self._client.send(request, stream=True)

    async def close(self) -> None:
        await self._client.aclose()
