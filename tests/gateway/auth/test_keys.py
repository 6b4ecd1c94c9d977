"""Keys: their text, who is let in, what is asked of the database, and what happens when it is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.auth import Open, Principal, key_text, remembered
from gateway.auth import keys as module
from gateway.auth.key_rules import KeyChange
from gateway.auth.key_text import PepperError, new_key
from gateway.auth.keyring import Keyring, Place
from gateway.auth.keys import ADMIN, Keys
from gateway.auth.records import Directory, Key
from gateway.config import Secret
from gateway.errors import GatewayError
from gateway.state.database import DatabaseUnavailable, Row, Statements, T, Value
from gateway.state.memory import Memory
from gateway.state.shared import SharedStateUnavailable
from gateway.state.sqlite import Sqlite
from tests.databases import open_migrated

PEPPER = b"p" * 32


class Clock:
    """Both clocks of Keys, moved by hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    def wall_us(self) -> int:
        return int(self.seconds * 1_000_000)


class Watched:
    """A database that counts what is asked of it and can be taken away."""

    def __init__(self, inner: Sqlite) -> None:
        self._inner = inner
        self.insert = inner.insert
        self.queries = 0
        self.transactions = 0
        self.down = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def query(self, sql: str, *parameters: Value) -> list[Row]:
        self.queries += 1
        await self.gate.wait()
        if self.down:
            raise DatabaseUnavailable("database: taken away")
        return await self._inner.query(sql, *parameters)

    async def execute(self, sql: str, *parameters: Value) -> int:
        return await self._inner.execute(sql, *parameters)

    async def run(self, work: Callable[[Statements], Coroutine[Any, Any, T]]) -> T:
        async with self.transaction(concurrent=True) as inside:
            return await work(inside)

    @asynccontextmanager
    async def transaction(self, *, concurrent: bool = False) -> AsyncIterator[Statements]:
        self.transactions += 1
        if self.down:
            raise DatabaseUnavailable("database: taken away")
        async with self._inner.transaction() as inside:
            yield inside

    async def close(self) -> None:
        await self._inner.close()


class Announcements(Memory):
    """Announcements that can be lost, silently or not."""

    heard = True

    async def publish(self, channel: str, message: bytes) -> None:
        if self.heard:
            await super().publish(channel, message)
        else:
            raise SharedStateUnavailable("taken away")


class World:
    """Keys over a real file, with the means to watch and disturb them."""

    def __init__(self, inner: Sqlite, admin_key: Secret | None) -> None:
        self.clock = Clock()
        self.database = Watched(inner)
        self.admin_key = admin_key
        self.shared = Announcements()
        self.keys = self.another()
        directory = Directory(self.database, self.shared, now_us=self.clock.wall_us)
        self.ring = Keyring(directory, PEPPER)

    def another(self) -> Keys:
        """Keys as another process has them."""
        return Keys(
            self.database,
            PEPPER,
            admin_key=self.admin_key,
            shared=self.shared,
            clock=self.clock.monotonic,
            now_us=self.clock.wall_us,
        )

    async def create(
        self, name: str, tenant: str | None = None, *, admin: bool = False, expires_us: int | None = None
    ) -> tuple[Key, str]:
        made = await self.ring.create(ADMIN, name, Place(tenant=tenant, admin=admin), KeyChange(expires_us=expires_us))
        self.database.transactions -= 1
        return made

    async def list(self) -> list[Key]:
        return (await self.ring.list(ADMIN, 100))[0]

    async def authenticate(self, text: str) -> Principal:
        return await self.keys.authenticate(f"Bearer {text}")

    async def refused(self, authorization: str | None, status: int, code: str) -> GatewayError:
        with pytest.raises(GatewayError) as caught:
            await self.keys.authenticate(authorization)
        error = caught.value
        assert (error.status, error.code) == (status, code)
        assert (error.headers.get("WWW-Authenticate") == "Bearer") is (status == 401)
        assert authorization is None or len(authorization) < 10 or authorization not in error.message
        return error


def with_keys(tmp_path: Path, work: Callable[[World], Awaitable[None]], admin_key: Secret | None = None) -> None:
    async def run() -> None:
        inner = await open_migrated(tmp_path, serve=False)
        try:
            world = World(inner, admin_key)
            await world.keys.open()
            world.database.queries = world.database.transactions = 0
            await work(world)
            await world.keys.close()
        finally:
            await inner.close()

    asyncio.run(run())


def test_open_lets_everybody_in_as_one_local_admin() -> None:
    principal = asyncio.run(Open().authenticate(None))
    assert (principal.tenant, principal.admin) == ("local", True)


def test_a_created_key_is_let_in(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        key, text = await world.create("laptop")
        principal = await world.authenticate(text)
        assert principal == Principal(tenant=key.id, key_id=key.id, name="laptop", admin=False)
        for authorization in (f"bearer {text}", f"BEARER   {text} "):
            assert await world.keys.authenticate(authorization) == principal
        _, shared = await world.create("phone", "family", admin=True)
        assert (await world.authenticate(shared)).tenant == "family"
        assert (await world.authenticate(shared)).admin

    with_keys(tmp_path, work)


def test_malformed_credentials_cost_no_query(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        _, text = await world.create("a")
        wrong = (None, "", "Bearer", "Bearer ", f"Basic {text}", text, "Bearer sk-abc", f"Bearer {text}x")
        for authorization in (*wrong, f"Bearer {text} {text}", "Bearer " + "x" * 10_000, "Bearer \x00\xff\udcff"):
            await world.refused(authorization, 401, "invalid_api_key")
        typo = text[:-10] + ("A" if text[-10] != "A" else "B") + text[-9:]
        await world.refused(f"Bearer {typo}", 401, "invalid_api_key")
        assert world.database.queries == 0

    with_keys(tmp_path, work)


def test_unknown_keys_and_wrong_secrets_are_refused_and_remembered(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        key, _ = await world.create("a")
        body = f"gw_live_{key.id}_" + "x" * key_text.SECRET_LENGTH
        for text in (new_key()[1], f"{body}_{key_text._checksum(body)}"):
            world.database.queries = 0
            for _ in range(5):
                await world.refused(f"Bearer {text}", 401, "invalid_api_key")
            assert world.database.queries == 1
            world.clock.seconds += remembered.FRESH_S
            await world.refused(f"Bearer {text}", 401, "invalid_api_key")
            assert world.database.queries == 2

    with_keys(tmp_path, work)


def test_many_unknown_keys_push_out_neither_memory_nor_good_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "REJECTED_MAX", 10)
    monkeypatch.setattr(remembered, "CACHE_MAX", 3)
    monkeypatch.setattr(module, "CACHE_MAX", 3)

    async def work(world: World) -> None:
        _, good = await world.create("good")
        await world.authenticate(good)
        for _ in range(50):
            await world.refused(f"Bearer {new_key()[1]}", 401, "invalid_api_key")
        assert len(world.keys._known._missed) == 10
        world.database.queries = 0
        await world.authenticate(good)
        assert world.database.queries == 0
        for i in range(10):
            await world.authenticate((await world.create(f"k{i}"))[1])
        assert len(world.keys._known._found) == 3
        assert len(world.keys._used) <= 3

    with_keys(tmp_path, work)


def test_a_known_key_is_asked_about_once_in_five_seconds(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        _, text = await world.create("a")
        for _ in range(100):
            await world.authenticate(text)
        assert world.database.queries == 1
        world.clock.seconds += remembered.FRESH_S
        await asyncio.gather(*(world.authenticate(text) for _ in range(100)))
        assert world.database.queries == 2, "those who ask together share one query"

    with_keys(tmp_path, work)


def test_a_caller_that_gives_up_takes_the_answer_from_nobody(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        _, text = await world.create("a")
        world.database.gate.clear()
        first, second = (asyncio.create_task(world.authenticate(text)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        world.database.gate.set()
        assert (await second).name == "a"
        assert first.cancelled()
        assert world.database.queries == 1

    with_keys(tmp_path, work)


def test_a_key_revoked_elsewhere_is_refused_within_five_seconds(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        key, text = await world.create("a")
        await world.authenticate(text)
        world.shared.heard = False
        assert await world.ring.revoke(ADMIN, key.id, "lost")
        await world.authenticate(text)
        world.clock.seconds += 5
        await world.refused(f"Bearer {text}", 401, "key_revoked")
        assert (await world.ring.revoke(ADMIN, key.id, "again")).revoked_reason == "lost", "once is for good"
        with pytest.raises(GatewayError, match="nothing of this name"):
            await world.ring.revoke(ADMIN, "nobody")
        (kept,) = await world.list()
        assert (kept.revoked_reason, kept.status(0)) == ("lost", "revoked")

    with_keys(tmp_path, work)


def test_a_revocation_that_is_announced_holds_at_once(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        key, text = await world.create("a")
        await world.authenticate(text)
        assert await world.ring.revoke(ADMIN, key.id)
        await world.refused(f"Bearer {text}", 401, "key_revoked")

    with_keys(tmp_path, work)


def test_after_a_gap_in_the_announcements_every_key_is_asked_about(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        key, text = await world.create("a")
        await world.authenticate(text)
        world.shared.heard = False
        await world.ring.revoke(ADMIN, key.id)
        world.clock.seconds += 0.1
        world.keys._announced(None)
        await world.refused(f"Bearer {text}", 401, "key_revoked")
        _, other = await world.create("b")
        await world.authenticate(other)
        world.database.down = True
        world.keys._announced(None)
        assert (await world.authenticate(other)).name == "b", "without the database the gap changes nothing"

    with_keys(tmp_path, work)


def test_a_database_that_stalls_keeps_nobody_waiting_who_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(world: World) -> None:
        _, text = await world.create("a")
        await world.authenticate(text)
        world.database.gate.clear()
        monkeypatch.setattr(remembered, "PATIENCE_S", 0.01)
        world.clock.seconds += remembered.FRESH_S
        assert (await world.authenticate(text)).name == "a"
        world.clock.seconds += remembered.RETRY_S
        world.database.queries = 0
        assert (await world.authenticate(text)).name == "a"
        await world.refused(f"Bearer {new_key()[1]}", 503, "overloaded")
        assert world.database.queries == 0, "one unanswered question at a time"
        world.database.gate.set()
        monkeypatch.undo()
        await asyncio.gather(*world.keys._known._asking.values())
        assert (await world.authenticate((await world.create("b"))[1])).name == "b"

    with_keys(tmp_path, work)


def test_a_key_revoked_here_is_refused_at_once(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        key, text = await world.create("a")
        await world.authenticate(text)
        await world.ring.revoke(ADMIN, key.id)
        await world.refused(f"Bearer {text}", 401, "key_revoked")

    with_keys(tmp_path, work)


def test_a_key_made_elsewhere_is_let_in_at_once(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        _, text = await world.create("a")
        assert (await world.authenticate(text)).name == "a"

    with_keys(tmp_path, work)


def test_a_key_may_be_bound_to_addresses(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        key, text = await world.create("a")
        await world.database.execute("UPDATE keys SET addresses = $1 WHERE id = $2", '["10.0.0.0/8"]', key.id)
        assert (await world.keys.authenticate(f"Bearer {text}", "10.1.2.3")).name == "a"
        for address in ("11.0.0.1", "", "unknown"):
            with pytest.raises(GatewayError) as caught:
                await world.keys.authenticate(f"Bearer {text}", address)
            assert (caught.value.status, caught.value.code) == (403, "ip_denied")

    with_keys(tmp_path, work)


def test_a_key_expires_at_its_moment(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        _, text = await world.create("a", expires_us=world.clock.wall_us() + 1_000_000)
        world.clock.seconds += 0.999
        await world.authenticate(text)
        world.clock.seconds += 0.001
        await world.refused(f"Bearer {text}", 401, "key_expired")
        assert world.database.queries == 1, "what is known to end needs no further question"

    with_keys(tmp_path, work)


def test_without_the_database_known_keys_are_good_for_five_minutes(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        _, text = await world.create("a")
        _, other = await world.create("b")
        await world.authenticate(text)
        world.database.down = True
        world.clock.seconds += 299
        for _ in range(10):
            assert (await world.authenticate(text)).name == "a"
        assert world.database.queries == 2, "an absent database is asked once a second"
        error = await world.refused(f"Bearer {other}", 503, "overloaded")
        assert error.retry_after_s == 1
        await world.refused(f"Bearer {new_key()[1]}", 503, "overloaded")
        await world.refused("Bearer nonsense", 401, "invalid_api_key")
        world.clock.seconds += 1
        await world.refused(f"Bearer {text}", 503, "overloaded")
        world.database.down = False
        world.clock.seconds += remembered.RETRY_S
        assert (await world.authenticate(text)).name == "a"
        assert (await world.authenticate(other)).name == "b"

    with_keys(tmp_path, work)


def test_a_revoked_key_stays_refused_without_the_database(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        key, text = await world.create("a")
        await world.ring.revoke(ADMIN, key.id)
        await world.refused(f"Bearer {text}", 401, "key_revoked")
        world.database.down = True
        world.clock.seconds += 100
        await world.refused(f"Bearer {text}", 401, "key_revoked")

    with_keys(tmp_path, work)


def test_the_first_start_makes_one_admin_key(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        text = await world.keys.ensure_admin()
        assert text is not None
        assert (await world.authenticate(text)).admin
        assert await world.another().ensure_admin() is None
        (key,) = await world.list()
        await world.ring.revoke(ADMIN, key.id)
        assert await world.keys.ensure_admin() is None, "an operator who revoked it does not want another"

    with_keys(tmp_path, work)


def test_a_configured_admin_key_needs_no_database(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        assert await world.keys.ensure_admin() is None
        assert await world.list() == []
        world.database.queries = 0
        principal = await world.authenticate("any-text-of-sixteen")
        assert (principal.admin, principal.tenant) == (True, "admin")
        await world.refused("Bearer any-text-of-sixteem", 401, "invalid_api_key")
        assert world.database.queries == 0

    with_keys(tmp_path, work, Secret("any-text-of-sixteen"))


def test_only_digests_are_kept(tmp_path: Path) -> None:
    texts = []

    async def work(world: World) -> None:
        texts.append((await world.create("a"))[1])
        await world.authenticate(texts[0])

    with_keys(tmp_path, work)
    secret = texts[0].split("_")[3].encode()
    assert all(secret not in file.read_bytes() for file in tmp_path.iterdir() if file.is_file())


def test_uses_are_written_in_batches(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        texts = [(await world.create(f"k{i}"))[1] for i in range(3)]
        for _ in range(10):
            await asyncio.gather(*(world.authenticate(text) for text in texts))
        assert world.database.transactions == 0
        world.clock.seconds += module.USE_WRITTEN_EVERY_S
        last_us = world.clock.wall_us()
        await asyncio.gather(*(world.authenticate(text) for text in texts))
        await world.keys.close()
        assert world.database.transactions <= 2
        assert {key.last_used_us for key in await world.list()} == {last_us}

    with_keys(tmp_path, work)


def test_uses_that_cannot_be_written_stop_nobody(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        _, text = await world.create("a")
        await world.authenticate(text)
        world.database.down = True
        world.clock.seconds += module.USE_WRITTEN_EVERY_S
        assert (await world.authenticate(text)).name == "a"
        await world.keys.close()
        assert world.keys._used == {}

    with_keys(tmp_path, work)


@pytest.mark.parametrize(
    ("name", "tenant"),
    [
        ("", None),
        ("a\nb", None),
        ("x" * 101, None),
        ("\x1b[31m", None),
        ("a", ""),
        ("a", "b c"),
        ("a", "t\n"),
        ("a", "é"),
    ],
)
def test_names_that_would_break_a_log_are_refused(tmp_path: Path, name: str, tenant: str | None) -> None:
    async def work(world: World) -> None:
        with pytest.raises(GatewayError, match="has 1 to 100"):
            await world.create(name, tenant)

    with_keys(tmp_path, work)


def test_another_pepper_is_refused_at_the_start(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.another().open()
        with pytest.raises(PepperError, match="made with another pepper"):
            await Keys(world.database, b"q" * 32).open()

    with_keys(tmp_path, work)
