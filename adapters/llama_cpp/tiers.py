"""Where kept conversations lie, and what gives way where room is short.

A kept conversation lies in cells of the context (free to reuse, but each used cell slows every decode), as a blob in
RAM, in a file, or in several of these. Everything here runs on the decode thread: copying a sequence out of the context
or back needs it. All that concerns files is done by `Disk`, whose answers arrive in `settle`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from adapters.llama_cpp.kept import PUBLIC, Blob, Budget, Cells, Disk, Kept, Scan, recorded
from adapters.llama_cpp.matching import first_to_go, room_ahead
from adapters.llama_cpp.messages import SessionCounters
from adapters.llama_cpp.records import Record

KEEP_TOKENS_MIN = 16
# Short one-off prompts are cheaper to compute again than to write down; a client that names its session will be back.
DISK_TOKENS_MIN = 256
# Files being written at a time; their blobs stay in RAM for so long, whatever the budget.
WRITES_MAX = 2
FETCHED_HOLD_US = 10_000_000
EXPIRE_EVERY_US = 1_000_000


class Tiers:
    """The places of all kept conversations of a worker. In each tier, the tenant that holds most gives way first, and
    of its conversations the least recently used; pinned ones stay."""

    def __init__(self, cells: Cells, budget: Budget, now_us: Callable[[], int], disk: Disk | None) -> None:
        self.kept: dict[Kept, None] = {}
        self._cells = cells
        self._budget = budget
        self._now_us = now_us
        self._disk = disk
        self._resident: dict[int, list[Kept]] = {}
        self._unwritten: dict[Kept, None] = {}
        self._writing = self._expired_us = 0
        self._free_slots: list[int] = []
        self._counts: dict[str, int] = {}
        self._changed = False
        if disk is not None:
            disk.open(self._found)

    @property
    def resident_tokens(self) -> int:
        """Cells held by idle conversations; cells shared with a longer one are counted twice."""
        return sum(max(len(kept.tokens) for kept in users) for users in self._resident.values())

    def counters(self) -> SessionCounters:
        return SessionCounters(
            sessions=len(self.kept),
            ram_bytes=self._ram_bytes(),
            disk_bytes=sum(kept.disk_bytes for kept in self.kept),
            **self._counts,
        )

    def news(self) -> SessionCounters | None:
        """The counters, when they have changed since this was last asked."""
        if not self._changed:
            return None
        self._changed = False
        return self.counters()

    def add(self, kept: Kept) -> None:
        """One more, in the places that it says."""
        self.kept[kept] = None
        if kept.slot is not None:
            self._resident.setdefault(kept.slot, []).append(kept)
        self._changed = True
        named = kept.owner.key is not None or kept.pinned
        kept.storable = (
            self._disk is not None
            and kept.owner.tenant != PUBLIC
            and len(kept.tokens) >= (KEEP_TOKENS_MIN if named else DISK_TOKENS_MIN)
        )
        if kept.storable and not kept.durable and not kept.writing:
            self._unwritten[kept] = None
        self._bound_count()

    def spill(self, besides: Iterable[Kept] = (), copying: bool = True) -> bool:
        """Frees the cells of the least recently used resident conversation, copied to RAM before where it is not
        there yet and `copying` is allowed. False when nothing can be freed but the exempt."""
        exempt = set(besides)
        slots = [
            slot
            for slot, users in self._resident.items()
            if not exempt.intersection(users) and (copying or users[0].blob is not None or not self._worth_saving)
        ]
        if not slots:
            return False
        slot = min(slots, key=lambda slot: max(kept.used_us for kept in self._resident[slot]))
        if self._worth_saving:
            self._copy_out(slot)
        for kept in list(self._resident[slot]):
            self._release(kept)
            if kept.blob is None and not kept.durable:
                self.drop(kept)
        self._bound_ram()
        return True

    @property
    def _worth_saving(self) -> bool:
        return self._budget.ram_bytes > 0 or self._disk is not None

    def _copy_out(self, slot: int) -> None:
        users = self._resident[slot]
        if all(kept.blob is not None for kept in users):
            return
        blob = Blob(self._cells.save(slot), users[0].checkpoints)
        for kept in users:
            kept.blob = blob
        self.count("spilled")

    def back_up(self) -> bool:
        """Copies one conversation to be written then, or to leave the context at once later; False when none is due."""
        slots = [kept.slot for kept in self._unwritten if kept.slot is not None and kept.blob is None]
        room = (self._budget.ram_bytes - self._ram_bytes()) / max(1, self._cells.cell_bytes)
        slots += [at for at, (one, *_) in self._resident.items() if one.blob is None and len(one.tokens) < room]
        if not slots or self._writing >= WRITES_MAX:
            return False
        self._copy_out(slots[0])
        self._write(quiet=True)
        return True

    # Disk

    @property
    def unwritten(self) -> bool:
        """Whether the disk still has something to write or to be given."""
        return bool(self._writing or self._unwritten)

    def hurry(self) -> None:
        """What was used last goes to the disk first: there may be no time for all."""
        self._unwritten = dict.fromkeys(sorted(self._unwritten, key=lambda kept: -kept.used_us))
        for slot in [kept.slot for kept in self._unwritten if kept.slot is not None]:
            self._copy_out(slot)

    def settle(self, quiet: bool = False) -> None:
        """Takes in what the disk has done, gives it more to do, and lets go of what was not used for long. While it is
        not `quiet`, files that miss only a little are left as they are."""
        if self._disk is not None:
            self._disk.settle()
            self._write(quiet)
        now_us = self._now_us()
        if now_us - self._expired_us >= EXPIRE_EVERY_US:
            self._expired_us = now_us
            self._expire(now_us)

    def fetch(self, kept: Kept) -> None:
        """Begins to read a conversation into RAM; `match` does not offer it when that takes too long."""
        assert self._disk is not None
        if not kept.fetching_us:
            kept.fetching_us = self._now_us()
            self._disk.load(kept.id, partial(self._fetched, kept))

    def fetch_ahead(self, kept: Kept) -> None:
        """Begins to read what will be wanted later, where that makes nobody wait long and nothing is lost for it."""
        if room_ahead(self.kept, self._budget.ram_bytes, self._now_us()) >= kept.disk_bytes:
            self.fetch(kept)

    def _fetched(self, kept: Kept, blob: Blob | None) -> None:
        kept.fetching_us = 0
        if not kept.alive:
            return
        if blob is None:
            self.count("corrupt")
            if kept.slot is None and kept.blob is None:
                self.drop(kept)
            else:
                self._erase(kept)
        elif kept.slot is None and kept.blob is None:
            kept.blob = blob
            kept.held_until_us = self._now_us() + FETCHED_HOLD_US
            self._bound_ram()

    def _found(self, scan: Scan) -> None:
        self.count("corrupt", scan.corrupt)
        self.count("mismatched", scan.mismatched)
        for record, size_bytes in scan.found:
            self.kept[recorded(record, size_bytes)] = None
        self._bound_disk()
        self._bound_count()

    def _write(self, quiet: bool) -> None:
        """Hands unwritten conversations that are in RAM to the disk, the oldest first."""
        if self._disk is None or not self._unwritten:
            return
        for kept in [kept for kept in self._unwritten if kept.blob is not None and (quiet or kept.renewal_due)]:
            if self._writing < WRITES_MAX:
                self._save(kept)

    def _save(self, kept: Kept) -> None:
        """Hands an unwritten conversation that is in RAM to the disk, unless it is too large for it."""
        assert self._disk is not None and kept.blob is not None
        del self._unwritten[kept]
        if kept.blob.size_bytes > self._budget.disk_bytes:
            kept.storable = False
            return
        kept.filed = tuple(one.position for one in kept.blob.checkpoints)
        record = kept.record(kept.blob)
        self._disk.save(record, kept.blob, self._begin_write(kept, record))

    def copy_file(self, id: str, kept: Kept) -> None:
        """Writes the file of `id` once more, as that of `kept`."""
        assert self._disk is not None
        record = kept.record()
        self._disk.copy(id, record, self._begin_write(kept, record))

    def when_erased(self, then: Callable[[], None]) -> None:
        """Calls back when the files of all that was dropped are gone, or cannot be erased."""
        if self._disk is None:
            then()
        else:
            self._disk.sync(then)

    def _begin_write(self, kept: Kept, record: Record) -> Callable[[int], None]:
        """Gives whom the disk tells what came of it."""
        kept.writing = True
        self._writing += 1
        return partial(self._written, kept, record)

    def _written(self, kept: Kept, record: Record, size_bytes: int) -> None:
        kept.writing = False
        self._writing -= 1
        self.count("written" if size_bytes else "write_failed")
        if kept.alive and size_bytes:
            kept.durable, kept.disk_bytes, kept.filed_tokens = True, size_bytes, len(kept.tokens)
            if kept.pinned != record.pinned:
                self.copy_file(kept.id, kept)
        elif kept.alive:
            kept.storable = False
            if kept.slot is None and kept.blob is None:
                self.drop(kept)
        self._bound_disk()
        self._bound_ram()

    # Making room

    def _expire(self, now_us: int) -> None:
        """Memory goes first; a file lasts longer."""
        memory_us = now_us - int(self._budget.ttl_s * 1e6)
        disk_us = now_us - int(self._budget.disk_ttl_s * 1e6)
        for kept in [kept for kept in self.kept if kept.used_us < memory_us and kept.movable]:
            if not kept.durable or kept.used_us < disk_us:
                self.count("expired")
                self.drop(kept)
            elif kept.slot is not None or kept.blob is not None:
                self._forget_memory(kept)

    def _bound_ram(self) -> None:
        now_us = self._now_us()
        while self._ram_bytes() > self._budget.ram_bytes:
            loose = [kept for kept in self.kept if kept.blob is not None and kept.loose(now_us)]
            if not loose:
                return
            spared = [kept for kept in loose if kept.filed_tokens or kept.slot is not None]
            kept = first_to_go(self.kept, spared or loose, lambda one: one.blob.size_bytes if one.blob else 0)
            if kept.elsewhere:
                kept.blob = None
            elif kept in self._unwritten and self._writing < WRITES_MAX:
                self._save(kept)
            elif kept.filed_tokens:
                kept.fall_back()
                self._unwritten.pop(kept, None)
            else:
                self.count("evicted")
                self.drop(kept)

    def _bound_disk(self) -> None:
        while sum(kept.disk_bytes for kept in self.kept) > self._budget.disk_bytes:
            loose = [kept for kept in self.kept if kept.disk_bytes and kept.movable]
            if not loose:
                return
            kept = first_to_go(self.kept, loose, lambda one: one.disk_bytes)
            kept.storable = False
            if kept.slot is None and kept.blob is None:
                self.count("evicted")
                self.drop(kept)
            else:
                self._erase(kept)

    def _bound_count(self) -> None:
        while len(self.kept) > self._budget.count:
            loose = [kept for kept in self.kept if kept.movable]
            if not loose:
                return
            self.count("evicted")
            self.drop(first_to_go(self.kept, loose, lambda one: 1))

    def _ram_bytes(self) -> int:
        return sum({id(kept.blob): kept.blob.size_bytes for kept in self.kept if kept.blob is not None}.values())

    def vacate(self, slot: int) -> None:
        """Drops the cells of a slot that no conversation has."""
        self._cells.remove(slot)
        self._free_slots.append(slot)

    def freed(self) -> list[int]:
        """Slots that became free since the last call; they are the caller's again."""
        slots, self._free_slots = self._free_slots, []
        return slots

    def drop(self, kept: Kept, then: Callable[[bool], None] = lambda gone: None) -> None:
        """Forgets a conversation in all tiers; `then` hears whether its file is gone."""
        self._forget_memory(kept)
        self._erase(kept, then)
        self._unwritten.pop(kept, None)
        self.kept.pop(kept, None)
        kept.alive = False
        self._changed = True

    def _erase(self, kept: Kept, then: Callable[[bool], None] = lambda gone: None) -> None:
        if self._disk is not None and (kept.disk_bytes or (kept.writing and kept.storable)):
            self._disk.erase(kept.id, then)
        else:
            then(True)
        kept.disk_bytes, kept.durable, kept.filed_tokens = 0, False, 0

    def _forget_memory(self, kept: Kept) -> None:
        kept.blob = None
        if kept.slot is not None:
            self._release(kept)

    def _release(self, kept: Kept) -> None:
        """Gives up its cells; the slot is free when no fork has them either."""
        assert kept.slot is not None
        slot, kept.slot, kept.checkpoints = kept.slot, None, ()
        users = self._resident[slot]
        users.remove(kept)
        if not users:
            del self._resident[slot]
            self.vacate(slot)

    def count(self, what: str, times: int = 1) -> None:
        self._counts[what] = self._counts.get(what, 0) + times
        self._changed = True
