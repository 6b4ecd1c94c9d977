"""Stores that are killed, stalled, slow, or come back empty, and a disk that is full, while clients go on.

Nobody is told that a good key is bad, nobody gets in without a limit, nothing that was answered is missing from the
books, and everything is as before soon after the stores are, without a restart.
"""

from __future__ import annotations

import asyncio
import errno
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.config_limits import BudgetConfig, RateConfig, ScopeLimits
from tests.faults.clients import Client
from tests.faults.fleet import LAST, Faults, Gateway, Rule, create_keys, judge_books, read_books
from tests.faults.race import Outcome, calm, fleet
from tests.stores import Postgres, Valkey

RATE, WINDOW_S = 120, 6
BUDGET = ScopeLimits(budgets=(BudgetConfig(usd="999999", period="total"),))
RATED = ScopeLimits(rates=(RateConfig(unit="requests", limit=RATE, window_s=WINDOW_S),))
REPLICAS, CLIENTS = 3, 8
RECOVERY_S_MAX = 10.0
CALM_S = 8.0


class Seen(msgspec.Struct):
    """What the clients of one key saw."""

    key: str
    budgeted: bool
    statuses: Counter[str]
    finished: list[str] = []
    admitted: list[tuple[float, float]] = []  # when it was asked and when it was answered
    refused_s: list[float] = []


def outage(
    folder: Path,
    begin: Callable[[Valkey, Postgres], None],
    end: Callable[[Valkey, Postgres], None],
    away_s: float,
    *,
    uneven: bool = False,
) -> Outcome:
    """Three replicas are used for a while, during the outage, and after it; `uneven`: the key with a rate asks the
    first of them only until the outage begins, and then all."""
    with Valkey() as valkey, Postgres() as postgres, fleet(folder, REPLICAS, (valkey, postgres)) as gateways:
        made = create_keys(gateways[0].config, [BUDGET, RATED])
        seen = [Seen(key, i == 0, Counter()) for i, (_, key) in enumerate(made)]
        back_s, wrong = asyncio.run(
            _live(gateways, seen, lambda: begin(valkey, postgres), lambda: end(valkey, postgres), away_s, uneven=uneven)
        )
        for gateway in gateways:
            gateway.stop()
        return _judge(seen, back_s, wrong, gateways[0])


def disk_full(folder: Path, shim: Path, away_s: float) -> Outcome:
    """A gateway alone, whose disk takes nothing for a while: neither the database nor the outbox."""
    faults = Faults(folder, shim)
    gateway = Gateway(folder / "gateway", environ=faults.environ)
    made = create_keys(gateway.config, [BUDGET, RATED])
    seen = [Seen(key, i == 0, Counter()) for i, (_, key) in enumerate(made)]
    rules = [Rule(call, errno.ENOSPC, 1, LAST, "state") for call in ("pwrite", "write")]
    try:
        back_s, wrong = asyncio.run(_live([gateway], seen, lambda: faults.arm(*rules), faults.disarm, away_s))
        gateway.stop()
    finally:
        gateway.kill()
    return _judge(seen, back_s, wrong, gateway)


def _judge(seen: list[Seen], back_s: float, wrong: list[str], gateway: Gateway) -> Outcome:
    books = read_books(gateway.config)
    wrong += judge_books(books, [identity for one in seen for identity in one.finished])
    wrong += [f"a client was told {status}" for one in seen for status in one.statuses if not _honest(status)]
    recovery_s = _recovery_s(seen[0], back_s)
    slow = [f"recovery took {recovery_s:.1f} s"] if recovery_s > RECOVERY_S_MAX else []
    most = _most_at_once(seen[1].admitted)
    if most > 1.1 * RATE:
        wrong.append(f"{most} requests in a window that allows {RATE}")
    answers = sum((one.statuses for one in seen), Counter[str]())
    figures: dict[str, object] = {"recovery s": round(recovery_s, 1), "most in a window": f"{most}/{RATE}"}
    return Outcome(figures | dict(answers), wrong, slow)


def _honest(status: str) -> bool:
    return status.split()[0] in ("200", "429", "503")


async def _live(
    gateways: list[Gateway],
    seen: list[Seen],
    begin: Callable[[], object],
    end: Callable[[], object],
    away_s: float,
    *,
    uneven: bool = False,
) -> tuple[float, list[str]]:
    """When the stores were back, and what was wrong after all."""
    for gateway in gateways:
        gateway.start()
    await asyncio.gather(*(gateway.ready() for gateway in gateways))
    over, begun, at_once = asyncio.Event(), asyncio.Event(), asyncio.Event()
    at_once.set()
    using = [
        asyncio.create_task(
            _use(gateway.port, one, begun if uneven and not one.budgeted and place else at_once, over, number)
        )
        for place, gateway in enumerate(gateways)
        for one in seen
        for number in range(CLIENTS)
    ]
    await asyncio.sleep(CALM_S)
    await asyncio.to_thread(begin)
    begun.set()
    await asyncio.sleep(away_s)
    await asyncio.to_thread(end)
    back_s = time.monotonic()
    await asyncio.sleep(RECOVERY_S_MAX + CALM_S)
    over.set()
    await asyncio.gather(*using)
    return back_s, [problem for gateway in gateways for problem in await calm(gateway)]


async def _use(port: int, seen: Seen, begun: asyncio.Event, over: asyncio.Event, number: int) -> None:
    await begun.wait()
    client, rng = Client(port), random.Random(number)
    while not over.is_set():
        answer = await client.complete(seen.key, rng.randint(1, 8), stream=rng.random() < 0.3)
        seen.statuses[f"{answer.status} {answer.code or ''}".strip()] += 1
        if answer.status == 200:
            seen.admitted.append((answer.sent_s, answer.head_s))
        if answer.finished:
            seen.finished.append(answer.request_id)
        else:
            seen.refused_s.append(answer.end_s)
        await asyncio.sleep(0.05 if seen.budgeted else 0.1)
    client.leave()


def _recovery_s(seen: Seen, back_s: float) -> float:
    """How long after the stores were back the last client with a budget was still turned away."""
    return max([0.0, *(at_s - back_s for at_s in seen.refused_s)])


def _most_at_once(admitted: list[tuple[float, float]]) -> int:
    """The most requests that were surely let in within one window: asked after it began, answered before it ended."""
    most = 0
    asked = sorted(admitted)
    for i, (first_s, _) in enumerate(asked):
        inside = [answered_s for sent_s, answered_s in asked[i:] if sent_s < first_s + WINDOW_S]
        most = max(most, sum(answered_s <= first_s + WINDOW_S for answered_s in inside))
    return most
