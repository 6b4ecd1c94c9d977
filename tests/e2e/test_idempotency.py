"""`Idempotency-Key` on a real gateway: one execution and one entry in the ledger, whatever retries, races or dies."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import httpx2
import openai
import pytest

from tests.e2e.server import ADMIN_KEY, Server
from tests.e2e.test_money import CONFIG, body, key, ledger, until

SMALL = "state: {idempotency: {result_bytes_max: 6000}}\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("idempotency"), config=CONFIG + SMALL) as server:
        yield server


def named(name: str | None = None) -> dict[str, str]:
    return {"Idempotency-Key": name or uuid.uuid4().hex}


def spent(client: httpx.Client) -> tuple[int, float]:
    """How many requests the key made, and for how much."""
    rows = client.get("/v1/usage/me").json()["data"]
    return sum(row["requests"] for row in rows), sum(float(row["cost_usd"]) for row in rows)


@pytest.mark.parametrize("stream", [False, True])
def test_a_retry_gets_the_same_answer_and_costs_nothing(server: Server, stream: bool) -> None:
    with server.client(key(server)) as client:
        name = named()
        first, second, third = (
            client.post("/v1/completions", json=body(8, stream=stream), headers=name) for _ in range(3)
        )
        assert first.status_code == second.status_code == 200
        assert first.content == second.content == third.content
        assert first.headers["content-type"] == second.headers["content-type"]
        assert first.headers["x-gateway-model"] == second.headers["x-gateway-model"]
        assert "idempotent-replayed" not in first.headers and second.headers["idempotent-replayed"] == "true"
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
        assert stream or (float(first.headers["x-gateway-cost-usd"]) > 0 == float(third.headers["x-gateway-cost-usd"]))
        if stream:
            assert second.text.endswith("data: [DONE]\n\n")
        assert spent(client)[0] == 1
        other = client.post("/v1/completions", json=body(9, stream=stream), headers=name)
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
        assert other.headers["x-should-retry"] == "false"
        chat = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=chat, headers=name).status_code == 200, "another route"
    with server.client(key(server)) as client:
        again = client.post("/v1/completions", json=body(9), headers=name)
        assert again.status_code == 200 and "idempotent-replayed" not in again.headers, "another key of the API"


def test_fifty_at_once_are_one_execution(server: Server) -> None:
    text, name = key(server), named()

    def ask(_: int) -> httpx.Response:
        with server.client(text) as client:
            return client.post("/v1/completions", json=body(60), headers=name)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    with server.client(text) as client:
        assert spent(client)[0] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_outlives_a_client_that_leaves(server: Server, stream: bool) -> None:
    with server.client(key(server)) as client:
        name, asked = named(), body(15 if stream else 1000, stream=stream)
        if stream:
            with client.stream("POST", "/v1/completions", json=asked, headers=name) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/completions", json=asked, headers=name, timeout=0.3)
        again = client.post("/v1/completions", json=asked, headers=name)
        assert again.status_code == 200 and again.headers["idempotent-replayed"] == "true"
        assert not stream or again.text.endswith("data: [DONE]\n\n")
        assert spent(client)[0] == 1


def test_a_result_that_is_too_large_is_not_run_again(server: Server) -> None:
    with server.client(key(server)) as client:
        name, asked = named(), body(100, stream=True)
        first = client.post("/v1/completions", json=asked, headers=name)
        assert first.text.endswith("data: [DONE]\n\n") and len(first.content) > 6000
        second = client.post("/v1/completions", json=asked, headers=name)
        assert (second.status_code, second.json()["error"]["code"]) == (409, "idempotency_result_lost")
        left = named()
        with client.stream("POST", "/v1/completions", json=body(2000, stream=True), headers=left) as answer:
            next(answer.iter_lines())
        until(lambda: spent(client)[0] == 2, "what nobody will see is cut")
        assert client.post("/v1/completions", json=body(2000, stream=True), headers=left).status_code == 409
        assert spent(client)[0] == 2


def test_failures_are_not_kept(server: Server) -> None:
    with server.client(key(server, "--rpm", "1")) as client:
        name = named()
        for _ in range(2):
            bad = client.post("/v1/completions", json=body(model="nobody"), headers=name)
            assert bad.status_code == 404 and "idempotent-replayed" not in bad.headers
        name = named()
        assert client.post("/v1/completions", json=body(), headers=name).status_code == 200
        assert client.post("/v1/completions", json=body(), headers=named()).status_code == 429
        assert client.post("/v1/completions", json=body(), headers=name).status_code == 200, "a replay has no limit"


@pytest.mark.parametrize("name", ["", "x" * 256, "caf\u00e9", "a\tb"])
def test_bad_keys(server: Server, name: str) -> None:
    with server.client() as client:
        bad = client.post("/v1/completions", json=body(), headers=[(b"Idempotency-Key", name.encode())])
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_retries_of_the_sdk(server: Server) -> None:
    """The SDK sends a key only when it is told one, and then the same with every retry."""
    seen: list[tuple[str | None, bool]] = []

    def lose_the_first(answer: httpx2.Response) -> None:
        replayed = "idempotent-replayed" in answer.headers
        seen.append((answer.request.headers.get("idempotency-key"), replayed))
        if len(seen) == 1:
            raise httpx2.ReadTimeout("the answer was lost")

    transport = openai.DefaultHttpxClient(event_hooks={"response": [lose_the_first]})
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, http_client=transport) as client:
        answer = client.completions.create(
            model="demo", prompt="one two", max_tokens=4, extra_headers={"Idempotency-Key": "sdk-1"}
        )
        assert answer.usage is not None and answer.usage.completion_tokens <= 4
        assert seen == [("sdk-1", False), ("sdk-1", True)]
        client.completions.create(model="demo", prompt="one two", max_tokens=4)
        assert seen[-1] == (None, False)


def test_a_kill_runs_nothing_twice_that_was_charged(tmp_path: Path) -> None:
    text = ""
    finished: dict[str, bytes] = {}
    names = [f"{number}" for number in range(60)]

    def ask(server: Server, name: str) -> httpx.Response:
        with server.client(text) as client:
            asked = body(10 + int(name), prompt=name)
            return client.post("/v1/completions", json=asked, headers=named(name))

    server = Server(tmp_path, config=CONFIG)
    with pytest.raises(AssertionError), server:
        text = key(server)

        def one(name: str) -> None:
            try:
                answer = ask(server, name)
            except httpx.TransportError:
                return
            assert answer.status_code == 200, answer.text
            finished[name] = answer.content

        with ThreadPoolExecutor(20) as pool:
            running = [pool.submit(one, name) for name in names]
            until(lambda: len(finished) >= 15, "some are done")
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            for done in running:
                done.result()
    assert 15 <= len(finished) < len(names)
    with Server(tmp_path, config=CONFIG) as server:
        lost = 0
        for name in names:
            answer = ask(server, name)
            if name in finished:
                assert answer.content == finished[name] and answer.headers["idempotent-replayed"] == "true"
            elif answer.status_code != 200:
                assert answer.json()["error"]["code"] == "idempotency_result_lost"
                lost += 1
    charged = [row for row in ledger(server) if row["status"] == "posted"]
    assert len(charged) == len(names), "one entry for each, also for those whose result was lost"
    assert len({(row["prompt_tokens"], row["completion_tokens"]) for row in charged}) >= len(names) // 2
    assert lost < len(names) - len(finished), "most of what was cut runs again"
