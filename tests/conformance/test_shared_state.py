"""One suite over every implementation of `SharedState`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from redis.asyncio import Redis as Connection

from gateway.state.memory import Memory
from gateway.state.redis import open_redis
from gateway.state.shared import (
    Argument,
    Records,
    Reply,
    Script,
    SharedState,
)

START_US = 1_700_000_000_000_000


class Clock:
    """Microseconds, moved by hand. Real servers' own expiry runs on their own clock, so it starts at the real time."""

    def __init__(self) -> None:
        self.us = START_US

    def now_us(self) -> int:
        return self.us


def _add(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    """All keys or none: adds an amount to each unless one would pass its limit; the counts, or the key that refused."""
    amount, limit, ttl_ms = (int(argument) for argument in arguments)
    counts = [(records.read(key) or {}).get("count", 0) for key in keys]
    for index, count in enumerate(counts):
        if count + amount > limit:
            return [-1, index]
    for key, count in zip(keys, counts, strict=True):
        records.write(key, {"count": count + amount, "at_us": records.now_us}, ttl_ms)
    return [count + amount for count in counts]


ADD = Script(
    "test.add",
    1,
    """
local amount, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local counts = {}
for i, key in ipairs(KEYS) do
  counts[i] = tonumber(redis.call('HGET', key, 'count') or '0')
  if counts[i] + amount > limit then return {-1, i - 1} end
end
for i, key in ipairs(KEYS) do
  counts[i] = counts[i] + amount
  redis.call('HSET', key, 'count', string.format('%.0f', counts[i]), 'at_us', string.format('%.0f', now_us))
  redis.call('PEXPIRE', key, ARGV[3])
end
return counts
""",
    _add,
)


def _read(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    record = records.read(keys[0])
    if arguments and arguments[0] == "delete":
        records.delete(keys[0])
    return [] if record is None else [record["count"], record["at_us"]]


READ = Script(
    "test.read",
    1,
    """
local found = redis.call('HMGET', KEYS[1], 'count', 'at_us')
if ARGV[1] == 'delete' then redis.call('DEL', KEYS[1]) end
if not found[1] then return {} end
return {tonumber(found[1]), tonumber(found[2])}
""",
    _read,
)

Work = Callable[[SharedState, Clock], Awaitable[None]]
With = Callable[[Work], None]


@contextlib.asynccontextmanager
async def memory(clock: Clock) -> AsyncIterator[SharedState]:
    state = Memory(now_us=clock.now_us)
    try:
        yield state
    finally:
        await state.close()


@contextlib.asynccontextmanager
async def redis(clock: Clock, url: str) -> AsyncIterator[SharedState]:
    connection = Connection.from_url(url)
    await connection.flushall()
    await connection.aclose()
    state = await open_redis(url, now_us=clock.now_us)
    try:
        yield state
    finally:
        await state.close()


@pytest.fixture(params=["memory", "redis"])
def with_state(request: pytest.FixtureRequest) -> With:
    if request.param == "memory":
        opened: Callable[[Clock], contextlib.AbstractAsyncContextManager[SharedState]] = memory
    else:
        url = request.getfixturevalue("valkey").url

        def opened(clock: Clock) -> contextlib.AbstractAsyncContextManager[SharedState]:
            return redis(clock, url)

    def run(work: Work) -> None:
        async def inside() -> None:
            clock = Clock()
            async with opened(clock) as state:
                await work(state, clock)

        asyncio.run(inside())

    return run


def test_a_script_counts_at_the_given_moment(with_state: With) -> None:
    async def work(state: SharedState, clock: Clock) -> None:
        assert await state.run(READ, ["a"], []) == []
        assert await state.run(ADD, ["a"], [2, 10, 60_000]) == [2]
        clock.us += 7
        assert await state.run(ADD, ["a"], [3, 10, 60_000]) == [5]
        assert await state.run(READ, ["a"], []) == [5, START_US + 7]
        assert await state.run(READ, ["a"], ["delete"]) == [5, START_US + 7]
        assert await state.run(READ, ["a"], []) == []

    with_state(work)


def test_all_keys_change_or_none(with_state: With) -> None:
    async def work(state: SharedState, clock: Clock) -> None:
        await state.run(ADD, ["b"], [8, 10, 60_000])
        assert await state.run(ADD, ["a", "b", "c"], [3, 10, 60_000]) == [-1, 1]
        assert await state.run(READ, ["a"], []) == []
        assert await state.run(ADD, ["a", "b", "c"], [2, 10, 60_000]) == [2, 10, 2]

    with_state(work)


def test_large_integers_are_exact(with_state: With) -> None:
    async def work(state: SharedState, clock: Clock) -> None:
        assert await state.run(ADD, ["a"], [2**53 - 2, 2**53, 60_000]) == [2**53 - 2]
        assert await state.run(ADD, ["a"], [1, 2**53, 60_000]) == [2**53 - 1]
        assert (await state.run(READ, ["a"], []))[0] == 2**53 - 1

    with_state(work)


def test_those_who_ask_together_get_no_more_than_there_is(with_state: With) -> None:
    async def work(state: SharedState, clock: Clock) -> None:
        replies = await asyncio.gather(*(state.run(ADD, ["a"], [1, 50, 60_000]) for _ in range(200)))
        assert sorted(reply[0] for reply in replies if reply[0] > 0) == list(range(1, 51))

    with_state(work)


def test_a_caller_that_gives_up_leaves_the_others_their_own_answers(with_state: With) -> None:
    async def work(state: SharedState, clock: Clock) -> None:
        for turn in range(60):
            tasks = [asyncio.ensure_future(state.run(ADD, [f"{turn}:{i}"], [i, 1000, 60_000])) for i in range(1, 6)]
            for _ in range(turn % 6):
                await asyncio.sleep(0)
            tasks[turn % 5].cancel()
            replies = await asyncio.gather(*tasks, return_exceptions=True)
            for i, reply in enumerate(replies, 1):
                assert reply == [i] or isinstance(reply, asyncio.CancelledError)

    with_state(work)


def test_values_are_kept_apart_from_records(with_state: With) -> None:
    async def work(state: SharedState, clock: Clock) -> None:
        assert await state.get("a") is None
        assert await state.set("a", b"\x00\xff one", 60)
        await state.run(ADD, ["a"], [1, 10, 60_000])
        assert await state.get("a") == b"\x00\xff one"
        assert await state.set("a", b"two", 60)
        assert not await state.set("a", b"three", 60, only_new=True)
        assert await state.get("a") == b"two"
        assert await state.set("b", b"", 60, only_new=True)
        assert await state.get("b") == b""

    with_state(work)


def test_announcements_reach_those_who_listen(with_state: With) -> None:
    async def work(state: SharedState, clock: Clock) -> None:
        heard: asyncio.Queue[tuple[str, bytes | None]] = asyncio.Queue()
        state.listen("x", lambda message: heard.put_nowait(("first", message)))
        stop = state.listen("x", lambda message: heard.put_nowait(("second", message)))
        state.listen("y", lambda message: heard.put_nowait(("other", message)))
        await state.publish("x", b"\x00 one\r\n")
        assert {await heard.get(), await heard.get()} == {("first", b"\x00 one\r\n"), ("second", b"\x00 one\r\n")}
        stop()
        await state.publish("x", b"two")
        await state.publish("y", b"three")
        assert [await heard.get(), await heard.get()] == [("first", b"two"), ("other", b"three")]

    with_state(work)


def test_a_state_that_works_says_so(with_state: With) -> None:
    async def work(state: SharedState, clock: Clock) -> None:
        assert not state.degraded
        epoch = state.epoch
        assert epoch
        await state.run(ADD, ["a"], [1, 10, 60_000])
        assert state.epoch == epoch

    with_state(work)
