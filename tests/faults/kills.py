"""Gateways that are killed, or whose disk fails, at random and at chosen points while clients use them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from gateway.config_limits import BudgetConfig, ScopeLimits
from tests.faults.clients import Client
from tests.faults.fleet import KILL, LAST, Faults, Gateway, Rule, create_keys, judge_books, read_books
from tests.faults.race import Outcome, calm

LIMITS = ScopeLimits(budgets=(BudgetConfig(usd="999999", period="total"),), wallet="purse", concurrent_requests=10_000)
CLIENTS = 8
# Where the gateway and SQLite touch the disk and the network for an entry, in this order.
CHOSEN = (
    ("write", "outbox"),
    ("fdatasync", "outbox"),
    ("pwrite", "gateway.db-journal"),
    ("fdatasync", "gateway.db-journal"),
    ("pwrite", "gateway.db"),
    ("fdatasync", "gateway.db"),
    ("unlink", "gateway.db-journal"),
    ("write", "socket:"),
)
OUTBOX = (("write", "outbox"), ("fdatasync", "outbox"), ("fsync", "outbox"), ("unlink", "outbox"))
BROKEN = Rule("fdatasync", errno.EIO, 1, LAST, "gateway.db")
RECOVERY_S_MAX = 5.0
GIVE_UP_S = 60.0


class Place(msgspec.Struct):
    """A gateway and everything that happened to it."""

    gateway: Gateway
    faults: Faults
    key: str
    rng: random.Random
    points: tuple[tuple[str, str], ...]
    finished: list[str] = []
    wrong: list[str] = []
    recoveries_s: list[float] = []
    killed: int = 0
    chosen: int = 0
    injected: int = 0


def kills(folder: Path, shim: Path, *, count: int, parallel: int) -> Outcome:
    """Kill gateways `count` times in all, and hold each client's memory against their books."""
    places = places_in(folder, shim, parallel, "")
    kill_all(places, count)
    return outcome_of(places)


def kill_all(places: list[Place], count: int) -> None:
    """Use the gateways and kill one after the other, `count` times."""
    asyncio.run(_all(places, count, _killed_round))


def errors(folder: Path, shim: Path, *, count: int, parallel: int) -> Outcome:
    """Let the disk fail until `count` calls have failed; the gateways go on without a restart."""
    places = places_in(folder, shim, parallel, "")
    asyncio.run(_all(places, count, _failing_round))
    return outcome_of(places)


def places_in(folder: Path, shim: Path, parallel: int, more: str) -> list[Place]:
    places = []
    for number in range(parallel):
        own = folder / str(number)
        own.mkdir()
        faults = Faults(own, shim)
        gateway = Gateway(own, more, faults.environ)
        ((_, key),) = create_keys(gateway.config, [LIMITS])
        places.append(Place(gateway, faults, key, random.Random(number), CHOSEN if not more else CHOSEN[-1:]))
    return places


async def _all(places: list[Place], count: int, one_round: Callable[[Place], Awaitable[int]]) -> None:
    left = count

    async def one(place: Place) -> None:
        nonlocal left
        while left > 0 and not place.wrong:
            done = await one_round(place)
            left -= done
        place.faults.disarm()
        if not place.gateway.alive:
            await started(place)
        place.wrong += await calm(place.gateway)
        place.gateway.stop()

    try:
        await asyncio.gather(*map(one, places))
    finally:
        for place in places:
            place.gateway.kill()


async def started(place: Place) -> None:
    """Start it and note how long it takes until a limited request is served."""
    started_s = time.monotonic()
    place.gateway.start()
    await place.gateway.ready()
    await _recovered(place, started_s)


async def _recovered(place: Place, since_s: float) -> None:
    client = Client(place.gateway.port)
    while not (answer := await client.complete(place.key, 1)).finished:
        if time.monotonic() - since_s > GIVE_UP_S:
            place.wrong.append(f"no recovery: {answer.status} {answer.code}")
            return
        await asyncio.sleep(0.02)
    client.leave()
    place.finished.append(answer.request_id)
    place.recoveries_s.append(time.monotonic() - since_s)


async def _killed_round(place: Place) -> int:
    """From a start to a kill."""
    rng = place.rng
    await started(place)
    if rng.random() < 0.6:
        call, match = rng.choice(place.points)
        rules = [Rule(call, KILL, first := rng.randint(1, 600 if call == "pwrite" else 60), first, match)]
        if len(place.points) > 1 and rng.random() < 0.3:
            call, match = rng.choice(OUTBOX)
            rules = [BROKEN, Rule(call, KILL, first := rng.randint(1, 3), first, match)]
        place.faults.arm(*rules)
    working = [asyncio.create_task(use(place, number)) for number in range(CLIENTS)]
    for _ in range(rng.randint(2, 60)):
        await asyncio.sleep(0.01)
        if not place.gateway.alive:
            break
    place.chosen += not place.gateway.alive
    place.faults.disarm()
    place.gateway.kill()
    await asyncio.gather(*working)
    place.killed += 1
    return 1


async def _failing_round(place: Place) -> int:
    """Some calls fail while clients go on; then everything has to be as before, by itself."""
    rng = place.rng
    if not place.gateway.alive:
        await started(place)
    working = [asyncio.create_task(use(place, number)) for number in range(CLIENTS)]
    await asyncio.sleep(rng.uniform(0, 0.2))
    call, match = rng.choice((*CHOSEN[:-1], *OUTBOX[:-1], ("fsync", "state"), ("write", "outbox")))
    first = rng.randint(1, 20)
    rule = Rule(call, rng.choice((errno.EIO, errno.ENOSPC)), first, first + rng.randint(0, 10), match)
    place.faults.arm(*([BROKEN] if match == "outbox" and rng.random() < 0.5 else []), rule)
    await asyncio.sleep(rng.uniform(0.05, 0.8))
    injected = place.faults.disarm()
    since_s = time.monotonic()
    await _recovered(place, since_s)
    for task in working:
        task.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    place.injected += injected
    return injected


async def use(place: Place, number: int) -> None:
    """Ask until the gateway is gone."""
    client, rng = Client(place.gateway.port), random.Random(place.rng.random() + number)
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            leave_after = rng.randrange(500) if rng.random() < 0.1 else None
            stream = rng.random() < 0.4
            answer = await client.complete(place.key, rng.randint(1, 8), stream=stream, leave_after=leave_after)
            if answer.finished:
                place.finished.append(answer.request_id)
            elif answer.status == 0:
                if leave_after is None:
                    break
            elif answer.status not in (200, 429, 503):
                place.wrong.append(f"an answer was {answer.status} {answer.code}")
            elif answer.status == 503:
                await asyncio.sleep(0.02)
    client.leave()


def outcome_of(places: list[Place]) -> Outcome:
    wrong, entries = [], 0
    for place in places:
        books = read_books(place.gateway.config)
        entries += len(books.entries)
        wrong += [*place.wrong, *judge_books(books, place.finished)]
    recoveries_s = sorted(one for place in places for one in place.recoveries_s)
    slow = [f"recovery took {one:.1f} s" for one in recoveries_s[-1:] if one > RECOVERY_S_MAX]
    figures: dict[str, object] = {
        "kills": sum(place.killed for place in places),
        "at chosen points": sum(place.chosen for place in places),
        "errors injected": sum(place.injected for place in places),
        "finished": sum(len(place.finished) for place in places),
        "entries": entries,
        "median recovery s": round(recoveries_s[len(recoveries_s) // 2], 2),
        "longest": round(recoveries_s[-1], 2),
    }
    return Outcome(figures, wrong, slow)
