"""What a hub offers, what this machine has for it, and where a file of the library came from, over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.api.admin.library import ONE, FileShown, Text, file_shown, told
from gateway.api.admin.routes import Body, Call, Page, Query, Route, kept
from gateway.library.finding import Finding, Match, Offers
from gateway.library.machine import Machine, machine
from gateway.library.names import Found

HUB = "/admin/v1/library/hub"
HARDWARE = "/admin/v1/library/hardware"


class HubQuery(Query, kw_only=True, frozen=True):
    q: Text
    limit: Annotated[int, Meta(ge=1, le=100)] = 20


class OfferQuery(Query, kw_only=True, frozen=True):
    """`revision` is a branch, a tag or a commit."""

    revision: Text = "main"


class LookUp(Body, frozen=True, kw_only=True):
    """`repo`: look there, instead of where the file's name leads."""

    repo: Text | None = None


class LookedUp(msgspec.Struct, frozen=True, kw_only=True):
    """The file, which remembers a place that was verified, and all places, those first."""

    object: str = "library.lookup"
    file: FileShown
    matches: list[Match]


class HubRoutes:
    """`/admin/v1/library/hub` and `/admin/v1/library/hardware`; `folders` are those that models lie in."""

    def __init__(self, finding: Finding | None, folders: Sequence[Path] = ()) -> None:
        self._maybe = finding
        self._folders = folders

    @property
    def _finding(self) -> Finding:
        return kept(self._maybe)

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET",
                HUB,
                "library.read",
                self.search,
                "Repositories of the hub with GGUF files, the most downloaded first",
                query=HubQuery,
                answer=list[Found],
            ),
            Route(
                "GET",
                HUB + "/{owner}/{repo}",
                "library.read",
                self.offers,
                "The quantisations of a repository, with what fits this machine",
                query=OfferQuery,
                answer=Offers,
                description="From the header of one file, of which nothing else is fetched. Kept for a day.",
            ),
            Route(
                "GET",
                HARDWARE,
                "library.read",
                self.hardware,
                "This machine: processor, memory, drives, devices, and what would run well",
                answer=Machine,
                description="Asked of a process of its own; takes about a second.",
            ),
            Route(
                "POST",
                ONE + "/lookup",
                "library.write",
                self.look_up,
                "Find a file of the library on the hub, by its name and its digest",
                body=LookUp,
                answer=LookedUp,
                action="library.lookup",
            ),
        )

    async def search(self, call: Call[HubQuery, None]) -> Page[Found]:
        with told(param="q"):
            return Page(await self._finding.search(call.query.q, call.query.limit))

    async def offers(self, call: Call[OfferQuery, None]) -> Offers:
        revision = call.query.revision
        with told():
            name = f"{call.path['owner']}/{call.path['repo']}"
            return await self._finding.offers(name if revision == "main" else f"{name}@{revision}")

    async def hardware(self, call: Call[None, None]) -> Machine:
        return await machine(self._folders)

    async def look_up(self, call: Call[None, LookUp]) -> LookedUp:
        with told(param="repo"):
            file, matches = await self._finding.look_up(call.path["id"], call.body.repo)
        call.note(file.id, verified=any(match.verified for match in matches))
        return LookedUp(file=file_shown(file), matches=matches)
