"""Teams and their members over HTTP."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from gateway.api.admin.routes import Body, Call, Moment, Page, Paging, Route, kept, shown
from gateway.auth import Role
from gateway.auth.records import Directory, Guards, Models, Name, Team, changes, find
from gateway.auth.roles import Resource
from gateway.auth.teams import MemberChange, TeamChange, Teams
from gateway.config_limits import Factor, ScopeLimits

ALL = "/admin/v1/teams"
ONE = "/admin/v1/teams/{id}"
MEMBERS = "/admin/v1/teams/{id}/members"
MEMBER = "/admin/v1/teams/{id}/members/{user_id}"


class TeamShown(msgspec.Struct, frozen=True, kw_only=True):
    """A team. `models` null: all that its organisation has. `guardrails` come on top of those of its organisation. The
    keys of an archived one are refused."""

    object: str = "team"
    id: str
    org_id: str
    name: str
    created_at: Moment
    archived_at: Moment | None
    version: int
    limits: ScopeLimits | None
    models: tuple[str, ...] | None
    guardrails: tuple[str, ...]
    price_factor: str | None


class MemberShown(msgspec.Struct, frozen=True, kw_only=True):
    """A person's place in a team. The limits hold for what the person does with keys of the team."""

    object: str = "team.member"
    team_id: str
    user_id: str
    role: Role
    created_at: Moment
    version: int
    limits: ScopeLimits | None


class TeamQuery(Paging, kw_only=True, frozen=True):
    org_id: str | None = None


class NewTeam(Body, frozen=True, kw_only=True):
    """`org_id` null: your own organisation."""

    org_id: str | None = None
    name: Name
    limits: ScopeLimits | None = None
    models: Models | None = None
    guardrails: Guards = ()
    price_factor: Factor | None = None


class NewMember(Body, frozen=True, kw_only=True):
    user_id: str
    role: Role = "member"
    limits: ScopeLimits | None = None


class TeamRoutes:
    """`/admin/v1/teams`."""

    def __init__(self, directory: Directory | None) -> None:
        self._maybe = directory

    @property
    def _directory(self) -> Directory:
        return kept(self._maybe)

    @property
    def _teams(self) -> Teams:
        return Teams(self._directory)

    def routes(self) -> tuple[Route, ...]:
        return (*self._team_routes(), *self._member_routes())

    def _team_routes(self) -> tuple[Route, ...]:
        one = partial(Route, answer=TeamShown, about=self.whose)
        return (
            Route("GET", ALL, "teams.read", self.list, "The teams you see", query=TeamQuery, answer=list[TeamShown]),
            Route(
                "POST",
                ALL,
                "teams.create",
                self.create,
                "Make a team",
                body=NewTeam,
                answer=TeamShown,
                status=201,
                action="team.create",
            ),
            one("GET", ONE, "teams.read", self.get, "One team"),
            one(
                "PATCH",
                ONE,
                "teams.write",
                self.change,
                "Change or archive a team",
                body=TeamChange,
                action="team.change",
                description="Limits, models, guardrails and `archived` are for those who lead the organisation, "
                "`price_factor` is for administrators of the gateway.",
            ),
        )

    def _member_routes(self) -> tuple[Route, ...]:
        of_team = partial(Route, about=self.whose)
        return (
            of_team(
                "GET",
                MEMBERS,
                "teams.read",
                self.members,
                "The members of a team",
                query=Paging,
                answer=list[MemberShown],
            ),
            of_team(
                "POST",
                MEMBERS,
                "teams.write",
                self.add,
                "Take a person of the organisation into a team",
                body=NewMember,
                answer=MemberShown,
                status=201,
                action="member.add",
            ),
            of_team("GET", MEMBER, "teams.read", self.member, "One member", answer=MemberShown),
            of_team(
                "PATCH",
                MEMBER,
                "teams.write",
                self.set_member,
                "Change a member's role or limits",
                body=MemberChange,
                answer=MemberShown,
                action="member.change",
            ),
            of_team(
                "DELETE", MEMBER, "teams.write", self.remove, "Take a member out of a team", action="member.remove"
            ),
        )

    async def whose(self, call: Call[Any, Any]) -> Resource | None:
        team = await find(self._directory.database, "teams", Team, id=call.path["id"])
        return None if team is None else team.resource

    async def list(self, call: Call[TeamQuery, None]) -> Page[TeamShown]:
        query = call.query
        teams, more = await self._teams.list(call.principal, query.limit, query.after, org_id=query.org_id)
        return Page([shown(TeamShown, team) for team in teams], teams[-1].id if more else None)

    async def create(self, call: Call[None, NewTeam]) -> TeamShown:
        asked = msgspec.structs.asdict(call.body)
        asked["org_id"] = call.body.org_id or call.principal.org_id or ""
        team = await self._teams.create(call.principal, **asked)
        call.note(team.id, name=team.name, org=team.org_id)
        return shown(TeamShown, team)

    async def get(self, call: Call[None, None]) -> TeamShown:
        return shown(TeamShown, await self._teams.get(call.principal, call.path["id"]))

    async def change(self, call: Call[None, TeamChange]) -> TeamShown:
        team = await self._teams.change(call.principal, call.path["id"], call.body, call.version)
        call.note(team.id, **changes(call.body))
        return shown(TeamShown, team)

    async def members(self, call: Call[Paging, None]) -> Page[MemberShown]:
        query = call.query
        members, more = await self._teams.members(call.principal, call.path["id"], query.limit, query.after)
        return Page([shown(MemberShown, member) for member in members], members[-1].user_id if more else None)

    async def add(self, call: Call[None, NewMember]) -> MemberShown:
        body = call.body
        member = await self._teams.add(call.principal, call.path["id"], body.user_id, body.role, body.limits)
        call.note(member.team_id, user=member.user_id, role=member.role)
        return shown(MemberShown, member)

    async def member(self, call: Call[None, None]) -> MemberShown:
        return shown(MemberShown, await self._teams.member(call.principal, call.path["id"], call.path["user_id"]))

    async def set_member(self, call: Call[None, MemberChange]) -> MemberShown:
        path = call.path
        member = await self._teams.set_member(call.principal, path["id"], path["user_id"], call.body, call.version)
        call.note(member.team_id, user=member.user_id, **changes(call.body))
        return shown(MemberShown, member)

    async def remove(self, call: Call[None, None]) -> None:
        path = call.path
        await self._teams.remove(call.principal, path["id"], path["user_id"], call.version)
        call.note(path["id"], user=path["user_id"])
