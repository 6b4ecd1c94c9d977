"""Tokens of issuers that are tied to an organisation of this gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from gateway.auth import Open, Principal
from gateway.auth.jwt import Issuers
from gateway.auth.keys import ADMIN
from gateway.auth.orgs import OrgChange
from gateway.auth.users import UserChange
from gateway.config_auth import IssuerConfig, issuer_conflicts
from gateway.config_limits import ScopeLimits
from tests.gateway.auth.test_jwt import CONFIG, NOW_S, World, token
from tests.house import House, in_house, refused

SOME = ScopeLimits(requests_per_minute=5)
Enter = Callable[..., Awaitable[Principal]]


def with_tokens(tmp_path: Path, work: Callable[[House, str, Enter], Awaitable[None]]) -> None:
    async def inside(house: House) -> None:
        org = await house.org(limits=SOME, models=("m",))

        async def answer(request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(0)
            return World().serve(request)

        issuers = Issuers(
            (replace(CONFIG, org=org.id),),
            Open(),
            database=house.database,
            transport=httpx.MockTransport(answer),
            clock=lambda: house.seconds,
            now_s=lambda: NOW_S,
        )

        async def enter(**claims: Any) -> Principal:
            return await issuers.authenticate(f"Bearer {token(**claims)}")

        try:
            await work(house, org.id, enter)
        finally:
            await issuers.close()

    in_house(tmp_path, inside)


def test_a_token_brings_what_its_organisation_and_its_user_have(tmp_path: Path) -> None:
    async def work(house: House, org_id: str, enter: Enter) -> None:
        org = await house.orgs.get(ADMIN, org_id)
        team = await house.team(org)
        ada = await house.user(org, "ada", "admin", limits=SOME)
        await house.teams.add(ADMIN, team.id, ada.id, "owner")
        for claims in ({"email": "Ada@Example.com"}, {"email": "ada@example.com", "email_verified": True}):
            found = await enter(**claims)
            assert (found.tenant, found.org_id, found.user_id, found.role) == (org_id, org_id, ada.id, "admin")
            assert (found.teams, found.models, found.kind) == (((team.id, "owner"),), (("m",),), "user")
            assert dict(found.scopes_limits) == {f"org:{org_id}": SOME, f"user:{ada.id}": SOME}
            assert found.key_id == "jwt:corp:alice"

    with_tokens(tmp_path, work)


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"email": "nobody@example.com"},
        {"email": "ada@example.com", "email_verified": False},
        {"email": "ada@example.com", "email_verified": "yes"},
        {"email": "other@example.com"},
        {"email": ["ada@example.com"]},
        {"email": "ada@example.com\0"},
    ],
)
def test_who_is_no_user_of_the_organisation_has_no_role_in_it(tmp_path: Path, claims: dict[str, object]) -> None:
    async def work(house: House, org_id: str, enter: Enter) -> None:
        await house.user(await house.orgs.get(ADMIN, org_id), "ada", "owner")
        await house.user(await house.org("elsewhere"), "other", "owner")
        found = await enter(**claims)
        assert (found.tenant, found.role, found.teams, found.user_id) == (org_id, None, (), "corp:alice")
        assert dict(found.scopes_limits) == {f"org:{org_id}": SOME}

    with_tokens(tmp_path, work)


def test_tokens_of_what_is_gone_are_refused_within_five_seconds(tmp_path: Path) -> None:
    async def work(house: House, org_id: str, enter: Enter) -> None:
        ada = await house.user(await house.orgs.get(ADMIN, org_id), "ada")
        await enter(email="ada@example.com")
        await house.users.change(ADMIN, ada.id, UserChange(disabled=True))
        house.seconds += 5
        await refused(enter(email="ada@example.com"), "key_revoked")
        await enter(email="nobody@example.com")
        await house.orgs.change(ADMIN, org_id, OrgChange(archived=True))
        house.seconds += 5
        await refused(enter(email="nobody@example.com"), "key_revoked")

    with_tokens(tmp_path, work)


def test_an_organisation_takes_the_place_of_other_settings() -> None:
    one: IssuerConfig = replace(CONFIG, org="org_x")
    assert not list(issuer_conflicts((one,)))
    for other in ({"tenant": "acme"}, {"tenant_claim": "t"}, {"org_claim": "o"}, {"team_claim": "t"}):
        assert [where for where, _ in issuer_conflicts((replace(one, **other),))] == ["auth.issuers[0].org"]
