"""The HTTP client of the data path: requests to origins over kept connections, and every deadline by one sweep.

No redirect is followed and nothing is decompressed. A name that has several addresses is tried like RFC 8305 does it,
and asked anew every RESOLVED_S. Origins behind a proxy of the environment are reached with httpx.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, zip_longest
from typing import Literal, Protocol

import msgspec

from adapters.bursts import Burst
from adapters.connection import Body, Bounds, Connection, Receiver, Timeouts
from adapters.errors import AdapterError, BrokeOff, Overloaded, Timeout, Unreachable

SWEEP_S = 0.25
RESOLVED_S = 30.0
# So long a name is waited for whose addresses are known from before.
RESOLVING_S = 1.0
STAGGER_S = 0.25
# A kept connection that was dead breaks off at once. One that held for longer may have had its request answered.
DEAD_S = 2.0
ADDRESSES_MAX = 8
# Below this, one copy is cheaper than a second piece on its way through the transport.
JOINED_BYTES_MAX = 64 * 1024

log = logging.getLogger(__name__)

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
TARGET = re.compile(rb"/[!-~]*")


class Origin(msgspec.Struct, frozen=True):
    """Where requests go. With an `address` it is that one of the host's, without a proxy, and the name is still checked
    and sent."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    address: str | None = None

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


class Keeping(msgspec.Struct, frozen=True):
    """How many connections an origin may have, and how long they are kept: unused, and at all."""

    connections_max: int = 4096
    idle_max: int = 512
    idle_s: float = 60.0
    age_s: float = 600.0


class Wire(Protocol):
    """A way to one origin."""

    @property
    def connections(self) -> int:
        """How many there are; where somebody else keeps them, how many requests run."""
        ...

    async def send(self, head: bytes, body: Body, receiver: Receiver, timeouts: Timeouts | None = None) -> None:
        """Send what `render_head` made, with a body behind it; done when the response is. Raises an AdapterError."""
        ...

    async def close(self) -> None: ...


def parse_url(url: str) -> tuple[Origin, str]:
    """The origin of a URL and its path without a last slash; ValueError when it is not one to send requests to."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("a URL begins with http:// or https://")
    if not parts.hostname or parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a URL has a host and a path, and neither a user, a query nor a fragment")
    if not TARGET.fullmatch((parts.path or "/").encode()) or not re.fullmatch(r"[A-Za-z0-9._:%-]+", parts.hostname):
        raise ValueError("a URL has neither spaces nor letters outside of ASCII")
    scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
    return Origin(scheme, parts.hostname, parts.port or (443 if scheme == "https" else 80)), parts.path.rstrip("/")


def render_head(method: str, target: str, origin: Origin, headers: Iterable[tuple[str, str]]) -> bytes:
    """The head of a request up to its length, which `send` adds; ValueError for what would break it."""
    pairs = [("host", origin.authority), ("accept-encoding", "identity"), *headers]
    lines = [method.encode() + b" " + target.encode() + b" HTTP/1.1\r\n"]
    if not TOKEN.fullmatch(method.encode()) or not TARGET.fullmatch(target.encode()):
        raise ValueError("a request target is a path of printable ASCII characters")
    for name, value in pairs:
        raw = value.encode("latin-1")
        if not TOKEN.fullmatch(name.encode()) or re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", raw):
            raise ValueError(f"the header {name!r} cannot be sent")
        lines.append(name.encode() + b": " + raw + b"\r\n")
    return b"".join(lines)


def joined(head: bytes, body: Body) -> Body:
    """A whole request, in one piece unless it is large."""
    pieces = (body,) if isinstance(body, bytes) else body
    size = sum(map(len, pieces))
    head = b"%bcontent-length: %d\r\n\r\n" % (head, size)
    return b"".join((head, *pieces)) if size <= JOINED_BYTES_MAX else (head, *pieces)


class Direct:
    """The connections to one origin, the one used last taken first."""

    def __init__(
        self,
        origin: Origin,
        keeping: Keeping,
        bounds: Bounds,
        timeouts: Timeouts,
        context: Callable[[], ssl.SSLContext],
        wake: Callable[[], None],
    ) -> None:
        self._origin = origin
        self._keeping = keeping
        self._bounds = bounds
        self._timeouts = timeouts
        self._context = context
        self._wake = wake
        self._burst = Burst()
        self._idle: list[Connection] = []
        self._connections: set[Connection] = set()
        self._opening = 0
        self._addresses: list[str] = []
        self._resolved_s = 0.0
        self._turn = 0

    @property
    def connections(self) -> int:
        return len(self._connections) + self._opening

    async def send(self, head: bytes, body: Body, receiver: Receiver, timeouts: Timeouts | None = None) -> None:
        """A kept connection may have died unnoticed: then, if it ends at once, the request is sent once more."""
        timeouts = timeouts or self._timeouts
        request = joined(head, body)
        if self._idle:
            connection = self._idle.pop()
            try:
                await connection.run(request, receiver, timeouts)
                return
            except BrokeOff:
                if connection.answered or connection.waited_s > DEAD_S:
                    raise
        connection = await self._open(timeouts.connect_s)
        await connection.run(request, receiver, timeouts)

    def sweep(self, now_s: float) -> bool:
        """Act on the deadlines that have passed; whether there is anything left to watch."""
        for connection in list(self._connections):
            connection.check(now_s)
        idle_since_s, opened_since_s = now_s - self._keeping.idle_s, now_s - self._keeping.age_s
        for connection in self._idle[:]:
            if connection.idle_s < idle_since_s or connection.opened_s < opened_since_s:
                self._idle.remove(connection)
                self._drop(connection)
        return bool(self._connections)

    def retire(self) -> None:
        """Keep no connection that has no request, from now on."""
        self._keeping = msgspec.structs.replace(self._keeping, idle_max=0)
        for connection in self._idle:
            self._drop(connection)
        self._idle.clear()

    async def close(self) -> None:
        for connection in list(self._connections):
            self._drop(connection)
        self._idle.clear()

    def _ended(self, connection: Connection, reusable: bool) -> None:
        """A connection has no request any more."""
        if reusable and len(self._idle) < self._keeping.idle_max:
            self._idle.append(connection)
            return
        if connection in self._idle:
            self._idle.remove(connection)
        self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._connections.discard(connection)
        connection.close()

    async def _open(self, timeout_s: float) -> Connection:
        if self.connections >= self._keeping.connections_max:
            raise Overloaded("Too many requests to this model's provider are running.", retry_after_s=1)
        self._opening += 1
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._race(await self._resolve())
        except TimeoutError:
            self._addresses = []
            raise Timeout("The upstream did not accept a connection in time.") from None
        finally:
            self._opening -= 1
        self._connections.add(connection)
        self._wake()
        return connection

    async def _resolve(self) -> list[str]:
        """The addresses to try, families in turn; each new connection begins with another one."""
        if self._origin.address is not None:
            return [self._origin.address]
        loop = asyncio.get_running_loop()
        if not self._addresses or loop.time() - self._resolved_s > RESOLVED_S:
            try:
                async with asyncio.timeout(RESOLVING_S if self._addresses else None):
                    found = await loop.getaddrinfo(self._origin.host, self._origin.port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as exc:  # Among them that it takes too long.
                if not self._addresses:
                    log.warning("the name %s has no address: %s", self._origin.host, exc)
                    raise Unreachable("The upstream's name has no address.") from None
            else:
                self._addresses = interleaved(list(dict.fromkeys(str(one[4][0]) for one in found)))
            self._resolved_s = loop.time()
        self._turn += 1
        start = self._turn % len(self._addresses)
        return (self._addresses[start:] + self._addresses[:start])[:ADDRESSES_MAX]

    async def _race(self, addresses: list[str]) -> Connection:
        """The first connection that stands; each attempt has a head start of STAGGER_S over the next."""
        if len(addresses) == 1:
            return await self._connect(addresses[0])
        attempts: set[asyncio.Task[Connection]] = set()
        problem: BaseException = Unreachable("The upstream cannot be reached.")
        try:
            waiting = list(addresses)
            while waiting or any(not attempt.done() for attempt in attempts):
                if waiting:
                    attempts.add(asyncio.create_task(self._connect(waiting.pop(0))))
                pending = [attempt for attempt in attempts if not attempt.done()]
                wait_s = STAGGER_S if waiting else None
                done, _ = await asyncio.wait(pending, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for attempt in done:
                    if (failure := attempt.exception()) is None:
                        attempts.discard(attempt)
                        return attempt.result()
                    problem = failure
        finally:
            for attempt in attempts:
                attempt.add_done_callback(_close_late)
                attempt.cancel()
        self._addresses = []
        raise problem

    async def _connect(self, address: str) -> Connection:
        loop = asyncio.get_running_loop()
        secure = self._origin.scheme == "https"
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(loop, self._bounds, self._ended, self._burst),
                address,
                self._origin.port,
                ssl=self._context() if secure else None,
                server_hostname=self._origin.host if secure else None,
            )
        except Exception as exc:
            log.warning("no connection to %s (%s): %s", self._origin.authority, address, exc)
            raise translated(exc) from None
        return connection


def _close_late(attempt: asyncio.Task[Connection]) -> None:
    """Close what an attempt brought that lost the race."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


def interleaved(addresses: list[str]) -> list[str]:
    """Addresses with the two families in turn, in the order of the resolver."""
    first = [one for one in addresses if (":" in one) == (":" in addresses[0])]
    second = [one for one in addresses if one not in first]
    return [one for one in chain.from_iterable(zip_longest(first, second)) if one is not None]


def translated(exc: Exception) -> AdapterError:
    """What a failed connection is called in our tree; a bug of ours is raised as it is."""
    match exc:
        case AdapterError():
            return exc
        case ssl.SSLCertVerificationError():
            return Unreachable("The upstream's certificate is not valid.")
        case ssl.SSLError():
            return Unreachable("The upstream does not speak TLS as it should.")
        case TimeoutError():
            return Timeout("The upstream did not accept a connection in time.")
        case OSError() | UnicodeError():
            return Unreachable("The upstream cannot be reached.")
        case _:
            raise exc


class Client:
    """Ways to origins, made once and kept. `context` makes the TLS context when the first one is needed.

    `proxies` are URLs by scheme, those of the environment unless they are given; `no_proxy` there is honoured.
    """

    def __init__(
        self,
        *,
        keeping: Keeping | None = None,
        bounds: Bounds | None = None,
        timeouts: Timeouts | None = None,
        context: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        proxies: Mapping[str, str] | None = None,
    ) -> None:
        self._keeping = keeping or Keeping()
        self._bounds = bounds or Bounds()
        self._timeouts = timeouts or Timeouts()
        self._make_context = context
        self._made: ssl.SSLContext | None = None
        self._proxies = urllib.request.getproxies() if proxies is None else proxies
        self._wires: dict[Origin, Direct] = {}
        self._proxied: dict[Origin, Wire] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    def wire(self, origin: Origin) -> Wire:
        """The way to an origin."""
        if (known := self._wires.get(origin) or self._proxied.get(origin)) is not None:
            return known
        proxy = self._proxies.get(origin.scheme) or self._proxies.get("all")
        if proxy and origin.address is None and not urllib.request.proxy_bypass(origin.host):
            # Imported where there is a proxy: httpx takes long to load.
            from adapters.proxied import Proxied

            self._proxied[origin] = Proxied(origin, proxy, self._timeouts, self._context())
            return self._proxied[origin]
        self._wires[origin] = direct = Direct(
            origin, self._keeping, self._bounds, self._timeouts, self._context, self._wake
        )
        return direct

    @property
    def connections(self) -> int:
        """How many connections there are, or through proxies requests that run."""
        return sum(wire.connections for wire in (*self._wires.values(), *self._proxied.values()))

    def retire(self) -> None:
        """Close each connection when its request is over, for somebody who sends no new ones but may try again."""
        self._keeping = msgspec.structs.replace(self._keeping, idle_max=0)
        for wire in self._wires.values():
            wire.retire()

    async def close(self) -> None:
        """End all connections; requests on them fail."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for wire in (*self._wires.values(), *self._proxied.values()):
            await wire.close()

    def _context(self) -> ssl.SSLContext:
        if self._made is None:
            self._made = self._make_context()
        return self._made

    def _wake(self) -> None:
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        now_s = asyncio.get_running_loop().time()
        watched = [wire.sweep(now_s) for wire in self._wires.values()]
        if any(watched):
            self._wake()
