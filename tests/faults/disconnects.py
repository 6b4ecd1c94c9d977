"""Clients that leave at any point of a request: each that was let in is settled and recorded exactly once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import msgspec

from gateway.config_limits import BudgetConfig, ScopeLimits
from tests.faults.fleet import Gateway, create_keys, judge_books, read_books
from tests.faults.race import Outcome, calm, metric

LIMITS = ScopeLimits(budgets=(BudgetConfig(usd="999999", period="total"),), wallet="purse", concurrent_requests=100)
TOGETHER = 40
PLACES = ("in the request", "before the answer", "in the answer")


def disconnects(folder: Path, *, count: int) -> Outcome:
    """`count` clients ask and leave."""
    gateway = Gateway(folder / "gateway")
    ((_, key),) = create_keys(gateway.config, [LIMITS])
    try:
        places, wrong, counted = asyncio.run(_all(gateway, key, count))
        gateway.stop()
    finally:
        gateway.kill()
    books = read_books(gateway.config)
    outcomes = Counter(entry.outcome for entry in books.entries)
    if counted != len(books.entries):
        wrong.append(f"{counted} requests were let in, {len(books.entries)} are in the ledger")
    if set(outcomes) - {"ok", "cancelled"}:
        wrong.append(f"some ended otherwise: {dict(outcomes)}")
    figures: dict[str, object] = {f"left {place}": places[place] for place in PLACES}
    return Outcome(figures | {"let in": counted, **outcomes}, wrong + judge_books(books, []))


async def _all(gateway: Gateway, key: str, count: int) -> tuple[Counter[str], list[str], int]:
    """Where they left, what was wrong after, and how many were let in."""
    gateway.start()
    await gateway.ready()
    places: Counter[str] = Counter()
    numbers = iter(range(count))

    async def some() -> None:
        for number in numbers:
            places[await _one(gateway.port, key, random.Random(number))] += 1

    await asyncio.gather(*(some() for _ in range(TOGETHER)))
    wrong = await calm(gateway)
    return places, wrong, int(metric(gateway, "inference_requests_total"))


async def _one(port: int, key: str, rng: random.Random) -> str:
    """One request that its client does not wait for; where it left."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    asked = {"model": "m", "prompt": "one two", "max_tokens": rng.randint(1, 8), "stream": rng.random() < 0.6}
    body = msgspec.json.encode(asked)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    data = f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    place = rng.choices(PLACES, (1, 5, 4))[0]
    writer.write(data if place != PLACES[0] else data[: rng.randrange(len(data))])
    await writer.drain()
    if place == PLACES[1]:
        await asyncio.sleep(rng.uniform(0, 0.015))
    elif place == PLACES[2]:
        await reader.read(rng.randrange(1, 3000))
    if rng.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()
    return place
