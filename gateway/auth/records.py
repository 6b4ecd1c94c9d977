"""Organisations, teams, people and keys as the database has them, and what their tables have in common.

`version` counts the changes of a row, times are microseconds since 1970.
"""

from __future__ import annotations

import logging
import re
import secrets
import string
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway import errors
from gateway.auth import Kind, Principal, Role
from gateway.auth.roles import Resource, may
from gateway.config_limits import Factor, ScopeLimits
from gateway.state.database import Database, Row, Statements, Value
from gateway.state.shared import SharedState, SharedStateUnavailable

CHANNEL = "keys"
NAME_LENGTH_MAX = 100
MODELS_MAX = 1000
GUARDRAILS_MAX = 100
PAGE_MAX = 1000

_ALPHABET = string.digits + string.ascii_lowercase
_MODEL = re.compile(r"[A-Za-z0-9._:/@+-]{1,200}\*?|\*")
_GUARDRAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_JSON = frozenset({"limits", "scopes", "models", "addresses", "tags", "metadata", "guardrails"})

T = TypeVar("T")
Name = Annotated[str, Meta(min_length=1, max_length=NAME_LENGTH_MAX)]
Models = Annotated[tuple[str, ...], Meta(max_length=MODELS_MAX)]
Guards = Annotated[tuple[str, ...], Meta(max_length=GUARDRAILS_MAX)]

log = logging.getLogger(__name__)


class Org(msgspec.Struct, frozen=True, kw_only=True):
    """An organisation: a tenant of its own. `models` None: all. `guardrails` are the names of those that
    its requests pass, `price_factor` is what its prices are multiplied by."""

    id: str
    name: str
    created_us: int
    archived_us: int | None = None
    version: int = 1
    limits: ScopeLimits | None = None
    models: tuple[str, ...] | None = None
    guardrails: tuple[str, ...] = ()
    price_factor: Factor | None = None

    @property
    def resource(self) -> Resource:
        return Resource(tenant=self.id, org_id=self.id)


class Team(msgspec.Struct, frozen=True, kw_only=True):
    """A team of an organisation. `models` None: all that the organisation has. `guardrails` are further ones,
    `price_factor` comes before the organisation's."""

    id: str
    org_id: str
    name: str
    created_us: int
    archived_us: int | None = None
    version: int = 1
    limits: ScopeLimits | None = None
    models: tuple[str, ...] | None = None
    guardrails: tuple[str, ...] = ()
    price_factor: Factor | None = None

    @property
    def resource(self) -> Resource:
        return Resource(tenant=self.org_id, org_id=self.org_id, team_id=self.id)


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A person with a role in one organisation; an administrator of the whole gateway (`admin`) may be in none."""

    id: str
    org_id: str | None
    email: str
    name: str
    role: Role
    admin: bool
    created_us: int
    disabled_us: int | None = None
    version: int = 1
    limits: ScopeLimits | None = None

    @property
    def resource(self) -> Resource:
        return Resource(tenant=self.org_id, org_id=self.org_id, user_id=self.id)


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A user's place in a team. `limits` hold for what the user does with keys of the team."""

    team_id: str
    user_id: str
    role: Role
    limits: ScopeLimits | None = None
    created_us: int
    version: int = 1


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it may be shown: everything but the secret.

    `scopes` and `models` None: as much as what stands behind the key. `addresses` are the networks it may be used from
    (none: all), `tags` are scopes of limits, `successor` is the id of the key that takes this one's place, and
    `counted_as` that of the first key in such a row, whose limits go on.
    """

    id: str
    name: str
    tenant: str
    admin: bool
    created_us: int
    expires_us: int | None = None
    revoked_us: int | None = None
    revoked_reason: str | None = None
    last_used_us: int | None = None
    limits: ScopeLimits | None = None
    org_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    kind: Kind = "service"
    scopes: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    addresses: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    guardrails: tuple[str, ...] = ()
    weight: float = 1.0
    priority: int = 0
    successor: str | None = None
    counted_as: str | None = None
    version: int = 1

    def status(self, now_us: int) -> str:
        """`active`, `revoked` or `expired`."""
        if self.revoked_us is not None:
            return "revoked"
        return "expired" if self.expires_us is not None and self.expires_us <= now_us else "active"

    @property
    def resource(self) -> Resource:
        return Resource(
            tenant=self.tenant, org_id=self.org_id, team_id=self.team_id, user_id=self.user_id, key_id=self.id
        )


Record = Org | Team | User | Member | Key
R = TypeVar("R", Org, Team, User, Member, Key)


def columns(kind: type[Record], alias: str = "", prefix: str = "") -> str:
    """What a SELECT has to ask for; `kind` of a key follows from the rest and is no column."""
    table = alias and alias + "."
    names = [name for name in kind.__struct_fields__ if name != "kind"]
    return ", ".join(f"{table}{name} AS {prefix}{name}" if prefix or alias else name for name in names)


def record(row: Row, kind: type[R], prefix: str = "") -> R:
    """The record of a row whose columns begin with `prefix`."""
    values: dict[str, Any] = {}
    for name in kind.__struct_fields__:
        value = row.get(prefix + name)
        if value is not None:
            values[name] = msgspec.json.decode(str(value)) if name in _JSON else value
    if kind is Key:
        values["kind"] = "admin" if values.get("admin") else "user" if "user_id" in values else "service"
    return msgspec.convert({"org_id": None, **values} if kind is User else values, kind, strict=False)


def row_of(value: Record) -> dict[str, Value]:
    """The columns of a record."""
    found = {name: getattr(value, name) for name in value.__struct_fields__ if name != "kind"}
    return {
        name: msgspec.json.encode(field).decode() if name in _JSON and field is not None else field
        for name, field in found.items()
    }


async def insert(inside: Statements, table: str, value: Record, **more: Value) -> None:
    values = row_of(value) | more
    places = ", ".join(f"${i}" for i in range(1, len(values) + 1))
    await inside.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places})", *values.values())


async def update(inside: Statements, table: str, value: Record, key: Sequence[str] = ("id",)) -> None:
    """Write a changed record in the place of the one with the same `key`."""
    values = row_of(value)
    changed = [name for name in values if name not in key]
    sets = ", ".join(f"{name} = ${i}" for i, name in enumerate(changed, 1))
    where = " AND ".join(f"{name} = ${i}" for i, name in enumerate(key, len(changed) + 1))
    parameters = [values[name] for name in (*changed, *key)]
    await inside.execute(f"UPDATE {table} SET {sets} WHERE {where}", *parameters)


async def remove(inside: Statements, table: str, **key: Value) -> bool:
    """Delete the record with these values; whether there was one."""
    where = " AND ".join(f"{name} = ${i}" for i, name in enumerate(key, 1))
    return await inside.execute(f"DELETE FROM {table} WHERE {where}", *key.values()) > 0


async def find(inside: Statements, table: str, kind: type[R], **key: Value) -> R | None:
    """The record with these values, if there is one.

    A database need not take every text, and nothing is called by one that cannot be printed.
    """
    if not all(value.isprintable() for value in key.values() if isinstance(value, str)):
        return None
    where = " AND ".join(f"{name} = ${i}" for i, name in enumerate(key, 1))
    rows = await inside.query(f"SELECT {columns(kind)} FROM {table} WHERE {where}", *key.values())
    return record(rows[0], kind) if rows else None


# A part of a list, and whether there is more.
Part = tuple[list[R], bool]


class Wanted:
    """The conditions of a list, all of which have to hold."""

    def __init__(self) -> None:
        self.terms: list[str] = ["1 = 1"]
        self.values: list[Value] = []

    def equal(self, **values: Value) -> None:
        """Each of these columns has its value; None: any."""
        for name, value in values.items():
            if value is not None:
                self.terms.append(self._is(name, value))

    def any_of(self, choices: Iterable[tuple[str, Value]]) -> None:
        """One of these columns has its value."""
        terms = [self._is(name, value) for name, value in choices if value is not None]
        self.terms.append(f"({' OR '.join(terms)})" if terms else "1 = 0")

    def _is(self, name: str, value: Value) -> str:
        self.values.append(value)
        return f"{name} = ${len(self.values)}"


async def page(
    inside: Statements, table: str, kind: type[R], wanted: Wanted, paging: tuple[int, str | None], key: str = "id"
) -> Part[R]:
    """At most so many records, the oldest first, behind the one with that `key`; and whether there are more."""
    limit, after = min(paging[0], PAGE_MAX), paging[1]
    terms: list[str] = [*wanted.terms]
    values: list[Value] = [*wanted.values]
    if after is not None:
        where = " AND ".join([*terms, f"{key} = ${len(values) + 1}"])
        found = await inside.query(f"SELECT created_us FROM {table} WHERE {where}", *values, after)
        if not found:
            raise errors.error("invalid_value", "There is nothing in the list with this id.", param="after")
        terms.append(f"(created_us, {key}) > (${len(values) + 1}, ${len(values) + 2})")
        values += [found[0]["created_us"], after]
    rows = await inside.query(
        f"SELECT {columns(kind)} FROM {table} WHERE {' AND '.join(terms)} ORDER BY created_us, {key} LIMIT {limit + 1}",
        *values,
    )
    return [record(row, kind) for row in rows[:limit]], len(rows) > limit


def require(principal: Principal, permission: str, resource: Resource | None, param: str | None = None) -> None:
    """Raise `permission_denied`, or `not_found` of what the caller may not even know of, with its `owner`."""
    match may(principal, permission, resource):
        case "denied":
            raise denied(f"This needs the permission {permission}.", param)
        case "hidden":
            hidden = not_found(param)
            hidden.owner = "" if resource is None else resource.tenant or resource.org_id or ""
            raise hidden


def denied(message: str, param: str | None = None) -> errors.GatewayError:
    return errors.error("permission_denied", message, param=param)


def not_found(param: str | None = None) -> errors.GatewayError:
    return errors.error("not_found", "There is nothing of this name.", param=param)


def invalid(message: str, param: str) -> errors.GatewayError:
    return errors.error("invalid_value", message, param=param)


def check_version(found: Record, version: int | None) -> None:
    """Raise unless the record still has the version that the caller knows; None: any will do."""
    if version is not None and found.version != version:
        raise errors.error("precondition_failed", f"It was changed meanwhile: its version is {found.version}.")


def check_name(name: str, param: str = "name") -> str:
    if not 0 < len(name) <= NAME_LENGTH_MAX or not name.isprintable() or name != name.strip():
        raise invalid(f"A name has 1 to {NAME_LENGTH_MAX} printable characters, and no space around them.", param)
    return name


def check_models(models: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if models is not None:
        if len(models) > MODELS_MAX:
            raise invalid(f"At most {MODELS_MAX} models can be listed.", "models")
        for model in models:
            if not _MODEL.fullmatch(model):
                raise invalid(f"{model[:50]!r} is neither a model's name nor the beginning of one and a *.", "models")
    return models


def check_guardrails(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names as the configuration may have them; whether it has them is seen when a request comes."""
    if len(names) > GUARDRAILS_MAX or not all(map(_GUARDRAIL.fullmatch, names)):
        raise invalid(f"At most {GUARDRAILS_MAX} guardrails can be listed, by their names.", "guardrails")
    return tuple(dict.fromkeys(names))


def set_to(value: T | UnsetType, otherwise: T) -> T:
    """What was asked for, else what there is."""
    return otherwise if isinstance(value, UnsetType) else value


def changes(change: msgspec.Struct) -> dict[str, str | int | bool]:
    """What a change is about, for the audit log."""
    asked = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not UNSET}
    return {
        name: value if isinstance(value, str | bool) else msgspec.json.encode(value).decode()
        for name, value in asked.items()
    }


def given(*values: object) -> bool:
    """Whether any of these was asked for."""
    return any(value is not UNSET for value in values)


def new_id(kind: str) -> str:
    """`<kind>_` and random text: 103 bits."""
    return f"{kind}_" + "".join(secrets.choice(_ALPHABET) for _ in range(20))


class Directory:
    """The database of people and keys, and the announcements by which replicas learn of its changes."""

    def __init__(
        self,
        database: Database,
        shared: SharedState | None = None,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.database = database
        self.now_us = now_us
        self.shared = shared

    def transaction(self) -> AbstractAsyncContextManager[Statements]:
        """One at a time, so that what was read in it still holds when it is written."""
        return self.database.transaction()

    async def announce(self, identity: str) -> None:
        """Have all replicas ask the database anew about whom this organisation, team, user or key concerns.

        Without announcements they do so within five seconds.
        """
        if self.shared is not None:
            try:
                await self.shared.publish(CHANNEL, identity.encode())
            except SharedStateUnavailable as error:
                log.warning("the other replicas learn of a change of %s within five seconds: %s", identity, error)
