"""Who is asking: principals, and the ways to tell one from a request's credentials."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from gateway.config_limits import ScopeLimits

# In an organisation or a team, from the least rights to the most.
Role = Literal["viewer", "member", "admin", "owner"]
# Whom a credential stands for: a person, a program that belongs to an organisation or team, or an administrator.
Kind = Literal["user", "service", "admin"]


class Principal(msgspec.Struct, frozen=True):
    """A known caller. `tenant` is the wall between callers: nothing is shared across two tenants.

    `weight` is the tenant's share of a queue, `priority` orders requests in it. `admin` is an administrator of the
    whole gateway; `role` is the one in the organisation, `teams` are the ids of the teams it acts in and its role in
    each. A model has to be in every list of `models`; `scopes` None: all permissions that its roles have. `limits` are
    the key's own, `scopes_limits` those of the other scopes that have some in the database, such as
    `("team:team_x", ...)`. `counted_as` is the key that the limits of the key count (None: this one). `guardrails`
    names those that its requests pass, `price_ppm` is what its prices are multiplied by, in millionths. The remaining
    fields name what its requests are counted in.
    """

    tenant: str
    key_id: str
    name: str
    admin: bool = False
    weight: float = 1.0
    limits: ScopeLimits | None = None
    user_id: str | None = None
    team_id: str | None = None
    org_id: str | None = None
    tags: tuple[str, ...] = ()
    models: tuple[tuple[str, ...], ...] = ()
    scopes: frozenset[str] | None = None
    role: Role | None = None
    teams: tuple[tuple[str, Role], ...] = ()
    kind: Kind = "service"
    priority: int = 0
    scopes_limits: tuple[tuple[str, ScopeLimits], ...] = ()
    counted_as: str | None = None
    guardrails: tuple[str, ...] = ()
    price_ppm: int = 1_000_000


class Authenticator(Protocol):
    """Turns the value of an `Authorization` header, and the address it came from, into a principal.

    Raises `gateway.errors.GatewayError`: 401 only for credentials that are proven bad, 503 when they cannot be checked.
    """

    async def authenticate(self, authorization: str | None, address: str = "") -> Principal: ...


class Open:
    """Lets everybody in as the one local principal; `Config` allows it on a loopback address only."""

    _local = Principal(tenant="local", key_id="local", name="local", admin=True, kind="admin")

    async def authenticate(self, authorization: str | None, address: str = "") -> Principal:
        return self._local
