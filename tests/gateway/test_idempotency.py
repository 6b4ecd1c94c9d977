from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.config import IdempotencyConfig
from gateway.errors import GatewayError
from gateway.idempotency import LEASE_S, Claim, Idempotency, Result, claim_of
from gateway.ledger import Entry
from gateway.ledger.store import Ledger
from gateway.state.database import Database
from gateway.state.migrate import known, migrate
from gateway.state.postgres import open_postgres
from tests.databases import open_migrated
from tests.stores import Postgres

DONE = Result(200, (("content-type", "application/json"), ("x-gateway-model", "m")), b'{"a": "\xc3\xa9\x00"}')
CONFIG = IdempotencyConfig(wait_timeout_s=0)
DAY_US = 86_400_000_000


class Clock:
    def __init__(self) -> None:
        self.us = 1_000_000_000

    def __call__(self) -> int:
        return self.us


class World:
    """Processes over one database and one clock."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = Clock()
        self.ledger = Ledger(database)

    def process(self, config: IdempotencyConfig = CONFIG, *, alone: bool = False) -> Idempotency:
        return Idempotency(self.database, self.ledger, config, alone=alone, now_us=self.clock)


def claim(key: str = "k", body: bytes = b"{}", *, tenant: str = "t", request_id: str = "r") -> Claim:
    return claim_of((tenant, "id", "/v1/x"), key, body, request_id)


CHARGED = Entry(
    id="e",
    request_id="r",
    at_us=0,
    status="posted",
    outcome="ok",
    tenant="t",
    key_id="id",
    model="m",
    target="m",
    provider="local",
    kind="chat",
)


async def refused(work: Awaitable[object]) -> str:
    with pytest.raises(GatewayError) as error:
        await work
    assert error.value.status == 409
    return error.value.code


def play(data_dir: Path, scenario: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        database = await open_migrated(data_dir, serve=True)
        try:
            await scenario(World(database))
        finally:
            await database.close()

    asyncio.run(run())


def test_a_result_comes_back_for_a_day(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        one, two = world.process(), world.process()
        assert await one.begin(claim()) is None
        assert await refused(two.begin(claim())) == await refused(one.begin(claim())) == "idempotency_in_progress"
        await one.keep(claim(), DONE)
        assert await two.begin(claim()) == DONE
        assert await refused(two.begin(claim(body=b"[]"))) == "idempotency_conflict"
        assert await two.begin(claim(tenant="other")) is None
        world.clock.us += DAY_US
        await one.sweep()
        assert await world.database.query("SELECT id FROM idempotency WHERE tenant = 't'") == []
        assert await two.begin(claim(body=b"[]")) is None

    play(tmp_path, scenario)


def test_an_expired_result_counts_as_none_before_it_is_swept(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        process = world.process()
        assert await process.begin(claim()) is None
        await process.keep(claim(), DONE)
        world.clock.us += DAY_US
        assert await process.begin(claim(body=b"new")) is None
        await process.keep(claim(body=b"new"), replace(DONE, body=b"2"))
        assert await process.begin(claim(body=b"new")) == replace(DONE, body=b"2")

    play(tmp_path, scenario)


def test_a_failure_frees_the_key(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        process = world.process()
        assert await process.begin(claim()) is None
        await process.release(claim())
        assert await process.begin(claim(body=b"other")) is None

    play(tmp_path, scenario)


def test_a_dead_process_loses_its_claim_and_a_live_one_does_not(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        dead, live = world.process(), world.process()
        assert await dead.begin(claim()) is None
        world.clock.us += LEASE_S * 500_000
        await dead.renew()
        world.clock.us += LEASE_S * 500_000
        assert await refused(live.begin(claim())) == "idempotency_in_progress", "it was renewed"
        world.clock.us += LEASE_S * 500_000
        assert await refused(dead.begin(claim())) == "idempotency_in_progress", "it still runs it"
        assert await refused(live.begin(claim(body=b"x"))) == "idempotency_conflict"
        assert await live.begin(claim(request_id="again")) is None
        await dead.keep(claim(), DONE)
        assert await refused(world.process().begin(claim())) == "idempotency_in_progress", "it is not dead's any more"
        await live.keep(claim(), replace(DONE, body=b"live"))
        assert await dead.begin(claim()) == replace(DONE, body=b"live")

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("more", "at_us", "charged"),
    [
        ({}, 1, True),
        ({"status": "voided"}, 1, False),
        ({"key_id": "other"}, 1, False),
        ({"tenant": "other"}, 1, False),
        ({}, -1, False),
    ],
)
def test_what_was_charged_is_not_run_again(tmp_path: Path, more: dict[str, str], at_us: int, charged: bool) -> None:
    async def scenario(world: World) -> None:
        assert await world.process().begin(claim()) is None
        await world.ledger.commit([replace(CHARGED, at_us=world.clock.us + at_us, **more)])
        next_one = world.process(alone=True)
        await next_one.open()
        if charged:
            for _ in range(2):
                assert await refused(next_one.begin(claim())) == "idempotency_result_lost"
        else:
            assert await next_one.begin(claim()) is None
        await next_one.close()

    play(tmp_path, scenario)


def test_room_is_bounded_by_tenant_and_in_all(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        process = world.process(replace(CONFIG, tenant_bytes_max=5000, bytes_max=8000))
        outcomes = []
        for number, tenant in enumerate("aaabbb"):
            named = claim(str(number), tenant=tenant)
            assert await process.begin(named) is None
            await process.keep(named, replace(DONE, body=b"x" * 1000))
            try:
                outcomes.append(await process.begin(named) is not None)
            except GatewayError as error:
                assert error.code == "idempotency_result_lost"
                outcomes.append(False)
        assert outcomes == [True, True, False, True, False, False]
        again = world.process(replace(CONFIG, tenant_bytes_max=5000, bytes_max=8000))
        await again.sweep()
        assert await again.begin(claim("new", tenant="a")) is None
        await again.keep(claim("new", tenant="a"), replace(DONE, body=b"x" * 1000))
        assert await refused(again.begin(claim("new", tenant="a"))) == "idempotency_result_lost", "sizes are read back"

    play(tmp_path, scenario)


async def race(world: World, seed: int) -> None:
    """Processes ask for a few keys at once; some runs fail. Per key at most one succeeds, and all others see it."""
    rng = random.Random(seed)
    processes = [world.process(replace(CONFIG, wait_timeout_s=60)) for _ in range(3)]
    running: set[str] = set()
    succeeded: dict[str, bytes] = {}

    async def ask(process: Idempotency, key: str, number: int, fails: bool, turns: int) -> None:
        named = claim(f"{seed}-{key}", request_id=str(number))
        result = await process.begin(named)
        if result is not None:
            assert result.body == succeeded[key]
            return
        assert key not in running and key not in succeeded, "it runs once at a time, and once successfully"
        running.add(key)
        for _ in range(turns):
            await asyncio.sleep(0)
        running.remove(key)
        if fails:
            await process.release(named)
        else:
            succeeded[key] = str(number).encode()
            await process.keep(named, replace(DONE, body=succeeded[key]))

    asked = [
        ask(rng.choice(processes), rng.choice("abc"), number, rng.random() < 0.3, rng.randrange(4))
        for number in range(50)
    ]
    await asyncio.gather(*asked)
    assert len(succeeded) == 3


def test_races(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        for seed in range(5):
            await race(world, seed)

    play(tmp_path, scenario)


def test_races_on_postgres(postgres: Postgres) -> None:
    async def run(url: str) -> None:
        database = await open_postgres(url, timeout_s=10, connections_max=5, alone=False)
        try:
            await migrate(database, known())
            for seed in range(3):
                await race(World(database), seed)
        finally:
            await database.close()

    asyncio.run(run(postgres.database()))
