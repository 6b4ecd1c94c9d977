"""One kept conversation: whose it is, its tokens, and the places its computed state lies in."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from adapters.llama_cpp.arrays import Int32s
from adapters.llama_cpp.images import whole
from adapters.llama_cpp.records import Record
from adapters.types import SessionInfo, Tier

State = npt.NDArray[np.uint8]

# The owner of what every tenant may share. A tenant's name comes from a key or a configuration and holds no NUL.
PUBLIC = "\0public"
NEVER = 1 << 62
# A file is written whole. Below this growth a busy worker leaves it as it is: computing so few tokens again after a
# crash costs less than writing the conversation after each turn.
RENEW_TOKENS_MIN = 256


def common_prefix(left: Int32s, right: Int32s) -> int:
    """Length of the longest common prefix that does not end inside of an image."""
    size = min(len(left), len(right))
    differs = left[:size] != right[:size]
    first = int(differs.argmax()) if size else 0
    return whole(left, first if size and differs[first] else size)


class Checkpoint(msgspec.Struct, frozen=True):
    """What a model that cannot forget a suffix needs to go back to `position`; of use only on top of the whole
    state, which has what such a model can forget."""

    position: int
    state: State


class Blob(msgspec.Struct, frozen=True):
    """All that is needed to bring a conversation back. Never changed, so that forks share it."""

    state: State
    checkpoints: tuple[Checkpoint, ...] = ()

    @property
    def size_bytes(self) -> int:
        return len(self.state) + sum(len(checkpoint.state) for checkpoint in self.checkpoints)


class Owner(msgspec.Struct, frozen=True):
    """Whose conversation it is: only requests of the same tenant and variant of the model (its LoRA set) ever see it.
    `key` is the client's name for it."""

    tenant: str
    key: str | None = None
    variant: str = ""


class Kept:
    """The computed tokens of one idle conversation.

    They lie in up to three places at once: the cells of `slot`, the `blob` in RAM and a file of `disk_bytes`. The file
    may hold an earlier turn, the first `filed_tokens`; `durable` says that it holds this one. `checkpoints` belong to
    the cells.
    """

    __slots__ = (
        "alive",
        "blob",
        "checkpoints",
        "created_us",
        "disk_bytes",
        "durable",
        "fetching_us",
        "filed",
        "filed_tokens",
        "held_until_us",
        "id",
        "owner",
        "pinned",
        "slot",
        "storable",
        "tokens",
        "used_us",
        "writing",
    )

    def __init__(self, owner: Owner, tokens: Int32s, now_us: int, id: str = "") -> None:
        self.owner = owner
        self.tokens = tokens
        self.id = id or f"sess_{secrets.token_hex(12)}"
        self.created_us = self.used_us = now_us
        self.pinned = False
        self.slot: int | None = None
        self.checkpoints: tuple[Checkpoint, ...] = ()
        self.blob: Blob | None = None
        self.disk_bytes = 0
        self.durable = False
        # The positions of the checkpoints in the file.
        self.filed: tuple[int, ...] = ()
        self.filed_tokens = 0
        self.storable = False
        self.writing = False
        # When a read from disk began (0: none runs), and until when what it brought may not be evicted.
        self.fetching_us = 0
        self.held_until_us = 0
        self.alive = True

    @property
    def tier(self) -> Tier:
        if self.slot is not None:
            return "cells"
        return "ram" if self.blob is not None else "disk"

    @property
    def fetched(self) -> bool:
        """Whether what is in RAM was read from disk and not used since."""
        return self.blob is not None and self.held_until_us > 0

    @property
    def elsewhere(self) -> bool:
        """Whether it is in a file or in cells, so that nothing is lost without its blob."""
        return self.durable or self.slot is not None

    def stays(self, now_us: int) -> bool:
        """Whether its blob has to stay where it is for now, or would be missed."""
        return self.writing or self.held_until_us >= now_us or not self.elsewhere

    def loose(self, now_us: int) -> bool:
        """Whether its blob may go when memory is short."""
        return not self.writing and self.held_until_us < now_us and (self.elsewhere or not self.pinned)

    @property
    def movable(self) -> bool:
        """Whether it may be dropped or taken off the disk: nobody pinned it and no file of it is being used."""
        return not (self.pinned or self.writing or self.fetching_us)

    @property
    def held(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that are in memory."""
        return self.checkpoints if self.slot is not None or self.blob is None else self.blob.checkpoints

    @property
    def positions(self) -> tuple[int, ...]:
        """Where short of its end it can be continued by a model that cannot cut it."""
        return self.filed if self.tier == "disk" else tuple(one.position for one in self.held)

    @property
    def renewal_due(self) -> bool:
        """Whether its file misses more than it is worth to wait for a quiet moment with."""
        return not self.filed_tokens or len(self.tokens) - self.filed_tokens >= RENEW_TOKENS_MIN

    def fall_back(self) -> None:
        """Leaves the earlier turn that its file holds."""
        self.tokens, self.blob, self.durable = self.tokens[: self.filed_tokens], None, True

    def owned_by(self, tenant: str, name: str) -> bool:
        """Whether `name` is its key or its id, and it is this tenant's."""
        return self.owner.tenant == tenant and name in (self.owner.key, self.id)

    def record(self, blob: Blob | None = None) -> Record:
        """What to write beside `blob`; without one, sizes are left to whoever copies a file."""
        return Record(
            self.owner.tenant,
            self.owner.variant,
            self.owner.key,
            self.id,
            self.tokens.astype("<i4").tobytes(),
            self.created_us,
            self.used_us,
            self.pinned,
            len(blob.state) if blob else 0,
            tuple((one.position, len(one.state)) for one in blob.checkpoints) if blob else (),
        )

    def info(self, cell_bytes: int) -> SessionInfo:
        sizes = {
            "cells": len(self.tokens) * cell_bytes,
            "ram": self.blob.size_bytes if self.blob else 0,
            "disk": self.disk_bytes,
        }
        return SessionInfo(
            tenant=self.owner.tenant,
            key=self.owner.key,
            id=self.id,
            tokens=len(self.tokens),
            tier=self.tier,
            size_bytes=sizes[self.tier],
            created_us=self.created_us,
            used_us=self.used_us,
            pinned=self.pinned,
            checkpoints=len(self.positions),
        )


def recorded(record: Record, disk_bytes: int) -> Kept:
    """The conversation whose file says `record`."""
    owner = Owner(record.tenant, record.key, record.variant)
    kept = Kept(owner, np.frombuffer(record.tokens, "<i4").astype(np.int32), record.used_us, record.id)
    kept.created_us = record.created_us
    kept.pinned = record.pinned
    kept.disk_bytes = disk_bytes
    kept.durable = kept.storable = True
    kept.filed = tuple(position for position, _ in record.checkpoints)
    kept.filed_tokens = len(kept.tokens)
    return kept


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What kept conversations may occupy; all but the cells, which the scheduler hands out."""

    ram_bytes: int
    disk_bytes: int = 0
    count: int = 1024
    ttl_s: float
    disk_ttl_s: float = 0.0


class Cells(Protocol):
    """What keeping and sharing need of a context.

    `partial_sequences` says whether a part of a sequence can be dropped or shared, `partial_states` whether a restored
    one can be cut anywhere: what lies behind a sliding window is not saved. `copies` counts the saves and restores of
    whole sequences, which take long enough to be rationed; `cell_bytes` is the size of a cell.
    """

    partial_sequences: bool
    partial_states: bool
    copies: int
    cell_bytes: int

    def remove(self, slot: int, start: int = 0) -> bool: ...

    def share(self, source: int, target: int, end: int) -> None: ...

    def cut_min(self, slot: int) -> int:
        """The fewest tokens that this sequence can be cut to; NEVER where it can only be dropped."""
        ...

    def save(self, slot: int) -> State: ...

    def restore(self, slot: int, state: State) -> bool: ...

    def save_partial(self, slot: int) -> State: ...

    def restore_partial(self, slot: int, state: State) -> bool: ...


class Scan(msgspec.Struct, frozen=True):
    """What was found on disk at the start: records with the sizes of their files, and how many were thrown away."""

    found: list[tuple[Record, int]]
    corrupt: int = 0
    mismatched: int = 0


class Disk(Protocol):
    """Files of conversations, by id. Calls return at once; what they do to a file is done in order, by threads, and
    `then` is called from `settle` with what came of it."""

    def open(self, then: Callable[[Scan], None]) -> None: ...

    def save(self, record: Record, blob: Blob, then: Callable[[int], None]) -> None:
        """Replaces the file of that id. Gives its size in bytes, 0 when it could not be written."""
        ...

    def load(self, id: str, then: Callable[[Blob | None], None]) -> None:
        """Gives None when the file is not what was written, or cannot be read."""
        ...

    def copy(self, id: str, record: Record, then: Callable[[int], None]) -> None:
        """Writes the blob of `id` once more with another record; gives the size as `save` does."""
        ...

    def erase(self, id: str, then: Callable[[bool], None]) -> None:
        """Gives whether there is no such file any more, for good."""
        ...

    def sync(self, then: Callable[[], None]) -> None:
        """Calls back when everything asked for before is done."""
        ...

    def settle(self) -> None:
        """Calls what is due, on the caller's thread."""
        ...
