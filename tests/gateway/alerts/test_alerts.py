from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from gateway.alerts import ATTEMPTS_MAX, BATCH, LEASE_US, PAUSE_FIRST_US, PAUSE_MAX_US, Alerts
from gateway.alerts.channels import NotDelivered
from gateway.limits.limiter import Alert, Balance
from gateway.state.database import Database
from gateway.telemetry import Telemetry
from tests.databases import open_migrated

ALERT = Alert("key:k:m2026-11-01:80", "key:k", "key:k:m2026-11-01", 80, 8 * 10**9, 10**10)
LOW = Alert("wallet:w:low:500", "wallet:w", "wallet:w", 90, 450, 500, "low")


class Ear:
    """A channel that fails `failures` times."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.heard: list[tuple[str, str, bytes]] = []

    async def send(self, id: str, subject: str, payload: bytes) -> None:
        if self.failures:
            self.failures -= 1
            raise NotDelivered("busy")
        self.heard.append((id, subject, payload))


class Bench:
    """Replicas over one database, with a clock that a test sets."""

    def __init__(self, database: Database | None) -> None:
        self.now_us = 1_800_000_000_000_000
        self.database = database
        self.ear = Ear()
        self.telemetry = Telemetry("test")
        self.credits = 500

    async def read(self, accounts: Sequence[str]) -> dict[str, Balance]:
        return {account: Balance(450, self.credits) for account in accounts}

    def replica(self) -> Alerts:
        return Alerts(self.database, {"ear": self.ear}, self.read, self.telemetry, now_us=lambda: self.now_us)


def run(data_dir: Path, scenario: Callable[[Bench], Awaitable[None]]) -> None:
    async def inside() -> None:
        database = await open_migrated(data_dir, serve=True)
        try:
            await scenario(Bench(database))
        finally:
            await database.close()

    asyncio.run(inside())


def test_an_alert_is_told_once_by_all_replicas_and_after_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(bench: Bench) -> None:
        for _ in range(2):
            replicas = [bench.replica() for _ in range(3)]
            for replica in replicas:
                replica.add(ALERT)
                replica.add(ALERT)
            await asyncio.gather(*(replica.store() for replica in replicas))
            await asyncio.gather(*(replica.deliver() for replica in replicas))
        ((id, subject, payload),) = bench.ear.heard
        text = "key:k has used 80 % of its budget: 8.0 of 10.0 US dollars in the month from 2026-11-01"
        assert (id, subject) == (ALERT.id, text) and [record.message for record in caplog.records] == [text]
        told = msgspec.json.decode(payload)
        assert (told["type"], told["percent"], told["limit_usd"]) == ("budget.threshold", 80, "10.0")
        assert b'gateway_alerts_total{percent="80"} 1' in bench.telemetry.render()

    run(tmp_path, scenario)


def test_a_channel_that_fails_is_tried_again_with_growing_pauses(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        alerts = bench.replica()
        bench.ear.failures = 2
        alerts.add(ALERT)
        await alerts.store()
        await alerts.deliver()
        for pause_us in (PAUSE_FIRST_US, 2 * PAUSE_FIRST_US):
            bench.now_us += pause_us - 1
            before = bench.ear.failures
            await bench.replica().deliver()
            assert (bench.ear.failures, bench.ear.heard) == (before, [])
            bench.now_us += 1
            await bench.replica().deliver()
        assert len(bench.ear.heard) == 1
        bench.now_us += LEASE_US
        await alerts.deliver()
        assert len(bench.ear.heard) == 1

    run(tmp_path, scenario)


def test_a_channel_that_never_hears_is_given_up(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        alerts = bench.replica()
        bench.ear.failures = 1000
        alerts.add(ALERT)
        await alerts.store()
        for _ in range(ATTEMPTS_MAX + 5):
            await alerts.deliver()
            bench.now_us += PAUSE_MAX_US
        assert bench.ear.failures == 1000 - ATTEMPTS_MAX
        assert bench.database is not None
        (row,) = await bench.database.query("SELECT outcome, attempts FROM alerts WHERE channel = 'ear'")
        assert (row["outcome"], row["attempts"]) == ("failed", ATTEMPTS_MAX)

    run(tmp_path, scenario)


def test_what_a_dead_replica_was_telling_is_told_by_another(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        begun, never = asyncio.Event(), asyncio.Event()

        class Stuck(Ear):
            async def send(self, id: str, subject: str, payload: bytes) -> None:
                begun.set()
                await never.wait()

        dying = Alerts(bench.database, {"ear": Stuck()}, bench.read, bench.telemetry, now_us=lambda: bench.now_us)
        dying.add(ALERT)
        await dying.store()
        telling = asyncio.create_task(dying.deliver())
        await begun.wait()
        await bench.replica().deliver()
        assert bench.ear.heard == []
        telling.cancel()
        bench.now_us += LEASE_US
        await bench.replica().deliver()
        assert len(bench.ear.heard) == 1
        await asyncio.wait([telling])

    run(tmp_path, scenario)


def test_a_wallet_that_was_topped_up_meanwhile_is_not_told_of(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        for credits, heard in ((600, 0), (500, 1)):
            bench.credits = credits
            alerts = bench.replica()
            alerts.add(LOW)
            await alerts.store()
            await alerts.deliver()
            assert len(bench.ear.heard) == heard
        assert bench.ear.heard[0][1] == "wallet:w is low: 0.00000005 US dollars are left"

    run(tmp_path, scenario)


def test_without_a_database_alerts_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        alerts = Bench(None).replica()
        alerts.start()
        for _ in range(2):
            alerts.add(msgspec.structs.replace(LOW, id="i", kind="paused"))
        await alerts.close()

    asyncio.run(scenario())
    (record,) = caplog.records
    assert record.message == "wallet:w has no credit left: its keys are paused until it is topped up"


def test_a_channel_that_is_no_longer_configured_keeps_nobody_from_being_told(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        gone = Alerts(bench.database, {"gone": Ear()}, bench.read, bench.telemetry, now_us=lambda: bench.now_us)
        for number in range(BATCH):
            gone.add(msgspec.structs.replace(ALERT, id=f"{ALERT.id}:{number}"))
        await gone.store()
        bench.now_us += 1
        alerts = bench.replica()
        alerts.add(ALERT)
        await alerts.store()
        await alerts.deliver()
        assert [id for id, _, _ in bench.ear.heard] == [ALERT.id]

    run(tmp_path, scenario)
