"""Replicas that are killed while they share counters: what Redis counts comes to what the ledger has."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import redis

from tests.faults.fleet import read_books
from tests.faults.kills import Place, kill_all, outcome_of, places_in, started, use
from tests.faults.race import Outcome, calm
from tests.stores import Postgres, Valkey

# What a killed replica had recorded but not counted any more is counted by another one within this.
AGREED_S_MAX = 60.0


def replica_kills(folder: Path, shim: Path, *, count: int, stores: tuple[Valkey, Postgres]) -> Outcome:
    """Three replicas on one PostgreSQL and one Redis; each is killed again and again."""
    state = f'state: {{database: "{stores[1].database()}", redis: "{stores[0].url}", replicas: 3}}\n'
    places = places_in(folder, shim, 3, state)
    kill_all(places, count)
    for place in places:
        place.gateway.start()
    try:
        differing, took_s = _agree(places[0], stores[0])
    finally:
        for place in places:
            place.gateway.kill()
    outcome = outcome_of(places)
    outcome.figures["counters agree after s"] = round(took_s, 1)
    outcome.wrong += [f"{account}: Redis counts {difference:+} nano-USD" for account, difference in differing.items()]
    return outcome


def _agree(place: Place, valkey: Valkey) -> tuple[dict[str, int], float]:
    """Wait until Redis and the ledger agree; by how much accounts differ, and how long it took."""
    started_s = time.monotonic()
    while True:
        charged = read_books(place.gateway.config).charged
        counted = _counted(valkey)
        differing = {account: counted.get(account, 0) - nano for account, nano in charged.items()}
        differing = {account: difference for account, difference in differing.items() if difference}
        took_s = time.monotonic() - started_s
        if not differing or took_s > AGREED_S_MAX:
            return differing, took_s
        time.sleep(1)


def _counted(valkey: Valkey) -> dict[str, int]:
    """What Redis has as spent, by account."""
    counted = {}
    with redis.Redis.from_url(valkey.url) as client:
        epoch = client.get("gw:epoch").decode()
        for key in client.scan_iter(f"gw:{epoch}:r:*a:*"):
            spent = client.hget(key, "spent")
            counted[key.decode().partition(":a:")[2]] = int(spent or 0)
    return counted


def everything_at_once(folder: Path, shim: Path, stores: tuple[Valkey, Postgres]) -> Outcome:
    """PostgreSQL is away, then Redis is emptied and a replica killed, whose outbox alone knows its last answers."""
    valkey, postgres = stores
    state = f'state: {{database: "{postgres.database()}", redis: "{valkey.url}", replicas: 3}}\n'
    places = places_in(folder, shim, 3, state)
    try:
        asyncio.run(_use_through(places, valkey, postgres))
        differing, took_s = _agree(places[0], valkey)
    finally:
        for place in places:
            place.gateway.kill()
    outcome = outcome_of(places)
    outcome.figures["counters agree after s"] = round(took_s, 1)
    outcome.wrong += [f"{account}: Redis counts {difference:+} nano-USD" for account, difference in differing.items()]
    return outcome


async def _use_through(places: list[Place], valkey: Valkey, postgres: Postgres) -> None:
    for place in places:
        await started(place)
    working = [asyncio.create_task(use(place, number)) for place in places for number in range(4)]
    await asyncio.sleep(3)
    await asyncio.to_thread(postgres.stop)
    await asyncio.sleep(5)
    valkey.kill()
    places[0].gateway.kill()
    valkey.start()
    await asyncio.to_thread(postgres.start)
    await asyncio.sleep(1)
    await started(places[0])
    working += [asyncio.create_task(use(places[0], number)) for number in range(4)]
    await asyncio.sleep(8)
    for task in working:
        task.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    for place in places:
        place.wrong += await calm(place.gateway)
