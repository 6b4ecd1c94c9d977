"""API keys: made and shown once, looked at, changed, rotated, withdrawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.api.admin.routes import Body, Call, Moment, Page, Paging, Query, Route, kept, shown
from gateway.auth import Kind
from gateway.auth.key_rules import KeyChange
from gateway.auth.keyring import REASON_LENGTH_MAX, Keyring, Place
from gateway.auth.records import Key
from gateway.auth.roles import Resource
from gateway.config_limits import ScopeLimits

ALL, ONE = "/admin/v1/keys", "/admin/v1/keys/{id}"
IF_MATCH = {"If-Match": "The `ETag` that the key was seen with; 412 when it has changed since."}


class KeyShown(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its text. `successor` is the key that took its place, `version` is its `ETag`."""

    object: str = "key"
    id: str
    name: str
    kind: Kind
    status: str
    tenant: str
    org_id: str | None
    team_id: str | None
    user_id: str | None
    created_at: Moment
    expires_at: Moment | None
    last_used_at: Moment | None
    revoked_at: Moment | None
    revoked_reason: str | None
    scopes: tuple[str, ...] | None
    models: tuple[str, ...] | None
    addresses: tuple[str, ...]
    limits: ScopeLimits | None
    tags: tuple[str, ...]
    metadata: dict[str, str]
    guardrails: tuple[str, ...]
    weight: float
    priority: int
    successor: str | None
    version: int


class KeyMade(KeyShown, frozen=True, kw_only=True):
    """A new key with its text, which is never shown again."""

    key: str


class Settings(Body, frozen=True, kw_only=True):
    """What can be set of a key. Null takes a restriction away; what is left out stays as it is."""

    expires_at: Moment | UnsetType | None = UNSET
    scopes: tuple[str, ...] | UnsetType | None = UNSET
    models: tuple[str, ...] | UnsetType | None = UNSET
    addresses: tuple[str, ...] | UnsetType = UNSET
    limits: ScopeLimits | UnsetType | None = UNSET
    tags: tuple[str, ...] | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET
    guardrails: tuple[str, ...] | UnsetType = UNSET
    weight: float | UnsetType = UNSET
    priority: int | UnsetType = UNSET


class NewKey(Settings, frozen=True, kw_only=True):
    """Without a place: the caller's own, and an administrator's key gets a tenant of its own."""

    name: str
    org_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    tenant: str | None = None
    admin: bool = False


class ChangedKey(Settings, frozen=True, kw_only=True):
    name: str | UnsetType = UNSET


class Rotation(Body, frozen=True, kw_only=True):
    """How long the old key works on, and when the new one ends: left out, when the old one would have."""

    overlap_s: Annotated[float, Meta(ge=0)] = 0
    expires_at: Moment | UnsetType | None = UNSET


class KeyQuery(Paging, kw_only=True, frozen=True):
    org_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    tenant: str | None = None


class RevokeQuery(Query, kw_only=True, frozen=True):
    reason: Annotated[str, Meta(max_length=REASON_LENGTH_MAX)] = ""


class KeyRoutes:
    """Keys over HTTP. What a caller may do to which key is decided where it is done, in `Keyring`."""

    def __init__(self, keyring: Keyring | None, now_us: Callable[[], int]) -> None:
        self._maybe = keyring
        self._now_us = now_us

    @property
    def _keyring(self) -> Keyring:
        return kept(self._maybe)

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("GET", ALL, "keys.read", self.list, "Keys, the oldest first", query=KeyQuery, answer=list[KeyShown]),
            Route(
                "POST",
                ALL,
                "keys.write",
                self.create,
                "Make a key; its text is in this answer only",
                body=NewKey,
                answer=KeyMade,
                status=201,
                action="key.create",
            ),
            Route("GET", ONE, "keys.read", self.get, "One key", answer=KeyShown, about=self.whose),
            Route(
                "PATCH",
                ONE,
                "keys.write",
                self.change,
                "Change a key",
                body=ChangedKey,
                answer=KeyShown,
                about=self.whose,
                action="key.change",
                headers=IF_MATCH,
            ),
            Route(
                "POST",
                f"{ONE}/rotate",
                "keys.write",
                self.rotate,
                "Put a new key in the place of one",
                body=Rotation,
                answer=KeyMade,
                status=201,
                about=self.whose,
                action="key.rotate",
            ),
            Route(
                "DELETE",
                ONE,
                "keys.write",
                self.revoke,
                "Withdraw a key for good, everywhere within five seconds",
                query=RevokeQuery,
                about=self.whose,
                action="key.revoke",
                headers=IF_MATCH,
            ),
        )

    async def whose(self, call: Call[Any, Any]) -> Resource | None:
        return await self._keyring.whose(call.path["id"])

    async def list(self, call: Call[KeyQuery, None]) -> Page[KeyShown]:
        query = call.query
        found, has_more = await self._keyring.list(
            call.principal,
            query.limit,
            query.after,
            org_id=query.org_id,
            team_id=query.team_id,
            user_id=query.user_id,
            tenant=query.tenant,
        )
        return Page([self._shown(key) for key in found], found[-1].id if has_more else None)

    async def create(self, call: Call[None, NewKey]) -> KeyMade:
        body, principal = call.body, call.principal
        place = Place(
            org_id=body.org_id, team_id=body.team_id, user_id=body.user_id, tenant=body.tenant, admin=body.admin
        )
        if place == Place() and not principal.admin:
            place = Place(org_id=principal.org_id, team_id=principal.team_id, user_id=principal.user_id)
        key, text = await self._keyring.create(principal, body.name, place, _change(body))
        call.note(key.id, name=key.name, tenant=key.tenant, admin=key.admin)
        return self._made(key, text)

    async def get(self, call: Call[None, None]) -> KeyShown:
        return self._shown(await self._keyring.get(call.principal, call.path["id"]))

    async def change(self, call: Call[None, ChangedKey]) -> KeyShown:
        change = _change(call.body)
        key = await self._keyring.change(call.principal, call.path["id"], change, call.version)
        call.note(key.id, changed=" ".join(change.given()))
        return self._shown(key)

    async def rotate(self, call: Call[None, Rotation]) -> KeyMade:
        body, identity = call.body, call.path["id"]
        key, text = await self._keyring.rotate(
            call.principal, identity, overlap_s=body.overlap_s, expires_us=_us(body.expires_at)
        )
        call.note(identity, successor=key.id, overlap_s=int(body.overlap_s))
        return self._made(key, text)

    async def revoke(self, call: Call[RevokeQuery, None]) -> None:
        reason = call.query.reason
        await self._keyring.revoke(call.principal, call.path["id"], reason, call.version)
        call.note(call.path["id"], reason=reason)

    def _shown(self, key: Key) -> KeyShown:
        return shown(KeyShown, key, status=key.status(self._now_us()))

    def _made(self, key: Key, text: str) -> KeyMade:
        return shown(KeyMade, key, status=key.status(self._now_us()), key=text)


def _change(settings: Settings) -> KeyChange:
    names = KeyChange.__struct_fields__
    given = {name: getattr(settings, name) for name in names if name in settings.__struct_fields__}
    if isinstance(settings, NewKey):
        del given["name"]
    return KeyChange(**given, expires_us=_us(settings.expires_at))


def _us(given: Moment | UnsetType | None) -> int | UnsetType | None:
    return given.us if isinstance(given, Moment) else given
