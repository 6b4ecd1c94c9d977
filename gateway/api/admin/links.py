"""Links from the library into folders of other applications, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.api.admin.library import ONE, Text, told
from gateway.api.admin.routes import Body, Call, Moment, Page, Paging, Route, kept, shown
from gateway.library.drives import How
from gateway.library.links import Links, LinkStatus, Repaired

LINKS = "/admin/v1/library/links"


class LinkQuery(Paging, kw_only=True, frozen=True):
    file_id: Text | None = None


class LinkShown(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the library at another path. `broken`: it is not there; `foreign`: something else is, which is left
    alone."""

    object: str = "library.link"
    id: str
    file_id: str
    path: str
    how: How
    status: LinkStatus
    created_at: Moment
    checked_at: Moment


class NewLink(Body, frozen=True, kw_only=True):
    """A path of the server's machine, in a folder of `library.link_dirs`, where nothing is yet."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    how: How = "link"


class LinkRoutes:
    """`/admin/v1/library/links`."""

    def __init__(self, links: Links | None) -> None:
        self._maybe = links

    @property
    def _links(self) -> Links:
        return kept(self._maybe)

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "POST",
                ONE + "/links",
                "library.write",
                self.create,
                "Have a file of the library at another path",
                body=NewLink,
                answer=LinkShown,
                status=201,
                action="library.link",
            ),
            Route(
                "GET",
                LINKS,
                "library.read",
                self.list,
                "Links to files of the library",
                query=LinkQuery,
                answer=list[LinkShown],
            ),
            Route(
                "POST",
                LINKS + "/repair",
                "library.write",
                self.repair,
                "Look at all links, and make those again that are gone",
                answer=Repaired,
                action="library.repair",
            ),
            Route(
                "DELETE",
                LINKS + "/{id}",
                "library.write",
                self.remove,
                "Take a link back",
                action="library.unlink",
                description="What is not the library's at its path stays there.",
            ),
        )

    async def create(self, call: Call[None, NewLink]) -> LinkShown:
        with told(param="path"):
            link = await self._links.make(call.path["id"], Path(call.body.path), call.body.how)
        call.note(link.id, file=link.file_id, path=link.path, how=link.how)
        return shown(LinkShown, link)

    async def list(self, call: Call[LinkQuery, None]) -> Page[LinkShown]:
        links, more = await self._links.page(call.query.limit, call.query.after, call.query.file_id)
        return Page([shown(LinkShown, link) for link in links], links[-1].id if more else None)

    async def repair(self, call: Call[None, None]) -> Repaired:
        done = await self._links.repair()
        call.note("", **msgspec.structs.asdict(done))
        return done

    async def remove(self, call: Call[None, None]) -> None:
        with told():
            link = await self._links.remove(call.path["id"])
        call.note(link.id, file=link.file_id, path=link.path)
