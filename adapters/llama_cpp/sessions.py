"""Conversations kept after their last answer, so that the next turn does not compute its history again.

A kept conversation lives in cells of the context (free to reuse, but each used cell slows every decode) or as a blob in
RAM. It belongs to a tenant and is never matched for another one, nor for another variant of the model (other adapters).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
State = npt.NDArray[np.uint8]

KEEP_TOKENS_MIN = 16
# A match compares with each of the tenant's conversations, a few microseconds apiece.
KEPT_MAX = 256


class Cells(Protocol):
    """What keeping and sharing need of a context."""

    partial_sequences: bool

    def remove(self, slot: int, start: int = 0) -> bool: ...

    def share(self, source: int, target: int, end: int) -> None: ...

    def save(self, slot: int) -> State: ...

    def restore(self, slot: int, state: State) -> bool: ...


def common_prefix(left: Int32s, right: Int32s) -> int:
    """Length of the longest common prefix."""
    size = min(len(left), len(right))
    differs = left[:size] != right[:size]
    first = int(differs.argmax()) if size else 0
    return first if size and differs[first] else size


class Kept:
    """The computed tokens of one idle conversation; exactly one of `slot` and `state` is set."""

    __slots__ = ("key", "slot", "state", "tenant", "tokens", "used_s", "variant")

    def __init__(
        self, tenant: str, key: str | None, tokens: Int32s, slot: int, used_s: float, variant: str = ""
    ) -> None:
        self.tenant = tenant
        self.variant = variant
        self.key = key
        self.tokens = tokens
        self.slot: int | None = slot
        self.state: State | None = None
        self.used_s = used_s


class Sessions:
    """All kept conversations of a worker. RAM is bounded by bytes, all of it by age and number; the least recently used
    go first."""

    def __init__(self, cells: Cells, *, ram_bytes_max: int, ttl_s: float, clock: Callable[[], float]) -> None:
        self._cells = cells
        self._ram_bytes_max = ram_bytes_max
        self._ttl_s = ttl_s
        self._clock = clock
        self._kept: list[Kept] = []
        self._ram_bytes = 0
        self._free_slots: list[int] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def resident_tokens(self) -> int:
        """Cells held by idle conversations; cells shared between two are counted twice."""
        return sum(len(kept.tokens) for kept in self._kept if kept.slot is not None)

    def match(self, tenant: str, tokens: Int32s, key: str | None, variant: str = "") -> tuple[Kept | None, int]:
        """The tenant's conversation with the longest usable prefix of `tokens`; at equal length the one named `key`."""
        best, best_rank = None, (0, False)
        for kept in self._kept:
            if kept.tenant != tenant or kept.variant != variant:
                continue
            size = common_prefix(kept.tokens, tokens)
            if size < len(kept.tokens) and not self._cells.partial_sequences:
                continue
            rank = (size, key is not None and kept.key == key)
            if size and rank > best_rank:
                best, best_rank = kept, rank
        if best is not None:
            best.used_s = self._clock()
        return best, best_rank[0]

    def load(self, kept: Kept, slot: int, size: int) -> int:
        """Puts the first `size` tokens of a conversation into an empty sequence; returns how many are really there."""
        if kept.slot is not None:
            self._cells.share(kept.slot, slot, size)
            return size
        if kept.state is None:
            # It was dropped between the match and now, to make room.
            return 0
        if not self._cells.restore(slot, kept.state):
            if kept in self._kept:
                self._drop(kept)
            return 0
        if size < len(kept.tokens) and not self._cells.remove(slot, size):
            self._cells.remove(slot)
            return 0
        return size

    def keep(self, tenant: str, key: str | None, tokens: Int32s, slot: int, variant: str = "") -> None:
        """Takes over `slot` with its computed `tokens`; replaces the conversations that it continues."""
        if len(tokens) < KEEP_TOKENS_MIN:
            self._cells.remove(slot)
            self._free_slots.append(slot)
            return
        for old in [kept for kept in self._kept if (kept.tenant, kept.variant) == (tenant, variant)]:
            size = common_prefix(old.tokens, tokens)
            same = key is not None and old.key == key and size * 2 >= len(old.tokens)
            if size == len(old.tokens) or same:
                self._drop(old)
        self._kept.append(Kept(tenant, key, tokens.copy(), slot, self._clock(), variant))
        if len(self._kept) > KEPT_MAX:
            self._drop(min(self._kept, key=lambda kept: kept.used_s))

    def spill(self, besides: Iterable[Kept] = ()) -> bool:
        """Moves the least recently used resident conversation to RAM; False when there is none but the exempt."""
        exempt = set(besides)
        resident = [kept for kept in self._kept if kept.slot is not None and kept not in exempt]
        if not resident:
            return False
        oldest = min(resident, key=lambda kept: kept.used_s)
        assert oldest.slot is not None
        if self._ram_bytes_max:
            oldest.state = self._cells.save(oldest.slot)
            self._ram_bytes += len(oldest.state)
        self._release(oldest)
        if oldest.state is None:
            self._kept.remove(oldest)
        self._shrink()
        return True

    def expire(self) -> None:
        """Drops what was not used within the time to live."""
        limit = self._clock() - self._ttl_s
        for kept in [kept for kept in self._kept if kept.used_s < limit]:
            self._drop(kept)

    def freed(self) -> list[int]:
        """Slots that became free since the last call; they are the caller's again."""
        slots, self._free_slots = self._free_slots, []
        return slots

    def _shrink(self) -> None:
        while self._ram_bytes > self._ram_bytes_max:
            self._drop(min((kept for kept in self._kept if kept.state is not None), key=lambda kept: kept.used_s))

    def _drop(self, kept: Kept) -> None:
        if kept.slot is not None:
            self._release(kept)
        if kept.state is not None:
            self._ram_bytes -= len(kept.state)
        self._kept.remove(kept)

    def _release(self, kept: Kept) -> None:
        assert kept.slot is not None
        self._cells.remove(kept.slot)
        self._free_slots.append(kept.slot)
        kept.slot = None
