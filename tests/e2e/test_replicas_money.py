"""Two gateways on one Redis and one PostgreSQL: their limits are the same ones, also while a store is away."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import Server
from tests.e2e.test_money import CONFIG, body, key, until
from tests.stores import Postgres, Valkey


@pytest.fixture(scope="module")
def stores() -> Iterator[tuple[Valkey, str]]:
    with Valkey() as valkey, Postgres() as postgres:
        yield valkey, postgres.database()


@pytest.fixture(scope="module")
def replicas(stores: tuple[Valkey, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    state = f"""
auth: {{pepper: the-same-pepper-for-all-replicas}}
state: {{database: "{stores[1]}", redis: "{stores[0].url}", replicas: 2}}
"""
    with contextlib.ExitStack() as opened:
        folder: Path = tmp_path_factory.mktemp("replicas")
        yield [opened.enter_context(Server(folder / name, config=CONFIG + state)) for name in ("one", "two")]


def ask(server: Server, text: str, tokens: int = 4) -> httpx.Response:
    with server.client(text) as client:
        return client.post("/v1/completions", json=body(tokens))


def test_a_budget_is_the_same_on_both(replicas: list[Server]) -> None:
    text = key(replicas[0], "--budget", "0.005/total")
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: ask(replicas[n % 2], text), range(60)))
    while (answer := ask(replicas[0], text)).status_code == 200:
        answers.append(answer)
    assert answer.json()["error"]["code"] == "insufficient_quota"
    assert ask(replicas[1], text).json()["error"]["code"] == "insufficient_quota"
    costs = [round(float(one.headers["x-gateway-cost-usd"]) * 1e9) for one in answers if one.status_code == 200]
    assert 5_000_000 - max(costs) < sum(costs) <= 5_000_000


def test_rates_are_the_same_on_both(replicas: list[Server]) -> None:
    text = key(replicas[0], "--rpm", "6")
    statuses = [ask(replicas[n % 2], text, 1).status_code for n in range(10)]
    assert statuses == [200] * 6 + [429] * 4


def test_without_redis_money_stops_and_comes_back_exact(replicas: list[Server], stores: tuple[Valkey, str]) -> None:
    valkey = stores[0]
    budgeted, rated = key(replicas[0], "--budget", "0.003/total"), key(replicas[0], "--rpm", "4")
    spent = round(float(ask(replicas[0], budgeted).headers["x-gateway-cost-usd"]) * 1e9)
    valkey.kill()
    refused = ask(replicas[0], budgeted)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "budget_unavailable")
    assert [ask(replicas[0], rated, 1).status_code for _ in range(3)] == [200, 200, 429], "half of four"
    valkey.start()
    started_s = time.monotonic()
    until(lambda: ask(replicas[1], budgeted, 1).status_code == 200, "it is back")
    assert time.monotonic() - started_s < 15
    with replicas[0].client(budgeted) as client:
        while (answer := client.post("/v1/completions", json=body(4))).status_code == 200:
            pass
        assert answer.json()["error"]["code"] == "insufficient_quota"
        budget = client.get("/v1/usage/me").json()["budgets"][0]
    assert spent < round(float(budget["spent_usd"]) * 1e9) <= 3_000_000
    assert float(budget["remaining_usd"]) < 0.001
