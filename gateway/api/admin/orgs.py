"""Organisations over HTTP."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.api.admin.routes import Body, Call, Moment, Page, Paging, Route, kept, shown
from gateway.auth.orgs import OrgChange, Orgs
from gateway.auth.records import Directory, Guards, Models, Name, Org, changes, find
from gateway.auth.roles import Resource
from gateway.config_limits import Factor, ScopeLimits

ALL = "/admin/v1/orgs"
ONE = "/admin/v1/orgs/{id}"


class OrgShown(msgspec.Struct, frozen=True, kw_only=True):
    """An organisation. `models` null: all. `guardrails` are names of the configuration. The keys of an archived one are
    refused."""

    object: str = "org"
    id: str
    name: str
    created_at: Moment
    archived_at: Moment | None
    version: int
    limits: ScopeLimits | None
    models: tuple[str, ...] | None
    guardrails: tuple[str, ...]
    price_factor: str | None


class NewOrg(Body, frozen=True, kw_only=True):
    name: Name
    limits: ScopeLimits | None = None
    models: Models | None = None
    guardrails: Guards = ()
    price_factor: Factor | None = None


class OrgRoutes:
    """`/admin/v1/orgs`."""

    def __init__(self, directory: Directory | None) -> None:
        self._maybe = directory

    @property
    def _directory(self) -> Directory:
        return kept(self._maybe)

    @property
    def _orgs(self) -> Orgs:
        return Orgs(self._directory)

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("GET", ALL, "orgs.read", self.list, "The organisations you see", query=Paging, answer=list[OrgShown]),
            Route(
                "POST",
                ALL,
                "orgs.create",
                self.create,
                "Make an organisation",
                body=NewOrg,
                answer=OrgShown,
                status=201,
                action="org.create",
            ),
            Route("GET", ONE, "orgs.read", self.get, "One organisation", answer=OrgShown, about=self.whose),
            Route(
                "PATCH",
                ONE,
                "orgs.write",
                self.change,
                "Change or archive an organisation",
                body=OrgChange,
                answer=OrgShown,
                about=self.whose,
                action="org.change",
                description="All but the name is for administrators of the gateway.",
            ),
        )

    async def whose(self, call: Call[Any, Any]) -> Resource | None:
        org = await find(self._directory.database, "orgs", Org, id=call.path["id"])
        return None if org is None else org.resource

    async def list(self, call: Call[Paging, None]) -> Page[OrgShown]:
        orgs, more = await self._orgs.list(call.principal, call.query.limit, call.query.after)
        return Page([shown(OrgShown, org) for org in orgs], orgs[-1].id if more else None)

    async def create(self, call: Call[None, NewOrg]) -> OrgShown:
        org = await self._orgs.create(call.principal, **msgspec.structs.asdict(call.body))
        call.note(org.id, name=org.name)
        return shown(OrgShown, org)

    async def get(self, call: Call[None, None]) -> OrgShown:
        return shown(OrgShown, await self._orgs.get(call.principal, call.path["id"]))

    async def change(self, call: Call[None, OrgChange]) -> OrgShown:
        org = await self._orgs.change(call.principal, call.path["id"], call.body, call.version)
        call.note(org.id, **changes(call.body))
        return shown(OrgShown, org)
