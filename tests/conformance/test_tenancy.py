"""People and keys on both databases: the same answers, one order of lists, and rules that hold under a race."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.auth.key_rules import KeyChange
from gateway.auth.keyring import Place, count_keys
from gateway.auth.keys import ADMIN
from gateway.auth.orgs import OrgChange
from gateway.auth.teams import MemberChange, TeamChange
from gateway.auth.users import UserChange
from gateway.config_limits import BudgetConfig, ScopeLimits
from gateway.errors import GatewayError
from gateway.state.database import Database
from gateway.state.migrate import known, migrate
from gateway.state.postgres import open_postgres
from gateway.state.sqlite import open_sqlite
from tests.house import House, refused
from tests.stores import Postgres

Open = Callable[[], AbstractAsyncContextManager[Database]]
LIMITS = ScopeLimits(requests_per_minute=7, budgets=(BudgetConfig(usd="1.5"),))


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    url = None if request.param == "sqlite" else request.getfixturevalue("postgres").database()

    @asynccontextmanager
    async def open_() -> AsyncIterator[Database]:
        database = await (open_sqlite(tmp_path, serve=False) if url is None else open_postgres(url, alone=False))
        try:
            await migrate(database, known())
            yield database
        finally:
            await database.close()

    return open_


def test_everything_comes_back_as_it_was_written(opened: Open) -> None:
    async def scenario() -> None:
        async with opened() as database:
            house = House(database)
            org = await house.org("Ünicode & Söhne", limits=LIMITS, models=("a*",))
            assert await house.orgs.get(ADMIN, org.id) == org
            team = await house.team(org, limits=LIMITS, models=())
            assert await house.teams.get(ADMIN, team.id) == team
            ada = await house.user(org, "ada", "owner", limits=LIMITS)
            assert await house.users.get(ADMIN, ada.id) == await house.users.by_email(ADMIN, "ADA@example.com") == ada
            member = await house.teams.add(ADMIN, team.id, ada.id, "admin", LIMITS)
            assert await house.teams.member(ADMIN, team.id, ada.id) == member
            settings = KeyChange(
                scopes=("inference",),
                models=("a", "b*"),
                addresses=("10.0.0.0/8", "::1"),
                tags=("x",),
                metadata={"wer": "ich ü"},
                weight=2.5,
                priority=-3,
                limits=LIMITS,
                expires_us=house.now_us() + 10**9,
            )
            key, text = await house.key(ADMIN, Place(user_id=ada.id, team_id=team.id), settings)
            assert await house.keyring.get(ADMIN, key.id) == key
            found = await house.principal(text, "10.0.0.1")
            assert (found.weight, found.priority, found.teams) == (2.5, -3, ((team.id, "owner"),))
            assert found.models == (("a", "b*"), (), ("a*",))
            root = await house.users.create(ADMIN, None, "root@example.com", admin=True)
            assert await house.users.get(ADMIN, root.id) == root
            revoked = await house.keyring.revoke(ADMIN, key.id, "läuft ab")
            assert await house.keyring.get(ADMIN, key.id) == revoked and await count_keys(database) == 0

    asyncio.run(scenario())


def test_lists_have_one_order_and_no_gaps(opened: Open) -> None:
    async def scenario() -> None:
        async with opened() as database:
            house = House(database)
            org = await house.org()
            # The same moment for all: the ids decide.
            moment_us = house.now_us()
            house.keyring._directory.now_us = lambda: moment_us
            keys = [(await house.key(ADMIN, Place(org_id=org.id), name=f"k{i}"))[0] for i in range(7)]
            await house.key(ADMIN, name="elsewhere")
            found: list[str] = []
            more = True
            while more:
                after = found[-1] if found else None
                part, more = await house.keyring.list(ADMIN, 3, after, org_id=org.id)
                found += [key.id for key in part]
            assert sorted(found) == sorted(key.id for key in keys) and len(found) == 7
            await refused(house.keyring.list(ADMIN, 3, "nothing", org_id=org.id), "invalid_value", "after")

    asyncio.run(scenario())


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "\x1b"])
def test_text_that_a_database_need_not_take_is_refused(opened: Open, text: str) -> None:
    async def scenario() -> None:
        async with opened() as database:
            house = House(database)
            org = await house.org()
            team = await house.team(org)
            for place in (Place(org_id=text), Place(team_id=text), Place(user_id=text)):
                await refused(house.key(ADMIN, place), "not_found")
            await refused(house.key(ADMIN, Place(tenant=text)), "invalid_value", "tenant")
            await refused(house.key(ADMIN, None, KeyChange(metadata={"a": text})), "invalid_value", "metadata")
            await refused(house.key(ADMIN, name=text), "invalid_value", "name")
            await refused(house.teams.add(ADMIN, team.id, text), "not_found", "user_id")
            await refused(house.users.create(ADMIN, org.id, f"{text}@example.com"), "invalid_value")
            await refused(house.users.by_email(ADMIN, f"{text}@example.com"), "not_found")
            for get in (house.orgs.get, house.teams.get, house.users.get, house.keyring.get, house.keyring.revoke):
                await refused(get(ADMIN, text), "not_found")

    asyncio.run(scenario())


def test_of_two_owners_who_leave_at_once_one_stays(opened: Open) -> None:
    async def scenario() -> None:
        async with opened() as database:
            house = House(database)
            org = await house.org()
            team = await house.team(org)
            people = [await house.user(org, name, "owner") for name in ("ada", "bob")]
            for one in people:
                await house.teams.add(ADMIN, team.id, one.id, "owner")
            for step in (
                lambda one: house.users.change(ADMIN, one.id, UserChange(role="viewer")),
                lambda one: house.teams.set_member(ADMIN, team.id, one.id, MemberChange(role="viewer")),
            ):
                done: list[Any] = await asyncio.gather(*(step(one) for one in people), return_exceptions=True)
                (error,) = (one for one in done if isinstance(one, GatewayError))
                assert error.code == "conflict"

    asyncio.run(scenario())


def test_of_two_changes_of_one_version_one_is_made(opened: Open) -> None:
    async def scenario() -> None:
        async with opened() as database:
            house = House(database)
            org = await house.org()
            team, key = await house.team(org), (await house.key())[0]
            for step in (
                lambda name: house.orgs.change(ADMIN, org.id, OrgChange(name=name), 1),
                lambda name: house.teams.change(ADMIN, team.id, TeamChange(name=name), 1),
                lambda name: house.keyring.change(ADMIN, key.id, KeyChange(name=name), 1),
            ):
                done: list[Any] = await asyncio.gather(*(step(f"n{i}") for i in range(5)), return_exceptions=True)
                assert sorted(getattr(one, "code", "made") for one in done) == ["made"] + ["precondition_failed"] * 4
            for twice in (
                lambda: house.keyring.rotate(ADMIN, key.id),
                lambda: house.team(org, "twin"),
            ):
                pair: list[Any] = list(await asyncio.gather(twice(), twice(), return_exceptions=True))
                assert sorted(getattr(one, "code", "made") for one in pair) == ["conflict", "made"]

    asyncio.run(scenario())


def test_two_replicas_see_an_archived_team_within_five_seconds(postgres: Postgres) -> None:
    async def scenario() -> None:
        url = postgres.database()
        databases = [await open_postgres(url, alone=False) for _ in range(2)]
        try:
            await migrate(databases[0], known())
            here, there = (House(database) for database in databases)
            team = await here.team(await here.org())
            key, text = await here.key(ADMIN, Place(team_id=team.id))
            assert (await there.principal(text)).team_id == team.id
            await here.teams.change(ADMIN, team.id, TeamChange(archived=True))
            there.seconds += 5
            await refused(there.principal(text), "key_revoked")
            assert replace(await there.keyring.get(ADMIN, key.id), last_used_us=None) == key
        finally:
            for database in databases:
                await database.close()

    asyncio.run(scenario())
