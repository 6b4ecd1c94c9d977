"""Shared state in Redis or Valkey: atomic Lua scripts by the server's clock, one round trip for all of a moment.

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
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from gateway.state.memory import add_listener
from gateway.state.redis_link import AWAY, Link, ServerFacts, ask, ask_facts, connection_to, options_of, translated
from gateway.state.redis_trips import EPOCH_KEY, PREFIX, Program, Trips, problem
from gateway.state.shared import (
    Argument,
    Listener,
    Reply,
    Script,
    SharedStateMisused,
    SharedStateUnavailable,
)

PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 1.0
QUIET_S = 2.0
_AGREE = """local current = redis.call('GET', KEYS[1])
if current and string.sub(current, 1, #ARGV[1]) == ARGV[1] then return current end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
"""

log = logging.getLogger(__name__)


async def open_redis(url: str, *, timeout_s: float = 1.0, now_us: Callable[[], int] | None = None) -> Redis:
    """Shared state at `url`; while the server is away it is degraded and keeps trying, also from the start.

    `now_us` replaces the server's clock, for tests. Raises SharedStateMisused when the server must not be used.
    """
    state = Redis(url, timeout_s, now_us)
    await state.open()
    return state


async def server_facts(url: str, *, timeout_s: float) -> ServerFacts:
    """Ask the server once; raises SharedStateUnavailable and SharedStateMisused."""
    connection = connection_to(url)
    with translated():
        try:
            async with asyncio.timeout(timeout_s):
                await connection.connect_check_health()
                return await ask_facts(connection)
        finally:
            await connection.disconnect(nowait=True)


class Redis:
    """`SharedState` over one server."""

    def __init__(self, url: str, timeout_s: float, now_us: Callable[[], int] | None) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._now_us = now_us
        self._bus = f"{PREFIX}:{options_of(url).get('db', 0)}:bus".encode()
        self._program = Program(given_time=now_us is not None)
        self._listeners: dict[bytes, list[Listener]] = {}
        self._link: Link | None = None
        self._trips: Trips | None = None
        self._keeping: asyncio.Task[None] | None = None
        self.epoch: str | None = None

    @property
    def degraded(self) -> bool:
        return self._link is None or self._link.ended

    async def open(self) -> None:
        tried: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeping = asyncio.create_task(self._keep(tried))
        try:
            await asyncio.wait([tried, self._keeping], return_when=asyncio.FIRST_COMPLETED)
            await (tried if tried.done() else self._keeping)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        self._listeners.clear()

    def run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument], *, patient: bool = False
    ) -> Awaitable[Reply]:
        if self._trips is not None:
            return self._trips.call(script, keys, arguments, patient=patient)
        refused: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        refused.set_exception(SharedStateUnavailable(AWAY))
        return refused

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

    async def _call(self, *command: bytes | str | int) -> Any:
        link = self._link
        if link is None:
            raise SharedStateUnavailable(AWAY)
        try:
            return await link.call(command)
        except ResponseError as error:
            raise problem(error, link) from error

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

    async def _serve(self, link: Link, bus: AbstractConnection, tried: asyncio.Future[None]) -> str:
        """Use a connection until it ends; the reason."""
        self._link = link
        self._trips = Trips(link, self._program, self.epoch or "-", self._now_us)
        hearing = asyncio.create_task(self._hear(bus, link))
        for listeners in self._listeners.values():
            _tell(listeners, None)
        if not tried.done():
            tried.set_result(None)
        try:
            return await link.serve()
        finally:
            self._link = self._trips = None
            hearing.cancel()
            await asyncio.wait([hearing])
            await bus.disconnect(nowait=True)

    async def _connect(self) -> tuple[Link, AbstractConnection]:
        """Both connections, checked, and the epoch agreed on."""
        async with contextlib.AsyncExitStack() as stack:
            with translated():
                async with asyncio.timeout(self._timeout_s):
                    first, bus = connection_to(self._url), connection_to(self._url)
                    for connection in (first, bus):
                        stack.push_async_callback(connection.disconnect, nowait=True)
                        await connection.connect_check_health()
                    facts = await ask_facts(first)
                    if problem := facts.problem():
                        raise SharedStateMisused(problem)
                    fresh = f"{facts.run_id}.{secrets.token_hex(4)}"
                    epoch = await ask(first, "EVAL", _AGREE, 1, EPOCH_KEY, f"{facts.run_id}.", fresh)
                    await ask(bus, "SUBSCRIBE", self._bus)
            stack.pop_all()
        self.epoch = epoch.decode()
        return Link(first, self._timeout_s), bus

    async def _hear(self, bus: AbstractConnection, link: Link) -> None:
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


def _tell(listeners: Sequence[Listener], message: bytes | None) -> None:
    for listener in tuple(listeners):
        listener(message)
