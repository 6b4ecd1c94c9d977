"""Shared state of a gateway that is alone: dictionaries in this process, bounded, with nothing that can be away."""

from __future__ import annotations

import heapq
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from gateway.state.shared import Argument, Listener, Record, Reply, Script, SharedStateUnavailable

ENTRIES_MAX = 1_000_000
SWEPT_PER_WRITE = 4

T = TypeVar("T")


def wall_us() -> int:
    return time.time_ns() // 1000


class Memory:
    """`SharedState` for one process. `now_us` is the wall clock.

    A full store refuses new keys, because a counter that is forgotten is a limit that is not kept.
    """

    def __init__(self, *, now_us: Callable[[], int] = wall_us, entries_max: int = ENTRIES_MAX) -> None:
        self._now_us = now_us
        self._records: _Expiring[Record] = _Expiring(entries_max)
        self._values: _Expiring[bytes] = _Expiring(entries_max)
        self._listeners: dict[str, list[Listener]] = {}
        self.epoch: str | None = secrets.token_hex(8)
        self.degraded = False

    async def run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument], *, patient: bool = False
    ) -> Reply:
        return script.step(_Moment(self._records, self._now_us()), keys, arguments)

    async def get(self, key: str) -> bytes | None:
        return self._values.get(key, self._now_us())

    async def set(self, key: str, value: bytes, ttl_s: float, *, only_new: bool = False) -> bool:
        now_us = self._now_us()
        if only_new and self._values.get(key, now_us) is not None:
            return False
        self._values.put(key, value, now_us, now_us + round(ttl_s * 1e6))
        return True

    async def publish(self, channel: str, message: bytes) -> None:
        for listener in tuple(self._listeners.get(channel, ())):
            listener(message)

    def listen(self, channel: str, listener: Listener) -> Callable[[], None]:
        return add_listener(self._listeners.setdefault(channel, []), listener)

    async def close(self) -> None:
        self._listeners.clear()


def add_listener(listeners: list[Listener], listener: Listener) -> Callable[[], None]:
    """Add a listener; returns how to remove it, which may be done twice."""
    listeners.append(listener)

    def stop() -> None:
        if listener in listeners:
            listeners.remove(listener)

    return stop


class _Moment:
    """`Records` during one step."""

    def __init__(self, records: _Expiring[Record], now_us: int) -> None:
        self._records = records
        self.now_us = now_us

    def read(self, key: str) -> Record | None:
        record = self._records.get(key, self.now_us)
        return None if record is None else record.copy()

    def write(self, key: str, record: Record, ttl_ms: int) -> None:
        self._records.put(key, record.copy(), self.now_us, self.now_us + ttl_ms * 1000)

    def delete(self, key: str) -> None:
        self._records.remove(key)


class _Expiring(Generic[T]):
    """A bounded mapping whose entries end at a moment. Each write also removes a few that have ended.

    The heap holds at most one mark per key: a mark that comes up before its entry has ended goes back with the later
    moment, and a mark whose entry was removed is dropped when it comes up.
    """

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._entries: dict[str, tuple[int, T]] = {}
        self._ends: list[tuple[int, str]] = []
        self._marked: set[str] = set()

    def get(self, key: str, now_us: int) -> T | None:
        entry = self._entries.get(key)
        return entry[1] if entry is not None and entry[0] > now_us else None

    def put(self, key: str, value: T, now_us: int, ends_us: int) -> None:
        self._sweep(now_us, SWEPT_PER_WRITE)
        if key not in self._entries and len(self._entries) >= self._entries_max:
            self._sweep(now_us, len(self._ends))
            if len(self._entries) >= self._entries_max:
                raise SharedStateUnavailable(f"the memory for counters is full: {self._entries_max} are alive")
        self._entries[key] = (ends_us, value)
        if key not in self._marked:
            self._mark(key, ends_us)

    def remove(self, key: str) -> None:
        self._entries.pop(key, None)

    def _mark(self, key: str, ends_us: int) -> None:
        if len(self._ends) >= 2 * self._entries_max:
            # Half of the marks belong to entries that were removed before their end.
            self._ends = [(entry[0], name) for name, entry in self._entries.items() if name != key]
            heapq.heapify(self._ends)
            self._marked = {name for _, name in self._ends}
        self._marked.add(key)
        heapq.heappush(self._ends, (ends_us, key))

    def _sweep(self, now_us: int, count_max: int) -> None:
        for _ in range(count_max):
            if not self._ends or self._ends[0][0] > now_us:
                return
            _, key = self._ends[0]
            entry = self._entries.get(key)
            if entry is not None and entry[0] > now_us:
                heapq.heapreplace(self._ends, (entry[0], key))
            else:
                heapq.heappop(self._ends)
                self._marked.discard(key)
                self._entries.pop(key, None)
