"""Organisations: made, changed and archived."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from gateway.auth import Principal
from gateway.auth.records import (
    Directory,
    Guards,
    Models,
    Name,
    Org,
    Part,
    Wanted,
    check_guardrails,
    check_models,
    check_name,
    check_version,
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
from gateway.auth.roles import reach
from gateway.config_limits import Factor, ScopeLimits
from gateway.state.database import Statements


class OrgChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be set of an organisation; what is left out stays as it is."""

    name: Name | UnsetType = UNSET
    limits: ScopeLimits | UnsetType | None = UNSET
    models: Models | UnsetType | None = UNSET
    guardrails: Guards | UnsetType = UNSET
    price_factor: Factor | UnsetType | None = UNSET
    archived: bool | UnsetType = UNSET


class Orgs:
    """Every function raises GatewayError: `permission_denied`, `not_found`, `invalid_value`, and `precondition_failed`
    when `version` is not that of the organisation."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def create(
        self,
        principal: Principal,
        name: str,
        *,
        limits: ScopeLimits | None = None,
        models: tuple[str, ...] | None = None,
        guardrails: tuple[str, ...] = (),
        price_factor: str | None = None,
    ) -> Org:
        org = Org(
            id=new_id("org"),
            name=check_name(name),
            created_us=self._directory.now_us(),
            limits=limits,
            models=check_models(models),
            guardrails=check_guardrails(guardrails),
            price_factor=price_factor,
        )
        require(principal, "orgs.create", None)
        async with self._directory.transaction() as inside:
            await insert(inside, "orgs", org)
        return org

    async def get(self, principal: Principal, identity: str) -> Org:
        return await org_of(self._directory.database, principal, identity)

    async def list(self, principal: Principal, limit: int, after: str | None = None) -> Part[Org]:
        """The organisations that the caller may see, the oldest first; and whether there are more."""
        wanted, seen = Wanted(), reach(principal, "orgs.read")
        if not seen.everything:
            wanted.any_of([("id", seen.org_id)])
        return await page(self._directory.database, "orgs", Org, wanted, (limit, after))

    async def change(self, principal: Principal, identity: str, change: OrgChange, version: int | None = None) -> Org:
        """What an organisation may use, and whether it is archived, is for those who make organisations to say."""
        async with self._directory.transaction() as inside:
            org = await org_of(inside, principal, identity, "orgs.write")
            if given(change.limits, change.models, change.guardrails, change.price_factor, change.archived):
                require(principal, "orgs.create", org.resource)
            check_version(org, version)
            org = replace(
                org,
                name=check_name(set_to(change.name, org.name)),
                limits=set_to(change.limits, org.limits),
                models=check_models(set_to(change.models, org.models)),
                guardrails=check_guardrails(set_to(change.guardrails, org.guardrails)),
                price_factor=set_to(change.price_factor, org.price_factor),
                archived_us=ended_us(change.archived, org.archived_us, self._directory.now_us()),
                version=org.version + 1,
            )
            await update(inside, "orgs", org)
        await self._directory.announce(identity)
        return org


async def org_of(inside: Statements, principal: Principal, identity: str, permission: str = "orgs.read") -> Org:
    """An organisation with which the caller may do something."""
    org = await find(inside, "orgs", Org, id=identity)
    if org is None:
        raise not_found()
    require(principal, permission, org.resource)
    return org


def ended_us(asked: bool | UnsetType, before_us: int | None, now_us: int) -> int | None:
    """When something was archived or disabled: the first time counts."""
    if isinstance(asked, UnsetType):
        return before_us
    return (before_us or now_us) if asked else None
