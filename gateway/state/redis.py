"""Shared state in Redis or Valkey: atomic Lua scripts by the server's clock, one round trip per call.

All calls of a process follow each other on one connection without waiting, and replies come back in the order of the
calls. A caller that gives up therefore takes nothing along: its reply is read and dropped, and can reach nobody else.
When a reply is overdue the whole connection is given up, everyone who waits on it is told, and a new one is tried with
a growing pause in between.

Every key is under the epoch, a name that the replicas agree on by a key on the server. It begins with the server's run
id, so a restart begins a new epoch even when an old snapshot came back, and each script checks it before anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from gateway.state.memory import add_listener
from gateway.state.shared import (
    Argument,
    Listener,
    Reply,
    Script,
    SharedStateLost,
    SharedStateMisused,
    SharedStateUnavailable,
)

IN_FLIGHT_MAX = 10_000
PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 1.0
QUIET_S = 2.0
PREFIX = "gw"
AWAY = "Redis is away"
# Answers that say the server cannot do anything right now, as opposed to a script of ours that is wrong.
_AWAY = ("BUSY", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "UNKILLABLE")

_TIME = """local now_us = redis.call('TIME')
now_us = tonumber(now_us[1]) * 1000000 + tonumber(now_us[2])
"""
_GIVEN_TIME = "local now_us = tonumber(table.remove(ARGV))\n"
_CHECK_EPOCH = """if redis.call('GET', table.remove(KEYS)) ~= table.remove(ARGV) then
  return redis.error_reply('STALEEPOCH')
end
"""
_AGREE = """local current = redis.call('GET', KEYS[1])
if current and string.sub(current, 1, #ARGV[1]) == ARGV[1] then return current end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
"""

log = logging.getLogger(__name__)


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


async def open_redis(url: str, *, timeout_s: float = 1.0, now_us: Callable[[], int] | None = None) -> Redis:
    """Shared state at `url`; while the server is away it is degraded and keeps trying, also from the start.

    `now_us` replaces the server's clock, for tests. Raises SharedStateMisused when the server must not be used.
    """
    state = Redis(url, timeout_s, now_us)
    await state.open()
    return state


async def server_facts(url: str, *, timeout_s: float) -> ServerFacts:
    """Ask the server once; raises SharedStateUnavailable and SharedStateMisused."""
    connection = _connection(url)
    with _translated():
        try:
            async with asyncio.timeout(timeout_s):
                await connection.connect_check_health()
                return await _facts(connection)
        finally:
            await connection.disconnect(nowait=True)


class Redis:
    """`SharedState` over one server."""

    def __init__(self, url: str, timeout_s: float, now_us: Callable[[], int] | None) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._now_us = now_us
        self._bus = f"{PREFIX}:{parse_url(url).get('db', 0)}:bus".encode()
        self._scripts: dict[tuple[str, int], tuple[str, str]] = {}
        self._listeners: dict[bytes, list[Listener]] = {}
        self._link: _Link | None = None
        self._keeping: asyncio.Task[None] | None = None
        self.epoch: str | None = None

    @property
    def degraded(self) -> bool:
        return self._link is None or self._link.ended

    async def open(self) -> None:
        tried: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeping = asyncio.create_task(self._keep(tried))
        try:
            await tried
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        self._listeners.clear()

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
        digest, text = self._scripts.get((script.name, script.version)) or self._prepare(script)
        prefix = f"{PREFIX}:{self.epoch}:r:"
        rest: list[Argument | None] = [len(keys) + 1, *(prefix + key for key in keys), f"{PREFIX}:epoch", *arguments]
        if self._now_us is not None:
            rest.append(self._now_us())
        rest.append(self.epoch)
        try:
            reply = await self._call("EVALSHA", digest, *rest)
        except NoScriptError:
            reply = await self._call("EVAL", text, *rest)
        return list(reply)

    async def get(self, key: str) -> bytes | None:
        value: bytes | None = await self._call("GET", f"{PREFIX}:{self.epoch}:v:{key}")
        return value

    async def set(self, key: str, value: bytes, ttl_s: float, *, only_new: bool = False) -> bool:
        command = ("SET", f"{PREFIX}:{self.epoch}:v:{key}", value, "PX", max(1, round(ttl_s * 1000)))
        return await self._call(*command, *(("NX",) if only_new else ())) is not None

    async def publish(self, channel: str, message: bytes) -> None:
        await self._call("PUBLISH", self._bus, channel.encode() + b"\0" + message)

    def listen(self, channel: str, listener: Listener) -> Callable[[], None]:
        return add_listener(self._listeners.setdefault(channel.encode(), []), listener)

    def _prepare(self, script: Script) -> tuple[str, str]:
        time_of = _TIME if self._now_us is None else _GIVEN_TIME
        text = f"-- {script.name} {script.version}\n{_CHECK_EPOCH}{time_of}{script.lua}"
        prepared = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text
        self._scripts[script.name, script.version] = prepared
        return prepared

    async def _call(self, *command: Any) -> Any:
        link = self._link
        if link is None:
            raise SharedStateUnavailable(AWAY)
        try:
            return await link.call(command)
        except NoScriptError:
            raise
        except ReadOnlyError as error:
            link.give_up("the server has become a replica")
            raise SharedStateUnavailable(f"Redis: {error}") from error
        except OutOfMemoryError as error:
            raise SharedStateUnavailable(f"Redis: {error}") from error
        except ResponseError as error:
            text = str(error)
            if text.startswith("STALEEPOCH"):
                link.give_up("the server has lost its data")
                raise SharedStateLost("Redis has lost its data") from None
            if text.startswith(_AWAY):
                raise SharedStateUnavailable(f"Redis: {text}") from error
            raise

    async def _keep(self, tried: asyncio.Future[None]) -> None:
        """Serve connections one after the other, for ever. `tried` learns how the first attempt ended."""
        pause_s = PAUSE_FIRST_S
        while True:
            try:
                link, bus = await self._connect()
            except SharedStateMisused as error:
                if not tried.done():
                    tried.set_exception(error)
                log.error("%s", error)
            except SharedStateUnavailable as error:
                if not tried.done():
                    tried.set_result(None)
                    log.error("%s; limits are kept by this process alone until it answers", error)
            else:
                if tried.done():
                    log.warning("Redis is back")
                reason = await self._serve(link, bus, tried)
                log.warning("%s: %s; limits are kept by this process alone", AWAY, reason)
                pause_s = PAUSE_FIRST_S
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _serve(self, link: _Link, bus: AbstractConnection, tried: asyncio.Future[None]) -> str:
        """Use a connection until it ends; the reason."""
        self._link = link
        hearing = asyncio.create_task(self._hear(bus, link))
        for listeners in self._listeners.values():
            _tell(listeners, None)
        if not tried.done():
            tried.set_result(None)
        try:
            return await link.serve()
        finally:
            self._link = None
            hearing.cancel()
            await asyncio.wait([hearing])
            await bus.disconnect(nowait=True)

    async def _connect(self) -> tuple[_Link, AbstractConnection]:
        """Both connections, checked, and the epoch agreed on."""
        async with contextlib.AsyncExitStack() as stack:
            with _translated():
                async with asyncio.timeout(self._timeout_s):
                    first, bus = _connection(self._url), _connection(self._url)
                    for connection in (first, bus):
                        stack.push_async_callback(connection.disconnect, nowait=True)
                        await connection.connect_check_health()
                    facts = await _facts(first)
                    if problem := facts.problem():
                        raise SharedStateMisused(problem)
                    fresh = f"{facts.run_id}.{secrets.token_hex(4)}"
                    epoch = await _ask(first, "EVAL", _AGREE, 1, f"{PREFIX}:epoch", f"{facts.run_id}.", fresh)
                    await _ask(bus, "SUBSCRIBE", self._bus)
            stack.pop_all()
        self.epoch = epoch.decode()
        return _Link(first, self._timeout_s), bus

    async def _hear(self, bus: AbstractConnection, link: _Link) -> None:
        """Pass on what is announced; a bus that does not even answer a ping takes the connection down with it."""
        asked = False
        try:
            while True:
                message = await bus.read_response(disable_decoding=True, timeout=QUIET_S)
                if message is None and asked:
                    return
                asked = message is None
                if message is None:
                    await bus.send_command("PING", check_health=False)
                elif message[0] == b"message":
                    channel, _, text = message[2].partition(b"\0")
                    _tell(self._listeners.get(channel, ()), text)
        except (RedisError, OSError) as error:
            log.debug("the bus ended: %s", error)
        finally:
            link.give_up("announcements have stopped")


class _Link:
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
        self._outgoing += self._connection.pack_command(*command)
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
                packed, self._outgoing = self._outgoing, []
                if not self._connection.is_connected:
                    break  # To send on it would connect anew, to a server that nobody checked.
                await self._connection.send_packed_command(packed, check_health=False)
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


def _connection(url: str) -> AbstractConnection:
    """A connection that is not open yet. Nothing in it waits or tries again by itself."""
    try:
        options: dict[str, Any] = dict(parse_url(url))
    except ValueError as error:
        raise SharedStateMisused(f"Redis: {error}") from None
    kind = options.pop("connection_class", Connection)
    options |= {"protocol": 2, "socket_timeout": None, "retry": Retry(NoBackoff(), 0), "driver_info": None}
    connection: AbstractConnection = kind(**options)
    return connection


async def _ask(connection: AbstractConnection, *command: Any) -> Any:
    await connection.send_command(*command, check_health=False)
    return await connection.read_response(disable_decoding=True)


async def _facts(connection: AbstractConnection) -> ServerFacts:
    text: bytes = await _ask(connection, "INFO")
    info = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
    seconds, micros = await _ask(connection, "TIME")
    return ServerFacts(
        version=info.get("valkey_version") or info["redis_version"],
        run_id=info["run_id"],
        policy=info["maxmemory_policy"],
        replica=info["role"] == "slave",
        clock_ahead_s=int(seconds) + int(micros) / 1e6 - time.time(),
    )


def _tell(listeners: Sequence[Listener], message: bytes | None) -> None:
    for listener in tuple(listeners):
        listener(message)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """The library's errors while connecting as ours; none of them holds the password."""
    try:
        yield
    except AuthenticationError as error:
        raise SharedStateMisused(f"Redis refuses to let the gateway in: {error}") from None
    except (RedisError, OSError) as error:
        # asyncio's time-out is an OSError; it has no text.
        raise SharedStateUnavailable(f"{AWAY}: {error or 'it does not answer'}") from None
