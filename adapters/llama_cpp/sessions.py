"""Conversations kept after their last answer, so that the next turn does not compute its history again.

A kept conversation belongs to a tenant and to a variant of the model (its LoRA set), and is never matched for another
one; only what the reserved owner PUBLIC has is there for all tenants. Everything here runs on the decode thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from adapters.llama_cpp.arrays import Int32s
from adapters.llama_cpp.images import position
from adapters.llama_cpp.kept import NEVER, PUBLIC, Budget, Cells, Checkpoint, Disk, Kept, Owner, common_prefix
from adapters.llama_cpp.matching import continues, longest, meant
from adapters.llama_cpp.tiers import KEEP_TOKENS_MIN, Tiers
from adapters.types import SessionAction, SessionInfo

FETCH_WAIT_US = 5_000_000
PINNED_SHARE = 2


class Changed(msgspec.Struct, frozen=True):
    """What became of a change: the conversation (None: there is none), and whether files that had to go are gone."""

    info: SessionInfo | None
    erased: bool = True


class Sessions:
    """All kept conversations of a worker: found, continued, replaced by what continues them, and changed by their
    owners. Where they lie is the business of `tiers`."""

    def __init__(self, cells: Cells, budget: Budget, now_us: Callable[[], int], disk: Disk | None = None) -> None:
        self.tiers = Tiers(cells, budget, now_us, disk)
        self._cells = cells
        self._budget = budget
        self._now_us = now_us

    # Matching

    def match(self, owner: Owner, tokens: Int32s) -> tuple[Kept | None, int]:
        """The conversation with the longest usable prefix of `tokens`, and its length."""
        late_us = self._now_us() - FETCH_WAIT_US
        offered = (kept for kept in self.tiers.kept if not 0 < kept.fetching_us < late_us)
        best, size = longest(offered, owner, tokens, self._cut_min)
        if best is not None:
            best.used_us = self._now_us()
        return best, size

    def candidate(self, owner: Owner, tokens: Int32s) -> Kept | None:
        """The tenant's own conversation that a prompt was probably meant to continue."""
        return meant(self.tiers.kept, owner, tokens)

    def _cut_min(self, kept: Kept) -> int:
        if kept.slot is not None:
            return self._cells.cut_min(kept.slot)
        return 0 if self._cells.partial_states else NEVER

    def load(self, kept: Kept, slot: int, size: int) -> int:
        """Puts the first `size` tokens of a conversation into an empty sequence; returns how many are really there."""
        cut_min, held = self._cut_min(kept), kept.held
        if kept.slot is not None:
            self._cells.share(kept.slot, slot, position(kept.tokens, size))
        elif kept.blob is not None:
            kept.held_until_us = 0
            if not self._cells.restore(slot, kept.blob.state):
                self.tiers.count("corrupt")
                self.tiers.drop(kept)
                return 0
            self.tiers.count("restored")
        else:
            # It was dropped between the match and now, to make room.
            return 0
        if size < len(kept.tokens):
            back = size >= cut_min or self._go_back(slot, size, held)
            if not back or not self._cells.remove(slot, position(kept.tokens, size)):
                self._cells.remove(slot)
                return 0
        return size

    def _go_back(self, slot: int, size: int, checkpoints: Iterable[Checkpoint]) -> bool:
        """Makes it possible to cut a sequence to `size` tokens."""
        state = next((one.state for one in checkpoints if one.position == size), None)
        return state is not None and self._cells.restore_partial(slot, state)

    def hit(self, tier: str | None) -> None:
        """Counts a request by where what it continued lay; None: it found nothing."""
        self.tiers.count(f"hits_{tier}" if tier else "misses")

    # Keeping

    def keep(self, owner: Owner, tokens: Int32s, slot: int, checkpoints: tuple[Checkpoint, ...] = ()) -> None:
        """Takes over `slot` with its computed `tokens`; replaces the conversations that it continues."""
        if len(tokens) < KEEP_TOKENS_MIN:
            self.tiers.vacate(slot)
            return
        kept = Kept(owner, tokens.copy(), self._now_us())
        tail_max = KEEP_TOKENS_MIN if self._cells.partial_states else 0
        replaced = [old for old in self.tiers.kept if continues(kept, old, tail_max)]
        if replaced:
            self._inherit(kept, max(replaced, key=lambda old: (old.owner.key is not None, len(old.tokens))))
        kept.pinned |= owner.tenant == PUBLIC
        kept.slot, kept.checkpoints = slot, checkpoints
        for old in replaced:
            self.tiers.drop(old)
        self.tiers.add(kept)

    def _inherit(self, kept: Kept, old: Kept) -> None:
        """A turn is the conversation it continues: same id, and so the same file, which it will replace."""
        kept.id, kept.created_us, kept.pinned = old.id, old.created_us, old.pinned
        kept.disk_bytes, old.disk_bytes = old.disk_bytes, 0
        if old.writing:
            # Its file is about to appear under the id that is ours now, so that nothing can be said of what that holds.
            old.storable = False
            kept.disk_bytes = max(kept.disk_bytes, 1)
        elif common_prefix(kept.tokens, old.tokens) >= old.filed_tokens:
            kept.filed, kept.filed_tokens = old.filed, old.filed_tokens

    # What their owners and the operator do to them

    def listed(self, tenant: str | None) -> list[SessionInfo]:
        """Those of a tenant, or of all, the most recently used first."""
        found = [kept for kept in self.tiers.kept if tenant is None or kept.owner.tenant == tenant]
        return [kept.info(self._cells.cell_bytes) for kept in sorted(found, key=lambda kept: -kept.used_us)]

    def change(
        self, tenant: str, name: str, action: SessionAction, new_key: str | None, then: Callable[[Changed], None]
    ) -> None:
        """Does something to all conversations of that key or id; a fork is of the latest. `then` hears of it when it
        is done, which for an erasure is when the files are gone."""
        found = sorted((kept for kept in self.tiers.kept if kept.owned_by(tenant, name)), key=lambda kept: kept.used_us)
        if not found:
            then(Changed(None))
            return
        latest = found[-1]
        if action in ("delete", "reset"):
            info = msgspec.structs.replace(latest.info(self._cells.cell_bytes), tokens=0, size_bytes=0, checkpoints=0)
            gone: list[bool] = []
            for kept in found:
                self.tiers.drop(kept, gone.append)
            self.tiers.when_erased(lambda: then(Changed(info, all(gone))))
            return
        if action == "fork":
            latest = self._fork(latest, new_key)
        else:
            for kept in found:
                self._pin(kept, action == "pin")
        then(Changed(latest.info(self._cells.cell_bytes)))

    def _fork(self, source: Kept, new_key: str | None) -> Kept:
        """Another conversation over the same cells, blob or file: nothing is copied but what must be on disk."""
        kept = Kept(source.owner, source.tokens, self._now_us())
        kept.owner = msgspec.structs.replace(source.owner, key=new_key or kept.id)
        kept.slot, kept.checkpoints, kept.blob = source.slot, source.checkpoints, source.blob
        if kept.slot is None and kept.blob is None:
            kept.disk_bytes, kept.durable, kept.filed = source.disk_bytes, True, source.filed
            kept.filed_tokens = source.filed_tokens
            self.tiers.copy_file(source.id, kept)
        self.tiers.add(kept)
        return kept

    def _pin(self, kept: Kept, pinned: bool) -> None:
        """Pins, as far as pinned conversations leave the others half of the room."""
        others = [one for one in self.tiers.kept if one.pinned and one is not kept]
        rooms = [(len(others) + 1, self._budget.count)]
        if kept.durable:
            rooms.append((sum(one.disk_bytes for one in others) + kept.disk_bytes, self._budget.disk_bytes))
        else:
            tokens = sum(len(one.tokens) for one in others) + len(kept.tokens)
            rooms.append((tokens * self._cells.cell_bytes, self._budget.ram_bytes))
        pinned = pinned and all(wanted * PINNED_SHARE <= room for wanted, room in rooms)
        if kept.pinned == pinned:
            return
        kept.pinned = pinned
        if kept.durable and not kept.writing:
            self.tiers.copy_file(kept.id, kept)
