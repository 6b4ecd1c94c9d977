"""Everybody who may ask for something, and a door at which their keys are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from gateway import errors
from gateway.audit import Audit, Event
from gateway.auth import Principal, Role

ROLES: tuple[Role, ...] = get_args(Role)
ORG, OTHER_ORG, TEAM, OTHER_TEAM = "org_a", "org_b", "team_a", "team_b"


def _person(name: str, org: str, role: Role | None, *teams: tuple[str, Role]) -> Principal:
    return Principal(
        tenant=org,
        key_id=f"key_{name}",
        name=name,
        org_id=org,
        user_id=f"user_{name}",
        role=role,
        teams=teams,
        kind="user",
    )


PEOPLE: Mapping[str, Principal] = {
    "admin": Principal(tenant="admin", key_id="admin", name="admin", admin=True, kind="admin"),
    "narrow": Principal(
        tenant="admin", key_id="narrow", name="narrow", admin=True, kind="admin", scopes=frozenset({"models.read"})
    ),
    **{f"org_{role}": _person(f"org_{role}", ORG, role) for role in ROLES},
    **{f"team_{role}": _person(f"team_{role}", ORG, None, (TEAM, role)) for role in ROLES},
    "other": _person("other", OTHER_ORG, "owner", (OTHER_TEAM, "owner")),
    "plain": Principal(tenant="plain", key_id="key_plain", name="plain"),
}


class Door:
    """An authenticator that knows the people by their names."""

    async def authenticate(self, authorization: str | None, address: str = "") -> Principal:
        principal = PEOPLE.get((authorization or "").removeprefix("Bearer "))
        if principal is None:
            raise errors.error("invalid_api_key", "No API key was sent.", headers={"WWW-Authenticate": "Bearer"})
        return principal


class Heard(Audit):
    """Keeps all events in a list, repeated ones too."""

    def __init__(self) -> None:
        super().__init__(None)
        self.events: list[Event] = []

    def add(self, event: Event) -> None:
        self.events.append(event)

    def add_repeatable(self, event: Event) -> None:
        self.events.append(event)
