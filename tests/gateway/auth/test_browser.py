"""Log-ins of browsers: how long they last, how they end on all replicas, and what happens when the database is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.auth import browser as module
from gateway.auth.browser import BrowserSession, BrowserSessions
from gateway.auth.records import Directory, User, insert
from gateway.auth.remembered import FRESH_S, OUTAGE_S, RETRY_S
from gateway.config_people import PeopleConfig
from gateway.errors import GatewayError
from gateway.state.memory import Memory
from gateway.state.sqlite import Sqlite
from tests.databases import open_migrated
from tests.gateway.auth.test_keys import PEPPER, Announcements, Clock, Watched

CONFIG = PeopleConfig(idle_timeout_s=600, lifetime_s=3600)


class World:
    """Sessions over a real file, with the means to watch and disturb them."""

    def __init__(self, inner: Sqlite) -> None:
        self.clock = Clock()
        self.database = Watched(inner)
        self.shared = Announcements()
        self.sessions = self.another()

    def another(self, shared: Memory | None = None) -> BrowserSessions:
        """Sessions as another process has them."""
        shared = shared or self.shared
        directory = Directory(self.database, shared, now_us=self.clock.wall_us)
        return BrowserSessions(directory, PEPPER, CONFIG, shared=shared, clock=self.clock.monotonic)

    async def begin(self, user_id: str = "user_a") -> tuple[BrowserSession, str]:
        async with self.database.transaction() as inside:
            return await self.sessions.begin(inside, user_id, address="192.0.2.1", agent="a\nbrowser")


def run(tmp_path: Path, work: Callable[[World], Awaitable[None]]) -> None:
    async def inside() -> None:
        database = await open_migrated(tmp_path, serve=True)
        async with database.transaction() as statements:
            for name in ("user_a", "user_b"):
                email = f"{name}@example.test"
                user = User(id=name, org_id=None, email=email, name=name, role="member", admin=True, created_us=1)
                await insert(statements, "users", user)
        world = World(database)
        try:
            await work(world)
        finally:
            await world.sessions.close()
            await database.close()

    asyncio.run(inside())


def test_a_token_is_found_and_kept_nowhere(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        session, token = await world.begin()
        found = await world.sessions.find(token)
        assert found is not None and found.session == session
        assert session.agent == "a\ufffdbrowser"
        before = world.database.queries
        for _ in range(3):
            await world.sessions.find(token)
        assert world.database.queries == before
        rows = await world.database.query("SELECT * FROM browser_sessions")
        assert token not in str(rows) and session.id not in token
        assert token.encode() not in (tmp_path / "gateway.db").read_bytes()

    run(tmp_path, work)


@pytest.mark.parametrize("token", ["", "x", "a" * 43, "a" * 5000, "\u00e9" * 43, "' OR 1=1 --"])
def test_other_tokens_are_nobody(tmp_path: Path, token: str) -> None:
    async def work(world: World) -> None:
        await world.begin()
        assert await world.sessions.find(token) is None

    run(tmp_path, work)


def test_a_session_ends_when_it_is_idle_and_at_its_end(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        _, used = await world.begin()
        _, idle = await world.begin()
        for _ in range(11):
            world.clock.seconds += 300
            assert await world.sessions.find(used) is not None
            await asyncio.gather(*world.sessions._writing)
        assert await world.sessions.find(idle) is None
        world.clock.seconds += 299
        assert await world.another().find(used) is not None
        world.clock.seconds += 1
        assert await world.sessions.find(used) is None
        assert await world.sessions.list("user_a") == []
        await world.begin("user_b")
        assert len(await world.database.query("SELECT id FROM browser_sessions")) == 1

    run(tmp_path, work)


def test_a_log_out_holds_on_all_replicas(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        told, deaf = world.another(), world.another(Memory())
        session, token = await world.begin()
        _, other = await world.begin()
        for one in (world.sessions, told, deaf):
            assert await one.find(token) is not None
        assert await world.sessions.end("user_b", session.id) is False
        assert await world.sessions.find(token) is not None
        assert await world.sessions.end("user_a", session.id) is True
        assert await world.sessions.find(token) is None
        assert await told.find(token) is None
        assert await deaf.find(token) is not None
        world.clock.seconds += FRESH_S
        assert await deaf.find(token) is None
        assert await deaf.find(other) is not None

    run(tmp_path, work)


def test_all_but_one_are_logged_out(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        kept, mine = await world.begin()
        _, theirs = await world.begin("user_b")
        gone = [token for _, token in [await world.begin() for _ in range(3)]]
        assert await world.sessions.find(gone[0]) is not None
        async with world.database.transaction() as inside:
            assert await world.sessions.end_all(inside, "user_a", keep=kept.id) == 3
        await world.sessions.announce("user_a")
        assert [await world.sessions.find(token) for token in gone] == [None] * 3
        assert await world.sessions.find(mine) is not None and await world.sessions.find(theirs) is not None

    run(tmp_path, work)


def test_a_user_has_a_bounded_number_of_sessions(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        _, first = await world.begin()
        for _ in range(module.SESSIONS_MAX):
            world.clock.seconds += 1
            await world.begin()
        assert len(await world.sessions.list("user_a")) == module.SESSIONS_MAX
        assert await world.sessions.find(first) is None

    run(tmp_path, work)


def test_while_the_database_is_away_known_sessions_go_on_for_a_while(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        _, known_token = await world.begin()
        _, new_token = await world.begin()
        await world.sessions.find(known_token)
        world.database.down = True
        world.clock.seconds += FRESH_S
        assert await world.sessions.find(known_token) is not None
        with pytest.raises(GatewayError) as refused:
            await world.sessions.find(new_token)
        assert refused.value.status == 503
        world.clock.seconds += OUTAGE_S
        with pytest.raises(GatewayError) as refused:
            await world.sessions.find(known_token)
        assert refused.value.status == 503
        world.database.down = False
        world.clock.seconds += RETRY_S
        assert await world.sessions.find(known_token) is not None

    run(tmp_path, work)
