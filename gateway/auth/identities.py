"""As whom users are known to OpenID providers: who is whom, who is new, and what their groups mean here.

An identity is an issuer and a subject, never an e-mail address. It becomes that of a user in one of three ways: its
user, logged in, adds it; it comes for the first time with a verified address that nobody has, and makes a user; or its
provider is trusted with addresses (`link_verified_email`) and names one whose user did not merely claim it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from gateway import errors
from gateway.auth import Role
from gateway.auth.accounts import Accounts, Entered, Rejected, Visit
from gateway.auth.invitations import Invitations
from gateway.auth.newcomers import CONFIGURED, Newcomers, Place
from gateway.auth.records import Directory, Member, Team, User, find, insert, new_id, remove, update
from gateway.auth.roles import RANKS
from gateway.auth.users import check_email
from gateway.config_people import LoginConfig
from gateway.state.database import Statements

if TYPE_CHECKING:
    from gateway.auth.oidc import Identity


class Change(msgspec.Struct, frozen=True):
    """Something that a log-in changed, for the audit log."""

    action: str
    subject: str
    details: dict[str, str | int | bool] = {}


class Linked(msgspec.Struct, frozen=True):
    """An identity as it may be shown to its user. `linked_us` is microseconds since 1970."""

    issuer: str
    email: str | None
    linked_us: int


class Identities:
    """The identities of a database."""

    def __init__(
        self, directory: Directory, accounts: Accounts, newcomers: Newcomers, invitations: Invitations
    ) -> None:
        self._directory = directory
        self._accounts = accounts
        self._newcomers = newcomers
        self._invitations = invitations

    async def arrive(
        self, identity: Identity, login: LoginConfig, link: str, visit: Visit
    ) -> tuple[Entered, list[Change]]:
        """Log somebody in whom a provider vouches for; `link` is the user, logged in, to add the identity to.

        Raises `Rejected` for who may not come in, and `conflict` for who is somebody else already.
        """
        _check_domain(identity, login)
        if link and (visit.session is None or visit.session.user_id != link):
            raise Rejected("permission_denied", "Somebody else is logged in now. Log in and add it again.")
        changes: list[Change] = []
        async with self._directory.transaction() as inside:
            user_id = await self._known(inside, identity)
            if link and user_id not in (None, link):
                raise errors.error("conflict", "This identity belongs to another account.")
            if user_id is None:
                user_id = link or await self._meet(inside, identity, login, changes)
                await self._link(inside, identity, user_id)
                changes.append(Change("user.link", user_id, {"provider": login.name, "subject": identity.subject}))
            user = await self._accounts.admissible(inside, user_id)
            user = await self._apply_groups(inside, user, identity, login, changes)
            entered = await self._accounts.enter(inside, user, login.name, visit)
        for change in changes:
            await self._directory.announce(change.subject)
        await self._accounts.leave(visit)
        return entered, changes

    async def of_user(self, user_id: str) -> list[Linked]:
        """A user's identities."""
        sql = "SELECT issuer, email, linked_us FROM identities WHERE user_id = $1 ORDER BY linked_us, issuer"
        return msgspec.convert(await self._directory.database.query(sql, user_id), list[Linked])

    async def unlink(self, user_id: str, issuer: str) -> None:
        """Take an identity away; raises `conflict` when it is the only way left to log in."""
        async with self._directory.transaction() as inside:
            rows = await inside.query("SELECT issuer FROM identities WHERE user_id = $1", user_id)
            others = {str(row["issuer"]) for row in rows} - {issuer}
            if not others and not await self._accounts.has_password(inside, user_id):
                raise errors.error("conflict", "Nothing would be left to log in with. Set a password first.")
            sql = "DELETE FROM identities WHERE user_id = $1 AND issuer = $2"
            if not await inside.execute(sql, user_id, issuer):
                raise errors.error("not_found", "There is no such identity.")

    async def _known(self, inside: Statements, identity: Identity) -> str | None:
        sql = "SELECT user_id FROM identities WHERE issuer = $1 AND subject = $2"
        rows = await inside.query(sql, identity.issuer, identity.subject)
        return str(rows[0]["user_id"]) if rows else None

    async def _link(self, inside: Statements, identity: Identity, user_id: str) -> None:
        await inside.execute(
            "INSERT INTO identities (issuer, subject, user_id, email, linked_us) VALUES ($1, $2, $3, $4, $5)",
            identity.issuer,
            identity.subject,
            user_id,
            identity.email,
            self._directory.now_us(),
        )

    async def _meet(self, inside: Statements, identity: Identity, login: LoginConfig, changes: list[Change]) -> str:
        """The id of the user that an identity becomes, which has none yet."""
        if identity.email is None:
            raise Rejected("permission_denied", "The provider has not verified your e-mail address.")
        email = check_email(identity.email)
        known = await find(inside, "users", User, email=email)
        if known is not None:
            if login.link_verified_email and not await self._accounts.claimed(inside, known.id):
                return known.id
            message = "Your e-mail address has an account here already. Log in to it and add this provider there."
            raise errors.error("conflict", message)
        invitation = await self._invitations.of_email(inside, email)
        if invitation is not None:
            await self._invitations.use(inside, invitation)
            place = Place(invitation.org_id, invitation.role)
        elif login.provision:
            place = await self._place(inside, identity, login)
        else:
            raise Rejected("permission_denied", "Nobody here has this e-mail address. Ask for an invitation.")
        name = "".join(filter(str.isprintable, identity.name)).strip()[:100] or email.partition("@")[0]
        user = await self._newcomers.admit(inside, email, name.strip(), place)
        changes.append(Change("user.signup", user.id, {"provider": login.name, "org": user.org_id or ""}))
        return user.id

    async def _place(self, inside: Statements, identity: Identity, login: LoginConfig) -> Place:
        named = _organisation(identity, login)
        if named is not None:
            return Place((await self._newcomers.org(inside, *named)).id, login.role)
        if login.organisation_claim is not None:
            raise Rejected("permission_denied", "The provider does not say which organisation you belong to.")
        return await self._newcomers.place(inside)

    async def _apply_groups(
        self, inside: Statements, user: User, identity: Identity, login: LoginConfig, changes: list[Change]
    ) -> User:
        """Give and take what the groups mean, in the organisation that the provider speaks for and in no other."""
        named = _organisation(identity, login)
        org = None if named is None else await self._newcomers.known_org(inside, *named)
        if org is None or org.id != user.org_id:
            return user
        role = role_of(identity.groups, login)
        # An owner stays one, unless the provider is what decides about owners: an organisation has to have one.
        decides = user.role != "owner" or any(group.role == "owner" for group in login.groups)
        if role is not None and role != user.role and decides:
            changes.append(Change("user.role", user.id, {"provider": login.name, "from": user.role, "to": role}))
            user = msgspec.structs.replace(user, role=role, version=user.version + 1)
            await update(inside, "users", user)
        for name, wanted in team_roles(identity.groups, login).items():
            changes += await self._apply_team(inside, user, name, wanted)
        return user

    async def _apply_team(self, inside: Statements, user: User, name: str, wanted: Role | None) -> list[Change]:
        """Make the user's role in a team what the groups say (None: no member)."""
        assert user.org_id is not None
        team = await find(inside, "teams", Team, org_id=user.org_id, name=name)
        member = None if team is None else await find(inside, "members", Member, team_id=team.id, user_id=user.id)
        if wanted == (None if member is None else member.role):
            return []
        now_us = self._directory.now_us()
        if team is None:
            team = Team(id=new_id("team"), org_id=user.org_id, name=name, created_us=now_us)
            await insert(inside, "teams", team)
        if wanted is None:
            await remove(inside, "members", team_id=team.id, user_id=user.id)
        elif member is None:
            joined = Member(team_id=team.id, user_id=user.id, role=wanted, created_us=now_us)
            await insert(inside, "members", joined)
        else:
            changed = msgspec.structs.replace(member, role=wanted, version=member.version + 1)
            await update(inside, "members", changed, ("team_id", "user_id"))
        was = "" if member is None else member.role
        return [Change("member.role", user.id, {"team": team.id, "from": was, "to": wanted or ""})]


def role_of(groups: frozenset[str], login: LoginConfig) -> Role | None:
    """The role in the organisation that groups give; None when no group gives any, and the role is not the provider's
    to say."""
    if all(group.role is None for group in login.groups):
        return None
    given = [group.role for group in login.groups if group.group in groups and group.role is not None]
    return max([login.role, *given], key=lambda role: RANKS[role])


def team_roles(groups: frozenset[str], login: LoginConfig) -> Mapping[str, Role | None]:
    """The role in each team that the configuration names; None: no member. Other teams are not the provider's."""
    found: dict[str, Role | None] = {}
    for group in login.groups:
        if group.team is not None:
            known = found.get(group.team)
            better = known is None or RANKS[group.team_role] > RANKS[known]
            found[group.team] = group.team_role if group.group in groups and better else known
    return found


def _organisation(identity: Identity, login: LoginConfig) -> tuple[str, str] | None:
    """What the provider's users belong to: who names it, and how."""
    if login.organisation is not None:
        return CONFIGURED, login.organisation
    return None if identity.organisation is None else (login.issuer, identity.organisation)


def _check_domain(identity: Identity, login: LoginConfig) -> None:
    if login.email_domains:
        domain = "" if identity.email is None else identity.email.rpartition("@")[2]
        if domain not in login.email_domains:
            raise Rejected("permission_denied", "Your e-mail address is not one of those that may log in here.")
