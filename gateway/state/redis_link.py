"""One connection to Redis that many callers use at once, and what has to be known about the server behind it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from gateway.state.shared import SharedStateMisused, SharedStateUnavailable

AWAY = "Redis is away"
IN_FLIGHT_MAX = 10_000


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


class Link:
    """One connection and the calls on it that have no reply yet."""

    def __init__(self, connection: AbstractConnection, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._outgoing: list[bytes] = []
        self._wake = asyncio.Event()
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def call(self, command: Sequence[Any]) -> asyncio.Future[Any]:
        """Send a command; the future holds its reply, or SharedStateUnavailable or redis' ResponseError."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.ended or len(self._waiting) >= IN_FLIGHT_MAX:
            future.set_exception(SharedStateUnavailable(AWAY if self.ended else "Redis is too slow"))
            return future
        self._outgoing.append(packed(command))
        self._waiting.append((time.monotonic(), future))
        self._wake.set()
        return future

    @property
    def ended(self) -> bool:
        return self._ended.done()

    def give_up(self, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)

    async def serve(self) -> str:
        """Carry calls until the connection fails; the reason."""
        tasks = [asyncio.create_task(part) for part in (self._write(), self._read(), self._watch())]
        try:
            return await self._ended
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._connection.disconnect(nowait=True)
            self.give_up("closed")
            for _, future in self._waiting:
                if not future.done():
                    future.set_exception(SharedStateUnavailable(f"{AWAY}: {self._ended.result()}"))
            self._waiting.clear()

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                waiting, self._outgoing = self._outgoing, []
                if not self._connection.is_connected:
                    break  # To send on it would connect anew, to a server that nobody checked.
                await self._connection.send_packed_command(b"".join(waiting), check_health=False)
        except (RedisError, OSError) as error:
            self.give_up(str(error))
        self.give_up("the connection was closed")

    async def _read(self) -> None:
        while True:
            outcome: Any
            try:
                outcome = await self._connection.read_response(disable_decoding=True)
            except ResponseError as error:
                outcome = error
            except (RedisError, OSError) as error:
                self.give_up(str(error))
                return
            _, future = self._waiting.popleft()
            if future.done():
                continue
            if isinstance(outcome, ResponseError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._timeout_s / 4)
            if self._waiting and time.monotonic() - self._waiting[0][0] > self._timeout_s:
                self.give_up(f"no reply for {self._timeout_s:g} s")
                return


def packed(command: Sequence[Any]) -> bytes:
    """A command as Redis reads it (RESP), each part with its length; the library's own packing takes far longer."""
    parts = [b"*%d\r\n" % len(command)]
    for part in command:
        data = part if isinstance(part, bytes) else str(part).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


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
