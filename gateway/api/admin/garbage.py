"""Removing what nobody needs any more from the library and the hub's cache."""

from __future__ import annotations

import msgspec

from gateway.api.admin.routes import Body, Call, Route, kept
from gateway.library.garbage import Collector, Garbage

SHOWN_MAX = 1000


class Collect(Body, frozen=True, kw_only=True):
    """`dry_run`: only say what would go. `everything`: also what other tools left in the hub's cache."""

    dry_run: bool = False
    everything: bool = False


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """How many things went, or would; the first thousand of them."""

    object: str = "library.collected"
    dry_run: bool
    count: int
    size_bytes: int
    items: tuple[Garbage, ...]


class GarbageRoutes:
    """`/admin/v1/library/collect`."""

    def __init__(self, collector: Collector | None) -> None:
        self._collector = collector

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "POST",
                "/admin/v1/library/collect",
                "library.write",
                self.collect,
                "Remove what nobody needs any more, or say what would go",
                body=Collect,
                answer=Collected,
                action="library.collect",
                description="Parts of files that nobody goes on with, content without a name, old quarantine, what "
                "killed processes left, conversations of models that are gone; nothing that is younger than a day.",
            ),
        )

    async def collect(self, call: Call[None, Collect]) -> Collected:
        asked = call.body
        found = await kept(self._collector).collect(dry_run=asked.dry_run, everything=asked.everything)
        size_bytes = sum(one.size_bytes for one in found)
        call.note("", dry_run=asked.dry_run, count=len(found), bytes=size_bytes)
        return Collected(dry_run=asked.dry_run, count=len(found), size_bytes=size_bytes, items=tuple(found[:SHOWN_MAX]))
