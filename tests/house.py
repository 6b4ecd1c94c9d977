"""An organisation with people, teams and keys over any database, for tests of who may do what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.auth import Principal, Role
from gateway.auth.key_rules import KeyChange
from gateway.auth.keyring import Keyring, Place
from gateway.auth.keys import ADMIN, Keys
from gateway.auth.orgs import Orgs
from gateway.auth.records import Directory, Key, Org, Team, User
from gateway.auth.standing import of_user, user_principal
from gateway.auth.teams import Teams
from gateway.auth.users import Users
from gateway.errors import GatewayError
from gateway.state.database import Database
from gateway.state.memory import Memory
from tests.databases import open_migrated

PEPPER = b"p" * 32


class House:
    """One replica's parts, whose clocks are moved by hand."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.seconds = 1000.0
        self.shared = Memory()
        directory = Directory(database, self.shared, now_us=self.now_us)
        self.orgs, self.teams, self.users = Orgs(directory), Teams(directory), Users(directory)
        self.keyring = Keyring(directory, PEPPER)
        self.keys = Keys(database, PEPPER, shared=self.shared, clock=lambda: self.seconds, now_us=self.now_us)

    def now_us(self) -> int:
        # Every moment is another one, so that lists have one order.
        self.seconds += 0.000_001
        return int(self.seconds * 1_000_000)

    async def org(self, name: str = "Acme", **more: Any) -> Org:
        return await self.orgs.create(ADMIN, name, **more)

    async def team(self, org: Org, name: str = "research", **more: Any) -> Team:
        return await self.teams.create(ADMIN, org.id, name, **more)

    async def user(self, org: Org, name: str, role: Role = "member", **more: Any) -> User:
        return await self.users.create(ADMIN, org.id, f"{name}@example.com", name=name, role=role, **more)

    async def key(
        self, by: Principal = ADMIN, place: Place | None = None, settings: KeyChange | None = None, name: str = "k"
    ) -> tuple[Key, str]:
        return await self.keyring.create(by, name, place, settings)

    async def logged_in(self, user: User) -> Principal:
        """The user with all that he has now."""
        standing = await of_user(self.database, user.id)
        assert standing is not None
        return user_principal(standing, f"login:{user.id}")

    async def principal(self, text: str, address: str = "") -> Principal:
        return await self.keys.authenticate(f"Bearer {text}", address)


async def refused(work: Awaitable[Any], code: str, param: str | None = None) -> GatewayError:
    """The error of something that has to be refused."""
    with pytest.raises(GatewayError) as caught:
        await work
    assert (caught.value.code, caught.value.param) == (code, param or caught.value.param), caught.value
    return caught.value


def in_house(tmp_path: Path, work: Callable[[House], Awaitable[None]]) -> None:
    """Do `work` over SQLite."""

    async def run() -> None:
        database = await open_migrated(tmp_path, serve=False)
        try:
            house = House(database)
            await house.keys.open()
            await work(house)
            await house.keys.close()
        finally:
            await database.close()

    asyncio.run(run())
