"""What stands behind a credential: its organisation, team and user, and the principal that follows from them."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from gateway import errors
from gateway.auth import Principal, Role
from gateway.auth.records import Key, Member, Org, Team, User, columns, record
from gateway.auth.roles import RANKS
from gateway.config_limits import ScopeLimits
from gateway.state.database import Row, Statements

_BEHIND = ", ".join(
    columns(kind, alias, f"{alias}__") for kind, alias in ((Org, "orgs"), (Team, "teams"), (User, "users"))
)
_LEADS: tuple[Role, ...] = ("admin", "owner")


class Standing(msgspec.Struct, frozen=True):
    """Who and what a credential belongs to, as far as it does. `members` are the user's places in teams that are not
    archived.
    """

    org: Org | None = None
    team: Team | None = None
    user: User | None = None
    members: tuple[Member, ...] = ()

    def concerns(self, identity: str) -> bool:
        """Whether a change of the organisation, team or user of this id changes this."""
        here = (self.org and self.org.id, self.team and self.team.id, self.user and self.user.id)
        return identity in here or identity in [member.team_id for member in self.members]

    @property
    def membership(self) -> Member | None:
        """The user's place in the team."""
        team = self.team
        return next((member for member in self.members if team is not None and member.team_id == team.id), None)

    @property
    def team_role(self) -> Role | None:
        """The user's role in the team; who leads the organisation leads its teams."""
        roles = [self.membership.role] if self.membership is not None else []
        if self.user is not None and self.team is not None and self.user.role in _LEADS:
            roles.append(self.user.role)
        return max(roles, key=lambda role: RANKS[role], default=None)

    def check(self) -> None:
        """Raise `key_revoked` when something of it is gone."""
        if self.org is not None and self.org.archived_us is not None:
            raise gone("The organisation is archived.")
        if self.team is not None and self.team.archived_us is not None:
            raise gone("The team is archived.")
        if self.user is not None:
            if self.user.disabled_us is not None:
                raise gone("The user is disabled.")
            if self.team is not None and self.team_role is None:
                raise gone("The user has left the team.")

    def scopes_limits(self) -> tuple[tuple[str, ScopeLimits], ...]:
        """The limits of everything it belongs to, by the names that the limiter counts under."""
        member = self.membership
        found = [(f"{kind}:{of.id}", of.limits) for kind, of in self._named() if of.limits is not None]
        if member is not None and member.limits is not None:
            found.append((f"member:{member.team_id}/{member.user_id}", member.limits))
        return tuple(found)

    def _named(self) -> list[tuple[str, Org | Team | User]]:
        named: tuple[tuple[str, Org | Team | User | None], ...] = (
            ("org", self.org),
            ("team", self.team),
            ("user", self.user),
        )
        return [(kind, of) for kind, of in named if of is not None]

    def models(self, own: tuple[str, ...] | None = None) -> tuple[tuple[str, ...], ...]:
        """The lists of models that all have to allow one."""
        above = [of.models for of in (self.team, self.org) if of is not None]
        return tuple(listed for listed in (own, *above) if listed is not None)

    @property
    def price_ppm(self) -> int:
        """What prices are multiplied by, in millionths: what the team says, else the organisation."""
        factors = [of.price_factor for of in (self.team, self.org) if of is not None and of.price_factor is not None]
        whole, _, fraction = (factors or ["1"])[0].partition(".")
        return int(whole + fraction.ljust(6, "0"))

    def guardrails(self, own: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Those that any level gave."""
        above = [of.guardrails for of in (self.team, self.org) if of is not None]
        return tuple(sorted({name for given in (own, *above) for name in given}))


def gone(message: str) -> errors.GatewayError:
    return errors.error("key_revoked", message, headers={"WWW-Authenticate": "Bearer"})


async def of_key(statements: Statements, key_id: str) -> tuple[Key, Standing, str] | None:
    """A key, what stands behind it, and the digest of its text; None when any of it is not there."""
    if not key_id.isprintable():
        return None
    rows = await statements.query(
        f"SELECT keys.digest, {columns(Key, 'keys')}, {_BEHIND} FROM keys LEFT JOIN orgs ON orgs.id = keys.org_id "
        "LEFT JOIN teams ON teams.id = keys.team_id LEFT JOIN users ON users.id = keys.user_id WHERE keys.id = $1",
        key_id,
    )
    if not rows:
        return None
    key, behind = record(rows[0], Key), await _standing(statements, rows[0])
    for identity, found in ((key.org_id, behind.org), (key.team_id, behind.team), (key.user_id, behind.user)):
        if identity is not None and found is None:
            return None
    return key, behind, str(rows[0]["digest"])


async def of_user(statements: Statements, user_id: str) -> Standing | None:
    """What stands behind a user, in no team in particular."""
    if not user_id.isprintable():
        return None
    rows = await statements.query(
        f"SELECT {columns(Org, 'orgs', 'orgs__')}, {columns(User, 'users', 'users__')} FROM users "
        "LEFT JOIN orgs ON orgs.id = users.org_id WHERE users.id = $1",
        user_id,
    )
    return await _standing(statements, rows[0]) if rows else None


async def of_address(statements: Statements, org_id: str, email: str) -> Standing | None:
    """What stands behind an e-mail address in an organisation: the organisation and, where there is one, the user."""
    rows = await statements.query(
        f"SELECT {columns(Org, 'orgs', 'orgs__')}, {columns(User, 'users', 'users__')} FROM orgs "
        "LEFT JOIN users ON users.org_id = orgs.id AND users.email = $2 WHERE orgs.id = $1",
        org_id,
        email,
    )
    return await _standing(statements, rows[0]) if rows else None


async def _standing(statements: Statements, row: Row) -> Standing:
    user = record(row, User, "users__") if row.get("users__id") is not None else None
    members: tuple[Member, ...] = ()
    if user is not None:
        rows = await statements.query(
            f"SELECT {columns(Member, 'members')} FROM members JOIN teams ON teams.id = members.team_id "
            "WHERE members.user_id = $1 AND teams.archived_us IS NULL ORDER BY members.team_id",
            user.id,
        )
        members = tuple(record(row, Member) for row in rows)
    return Standing(
        record(row, Org, "orgs__") if row.get("orgs__id") is not None else None,
        record(row, Team, "teams__") if row.get("teams__id") is not None else None,
        user,
        members,
    )


def key_principal(key: Key, standing: Standing) -> Principal:
    """Whom a key stands for. A key of a team acts in that team only, with the role its user has there; a key that
    belongs to no user is a plain member. An administrator's key is one for as long as its user is."""
    user = standing.user
    role: Role | None = None
    teams: tuple[tuple[str, Role], ...] = ()
    if key.team_id is not None:
        teams = ((key.team_id, standing.team_role or "member"),)
    elif user is not None:
        role, teams = user.role, tuple((member.team_id, member.role) for member in standing.members)
    elif key.org_id is not None:
        role = "member"
    return Principal(
        tenant=key.tenant,
        key_id=key.id,
        name=key.name,
        admin=key.admin and (user is None or user.admin),
        weight=key.weight,
        limits=key.limits,
        user_id=key.user_id,
        team_id=key.team_id,
        org_id=key.org_id,
        tags=key.tags,
        models=standing.models(key.models),
        scopes=None if key.scopes is None else frozenset(key.scopes),
        role=role,
        teams=teams,
        kind=key.kind,
        priority=key.priority,
        scopes_limits=standing.scopes_limits(),
        counted_as=key.counted_as,
        guardrails=standing.guardrails(key.guardrails),
        price_ppm=standing.price_ppm,
    )


def user_principal(standing: Standing, credential: str) -> Principal:
    """Whom a log-in stands for, which takes the place of a key under the name `credential`: the user, in all teams."""
    user = standing.user
    assert user is not None
    return Principal(
        tenant=user.org_id or user.id,
        key_id=credential,
        name=user.name,
        admin=user.admin,
        user_id=user.id,
        org_id=user.org_id,
        models=standing.models(),
        role=None if user.org_id is None else user.role,
        teams=tuple((member.team_id, member.role) for member in standing.members),
        kind="user",
        scopes_limits=standing.scopes_limits(),
        guardrails=standing.guardrails(),
        price_ppm=standing.price_ppm,
    )


def token_principal(token: Principal, standing: Standing) -> Principal:
    """Whom a token of an organisation's own issuer stands for: its user, or somebody of whom no more is known."""
    org, user = standing.org, standing.user
    assert org is not None
    found = replace(
        token,
        tenant=org.id,
        org_id=org.id,
        models=standing.models(),
        scopes_limits=standing.scopes_limits(),
        guardrails=standing.guardrails(),
        price_ppm=standing.price_ppm,
    )
    if user is None:
        return found
    teams = tuple((member.team_id, member.role) for member in standing.members)
    return replace(found, user_id=user.id, role=user.role, teams=teams)
