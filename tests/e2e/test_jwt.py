"""Tokens of an issuer at the real server: let in, counted, refused, and without asking the issuer often."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.server import ADMIN_KEY, Server
from tests.issuer import AUDIENCE, HEADER, Issuer, Keys, signed, wrong_tokens

BODY = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
KEYS = Keys()


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer(KEYS) as issuer:
        yield issuer


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[Server]:
    one = {"name": "corp", "issuer": issuer.url, "audience": AUDIENCE, "algorithms": ["RS256", "ES256"]}
    away = {
        "name": "away",
        "issuer": "https://away.example",
        "audience": AUDIENCE,
        "jwks_url": "http://127.0.0.1:9/keys",
    }
    roles = {"roles_claim": "roles", "admin_roles": ["ops"]}
    config = json.dumps({"auth": {"issuers": [one | roles, away]}})
    with Server(tmp_path_factory.mktemp("jwt"), config=config) as server:
        yield server


def token(issuer: Issuer, **changes: Any) -> str:
    return signed(HEADER, issuer.claims(time.time(), **changes), KEYS.by_rsa)


def ask(server: Server, text: str) -> httpx.Response:
    with server.client(text) as client:
        return client.post("/v1/chat/completions", json=BODY)


def test_a_token_buys_an_answer_and_sees_its_own_usage_only(gateway: Server, issuer: Issuer) -> None:
    alice, bob = token(issuer), token(issuer, sub="bob|1")
    answer = ask(gateway, alice)
    assert answer.status_code == 200, answer.text
    with gateway.client(alice) as client:
        usage = client.get("/v1/usage/me").json()
        assert usage["key"] == "jwt:corp:alice" and usage["data"]
        identity = answer.headers["x-request-id"]
        assert client.get(f"/v1/requests/{identity}").status_code == 200
    with gateway.client(bob) as client:
        assert client.get("/v1/usage/me").json()["key"] == "jwt:corp:bob:7C1"
        assert client.get(f"/v1/requests/{identity}").status_code == 404
    with gateway.client(token(issuer, sub="carol", roles=["ops"])) as client:
        assert client.get(f"/v1/requests/{identity}").status_code == 200
    assert ask(gateway, ADMIN_KEY).status_code == 200
    assert ask(gateway, "gw_live_wrong").json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("name", wrong_tokens(KEYS, {"exp": 60, "iss": "", "aud": AUDIENCE, "sub": "alice"}))
def test_a_wrong_token_is_refused(gateway: Server, issuer: Issuer, name: str) -> None:
    answer = ask(gateway, wrong_tokens(KEYS, issuer.claims(time.time()))[name])
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    error = answer.json()["error"]
    assert error["code"] == "invalid_token" and error["type"] == "authentication_error"


def test_unknown_keys_do_not_reach_the_issuer(gateway: Server, issuer: Issuer) -> None:
    good = token(issuer)
    claims = issuer.claims(time.time())
    began, before = time.monotonic(), issuer.key_requests
    with gateway.client() as client:
        for i in range(500):
            text = signed(HEADER | {"kid": f"unknown{i}"}, claims, lambda data: b"x" * 256)
            answer = client.get("/v1/models", headers={"Authorization": f"Bearer {text}"})
            assert answer.status_code == 401
            if i % 100 == 0:
                answer = client.get("/v1/models", headers={"Authorization": f"Bearer {good}"})
                assert answer.status_code == 200
    asked = issuer.key_requests - before
    assert asked <= 1 + (time.monotonic() - began) // 30
    assert gateway.metric("gateway_issuer_fetches_total", issuer="corp", outcome="ok") == issuer.key_requests


def test_an_issuer_that_is_away_is_503(gateway: Server, issuer: Issuer) -> None:
    answer = ask(gateway, token(issuer, iss="https://away.example"))
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) <= 30
    assert gateway.metric("gateway_issuer_fetches_total", issuer="away", outcome="failed") >= 1
