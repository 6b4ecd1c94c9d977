"""One writer for the ledger: entries wait for it in memory, and whoever added one can wait until it is durable."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import msgspec
from msgspec.structs import replace

from gateway.ledger import Durable, Entry
from gateway.limits.orphans import Charge
from gateway.state.database import DatabaseUnavailable
from gateway.state.journal import Journal
from gateway.state.outbox import Outbox, OutboxError

GROUP_MAX = 400
# Entries that are one record of the outbox, so that its size stays far below what one may have.
TOGETHER_MAX = 100
# How long after a group has begun the next one begins at the earliest: so long for each entry in it, up to a bound. Up
# to a thousand entries a second none of them waits, and with more of them a sync costs each a small part of it.
APART_S = 0.0005
APART_S_MAX = 0.003
# Timers are no finer: whoever waits for less would wait for this, and find a larger group for it.
TICK_S = 0.001
PENDING_MAX = 20_000
RETRY_S = 0.5
# How long a finished answer waits for an entry that cannot be written.
PATIENCE_S = 30.0

# Writes entries to the database, of which some may be there already.
Commit = Callable[[Sequence[Entry]], Awaitable[None]]

log = logging.getLogger(__name__)
_decoder = msgspec.json.Decoder(Entry | list[Entry])


class Keeper(Protocol):
    """Makes entries durable: `keep` raises DatabaseUnavailable or OutboxError when it cannot."""

    # Told what the database got later than the shared counters may expect.
    returned: Callable[[Sequence[Charge]], None]

    @property
    def waiting_bytes(self) -> int:
        """What is durable and not in the database."""
        ...

    async def start(self) -> None: ...

    async def keep(self, entries: Sequence[Entry]) -> None: ...

    def keep_at_once(self, entries: Sequence[Entry]) -> bool:
        """The same in this call, if that takes no longer than to wait for it; False: nothing was done."""
        ...

    async def caught_up(self) -> None:
        """Wait until the database has what was kept before, or is away."""
        ...

    async def close(self) -> None: ...


class Writer:
    """What cannot be kept waits, and whoever waits for it; `full` then says that no more requests should be let in."""

    def __init__(
        self,
        keeper: Keeper,
        commit: Commit,
        journal: Journal | None,
        retry_s: float,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._keeper = keeper
        self._clock = clock
        self._commit = commit
        self._journal = journal
        self._retry_s = retry_s
        self._stuck = False
        self._stuck_since_s = 0.0
        self._pending: deque[tuple[Entry, Durable]] = deque()
        self._more = asyncio.Event()
        # When the next group may begin.
        self._next_s = 0.0
        self._writing: asyncio.Task[None] | None = None
        self._closing = False

    async def start(self) -> None:
        """Bring in what an earlier process left behind, then begin to write what is added."""
        await self._keeper.start()
        if self._journal is not None:
            await self._expire(self._journal)
        self._writing = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Write what is still in memory."""
        self._closing = True
        self._more.set()
        if self._writing is not None:
            await self._writing
        await self._keeper.close()
        if self._journal is not None:
            self._journal.close()

    async def _expire(self, journal: Journal) -> None:
        """Write an entry for each request that died with the process before: it cost nothing.

        That process is gone, and what it could still bring in is here already, so nobody will settle them later. Those
        that were settled before it died have their entry, and keep it.
        """
        lost = [msgspec.json.decode(record, type=Entry) for record in journal.left.values()]
        for start in range(0, len(lost), GROUP_MAX):
            await self._commit([replace(one, status="expired", outcome="lost") for one in lost[start:][:GROUP_MAX]])
        if lost:
            log.warning("%d requests had no end when the gateway before this one did", len(lost))
        journal.clear()

    def begin(self, entry: Entry) -> None:
        """A request is under way, and will be added under the same id; a plain call."""
        if self._journal is not None:
            self._journal.begin(entry.id, entry)

    def show(self, id: str) -> None:
        """Something of a request that is under way is about to be seen."""
        if self._journal is not None:
            self._journal.show(id)

    def add(self, entry: Entry) -> Durable:
        """Record an entry; a plain call. One that comes alone may be durable at its end."""
        durable = Durable()
        alone = not self._pending and self._clock() >= self._next_s and not self._closing
        if alone and self._keeper.keep_at_once((entry,)):
            self._next_s = self._clock() + APART_S
            self._reach([(entry, durable)])
        else:
            self._pending.append((entry, durable))
            self._more.set()
        return durable

    def _reach(self, group: Sequence[tuple[Entry, Durable]]) -> None:
        if self._journal is not None:
            self._journal.end([entry.id for entry, _ in group])
        for _, durable in group:
            durable.reach()

    @property
    def pending(self) -> int:
        """Entries that are not durable yet."""
        return len(self._pending)

    @property
    def full(self) -> bool:
        """Whether nothing can be recorded now, or too much waits for it."""
        return self._stuck or len(self._pending) >= PENDING_MAX

    async def _write(self) -> None:
        while self._pending or not self._closing:
            if not self._pending:
                self._more.clear()
                await self._more.wait()
                continue
            if (early_s := self._next_s - self._clock()) >= TICK_S and not self._closing:
                await asyncio.sleep(early_s)
            group = list(islice(self._pending, GROUP_MAX))
            self._next_s = self._clock() + min(len(group) * APART_S, APART_S_MAX)
            try:
                await self._keeper.keep([entry for entry, _ in group])
                if self._stuck:
                    self._stuck = False
                    log.warning("the ledger can be written again")
            except Exception as error:
                # Neither may a bug of ours end the writer: everybody would wait for it for ever.
                if isinstance(error, (DatabaseUnavailable, OutboxError)):
                    self._note_stuck(error)
                else:
                    log.exception("%d entries of the ledger were refused by the database", len(group))
                if self._closing:
                    return
                await asyncio.sleep(self._retry_s)
                continue
            for one in group:
                assert self._pending.popleft() is one
            self._reach(group)

    def _note_stuck(self, error: Exception) -> None:
        now_s = self._clock()
        if not self._stuck:
            log.error("the ledger cannot be written, and no request is let in until it can: %s", error)
            self._stuck, self._stuck_since_s = True, now_s
        elif now_s - self._stuck_since_s >= PATIENCE_S:
            for _, durable in self._pending:
                durable.takes_too_long()


class DatabaseFirst:
    """Keeps entries in the database, and while that is away in the outbox, from where they go there when it is back."""

    def __init__(self, commit: Commit, outbox: Outbox | None, retry_s: float) -> None:
        self.returned: Callable[[Sequence[Charge]], None] = lambda charges: None
        self._commit = commit
        self._outbox = outbox
        self._retry_s = retry_s
        self._turn = asyncio.Lock()
        self._emptying: asyncio.Task[None] | None = None
        self._away = False

    async def start(self) -> None:
        if self._outbox is not None and self._outbox.size_bytes:
            await bring_in(self._outbox, self._turn, self._commit, self._brought)

    @property
    def waiting_bytes(self) -> int:
        return 0 if self._outbox is None else self._outbox.size_bytes

    async def keep(self, entries: Sequence[Entry]) -> None:
        if self._emptying is None or not self._away:
            try:
                await self._commit(entries)
                return
            except DatabaseUnavailable as error:
                if self._outbox is None:
                    raise
                self._away = True
                log.error("the ledger goes to the outbox: %s", error)
        assert self._outbox is not None
        async with self._turn:
            await asyncio.to_thread(self._outbox.append, records(entries))
        if self._emptying is None:
            self._emptying = asyncio.create_task(self._return(self._outbox))

    def keep_at_once(self, entries: Sequence[Entry]) -> bool:
        return False

    async def caught_up(self) -> None:
        """Nothing waits but what the database is away for."""

    async def close(self) -> None:
        """What the database does not take stays in the outbox."""
        if self._emptying is not None:
            self._emptying.cancel()
            await asyncio.wait([self._emptying])
        if self._outbox is not None:
            self._outbox.close()

    async def _return(self, outbox: Outbox) -> None:
        """Wait for the database to come back and bring it what it missed. As soon as it takes some of that, new entries
        go there directly: under load there would be no end to it otherwise."""
        while True:
            await asyncio.sleep(self._retry_s)
            try:
                await bring_in(outbox, self._turn, self._commit, self._brought)
            except (DatabaseUnavailable, OutboxError) as error:
                log.info("the ledger stays in the outbox: %s", error)
                continue
            except Exception:
                # As in `_write`: a bug of ours must not leave the outbox full for ever.
                log.exception("the outbox was refused by the database")
                continue
            if not self.waiting_bytes:
                self._emptying = None
                log.warning("the ledger is in the database again")
                return

    def _brought(self, entries: Sequence[Entry]) -> None:
        self._away = False
        self.returned([Charge(entry.id, entry.accounts, entry.charged_nano) for entry in entries])


def records(entries: Sequence[Entry]) -> list[bytes]:
    """Entries as the outbox keeps them."""
    return [msgspec.json.encode(entries[start:][:TOGETHER_MAX]) for start in range(0, len(entries), TOGETHER_MAX)]


def _entries(records: Iterable[bytes]) -> Iterator[Entry]:
    """The entries of such records, and of earlier ones, which are an entry each."""
    for record in records:
        found = _decoder.decode(record)
        yield from (found,) if isinstance(found, Entry) else found


async def bring_in(
    outbox: Outbox,
    turn: asyncio.Lock,
    commit: Commit,
    brought: Callable[[Sequence[Entry]], None],
    began: Callable[[], None] = lambda: None,
) -> None:
    """Commit what is in the outbox and take it out of there. `began` is called when what is in it has been determined,
    before anything is added."""
    segments = outbox.segments()
    while True:
        async with turn:
            segment = await asyncio.to_thread(next, segments, None)
            began()
        if segment is None:
            return
        entries = list(_entries(segment.records))
        for start in range(0, len(entries), GROUP_MAX):
            some = entries[start : start + GROUP_MAX]
            await commit(some)
            brought(some)
        async with turn:
            await asyncio.to_thread(outbox.remove, segment)
