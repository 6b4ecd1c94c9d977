"""Entries that the database refuses for what is in them: they lie in an outbox of their own and keep nobody waiting.

Each start tries them again: the next version may know what to do with them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from gateway.ledger import Entry
from gateway.state.database import DatabaseUnavailable
from gateway.state.outbox import Outbox, Segment

BYTES_MAX = 64 << 20
SEGMENT_BYTES_MAX = 256 * 1024

log = logging.getLogger(__name__)
_decoder = msgspec.json.Decoder(Entry)


def refused_in(folder: Path) -> Path:
    """Where those of an outbox lie."""
    return folder / "refused"


class Refused:
    """The way of entries into the database: `write` writes some, of which any may be there already. How many were
    refused is the `count`."""

    def __init__(self, write: Callable[[Sequence[Entry]], Awaitable[None]], folder: Path) -> None:
        self._write = write
        self._folder = refused_in(folder)
        # Opened when there is something for it or in it.
        self._outbox: Outbox | None = None
        self.count = 0

    async def start(self) -> None:
        """Try those of earlier processes again. Raises DatabaseUnavailable and OutboxError."""
        for segment in await asyncio.to_thread(self._left):
            entries = [_decoder.decode(record) for record in segment.records]
            left = [one for one in entries if await self._refusal(one) is not None]
            if left:
                await self._keep(left)
            await asyncio.to_thread(self._opened().remove, segment)
            log.warning(
                "of %d entries that the database refused it takes %d now", len(entries), len(entries) - len(left)
            )

    async def commit(self, entries: Sequence[Entry]) -> None:
        """Write entries. One counts as refused only where another one is taken: else it may be anything that is wrong,
        and all of them wait. Raises what the database does, and OutboxError."""
        try:
            await self._write(entries)
        except DatabaseUnavailable:
            raise
        except Exception:
            reasons = {one.id: reason for one in entries if (reason := await self._refusal(one)) is not None}
            if len(reasons) == len(entries):
                raise
            await self._keep([one for one in entries if one.id in reasons])
            for identity, reason in reasons.items():
                log.error("the database refuses the ledger's entry %s: %s", identity, reason)

    async def _refusal(self, entry: Entry) -> Exception | None:
        """Why the database does not take an entry; None: it does."""
        try:
            await self._write([entry])
        except DatabaseUnavailable:
            raise
        except Exception as error:
            return error
        return None

    async def _keep(self, entries: Sequence[Entry]) -> None:
        records = [msgspec.json.encode(one) for one in entries]
        await asyncio.to_thread(lambda: self._opened().append(records))
        self.count += len(entries)

    def _left(self) -> list[Segment]:
        return list(self._opened().segments()) if self._folder.exists() else []

    def _opened(self) -> Outbox:
        if self._outbox is None:
            self._outbox = Outbox(self._folder, bytes_max=BYTES_MAX, segment_bytes_max=SEGMENT_BYTES_MAX)
        return self._outbox

    def close(self) -> None:
        if self._outbox is not None:
            self._outbox.close()
