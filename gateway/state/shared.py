"""Fast state that all replicas see the same: counters changed by atomic scripts, values that expire, and announcements.

It is never the only copy of anything that matters: all of it can be lost at any moment, and `epoch` tells when it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

Argument = int | str
# A counter record: what a Redis hash holds, field by field. Lua counts in doubles, so values stay within +-2**53.
Record = dict[str, int]
Reply = list[int]
# How long a patient call waits at most for another one. Shorter, and more of them travel alone in a quiet hour; longer,
# and other replicas hear too late of what a request no longer holds.
PATIENCE_S = 0.02
# Told every message of a channel, and None whenever messages may have been missed.
Listener = Callable[[bytes | None], None]


class SharedStateError(Exception):
    """Base of what shared state raises on purpose."""


class SharedStateUnavailable(SharedStateError):
    """It cannot answer now. Whether the call took effect is unknown, so a caller's retry has to be idempotent."""


class SharedStateLost(SharedStateUnavailable):
    """All records and values have gone since the call's epoch began; nothing was changed. `epoch` is a new one."""


class SharedStateMisused(SharedStateError):
    """The server is one that must not be used, such as one that evicts; the message says what to change."""


class Records(Protocol):
    """What a step may touch: records by key, at one moment. The Python half of a script, as Lua has `redis.call`."""

    @property
    def now_us(self) -> int:
        """The moment of the step, in microseconds since 1970; the server's clock where there is a server."""
        ...

    def read(self, key: str) -> Record | None:
        """A copy of the record; None when there is none or it has expired."""
        ...

    def write(self, key: str, record: Record, ttl_ms: int) -> None:
        """Replace the record, which expires after `ttl_ms`."""
        ...

    def delete(self, key: str) -> None: ...


Step = Callable[[Records, Sequence[str], Sequence[Argument]], Reply]


class Script(msgspec.Struct, frozen=True):
    """One atomic step, said twice: in Lua for Redis and in Python for memory. Both must agree on every history.

    `lua` is the body of a function of KEYS and ARGV, in which numbers stay numbers. It sees `now_us`, an integer in a
    double, and returns an array of integers. It reads and writes hashes of integers, formats integers with
    `string.format('%.0f', n)`, and gives every key it writes a PEXPIRE. Name and version are part of the text the
    server caches, so replicas of two releases each run their own.
    """

    name: str
    version: int
    lua: str
    step: Step


class SharedState(Protocol):
    """Every method raises SharedStateUnavailable at once, or within the configured time, when there is no answer.

    Keys are chosen by the caller and unique across its uses; scripts' keys and values' keys are apart.
    """

    @property
    def epoch(self) -> str | None:
        """Changes whenever everything may have been lost; None until there was a first one.

        Comparing it and then calling, without an await in between, is free of races: the call runs in that epoch or
        raises.
        """
        ...

    @property
    def degraded(self) -> bool:
        """Whether calls fail at the moment."""
        ...

    def run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument], *, patient: bool = False
    ) -> Awaitable[Reply]:
        """Run a script over `keys`. All calls of one turn of the event loop share a round trip and run in their order.

        A `patient` one waits for another call to travel with, before which it runs, for PATIENCE_S at most. Who gives
        up may cancel the answer; the call takes effect or does not.
        """
        ...

    async def get(self, key: str) -> bytes | None: ...

    async def set(self, key: str, value: bytes, ttl_s: float, *, only_new: bool = False) -> bool:
        """Keep `value` for `ttl_s`; with `only_new`, False when there is one already: a lock, or a replay guard."""
        ...

    async def publish(self, channel: str, message: bytes) -> None:
        """Tell everyone who listens now, this process included."""
        ...

    def listen(self, channel: str, listener: Listener) -> Callable[[], None]:
        """Call `listener` for each message from now on; returns how to stop. When messages may be lost, it is told."""
        ...

    async def close(self) -> None: ...


class Under:
    """Another shared state with every key under a prefix. It is closed by who opened it."""

    def __init__(self, shared: SharedState, prefix: str) -> None:
        self._shared = shared
        self._prefix = prefix

    @property
    def epoch(self) -> str | None:
        return self._shared.epoch

    @property
    def degraded(self) -> bool:
        return self._shared.degraded

    def run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument], *, patient: bool = False
    ) -> Awaitable[Reply]:
        return self._shared.run(script, [self._prefix + key for key in keys], arguments, patient=patient)

    async def get(self, key: str) -> bytes | None:
        return await self._shared.get(self._prefix + key)

    async def set(self, key: str, value: bytes, ttl_s: float, *, only_new: bool = False) -> bool:
        return await self._shared.set(self._prefix + key, value, ttl_s, only_new=only_new)

    async def publish(self, channel: str, message: bytes) -> None:
        await self._shared.publish(channel, message)

    def listen(self, channel: str, listener: Listener) -> Callable[[], None]:
        return self._shared.listen(channel, listener)

    async def close(self) -> None:
        return
