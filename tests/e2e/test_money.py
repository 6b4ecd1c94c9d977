"""Limits and money on a real gateway: races for the last cent, exact rates, kills, clients that leave."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import ROOT, Server

WAIT_S = 60.0
CONFIG = f"""
server: {{connections_max: 2000, drain_timeout_s: 2}}
models:
  - name: demo
    path: {ROOT}/adapters/llama_cpp/demo/demo.gguf
    price: {{input: "10", cached_input: "10", output: "100"}}
    queue_depth_max: 2000
    engine: {{threads: 1}}
  - name: unpriced
    path: {ROOT}/adapters/llama_cpp/demo/demo.gguf
    engine: {{threads: 1}}
"""


def gateway(server: Server, *arguments: str) -> str:
    """Run a command beside the server."""
    options = ["--data-dir", str(server.data_dir / "state"), "--config", str(server.data_dir / "config.yaml")]
    command = [sys.executable, "-m", "gateway", *arguments, *options]
    environ = {"PATH": os.environ["PATH"], "HOME": str(server.data_dir)}
    return subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True, text=True).stdout


def key(server: Server, *options: str) -> str:
    return gateway(server, "keys", "create", "test", *options).strip()


def ledger(server: Server, *options: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(gateway(server, "usage", "--csv", *options))))


def body(tokens: int = 4, **more: object) -> dict[str, object]:
    return {"model": "demo", "prompt": "one two", "max_tokens": tokens, "temperature": 0, "ignore_eos": True} | more


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("money"), config=CONFIG) as server:
        yield server


def test_a_thousand_requests_for_the_last_cent(server: Server) -> None:
    text = key(server, "--budget", "0.01/total")

    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=250)
        headers = {"Authorization": f"Bearer {text}"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers, limits=limits, timeout=120) as client:
            return await asyncio.gather(*(client.post("/v1/completions", json=body()) for _ in range(1000)))

    answers = asyncio.run(all_at_once())
    codes = {answer.status_code for answer in answers}
    assert codes == {200, 429}
    done = [answer for answer in answers if answer.status_code == 200]
    paid = sum(round(float(answer.headers["x-gateway-cost-usd"]) * 1e9) for answer in done)
    each = paid // len(done)
    with server.client(text) as client:
        while (answer := client.post("/v1/completions", json=body())).status_code == 200:
            paid += round(float(answer.headers["x-gateway-cost-usd"]) * 1e9)
        assert answer.json()["error"]["code"] == "insufficient_quota"
        assert answer.headers["x-should-retry"] == "false"
        own = client.get("/v1/usage/me").json()
        shown = client.get(f"/v1/requests/{done[0].headers['x-request-id']}").json()["data"]
    assert 10_000_000 - each < paid <= 10_000_000, "all of it can be spent, and nothing above"
    assert own["data"][0]["cost_usd"] == own["budgets"][0]["spent_usd"] == f"{paid / 1e9:.9f}".rstrip("0")
    assert [(entry["status"], entry["usage"]["completion_tokens"]) for entry in shown] == [("posted", 4)]
    assert shown[0]["cost_usd"] == done[0].headers["x-gateway-cost-usd"]


def test_rates_are_exact_and_say_when_to_come_back(server: Server) -> None:
    with server.client(key(server, "--rpm", "5")) as client, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/completions", json=body(1)), range(20)))
    assert sum(answer.status_code == 200 for answer in answers) == 5
    for answer in answers:
        assert answer.headers["x-ratelimit-limit-requests"] == "5"
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
            assert 50 < float(answer.headers["retry-after-ms"]) / 1000 <= 61
    remaining = sorted(int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers)
    assert remaining[-5:] == [0, 1, 2, 3, 4]


def test_tokens_are_counted_as_they_were_used(server: Server) -> None:
    with server.client(key(server, "--tpm", "60")) as client:
        used, answers = 0, []
        while (answer := client.post("/v1/completions", json=body(10))).status_code == 200:
            used += answer.json()["usage"]["total_tokens"]
            answers.append(answer)
            assert int(answer.headers["x-ratelimit-limit-tokens"]) == 60
        assert 60 - 20 < used <= 60
        assert answer.headers["x-ratelimit-remaining-tokens"] == str(60 - used)
        assert "retry-after" in answer.headers
        never = client.post("/v1/completions", json=body(100))
        assert (never.status_code, never.headers["x-should-retry"]) == (429, "false")
        assert "retry-after" not in never.headers


def test_an_answer_without_bound_is_cut_to_what_the_budget_has(server: Server) -> None:
    with server.client(key(server, "--budget", "0.002/day")) as client:
        asked = body()
        del asked["max_tokens"]
        answer = client.post("/v1/completions", json=asked)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert 0.0015 < float(answer.headers["x-gateway-cost-usd"]) <= 0.002


def test_concurrency(server: Server) -> None:
    with server.client(key(server, "--concurrent", "2")) as client:
        with (
            client.stream("POST", "/v1/completions", json=body(400, stream=True)) as first,
            client.stream("POST", "/v1/completions", json=body(400, stream=True)) as second,
        ):
            assert (first.status_code, second.status_code) == (200, 200)
            third = client.post("/v1/completions", json=body(1))
            assert (third.status_code, third.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        until(lambda: client.post("/v1/completions", json=body(1)).status_code == 200, "the places are free again")


def test_a_model_without_a_price_is_closed_to_keys_with_a_budget(server: Server) -> None:
    with server.client(key(server, "--budget", "1")) as client:
        answer = client.post("/v1/completions", json=body(model="unpriced"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_price_unknown")
    with server.client(key(server)) as client:
        answer = client.post("/v1/completions", json=body(model="unpriced"))
        assert answer.status_code == 200 and "x-gateway-cost-usd" not in answer.headers


def test_a_wallet_pays_until_it_is_empty_and_again_after_a_top_up(server: Server) -> None:
    gateway(server, "wallets", "open", "purse", "0.001")
    gateway(server, "wallets", "open", "purse", "0.001")
    with server.client(key(server, "--wallet", "purse")) as client:
        spent = 0
        while (answer := client.post("/v1/completions", json=body())).status_code == 200:
            spent += round(float(answer.headers["x-gateway-cost-usd"]) * 1e9)
        assert answer.json()["error"]["code"] == "insufficient_quota"
        for _ in range(2):
            gateway(server, "wallets", "top-up", "purse", "0.01", "--idempotency-key", "invoice-1")
        answer = client.post("/v1/completions", json=body())
        assert answer.status_code == 200
        spent += round(float(answer.headers["x-gateway-cost-usd"]) * 1e9)

    def left_nano() -> int:
        (purse,) = json.loads(gateway(server, "wallets", "list", "--json"))
        return round(float(purse["usd"]) * 1e9)

    until(lambda: left_nano() == 11_000_000 - spent, "the database follows the gateway")


@pytest.mark.parametrize("events", [0, 1, 5])
def test_clients_that_leave_are_settled_once(server: Server, events: int) -> None:
    text = key(server, "--budget", "1", "--concurrent", "3")
    with server.client(text) as client:
        for _ in range(3):
            with client.stream("POST", "/v1/completions", json=body(600, stream=True, n=1)) as answer:
                lines = answer.iter_lines()
                for _ in range(2 * events):
                    next(lines)
        own: dict[str, object] = {}

        def settled() -> bool:
            own.update(client.get("/v1/usage/me").json()["data"][0])
            return own["requests"] == 3

        until(settled, "each has an entry")
        assert client.post("/v1/completions", json=body(1)).status_code == 200, "nothing is held any more"
    assert isinstance(own["completion_tokens"], int)
    assert 3 * max(events - 1, 0) <= own["completion_tokens"] < 3 * 600


def test_the_cost_of_a_number_of_tokens(server: Server) -> None:
    with server.client() as client:
        answer = client.post("/v1/cost", json={"model": "demo", "prompt_tokens": 1000, "completion_tokens": 3})
        assert answer.json()["cost_usd"] == "0.0103"
        assert [line["usd"] for line in answer.json()["items"]] == ["0.01", "0.0003"]


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "code"),
    [
        ("POST", "/v1/cost", {"model": "nobody"}, 404, "model_not_found"),
        ("POST", "/v1/cost", {"model": "demo", "prompt_tokens": -1}, 400, "invalid_value"),
        ("POST", "/v1/cost", {"model": "demo", "prompt_tokens": 1e300}, 400, "invalid_value"),
        ("POST", "/v1/cost", {"model": "demo", "cached_tokens": 1}, 400, "invalid_value"),
        ("POST", "/v1/cost", {"model": "unpriced"}, 403, "model_price_unknown"),
        ("POST", "/v1/cost", [], 400, "invalid_value"),
        ("GET", "/v1/usage/me?by=password", None, 400, "invalid_value"),
        ("GET", "/v1/usage/me?by=day,month", None, 400, "invalid_value"),
        ("GET", "/v1/usage/me?since=yesterday", None, 400, "invalid_value"),
        ("GET", "/v1/usage/me?since=9999-12-31T23:59:59-23:59", None, 200, None),
        ("GET", "/v1/requests/unknown", None, 404, "not_found"),
        ("GET", "/v1/requests/%27%20OR%201=1", None, 404, "not_found"),
    ],
)
def test_bad_input(server: Server, method: str, path: str, sent: object, status: int, code: str | None) -> None:
    with server.client() as client:
        answer = client.request(method, path, json=sent) if sent is not None else client.request(method, path)
    assert answer.status_code == status
    assert (answer.json().get("error") or {}).get("code") == code


def test_a_cost_is_not_asked_for_in_depth(server: Server) -> None:
    body = b'{"model":"demo","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with server.client() as client:
        answer = client.post("/v1/cost", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_requests_of_another_tenant_are_not_there(server: Server) -> None:
    with server.client(key(server)) as owner, server.client(key(server)) as other:
        identity = owner.post("/v1/completions", json=body(1)).headers["x-request-id"]
        assert owner.get(f"/v1/requests/{identity}").status_code == 200
        assert other.get(f"/v1/requests/{identity}").status_code == 404


def test_a_kill_loses_no_finished_answer_and_doubles_none(tmp_path: Path) -> None:
    text = ""
    finished: list[str] = []
    for round_number in range(3):
        server = Server(tmp_path, config=CONFIG)
        with pytest.raises(AssertionError), server:
            text = text or key(server, "--budget", "5/total", "--concurrent", "40")

            def one(number: int, server: Server = server, text: str = text) -> None:
                with server.client(text) as client:
                    try:
                        for _ in range(50):
                            tokens = 1 + number * 7 % 40
                            answer = client.post("/v1/completions", json=body(tokens, prompt=f"{number}"))
                            assert answer.status_code == 200, answer.text
                            finished.append(answer.headers["x-request-id"])
                    except httpx.TransportError:
                        return

            with ThreadPoolExecutor(20) as pool:
                running = [pool.submit(one, number) for number in range(20)]
                until(lambda goal=20 * (round_number + 1): len(finished) >= goal, "some are done")  # type: ignore[misc]
                server.process.send_signal(signal.SIGKILL)
                server.process.wait()
                for done in running:
                    done.result()
    with Server(tmp_path, config=CONFIG) as server, server.client(text) as client:
        assert client.post("/v1/completions", json=body(1)).status_code == 200, "nothing is held"
        budget = client.get("/v1/usage/me").json()["budgets"][0]
        rows = ledger(server)
    recorded = [row["request_id"] for row in rows]
    assert len(recorded) == len(set(recorded)), "none is billed twice"
    assert set(finished) <= set(recorded), "none that was finished is missing"
    assert round(float(budget["spent_usd"]) * 1e9) == sum(int(row["charged_nano"]) for row in rows)
