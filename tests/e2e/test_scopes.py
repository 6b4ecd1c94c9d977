"""Every scope of limits at the real server, windows that outlast a restart, and requests that die with the process."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server import ROOT, Server
from tests.e2e.test_money import key, ledger
from tests.issuer import AUDIENCE, HEADER, Issuer, Keys, signed

KEYS = Keys()
TWO = {"rates": [{"unit": "requests", "limit": 2, "period": "day"}]}
MODEL = {"path": f"{ROOT}/adapters/llama_cpp/demo/demo.gguf", "price": {"input": "10", "output": "100"}}


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer(KEYS) as issuer:
        yield issuer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[Server]:
    trusted = {"name": "corp", "issuer": issuer.url, "audience": AUDIENCE, "team_claim": "team", "org_claim": "org"}
    rules = [{"scope": scope, "id": "two", **TWO} for scope in ("tenant", "model", "tag")]
    rules += [{"scope": scope, "id": f"corp:{scope}", **TWO} for scope in ("user", "team", "org")]
    models = [{"name": name, "engine": {"threads": 1}, **MODEL} for name in ("demo", "two")]
    config = {"auth": {"issuers": [trusted]}, "models": models, "limits": {"rules": rules}}
    with Server(tmp_path_factory.mktemp("scopes"), config=json.dumps(config)) as server:
        yield server


def ask(server: Server, text: str, model: str = "demo", **more: Any) -> httpx.Response:
    body = {"model": model, "prompt": "one two", "max_tokens": 2, "temperature": 0, "ignore_eos": True} | more
    with server.client(text) as client:
        return client.post("/v1/completions", json=body)


def third_is_refused(server: Server, texts: list[str], scope: str, model: str = "demo") -> None:
    for text, remaining in zip(texts[:2], "10", strict=True):
        answer = ask(server, text, model)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-ratelimit-remaining-requests"] == remaining
    refused = ask(server, texts[2], model)
    assert refused.status_code == 429
    assert f"the limit of your {scope} is 2 per day, with 0 left" in refused.json()["error"]["message"]
    assert 0 < int(refused.headers["retry-after"]) <= 86_400
    assert refused.headers["x-ratelimit-reset-requests"].endswith("s")


@pytest.mark.parametrize(("scope", "claim"), [("user", "sub"), ("team", "team"), ("org", "org")])
def test_scopes_of_people(server: Server, issuer: Issuer, scope: str, claim: str) -> None:
    def token(n: int, value: str) -> str:
        claims = issuer.claims(time.time(), **({"sub": f"{scope}-{n}"} | {claim: value}))
        return signed(HEADER, claims, KEYS.by_rsa)

    third_is_refused(server, [token(n, scope) for n in range(3)], scope)
    assert ask(server, token(9, "other")).status_code == 200


def test_scopes_of_keys(server: Server) -> None:
    third_is_refused(server, [key(server, "--tenant", "two") for _ in range(3)], "tenant")
    own = key(server, "--rate", "2:requests:day")
    third_is_refused(server, [own] * 3, "key")
    third_is_refused(server, [key(server) for _ in range(3)], "model", "two")
    with closing(sqlite3.connect(server.data_dir / "state" / "gateway.db")) as database, database:
        before = {row[0] for row in database.execute("SELECT id FROM keys")}
    texts = [key(server) for _ in range(3)]
    with closing(sqlite3.connect(server.data_dir / "state" / "gateway.db")) as database, database:
        marks = ",".join("?" * len(before))
        database.execute(f"UPDATE keys SET tags = '[\"two\"]' WHERE id NOT IN ({marks})", tuple(before))
    third_is_refused(server, texts, "tag")


def test_windows_outlast_a_restart_and_what_a_kill_ended_has_expired(tmp_path: Path) -> None:
    config = {"models": [{"name": "demo", "engine": {"threads": 1}, **MODEL}]}
    server = Server(tmp_path, config=json.dumps(config))
    server.__enter__()
    text = key(server, "--budget", "0.001/1h")
    spent = 0
    while (answer := ask(server, text)).status_code == 200:
        spent += round(float(answer.headers["x-gateway-cost-usd"]) * 1e9)
    assert spent > 500_000
    assert answer.json()["error"]["code"] == "rate_limit_exceeded" and 3000 < int(answer.headers["retry-after"]) < 3700
    free = key(server)
    with server.client(free) as client, client.stream("POST", "/v1/completions", json=running()) as stream:
        lines = stream.iter_lines()
        next(lines)
        identity = stream.headers["x-request-id"]
        server.process.kill()
        server.process.wait()
        with pytest.raises(httpx.TransportError):
            list(lines)
    with server:
        refused = ask(server, text)
        assert refused.status_code == 429 and 3000 < int(refused.headers["retry-after"]) < 3700
        with server.client(free) as client:
            (entry,) = client.get(f"/v1/requests/{identity}").json()["data"]
        assert (entry["status"], entry["outcome"], entry["charged_usd"]) == ("expired", "lost", "0.0")
        daily = key(server, "--rate", "3:requests:day", "--rpm", "4")
        assert ask(server, daily).headers["x-ratelimit-remaining-requests"] == "2"
    with server:
        assert ask(server, daily).headers["x-ratelimit-remaining-requests"] == "1", "a restart forgets no rate"
    assert [row["status"] for row in ledger(server) if row["request_id"] == identity] == ["expired"]


def running() -> dict[str, Any]:
    return {"model": "demo", "prompt": "one", "max_tokens": 400, "ignore_eos": True, "stream": True}
