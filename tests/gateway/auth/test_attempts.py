"""How often somebody may try to log in."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from gateway.auth.attempts import ATTEMPT, LOG_IN_ACCOUNT, LOG_IN_ADDRESS, Allowance, Attempts, origin_of
from gateway.errors import GatewayError
from gateway.state.memory import Memory
from gateway.state.shared import Argument, Record, Reply, Script, SharedStateUnavailable

PEPPER = b"p" * 32
FEW = Allowance("few", 3, 10)


class Clock:
    def __init__(self) -> None:
        self.us = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.us


async def refused(attempts: Attempts, *tries: tuple[Allowance, str]) -> float:
    """How long to wait, 0 for a try that was granted."""
    try:
        await attempts.take(*tries)
    except GatewayError as error:
        assert error.code in ("rate_limit_exceeded", "overloaded")
        return error.retry_after_s or 0.0
    return 0.0


def test_a_burst_and_then_one_at_a_time() -> None:
    async def work() -> None:
        clock = Clock()
        attempts = Attempts(Memory(now_us=clock), PEPPER)
        waits = [await refused(attempts, (FEW, "a")) for _ in range(5)]
        assert waits == [0, 0, 0, 10, 10]
        assert await refused(attempts, (FEW, "b")) == 0
        clock.us += 10_000_000
        assert [await refused(attempts, (FEW, "a")) for _ in range(2)] == [0, 10]
        clock.us += 3_600_000_000
        assert [await refused(attempts, (FEW, "a")) for _ in range(4)] == [0, 0, 0, 10]

    asyncio.run(work())


def test_a_thousand_tries_at_one_account_get_the_burst_only() -> None:
    async def work() -> None:
        attempts = Attempts(Memory(now_us=Clock()), PEPPER)
        granted = 0
        for i in range(1000):
            tries = ((LOG_IN_ADDRESS, f"192.0.2.{i % 250}"), (LOG_IN_ACCOUNT, "alice@example.test"))
            granted += await refused(attempts, *tries) == 0
        assert granted == LOG_IN_ACCOUNT.burst

    asyncio.run(work())


def test_a_refused_try_counts_nowhere_and_a_rightful_one_is_given_back() -> None:
    async def work() -> None:
        attempts = Attempts(Memory(now_us=Clock()), PEPPER)
        for _ in range(3):
            await attempts.take((FEW, "account"))
        for _ in range(10):
            assert await refused(attempts, (FEW, "address"), (FEW, "account")) == 10
        assert [await refused(attempts, (FEW, "address")) for _ in range(4)] == [0, 0, 0, 10]
        await attempts.give_back((FEW, "address"))
        assert [await refused(attempts, (FEW, "address")) for _ in range(2)] == [0, 10]

    asyncio.run(work())


def test_memory_is_bounded_and_a_full_one_refuses() -> None:
    async def work() -> None:
        attempts = Attempts(None, PEPPER, local=Memory(now_us=Clock(), entries_max=2))
        assert [await refused(attempts, (FEW, name)) for name in "aab"] == [0, 0, 0]
        assert await refused(attempts, (FEW, "c")) == 60
        assert await refused(attempts, (FEW, "a")) == 0

    asyncio.run(work())


def test_without_shared_state_this_process_counts_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Away(Memory):
        async def run(
            self, script: Script, keys: Sequence[str], arguments: Sequence[Argument], *, patient: bool = False
        ) -> Reply:
            raise SharedStateUnavailable("taken away")

    async def work() -> None:
        attempts = Attempts(Away(), PEPPER, local=Memory(now_us=Clock()))
        assert [await refused(attempts, (FEW, "a")) for _ in range(4)] == [0, 0, 0, 10]

    asyncio.run(work())
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("::1", "::"),
        ("", ""),
        ("not an address", "not an address"),
    ],
)
def test_whom_an_address_belongs_to(address: str, origin: str) -> None:
    assert origin_of(address) == origin


class Moment:
    """`Records` over plain dictionaries."""

    def __init__(self) -> None:
        self.now_us = 1_700_000_000_000_000
        self.records: dict[str, Record] = {}

    def read(self, key: str) -> Record | None:
        return self.records.get(key)

    def write(self, key: str, record: Record, ttl_ms: int) -> None:
        assert ttl_ms >= (record["tat"] - self.now_us) // 1000
        self.records[key] = record

    def delete(self, key: str) -> None:
        self.records.pop(key, None)


def test_no_more_are_granted_than_the_allowance_says() -> None:
    moment, granted = Moment(), 0
    began_us = moment.now_us
    chance = random.Random(7)
    for _ in range(300):
        moment.now_us += chance.choice([0, 0, 1, 5_000_000])
        granted += ATTEMPT.step(moment, ["a"], [1, 3, 10_000_000]) == [0]
        assert granted <= 3 + (moment.now_us - began_us) // 10_000_000
