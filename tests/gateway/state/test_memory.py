"""What only memory promises: moments that the test chooses, and a bound."""

from __future__ import annotations

import asyncio

import pytest

from gateway.state.memory import Memory
from gateway.state.shared import SharedStateUnavailable
from tests.conformance.test_shared_state import ADD, READ, Clock


def test_everything_expires_at_its_moment() -> None:
    async def run() -> None:
        clock = Clock()
        state = Memory(now_us=clock.now_us)
        await state.run(ADD, ["a"], [1, 10, 1000])
        await state.set("a", b"value", 1.0)
        clock.us += 999_999
        assert (await state.run(READ, ["a"], []))[0] == 1
        assert not await state.set("a", b"other", 1.0, only_new=True)
        clock.us += 1
        assert await state.run(READ, ["a"], []) == []
        assert await state.get("a") is None
        assert await state.set("a", b"other", 1.0, only_new=True)

    asyncio.run(run())


def test_a_record_that_is_renewed_outlives_its_first_end() -> None:
    async def run() -> None:
        clock = Clock()
        state = Memory(now_us=clock.now_us)
        for _ in range(10):
            await state.run(ADD, ["a"], [1, 100, 1000])
            clock.us += 900_000
            await state.run(ADD, [f"{clock.us}"], [1, 100, 1000])
        assert (await state.run(READ, ["a"], []))[0] == 10

    asyncio.run(run())


def test_full_refuses_new_keys_and_forgets_none_that_is_alive() -> None:
    async def run() -> None:
        clock = Clock()
        state = Memory(now_us=clock.now_us, entries_max=10)
        for i in range(10):
            await state.run(ADD, [f"k{i}"], [1, 10, 1000])
        with pytest.raises(SharedStateUnavailable, match="full"):
            await state.run(ADD, ["new"], [1, 10, 1000])
        assert await state.run(ADD, ["k3"], [1, 10, 5000]) == [2]
        clock.us += 1_000_000
        for i in range(9):
            await state.run(ADD, [f"new{i}"], [1, 10, 1000])
        assert await state.run(ADD, ["k3"], [1, 10, 5000]) == [3]
        with pytest.raises(SharedStateUnavailable, match="full"):
            await state.run(ADD, ["one more"], [1, 10, 1000])

    asyncio.run(run())


def test_removed_records_leave_nothing_behind() -> None:
    async def run() -> None:
        state = Memory(entries_max=10)
        for i in range(1000):
            await state.run(ADD, [f"k{i}"], [1, 10, 3_600_000])
            await state.run(READ, [f"k{i}"], ["delete"])
        assert len(state._records._ends) <= 20
        assert len(state._records._marked) <= 20

    asyncio.run(run())
