"""Tries to log in are granted by Lua on a real Valkey as they are by Python."""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from gateway.auth.attempts import ATTEMPT
from gateway.state.memory import Memory
from gateway.state.redis import open_redis
from gateway.state.shared import SharedState
from tests.stores import Valkey

START_US = 1_700_000_000_000_000
ALLOWANCES = {"a": (3, 10_000_000), "b": (1, 60_000_000), "c": (20, 15_000_000)}

# What passes in microseconds, whom the try is for, and whether it is one or is given back.
Step = tuple[int, list[str], int]
steps = st.tuples(
    st.integers(0, 40_000_000),
    st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True),
    st.sampled_from([1, 1, 1, -1]),
)


async def play(history: list[Step], state: SharedState, clock: list[int]) -> list[int]:
    replies = []
    for passed_us, keys, step in history:
        clock[0] += passed_us
        arguments = [step, *(value for key in keys for value in ALLOWANCES[key])]
        replies += await state.run(ATTEMPT, keys, arguments)
    return replies


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(steps, max_size=40))
def test_lua_decides_as_python_does(valkey: Valkey, history: list[Step]) -> None:
    async def both() -> tuple[list[int], list[int]]:
        async with Redis.from_url(valkey.url) as client:
            await client.flushall()
        clock = [START_US]
        state = await open_redis(valkey.url, now_us=lambda: clock[0])
        try:
            lua = await play(history, state, clock)
        finally:
            await state.close()
        clock = [START_US]
        return lua, await play(history, Memory(now_us=lambda: clock[0]), clock)

    lua, python = asyncio.run(both())
    assert lua == python
