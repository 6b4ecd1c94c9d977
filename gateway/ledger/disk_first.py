"""Entries are durable on the local disk, and the database follows.

For a gateway that is alone with a SQLite file: the outbox lies on the same disk and needs one sync where a commit needs
several, and large groups cost the database a fraction of small ones.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from gateway.ledger import Entry
from gateway.ledger.writer import Commit, bring_in, records
from gateway.limits.orphans import Charge
from gateway.state.appender import Appender
from gateway.state.database import DatabaseUnavailable
from gateway.state.outbox import Outbox, OutboxError

# How long the database waits for more entries, how many it takes at once, and how many are remembered for it before it
# has to read them from the disk. Whoever reads what they change does not wait so long, and large groups cost less.
FOLLOW_S = 1.0
GROUP_MAX = 1000
BEHIND_MAX = 20_000
# A disk that answered this quickly, so many times in a row, is waited for in place: handing the wait to a thread and
# hearing of its end takes about as long. After one answer that took longer it is a thread that waits again.
QUICK_S = 0.001
QUICK_TIMES = 32

log = logging.getLogger(__name__)


class DiskFirst:
    """Keeps entries in the outbox."""

    def __init__(
        self, commit: Commit, outbox: Outbox, retry_s: float, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.returned: Callable[[Sequence[Charge]], None] = lambda charges: None
        self._commit = commit
        self._outbox = outbox
        self._retry_s = retry_s
        self._clock = clock
        self._turn = asyncio.Lock()
        self._appender = Appender(self._append)
        self._quick_times = 0
        # What the database does not have, unless it is to read that from the disk; and of each segment in which some of
        # it may be, how many entries had been kept with its last one.
        self._behind: list[Entry] = []
        self._behind_bytes = 0
        self._segments: dict[int, int] = {}
        self._from_disk = False
        self._kept = self._followed = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._more, self._hurry = asyncio.Event(), asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._closing = False

    async def start(self) -> None:
        if self._outbox.size_bytes:
            await bring_in(self._outbox, self._turn, self._commit, lambda entries: None)
        self._following = asyncio.create_task(self._follow())

    @property
    def waiting_bytes(self) -> int:
        return self._outbox.size_bytes if self._from_disk else self._behind_bytes

    async def keep(self, entries: Sequence[Entry]) -> None:
        data = records(entries)
        async with self._turn:
            appended = self._append(data) if self._is_quick else await self._appender.append(data)
            self._note(entries, data, *appended)

    def keep_at_once(self, entries: Sequence[Entry]) -> bool:
        if not self._is_quick or self._turn.locked():
            return False
        data = records(entries)
        try:
            self._note(entries, data, *self._append(data))
        except OutboxError:
            return False  # `keep` tries once more, and tells why when it cannot either.
        return True

    @property
    def _is_quick(self) -> bool:
        return self._quick_times >= QUICK_TIMES

    def _note(self, entries: Sequence[Entry], data: Sequence[bytes], segment: int, took_s: float) -> None:
        """Entries are durable, in a segment and after so long."""
        self._quick_times = self._quick_times + 1 if took_s < QUICK_S else 0
        self._kept += len(entries)
        if not self._from_disk:
            self._behind += entries
            self._behind_bytes += sum(map(len, data))
            self._segments[segment] = self._kept
        if len(self._behind) > BEHIND_MAX:
            self._leave_to_disk()
        self._more.set()
        if len(self._behind) >= GROUP_MAX:
            self._hurry.set()

    def _append(self, records: Sequence[bytes]) -> tuple[int, float]:
        """The segment they are in now, and how long that took."""
        began_s = self._clock()
        return self._outbox.append(records), self._clock() - began_s

    async def caught_up(self) -> None:
        if self._kept > self._followed and self._following is not None and not self._following.done():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((self._kept, waiter))
            self._hurry.set()
            await waiter

    async def close(self) -> None:
        """What the database does not take stays in the outbox."""
        self._closing = True
        self._more.set()
        self._hurry.set()
        if self._following is not None:
            await self._following
        if self._kept == self._followed:
            with suppress(OutboxError):
                self._outbox.clear()
        self._appender.close()
        self._outbox.close()

    async def _follow(self) -> None:
        # Beside whoever starts: what comes first is to find a segment as quick as all later ones.
        await asyncio.to_thread(self._outbox.prepare)
        while self._kept > self._followed or not self._closing:
            if self._kept == self._followed:
                self._more.clear()
                await self._more.wait()
                continue
            # What came while the group before was committed is no reason to hurry.
            self._hurry.clear()
            if not (self._closing or self._waiting or len(self._behind) >= GROUP_MAX):
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), FOLLOW_S)
            try:
                await (self._read() if self._from_disk else self._take())
            except Exception as error:
                # Neither may a bug of ours end this: the outbox would be full for ever.
                if isinstance(error, (DatabaseUnavailable, OutboxError)):
                    log.error("the database does not follow the ledger in the outbox: %s", error)
                else:
                    log.exception("the database refused entries of the ledger")
                self._tell(self._kept)
                if self._closing:
                    return
                await asyncio.sleep(self._retry_s)
                continue
            self._tell(self._followed)
            if self._outbox.wants_spare:
                await asyncio.to_thread(self._outbox.prepare)

    async def _take(self) -> None:
        """Commit the next entries, and forget the segments that hold no later ones."""
        group = self._behind[:GROUP_MAX]
        await self._commit(group)
        if self._from_disk:
            return
        # Entries are of about the same size.
        self._behind_bytes -= self._behind_bytes * len(group) // len(self._behind)
        del self._behind[: len(group)]
        self._followed += len(group)
        earlier = list(self._segments.items())[:-1]  # The last one is still added to.
        over = [number for number, kept in earlier if kept <= self._followed]
        for number in over:
            del self._segments[number]
        if over:
            async with self._turn:
                await asyncio.to_thread(self._outbox.remove_before, over[-1] + 1)

    async def _read(self) -> None:
        """Commit what is on the disk; from its beginning on entries are remembered again."""

        kept = -1

        def began() -> None:
            nonlocal kept
            if kept < 0:
                kept, self._from_disk = self._kept, False

        try:
            await bring_in(self._outbox, self._turn, self._commit, lambda entries: None, began)
        except BaseException:
            self._leave_to_disk()
            raise
        self._followed = kept

    def _leave_to_disk(self) -> None:
        self._from_disk = True
        self._behind.clear()
        self._segments.clear()
        self._behind_bytes = 0

    def _tell(self, reached: int) -> None:
        """Wake those who wait for no more than this."""
        ready = [waiter for target, waiter in self._waiting if target <= reached]
        self._waiting = [one for one in self._waiting if one[0] > reached]
        for waiter in ready:
            if not waiter.done():
                waiter.set_result(None)
