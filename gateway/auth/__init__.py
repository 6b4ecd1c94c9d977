"""Who is asking: principals, and the ways to tell one from a request's credentials."""

from __future__ import annotations

from typing import Protocol

import msgspec

from gateway.config_limits import ScopeLimits


class Principal(msgspec.Struct, frozen=True):
    """A known caller. `tenant` is the wall between callers: nothing is shared across two tenants.

    `weight` is the tenant's share of a queue, `admin` opens the administration routes. `limits` are the key's own; the
    other fields name the further scopes its requests are counted in.
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


class Authenticator(Protocol):
    """Turns the value of an `Authorization` header into a principal.

    Raises `gateway.errors.GatewayError`: 401 only for credentials that are proven bad, 503 when they cannot be checked.
    """

    async def authenticate(self, authorization: str | None) -> Principal: ...


class Open:
    """Lets everybody in as the one local principal; `Config` allows it on a loopback address only."""

    _local = Principal(tenant="local", key_id="local", name="local", admin=True)

    async def authenticate(self, authorization: str | None) -> Principal:
        return self._local
