"""One connection to Redis that many callers use at once, and what has to be known about the server behind it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hiredis
import msgspec
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from gateway.state.shared import SharedStateMisused, SharedStateUnavailable

AWAY = "Redis is away"
IN_FLIGHT_MAX = 10_000
# In the place of an answer that has not wholly come.
UNFINISHED = object()


class ServerFacts(msgspec.Struct, frozen=True):
    """What a server says about itself. `clock_ahead_s` is its clock minus ours."""

    version: str
    run_id: str
    policy: str
    replica: bool
    clock_ahead_s: float

    def problem(self) -> str | None:
        """Why limits must not be kept there, and what to do about it."""
        if self.policy != "noeviction":
            return (
                f"Redis forgets keys when memory is short (maxmemory-policy {self.policy}), and with them limits: "
                "run `CONFIG SET maxmemory-policy noeviction`, and set it in the server's configuration"
            )
        if self.replica:
            return "Redis: this server is a replica, which takes no writes; state.redis has to name the primary"
        return None


# What a server says to a command, or why it does not.
Answer = bytes | int | list[Any] | ResponseError | SharedStateUnavailable | None
Landed = Callable[[Answer], None]


class Link(asyncio.Protocol):
    """One connection and the commands on it that have no reply yet. It takes over what the library has opened, whose
    own way of reading needs twice as many turns of the event loop."""

    def __init__(self, connection: AbstractConnection, timeout_s: float) -> None:
        assert connection._writer is not None, "it is open"
        self._connection = connection
        self._timeout_s = timeout_s
        self._waiting: deque[tuple[float, Landed]] = deque()
        self._reader = hiredis.Reader(replyError=ResponseError, notEnoughData=UNFINISHED)
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.WriteTransport = connection._writer.transport
        self._transport.set_protocol(self)

    def send(self, command: Sequence[bytes | str | int], landed: Landed) -> None:
        """Send a command; `landed` is told the answer, at once where none will come."""
        if self.ended or len(self._waiting) >= IN_FLIGHT_MAX:
            landed(SharedStateUnavailable(AWAY if self.ended else "Redis is too slow"))
            return
        self._waiting.append((time.monotonic(), landed))
        # Its stub takes one part only.
        self._transport.write(hiredis.pack_command(tuple(command)))  # type: ignore[arg-type]

    def call(self, command: Sequence[bytes | str | int]) -> asyncio.Future[Any]:
        """Send a command; the future holds its answer, or raises it."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def land(answer: Answer) -> None:
            if future.done():
                return
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        self.send(command, land)
        return future

    @property
    def ended(self) -> bool:
        return self._ended.done()

    def give_up(self, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)

    async def serve(self) -> str:
        """Carry calls until the connection fails; the reason."""
        watching = asyncio.create_task(self._watch())
        try:
            return await self._ended
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            await self._connection.disconnect(nowait=True)
            self.give_up("closed")
            waiting, self._waiting = self._waiting, deque()
            for _, landed in waiting:
                landed(SharedStateUnavailable(f"{AWAY}: {self._ended.result()}"))

    def connection_lost(self, error: Exception | None) -> None:
        self.give_up(str(error or "the connection was closed"))

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while self._waiting and (answer := self._reader.gets()) is not UNFINISHED and not self.ended:
                self._waiting.popleft()[1](answer)
        except hiredis.ProtocolError:
            self.give_up("it answers otherwise than Redis does")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._timeout_s / 4)
            if self._waiting and time.monotonic() - self._waiting[0][0] > self._timeout_s:
                self.give_up(f"no reply for {self._timeout_s:g} s")
                return


def options_of(url: str) -> dict[str, Any]:
    """What redis-py makes of an address; raises SharedStateMisused without repeating it, as it may hold a password."""
    try:
        return dict(parse_url(url))
    except ValueError:
        raise SharedStateMisused("state.redis is no address of a Redis server") from None


def connection_to(url: str) -> AbstractConnection:
    """A connection that is not open yet. Nothing in it waits or tries again by itself."""
    options = options_of(url)
    kind = options.pop("connection_class", Connection)
    options |= {"protocol": 2, "socket_timeout": None, "retry": Retry(NoBackoff(), 0), "driver_info": None}
    connection: AbstractConnection = kind(**options)
    return connection


async def ask(connection: AbstractConnection, *command: Any) -> Any:
    await connection.send_command(*command, check_health=False)
    return await connection.read_response(disable_decoding=True)


async def ask_facts(connection: AbstractConnection) -> ServerFacts:
    text: bytes = await ask(connection, "INFO")
    info = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
    seconds, micros = await ask(connection, "TIME")
    try:
        return ServerFacts(
            version=info.get("valkey_version") or info["redis_version"],
            run_id=info["run_id"],
            policy=info["maxmemory_policy"],
            replica=info["role"] == "slave",
            clock_ahead_s=int(seconds) + int(micros) / 1e6 - time.time(),
        )
    except KeyError as error:
        raise SharedStateMisused(f"the server at state.redis does not say its {error.args[0]}, as Redis does") from None


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """The library's errors while connecting as ours; none of them holds the password."""
    try:
        yield
    except AuthenticationError as error:
        raise SharedStateMisused(f"Redis refuses to let the gateway in: {error}") from None
    except (RedisError, OSError) as error:
        # asyncio's time-out is an OSError; it has no text.
        raise SharedStateUnavailable(f"{AWAY}: {error or 'it does not answer'}") from None
