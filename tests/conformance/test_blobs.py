"""One suite over every implementation of `Blobs`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis as Connection

from gateway.state.blobs import ENTRY_BYTES, Blobs, MemoryBlobs
from gateway.state.redis_blobs import RedisBlobs
from tests.stores import Valkey

BYTES_MAX, TENANT_BYTES_MAX = 20_000, 10_000
TTL_S = 60.0

Work = Callable[[Blobs], Awaitable[None]]
With = Callable[[Work], None]


@contextlib.asynccontextmanager
async def redis(url: str, *, flush: bool = True) -> AsyncIterator[RedisBlobs]:
    if flush:
        connection = Connection.from_url(url)
        await connection.flushall()
        await connection.aclose()
    blobs = RedisBlobs(url, BYTES_MAX, TENANT_BYTES_MAX, timeout_s=5)
    await blobs.open()
    try:
        yield blobs
    finally:
        await blobs.close()


@pytest.fixture(params=["memory", "redis"])
def with_blobs(request: pytest.FixtureRequest) -> With:
    def run(work: Work) -> None:
        async def inside() -> None:
            if request.param == "memory":
                await work(MemoryBlobs(BYTES_MAX, TENANT_BYTES_MAX))
                return
            async with redis(request.getfixturevalue("valkey").url) as blobs:
                await work(blobs)

        asyncio.run(inside())

    return run


async def gone(blobs: Blobs, key: str) -> None:
    """Wait until it has expired."""
    for _ in range(500):
        if await blobs.get(key) is None:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never expired")


async def keys(blobs: Blobs, *names: str) -> str:
    """Those that are there."""
    return "".join([name for name in names if await blobs.get(name) is not None])


def test_what_is_put_is_there_until_it_expires(with_blobs: With) -> None:
    async def work(blobs: Blobs) -> None:
        assert await blobs.get("a") is None
        blobs.put("a", "t", b"\x00one\xff", TTL_S)
        blobs.put("b", "t", b"two", 0.05)
        assert await blobs.get("a") == b"\x00one\xff"
        blobs.put("a", "t", b"three", TTL_S)
        assert await blobs.get("a") == b"three"
        await gone(blobs, "b")
        blobs.put("c", "t", b"", TTL_S)
        assert await blobs.get("c") == b""
        assert blobs.counts == (5 + 2 * ENTRY_BYTES, 0, 0)

    with_blobs(work)


def test_a_tenant_that_has_its_share_makes_room_among_its_own(with_blobs: With) -> None:
    async def work(blobs: Blobs) -> None:
        blobs.put("o", "other", b"x" * 1000, TTL_S)
        for name in "abcdef":
            blobs.put(name, "t", b"x" * 2000, TTL_S)
        assert await keys(blobs, *"abcdefo") == "defo"
        assert blobs.counts == (7000 + 4 * ENTRY_BYTES, 3, 0)

    with_blobs(work)


def test_all_together_keep_to_their_bound(with_blobs: With) -> None:
    async def work(blobs: Blobs) -> None:
        for index in range(40):
            blobs.put(f"k{index}", f"t{index % 4}", b"x" * 1500, TTL_S)
            await blobs.get("k0")
            assert blobs.counts.size_bytes <= BYTES_MAX
        assert await blobs.get("k39") is not None
        assert blobs.counts.size_bytes == 9 * (1500 + ENTRY_BYTES)
        assert blobs.counts.evicted == 31

    with_blobs(work)


def test_what_is_larger_than_a_tenants_share_is_not_kept(with_blobs: With) -> None:
    async def work(blobs: Blobs) -> None:
        blobs.put("a", "t", b"x" * TENANT_BYTES_MAX, TTL_S)
        assert await blobs.get("a") is None
        blobs.put("b", "t", b"x", TTL_S)
        assert await blobs.get("b") == b"x"
        blobs.put("b", "t", b"x" * TENANT_BYTES_MAX, TTL_S)
        assert await blobs.get("b") is None

    with_blobs(work)


def test_what_is_cleared_is_gone_and_the_rest_is_not(with_blobs: With) -> None:
    async def work(blobs: Blobs) -> None:
        for name in "abc":
            blobs.put(name, "t", b"x" * 100, TTL_S)
        blobs.put("o", "other", b"x", TTL_S)
        assert await blobs.clear("nobody") == 0
        assert await blobs.clear("t") == 3
        assert await keys(blobs, *"abco") == "o"
        assert blobs.counts.size_bytes == 1 + ENTRY_BYTES
        blobs.put("a", "t", b"new", TTL_S)
        assert await blobs.get("a") == b"new"
        assert await blobs.clear(None) == 2
        assert await keys(blobs, *"abco") == ""
        assert blobs.counts.size_bytes == 0

    with_blobs(work)


def test_in_memory_the_least_recently_used_go_first() -> None:
    async def work() -> None:
        blobs = MemoryBlobs(BYTES_MAX, TENANT_BYTES_MAX)
        for name in "abc":
            blobs.put(name, "t", b"x" * 2500, TTL_S)
        await blobs.get("a")
        blobs.put("d", "t", b"x" * 2500, TTL_S)
        assert await keys(blobs, *"abcd") == "acd"

    asyncio.run(work())


def test_memory_is_given_back_when_time_is_up_though_nobody_asks() -> None:
    async def work() -> None:
        now_s = 0.0
        blobs = MemoryBlobs(1 << 30, 1 << 30, clock=lambda: now_s)
        for _ in range(50):
            for index in range(100):
                blobs.put(f"k{index}", "t", b"x" * 100, 10)
            now_s += 1
        assert len(blobs._ends) <= 2 * 100 + 64 + 100
        now_s += 10
        blobs.put("last", "t", b"", 10)
        assert blobs.counts.size_bytes == ENTRY_BYTES
        assert set(blobs._tenants["t"]) == set(blobs._entries) == {"last"}

    asyncio.run(work())


def test_expired_keys_leave_redis_and_its_count(valkey: Valkey) -> None:
    async def work() -> None:
        async with redis(valkey.url) as blobs:
            for index in range(4):
                blobs.put(f"k{index}", f"t{index}", b"x" * 1000, 0.05)
            for index in range(4):
                await gone(blobs, f"k{index}")
            blobs.put("a", "t", b"", TTL_S)
            assert await blobs.get("a") == b""
            assert blobs.counts.size_bytes == ENTRY_BYTES
            async with Connection.from_url(valkey.url) as connection:
                assert await connection.zcard("gwc:all") == 1
                for key in await connection.keys("*"):
                    assert await connection.pttl(key) > 0

    asyncio.run(work())


def test_a_redis_that_is_away_has_nothing_and_comes_back() -> None:
    async def work() -> None:
        server = Valkey()
        async with redis(server.url, flush=False) as blobs:
            assert await blobs.get("a") is None
            blobs.put("a", "t", b"x", TTL_S)
            assert blobs.counts.failed == 2
            assert await blobs.clear(None) is None
            with server:
                await until_kept(blobs)
                server.kill()
                await gone(blobs, "a")
                server.start()
                await until_kept(blobs)

    asyncio.run(work())


async def until_kept(blobs: Blobs) -> None:
    for _ in range(500):
        blobs.put("a", "t", b"x", TTL_S)
        if await blobs.get("a") == b"x":
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never came back")


def test_one_that_stalls_is_a_miss_and_then_left_alone(valkey: Valkey) -> None:
    async def work() -> None:
        with Valkey() as server:
            blobs = RedisBlobs(server.url, BYTES_MAX, TENANT_BYTES_MAX, timeout_s=0.1)
            await blobs.open()
            server.stall()
            assert await blobs.get("a") is None
            assert await blobs.get("a") is None
            server.go_on()
            await blobs.close()

    asyncio.run(work())


def test_a_full_redis_keeps_nothing_and_says_so() -> None:
    async def work() -> None:
        with Valkey("--maxmemory", "2mb", "--maxmemory-policy", "noeviction") as server:
            blobs = RedisBlobs(server.url, 1 << 30, 1 << 30, timeout_s=5)
            await blobs.open()
            for index in range(20):
                blobs.put(f"k{index}", "t", b"x" * 500_000, TTL_S)
            await blobs.get("k0")
            assert blobs.counts.failed >= 1
            await blobs.close()

    asyncio.run(work())
