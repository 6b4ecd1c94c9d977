"""Teams of an organisation and their members."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from gateway import errors
from gateway.auth import Principal, Role
from gateway.auth.orgs import OrgChange, ended_us, org_of
from gateway.auth.records import (
    Directory,
    Member,
    Part,
    Team,
    User,
    Wanted,
    check_guardrails,
    check_models,
    check_name,
    check_version,
    denied,
    find,
    given,
    insert,
    new_id,
    not_found,
    page,
    require,
    set_to,
    update,
)
from gateway.auth.roles import outranks, reach
from gateway.config_limits import ScopeLimits
from gateway.state.database import Statements

TEAMS_OF_USER_MAX = 100


class TeamChange(OrgChange, frozen=True, kw_only=True):
    """What is to be set of a team; what is left out stays as it is."""


class MemberChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be set of a member; what is left out stays as it is."""

    role: Role | UnsetType = UNSET
    limits: ScopeLimits | UnsetType | None = UNSET


class Teams:
    """Every function raises GatewayError: `permission_denied`, `not_found`, `invalid_value`, `conflict`, and
    `precondition_failed` when `version` is not that of the team or member.

    Nobody gives or takes a role above his own, and the last owner of a team stays.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def create(
        self,
        principal: Principal,
        org_id: str,
        name: str,
        *,
        limits: ScopeLimits | None = None,
        models: tuple[str, ...] | None = None,
        guardrails: tuple[str, ...] = (),
        price_factor: str | None = None,
    ) -> Team:
        """A new team without members; those who lead the organisation lead it too."""
        team = Team(
            id=new_id("team"),
            org_id=org_id,
            name=check_name(name),
            created_us=self._directory.now_us(),
            limits=limits,
            models=check_models(models),
            guardrails=check_guardrails(guardrails),
            price_factor=price_factor,
        )
        async with self._directory.transaction() as inside:
            org = await org_of(inside, principal, org_id, "teams.create")
            check_wallet(principal, limits)
            if price_factor is not None:
                require(principal, "catalog.write", None, "price_factor")
            if org.archived_us is not None:
                raise errors.error("conflict", "The organisation is archived.")
            await _check_free(inside, team)
            await insert(inside, "teams", team)
        return team

    async def get(self, principal: Principal, identity: str) -> Team:
        return await team_of(self._directory.database, principal, identity)

    async def list(
        self, principal: Principal, limit: int, after: str | None = None, *, org_id: str | None = None
    ) -> Part[Team]:
        """The teams that the caller may see, the oldest first; and whether there are more."""
        wanted, seen = Wanted(), reach(principal, "teams.read")
        wanted.equal(org_id=org_id)
        if not seen.everything:
            wanted.any_of([("org_id", seen.org_id), *(("id", team_id) for team_id in seen.team_ids)])
        return await page(self._directory.database, "teams", Team, wanted, (limit, after))

    async def change(self, principal: Principal, identity: str, change: TeamChange, version: int | None = None) -> Team:
        """What a team may use, and whether it is archived, is for those who lead the organisation to say."""
        async with self._directory.transaction() as inside:
            team = await team_of(inside, principal, identity, "teams.write")
            if given(change.limits, change.models, change.guardrails, change.archived):
                require(principal, "teams.create", team.resource)
            if given(change.price_factor):
                require(principal, "catalog.write", None, "price_factor")
            check_wallet(principal, set_to(change.limits, None))
            check_version(team, version)
            renamed = set_to(change.name, team.name) != team.name
            team = replace(
                team,
                name=check_name(set_to(change.name, team.name)),
                limits=set_to(change.limits, team.limits),
                models=check_models(set_to(change.models, team.models)),
                guardrails=check_guardrails(set_to(change.guardrails, team.guardrails)),
                price_factor=set_to(change.price_factor, team.price_factor),
                archived_us=ended_us(change.archived, team.archived_us, self._directory.now_us()),
                version=team.version + 1,
            )
            if renamed:
                await _check_free(inside, team)
            await update(inside, "teams", team)
        await self._directory.announce(identity)
        return team

    async def members(self, principal: Principal, identity: str, limit: int, after: str | None = None) -> Part[Member]:
        """The members of a team, the oldest first, behind the one whose user's id is `after`; and whether there are
        more."""
        await team_of(self._directory.database, principal, identity)
        wanted = Wanted()
        wanted.equal(team_id=identity)
        return await page(self._directory.database, "members", Member, wanted, (limit, after), "user_id")

    async def member(self, principal: Principal, identity: str, user_id: str) -> Member:
        await team_of(self._directory.database, principal, identity)
        found = await find(self._directory.database, "members", Member, team_id=identity, user_id=user_id)
        if found is None:
            raise not_found()
        return found

    async def add(
        self,
        principal: Principal,
        identity: str,
        user_id: str,
        role: Role = "member",
        limits: ScopeLimits | None = None,
    ) -> Member:
        """Take a user of the organisation into a team; `conflict` when he is in it already."""
        now_us = self._directory.now_us()
        member = Member(team_id=identity, user_id=user_id, role=role, limits=limits, created_us=now_us)
        async with self._directory.transaction() as inside:
            team = await team_of(inside, principal, identity, "teams.write")
            user = await find(inside, "users", User, id=user_id)
            if user is None or user.org_id != team.org_id:
                raise not_found("user_id")
            _check_role(principal, role, team)
            check_wallet(principal, limits)
            if team.archived_us is not None or user.disabled_us is not None:
                raise errors.error("conflict", "The team is archived or the user disabled.")
            held = await inside.query("SELECT COUNT(*) AS count FROM members WHERE user_id = $1", user_id)
            if int(str(held[0]["count"])) >= TEAMS_OF_USER_MAX:
                raise errors.error("conflict", f"A user is in at most {TEAMS_OF_USER_MAX} teams.")
            if await find(inside, "members", Member, team_id=identity, user_id=user_id) is not None:
                raise errors.error("conflict", "The user is in the team already.", param="user_id")
            await insert(inside, "members", member)
        await self._directory.announce(user_id)
        return member

    async def set_member(
        self, principal: Principal, identity: str, user_id: str, change: MemberChange, version: int | None = None
    ) -> Member:
        """Give a member another role or other limits."""
        async with self._directory.transaction() as inside:
            team, member = await _member(inside, principal, identity, user_id, "teams.write")
            check_version(member, version)
            role = set_to(change.role, member.role)
            if role != member.role:
                _check_role(principal, role, team)
                _check_role(principal, member.role, team)
                await _check_owners(inside, member)
            if given(change.limits):
                check_own_limits(principal, user_id)
                check_wallet(principal, set_to(change.limits, None))
            limits = set_to(change.limits, member.limits)
            member = replace(member, role=role, limits=limits, version=member.version + 1)
            await update(inside, "members", member, ("team_id", "user_id"))
        await self._directory.announce(user_id)
        return member

    async def remove(self, principal: Principal, identity: str, user_id: str, version: int | None = None) -> None:
        """Take a member out of a team; everybody may leave."""
        async with self._directory.transaction() as inside:
            leaving = user_id == principal.user_id
            permission = "account.write" if leaving else "teams.write"
            team, member = await _member(inside, principal, identity, user_id, permission)
            if not leaving:
                _check_role(principal, member.role, team)
            check_version(member, version)
            await _check_owners(inside, member)
            await inside.execute("DELETE FROM members WHERE team_id = $1 AND user_id = $2", identity, user_id)
        await self._directory.announce(user_id)


async def team_of(
    inside: Statements, principal: Principal, identity: str, permission: str = "teams.read", user_id: str | None = None
) -> Team:
    """A team with which, or with whose member `user_id`, the caller may do something."""
    team = await find(inside, "teams", Team, id=identity)
    if team is None:
        raise not_found()
    require(principal, permission, replace(team.resource, user_id=user_id))
    return team


async def _member(
    inside: Statements, principal: Principal, identity: str, user_id: str, permission: str
) -> tuple[Team, Member]:
    team = await team_of(inside, principal, identity, permission, user_id)
    member = await find(inside, "members", Member, team_id=identity, user_id=user_id)
    if member is None:
        raise not_found()
    return team, member


async def _check_free(inside: Statements, team: Team) -> None:
    if await find(inside, "teams", Team, org_id=team.org_id, name=team.name) is not None:
        raise errors.error("conflict", "The organisation has a team of this name.", param="name")


def _check_role(principal: Principal, role: Role, team: Team) -> None:
    if not outranks(principal, role, team.resource):
        raise denied(f"Your role is below that of {role}.", "role")


async def _check_owners(inside: Statements, leaving: Member) -> None:
    """Raise when a member is the only owner."""
    if leaving.role != "owner":
        return
    rows = await inside.query(
        "SELECT COUNT(*) AS count FROM members WHERE team_id = $1 AND role = 'owner' AND user_id <> $2",
        leaving.team_id,
        leaving.user_id,
    )
    if not rows[0]["count"]:
        raise errors.error("conflict", "The last owner of a team stays; make somebody else an owner first.")


def check_wallet(principal: Principal, limits: ScopeLimits | None) -> None:
    """Whoever binds a wallet spends from it."""
    if limits is not None and limits.wallet is not None and not principal.admin:
        raise denied("Only administrators of the gateway bind wallets.", "limits")


def check_own_limits(principal: Principal, user_id: str) -> None:
    if user_id == principal.user_id and not principal.admin:
        raise denied("Nobody sets his own limits.", "limits")
