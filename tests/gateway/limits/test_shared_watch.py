from __future__ import annotations

import asyncio

import pytest

from gateway.limits.shared import SharedCounters
from tests.gateway.limits.histories import START_US
from tests.gateway.limits.test_shared import Fragile, Replica, run


def test_a_bug_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.limits.shared.WATCH_S", 0)

    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        looked = 0
        again = asyncio.Event()

        def complete() -> bool:
            nonlocal looked
            looked += 1
            if looked == 1:
                raise AssertionError("a bug")
            again.set()
            return True

        first.counters = SharedCounters(shared, 2, lambda: START_US, complete=complete)
        first.counters.start()
        async with asyncio.timeout(20):
            await again.wait()

    run(scenario)
