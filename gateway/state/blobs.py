"""Bytes that are kept for a while and may be gone at any moment, bounded as a whole and for each tenant."""

from __future__ import annotations

import heapq
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

# What an entry takes beside its bytes.
ENTRY_BYTES = 512


class BlobCounts(NamedTuple):
    """What is kept, and what became of the rest since the start. `failed` could not be asked for or be kept."""

    size_bytes: int = 0
    evicted: int = 0
    failed: int = 0


class Blobs(Protocol):
    """No call raises: what cannot be had is not there, and what cannot be kept is dropped."""

    @property
    def counts(self) -> BlobCounts: ...

    async def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, tenant: str, blob: bytes, ttl_s: float) -> None:
        """Keep `blob` in the place of what the key had. A plain call, which does not wait."""
        ...

    async def clear(self, tenant: str | None) -> int | None:
        """Drop a tenant's, or all; how many, None when that cannot be done now."""
        ...

    async def close(self) -> None: ...


class _Entry(NamedTuple):
    tenant: str
    blob: bytes
    ends_s: float


class MemoryBlobs:
    """`Blobs` of one process. The least recently used go first, those of a tenant over its share before others.

    `clock` is monotonic seconds.
    """

    def __init__(self, bytes_max: int, tenant_bytes_max: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes_max = bytes_max
        self._tenant_bytes_max = min(tenant_bytes_max, bytes_max)
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        # Each tenant's keys in the same order, and what they take.
        self._tenants: dict[str, OrderedDict[str, None]] = {}
        self._sizes: dict[str, int] = {}
        self._size = 0
        self._evicted = 0
        self._ends: list[tuple[float, str]] = []

    @property
    def counts(self) -> BlobCounts:
        return BlobCounts(self._size, self._evicted)

    async def get(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.ends_s <= self._clock():
            self._remove(key)
            return None
        self._entries.move_to_end(key)
        self._tenants[entry.tenant].move_to_end(key)
        return entry.blob

    def put(self, key: str, tenant: str, blob: bytes, ttl_s: float) -> None:
        now_s = self._clock()
        self._expire(now_s)
        self._remove(key)
        size = len(blob) + ENTRY_BYTES
        if size > self._tenant_bytes_max:
            return
        while self._sizes.get(tenant, 0) + size > self._tenant_bytes_max:
            self._evict(next(iter(self._tenants[tenant])))
        while self._size + size > self._bytes_max:
            self._evict(next(iter(self._entries)))
        self._entries[key] = _Entry(tenant, blob, now_s + ttl_s)
        self._tenants.setdefault(tenant, OrderedDict())[key] = None
        self._sizes[tenant] = self._sizes.get(tenant, 0) + size
        self._size += size
        heapq.heappush(self._ends, (now_s + ttl_s, key))

    async def clear(self, tenant: str | None) -> int | None:
        keys = list(self._entries if tenant is None else self._tenants.get(tenant, ()))
        for key in keys:
            self._remove(key)
        return len(keys)

    async def close(self) -> None:
        return

    def _evict(self, key: str) -> None:
        self._remove(key)
        self._evicted += 1

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        size, tenant = len(entry.blob) + ENTRY_BYTES, entry.tenant
        self._size -= size
        self._sizes[tenant] -= size
        del self._tenants[tenant][key]
        if not self._tenants[tenant]:
            del self._tenants[tenant], self._sizes[tenant]

    def _expire(self, now_s: float) -> None:
        """Drop what has ended. Marks of what left earlier are dropped with it, or when they are most of all marks."""
        if len(self._ends) > 2 * len(self._entries) + 64:
            self._ends = [(entry.ends_s, key) for key, entry in self._entries.items()]
            heapq.heapify(self._ends)
        while self._ends and self._ends[0][0] <= now_s:
            _, key = heapq.heappop(self._ends)
            entry = self._entries.get(key)
            if entry is not None and entry.ends_s <= now_s:
                self._remove(key)
