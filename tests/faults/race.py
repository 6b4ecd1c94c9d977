"""Many processes and many clients race for the last nano-dollar of many budgets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec

from gateway.config_limits import BudgetConfig, ScopeLimits
from tests.faults.clients import Client
from tests.faults.fleet import TOKEN_NANO, Gateway, create_keys, judge_books, read_books
from tests.stores import Postgres, Valkey

CALM_S_MAX = 60.0
PROMPT = "one two"
# Two more than the prompt has, since the gateway allows for what a model may put around it.
INPUT_NANO = (len(PROMPT) + 2) * 1000


class Outcome(msgspec.Struct):
    """What a scenario comes to: figures to print, what was wrong, which should be nothing, and what took too long,
    which may be the machine's fault."""

    figures: dict[str, object]
    wrong: list[str]
    slow: list[str] = []


class Purse(msgspec.Struct):
    """A key with a budget, and whether a client was told that it is used up."""

    id: str
    key: str
    empty: bool = False


@contextlib.contextmanager
def fleet(folder: Path, processes: int, stores: tuple[Valkey, Postgres] | None) -> Iterator[list[Gateway]]:
    """One gateway on SQLite and memory, or several on one Redis and one PostgreSQL."""
    more = ""
    if stores is not None:
        urls = f'database: "{stores[1].database()}", redis: "{stores[0].url}"'
        more = f"state: {{{urls}, replicas: {processes}, database_connections_max: 4}}\n"
    gateways = [Gateway(folder / str(number), more) for number in range(processes)]
    try:
        yield gateways
    finally:
        for gateway in gateways:
            gateway.kill()


def race(
    folder: Path, *, processes: int, clients: int, budgets: int, tokens: int, stores: tuple[Valkey, Postgres] | None
) -> Outcome:
    """Every client of every process asks for random amounts from random budgets until all are used up."""
    limit_nano = tokens * TOKEN_NANO
    with fleet(folder, processes, stores) as gateways:
        config = gateways[0].config
        budget = BudgetConfig(usd=f"{limit_nano / 1e9:.9f}", period="total")
        made = create_keys(config, [ScopeLimits(budgets=(budget,))] * budgets)
        purses = [Purse(*one) for one in made]
        started_s = time.monotonic()
        asked, finished, wrong = asyncio.run(_race(gateways, purses, clients))
        took_s = time.monotonic() - started_s
        books = read_books(config)
        wrong += judge_books(books, finished, limit_nano)
        wrong += asyncio.run(_spend_the_rest(gateways, purses, books.charged, limit_nano))
        for gateway in gateways:
            gateway.stop()
        books = read_books(config)
        wrong += judge_books(books, finished, limit_nano)
    spent = [books.charged.get(f"key:{purse.id}:total", 0) / limit_nano for purse in purses]
    figures: dict[str, object] = {
        "processes": processes,
        "clients": processes * clients,
        "requests": asked,
        "entries": len(books.entries),
        "least spent": f"{min(spent):.4%}",
        "most spent": f"{max(spent):.4%}",
        "seconds": round(took_s, 1),
    }
    return Outcome(figures, wrong)


async def _race(gateways: list[Gateway], purses: list[Purse], clients: int) -> tuple[int, list[str], list[str]]:
    """How many were asked, the ids of the finished ones, and surprising answers."""
    for gateway in gateways:
        gateway.start()
    await asyncio.gather(*(gateway.ready() for gateway in gateways))
    finished: list[str] = []
    wrong: list[str] = []
    asked = 0

    async def one(number: int, gateway: Gateway) -> None:
        nonlocal asked
        rng, client = random.Random(number), Client(gateway.port)
        while open_purses := [purse for purse in purses if not purse.empty]:
            purse, tokens = rng.choice(open_purses), rng.randint(1, 8)
            leave_after = rng.randrange(600) if rng.random() < 0.1 else None
            answer = await client.complete(
                purse.key, tokens, prompt=PROMPT, stream=rng.random() < 0.4, leave_after=leave_after
            )
            asked += 1
            if answer.finished:
                finished.append(answer.request_id)
            elif answer.code == "insufficient_quota":
                purse.empty = purse.empty or tokens == 1
            elif answer.code == "rate_limit_exceeded" or answer.status == 503:
                # Others hold what is left of the budget, or the machine is too small for all of us.
                await asyncio.sleep(0.05)
            elif leave_after is None:
                wrong.append(f"an answer was {answer.status} {answer.code}")
                await asyncio.sleep(0.1)
        client.leave()

    every = [
        one(number * len(gateways) + i, gateway) for number in range(clients) for i, gateway in enumerate(gateways)
    ]
    await asyncio.gather(*every)
    for gateway in gateways:
        wrong += await calm(gateway)
    return asked, finished, wrong


async def _spend_the_rest(
    gateways: list[Gateway], purses: list[Purse], charged: dict[str, int], limit_nano: int
) -> list[str]:
    """What fits into what is left has to be let in, what does not has to be refused, and nothing may stay held."""
    wrong = []
    for i, purse in enumerate(purses):
        client = Client(gateways[i % len(gateways)].port)
        left = limit_nano - charged.get(f"key:{purse.id}:total", 0)
        tokens = (left - INPUT_NANO) // TOKEN_NANO
        over = await client.complete(purse.key, max(tokens, 0) + 1, prompt=PROMPT)
        if over.code != "insufficient_quota":
            wrong.append(f"{tokens + 1} tokens were let in with {left} left: {over.status} {over.code}")
        if tokens > 0:
            fits = await client.complete(purse.key, tokens, prompt=PROMPT, ignore_eos=True)
            if not fits.finished:
                wrong.append(f"{tokens} tokens were refused with {left} left: {fits.status} {fits.code}")
        client.leave()
    for gateway in gateways:
        wrong += await calm(gateway)
    return wrong


async def calm(gateway: Gateway) -> list[str]:
    """Wait until nothing is held and everything is in the database; what is left, which should be nothing."""
    deadline = time.monotonic() + CALM_S_MAX
    names = ("reservations", "ledger_pending", "outbox_bytes")
    while left := [f"{value:g} {name} are left" for name in names if (value := metric(gateway, name))]:
        if time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.1)
    return []


def metric(gateway: Gateway, name: str) -> float:
    """The sum of a metric's samples."""
    headers = {"authorization": "Bearer test-admin-key-0123456789"}
    text = httpx.get(f"http://127.0.0.1:{gateway.port}/metrics", headers=headers).text
    lines = (line for line in text.splitlines() if line.startswith((f"gateway_{name} ", f"gateway_{name}{{")))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
