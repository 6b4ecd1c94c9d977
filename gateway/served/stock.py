"""The tables of providers, routes, prices and secrets that are made while the gateway runs.

Every change is checked as a whole: what is served after it has to be as sound as a configuration."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from gateway import errors
from gateway.config import Config, ProviderConfig
from gateway.config_providers import ProviderSettings
from gateway.served import (
    FIELDS,
    TYPES,
    Item,
    Kind,
    PriceOverride,
    ProviderSecret,
    Row,
    Sealed,
    Served,
    Settings,
    Stored,
    combine,
    encoded,
    origin_of,
)
from gateway.served.sealing import Sealing
from gateway.state.database import Database, Statements
from gateway.state.shared import SharedState, SharedStateUnavailable

CHANNEL = "served"
COUNT_MAX = {"provider": 1000, "route": 10_000, "price": 10_000}
_ROW, _SEALED = ", ".join(Row.__struct_fields__), ", ".join(Sealed.__struct_fields__)

log = logging.getLogger(__name__)


class Stock:
    """Every change raises GatewayError: `not_found`, `conflict` with what else there is, `invalid_value`, and
    `precondition_failed` when `version` is not that of the row. `config` is what is served besides."""

    def __init__(
        self,
        database: Database,
        config: Config,
        shared: SharedState | None = None,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._database = database
        self._config = config
        self._sealing = Sealing(config)
        self._shared = shared
        self._now_us = now_us

    async def version(self) -> int:
        """How often anything has changed."""
        rows = await self._database.query("SELECT version FROM served_version WHERE name = 'all'")
        return int(str(rows[0]["version"])) if rows else 0

    async def read(self) -> Served:
        """All that is served, by the database as it is now."""
        async with self._database.transaction() as inside:
            stored = await _stored(inside)
        return self._combined(stored)

    async def create(self, settings: Settings) -> Item:
        kind = next(kind for kind, known in TYPES.items() if type(settings) is known)
        now_us = self._now_us()
        row = Row(kind=kind, name=settings.name, settings=encoded(settings), created_us=now_us, changed_us=now_us)
        async with self._database.transaction() as inside:
            stored = await _stored(inside)
            before = self._combined(stored)
            if any((one.kind, one.name) == (kind, row.name) for one in stored.rows) or before.find(kind, row.name):
                raise errors.error("conflict", f'"{row.name}" is already taken.', param="name")
            if len(before.of(kind)) >= COUNT_MAX[kind]:
                raise errors.error("conflict", f"There are {COUNT_MAX[kind]} {FIELDS[kind]} already.")
            served = self._checked(before, replace(stored, rows=(*stored.rows, row)), kind, row.name)
            await inside.execute(
                f"INSERT INTO served ({_ROW}) VALUES ($1, $2, $3, $4, $5, $6)", *msgspec.structs.astuple(row)
            )
            await _count(inside)
        await self._announce()
        return _sure(served, kind, row.name)

    async def change(self, kind: Kind, name: str, given: dict[str, Any], version: int | None = None) -> Item:
        """Set what is given. A provider that is then elsewhere loses its secret."""
        async with self._database.transaction() as inside:
            stored = await _stored(inside)
            before = self._combined(stored)
            found = self._own(before, kind, name, version)
            assert found.row is not None
            settings = _bare(replace(found.settings, **given))
            row = replace(
                found.row, settings=encoded(settings), changed_us=self._now_us(), version=found.row.version + 1
            )
            after = replace(stored, rows=tuple(row if one == found.row else one for one in stored.rows))
            served = self._checked(before, after, kind, name)
            if found.sealed is not None and _origin(_sure(served, kind, name)) != found.sealed.origin:
                after = _without(after, name)
                served = self._checked(before, after, kind, name)
                await inside.execute("DELETE FROM provider_secrets WHERE provider = $1", name)
            await _write(inside, row)
            await _count(inside)
        await self._announce()
        return _sure(served, kind, name)

    async def set_price(self, price: PriceOverride, version: int | None = None) -> Item:
        """Put a price in the place of the one before, if there is one."""
        if await self._database.query("SELECT name FROM served WHERE kind = 'price' AND name = $1", price.name):
            given = {name: getattr(price, name) for name in price.__struct_fields__}
            return await self.change("price", price.name, given, version)
        return await self.create(price)

    async def delete(self, kind: Kind, name: str, version: int | None = None) -> None:
        async with self._database.transaction() as inside:
            stored = await _stored(inside)
            before = self._combined(stored)
            found = [one for one in stored.rows if (one.kind, one.name) == (kind, name)]
            # What this release cannot read can still be deleted.
            if not found or before.made(kind, name) is not None:
                self._own(before, kind, name, version)
            rows = tuple(one for one in stored.rows if (one.kind, one.name) != (kind, name))
            self._checked(before, replace(stored, rows=rows), kind, name)
            await inside.execute("DELETE FROM served WHERE kind = $1 AND name = $2", kind, name)
            if kind == "provider":
                await inside.execute("DELETE FROM provider_secrets WHERE provider = $1", name)
            await _count(inside)
        await self._announce()

    async def set_secret(self, name: str, secret: ProviderSecret | None, by: str, version: int | None = None) -> Item:
        """Keep the secret of a provider in the place of the one before; None: forget it."""
        async with self._database.transaction() as inside:
            stored = await _stored(inside)
            before = self._combined(stored)
            found = self._own(before, "provider", name, version)
            after, origin = _without(stored, name), _origin(found)
            await inside.execute("DELETE FROM provider_secrets WHERE provider = $1", name)
            if secret is not None and origin is not None:
                sealed = self._sealing.seal(name, origin, secret, self._now_us(), by)
                after = replace(after, secrets=(*after.secrets, sealed))
                await _insert_sealed(inside, sealed)
            assert found.row is not None
            row = replace(found.row, changed_us=self._now_us(), version=found.row.version + 1)
            after = replace(after, rows=tuple(row if one == found.row else one for one in stored.rows))
            served = self._checked(before, after, "provider", name)
            await _write(inside, row)
            await _count(inside)
        await self._announce()
        return _sure(served, "provider", name)

    async def reseal(self) -> tuple[int, list[str]]:
        """Encrypt all secrets with a new key; how many, and of which providers that could not be done."""
        self._sealing.renew()
        done, left = 0, []
        async with self._database.transaction() as inside:
            for sealed in (await _stored(inside)).secrets:
                secret = self._sealing.open(sealed)
                if secret is None:
                    left.append(sealed.provider)
                    continue
                anew = self._sealing.seal(sealed.provider, sealed.origin, secret, sealed.set_us, sealed.set_by)
                await inside.execute("DELETE FROM provider_secrets WHERE provider = $1", sealed.provider)
                await _insert_sealed(inside, anew)
                done += 1
            await _count(inside)
        await self._announce()
        return done, left

    def _combined(self, stored: Stored) -> Served:
        served, unread = combine(self._config, stored, self._sealing.open)
        if unread:
            log.warning("made by another release, and not served by this one: %s", ", ".join(unread))
        return served

    def _own(self, served: Served, kind: Kind, name: str, version: int | None) -> Item:
        """What was made at run time and may be changed."""
        found = served.made(kind, name) or served.find(kind, name)
        if found is None:
            raise errors.error("not_found", "There is nothing of this name.")
        if found.row is None:
            message = f"The {kind} {name} is part of the configuration, and can only be changed there."
            raise errors.error("conflict", message)
        if version is not None and found.row.version != version:
            message = f"It was changed meanwhile: its version is {found.row.version}."
            raise errors.error("precondition_failed", message)
        return found

    def _checked(self, before: Served, stored: Stored, kind: Kind, name: str) -> Served:
        """What is served after a change, if that can be: nothing else may stop working by it."""
        after = self._combined(stored)
        item = after.made(kind, name)
        if item is not None and item.problem is not None:
            taken = item.problem.message.endswith("is already taken")
            message, param = item.problem.message, item.problem.param
            if missing := re.match(r"(\w+) is missing", message):
                message, param = f"'{missing[1]}'{message.removeprefix(missing[1])}", param or missing[1]
            message = message[0].upper() + message[1:] + "."
            raise errors.error("conflict" if taken else "invalid_value", message, param=param or None)
        worked = {(one.kind, one.name) for one in before.items if one.problem is None}
        for one in after.items:
            if one.problem is not None and (one.kind, one.name) in worked:
                message = f"The {one.kind} {one.name} would no longer work: {one.problem.message}."
                raise errors.error("conflict", message)
        return after

    async def _announce(self) -> None:
        """Have all replicas look at once; without announcements they do so within seconds."""
        if self._shared is not None:
            try:
                await self._shared.publish(CHANNEL, b"")
            except SharedStateUnavailable as error:
                log.warning("the other replicas learn of a change of routes within seconds: %s", error)


def _sure(served: Served, kind: Kind, name: str) -> Item:
    found = served.made(kind, name)
    assert found is not None, "what was just written is there"
    return found


def _bare(settings: Settings) -> Settings:
    """Settings as they are kept: a provider without its secret."""
    if not isinstance(settings, ProviderConfig):
        return settings
    return ProviderSettings(**{name: getattr(settings, name) for name in ProviderSettings.__struct_fields__})


def _origin(item: Item) -> str | None:
    return origin_of(item.settings) if isinstance(item.settings, ProviderConfig) else None


def _without(stored: Stored, provider: str) -> Stored:
    return replace(stored, secrets=tuple(one for one in stored.secrets if one.provider != provider))


async def _stored(inside: Statements) -> Stored:
    versions = await inside.query("SELECT version FROM served_version WHERE name = 'all'")
    rows = await inside.query(f"SELECT {_ROW} FROM served")
    secrets = await inside.query(f"SELECT {_SEALED} FROM provider_secrets")
    return Stored(
        version=int(str(versions[0]["version"])) if versions else 0,
        rows=tuple(msgspec.convert(row, Row) for row in rows),
        secrets=tuple(msgspec.convert(row, Sealed) for row in secrets),
    )


async def _write(inside: Statements, row: Row) -> None:
    """A changed row in the place of the one before."""
    await inside.execute(
        "UPDATE served SET settings = $1, changed_us = $2, version = $3 WHERE kind = $4 AND name = $5",
        row.settings,
        row.changed_us,
        row.version,
        row.kind,
        row.name,
    )


async def _insert_sealed(inside: Statements, sealed: Sealed) -> None:
    values = msgspec.structs.astuple(sealed)
    await inside.execute(f"INSERT INTO provider_secrets ({_SEALED}) VALUES ($1, $2, $3, $4, $5, $6)", *values)


async def _count(inside: Statements) -> None:
    """One change more."""
    await inside.execute(
        "INSERT INTO served_version (name, version) VALUES ('all', 1) "
        "ON CONFLICT (name) DO UPDATE SET version = served_version.version + 1"
    )
