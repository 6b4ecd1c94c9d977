"""People at the real server: with passwords, at a real OpenID provider, and whoever tries to get in without."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from gateway.config import demo_model_path
from tests.e2e.server import ADMIN_KEY, ROOT, Server
from tests.oidc_provider import CLIENT, SECRET, Provider
from tests.stores import Postgres, Valkey

PASSWORD = "correct horse battery"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
GROUPS = [{"group": "admins", "role": "admin"}, {"group": "research", "team": "Research"}]


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[Server]:
    corp: dict[str, Any] = {"name": "corp", "issuer": provider.url, "client_id": CLIENT, "client_secret": SECRET}
    corp |= {"scopes": ["openid", "email", "profile", "groups"], "organisation": "Acme", "groups": GROUPS}
    away = {"name": "away", "issuer": "http://127.0.0.1:9", "client_id": "x"}
    people = {"signup": "open", "bonus_usd": "0.5", "logins": [corp, away]}
    model = {"name": "demo", "path": demo_model_path(), "price": {"input": "10000", "output": "10000"}}
    config = {"auth": {"people": people}, "server": {"trusted_proxies": ["127.0.0.1/32"]}, "models": [model]}
    server = Server(tmp_path_factory.mktemp("people"), config=json.dumps(config))
    provider.redirect_uri = f"{server.url}/auth/v1/oidc/corp/callback"
    provider.start()
    with server:
        yield server


def browser(server: Server) -> httpx.Client:
    """A browser on the gateway's own pages, at an address of its own."""
    address = f"2001:db8:{secrets.randbelow(1 << 16):x}:{secrets.randbelow(1 << 16):x}::1"
    headers = {"Origin": server.url, "Sec-Fetch-Site": "same-origin", "X-Forwarded-For": address}
    return httpx.Client(base_url=server.url, headers=headers)


def email(name: str = "alice") -> str:
    """An address of its own for each test."""
    return f"{name}-{secrets.token_hex(4)}@example.test"


@contextlib.contextmanager
def signed_up(server: Server, address: str) -> Iterator[httpx.Client]:
    with browser(server) as client:
        answer = client.post("/auth/v1/signup", json={"email": address, "password": PASSWORD})
        assert answer.status_code == 201, answer.text
        yield client


def at_provider(client: httpx.Client, start: str) -> httpx.URL:
    """Where the provider sends the browser back to."""
    there = client.get(start)
    assert there.status_code == 303, there.text
    back = client.get(there.headers["location"])
    assert back.status_code == 302, back.text
    return httpx.URL(back.headers["location"])


def code(answer: httpx.Response) -> str:
    found: str = answer.json()["error"]["code"]
    return found


def audited(server: Server, action: str) -> list[dict[str, Any]]:
    with server.client() as admin:
        deadline = time.monotonic() + 10
        while not (found := admin.get("/admin/v1/audit", params={"action": action, "limit": 100}).json()["data"]):
            assert time.monotonic() < deadline
        return list(found)


def test_signing_up_using_it_and_logging_out(gateway: Server) -> None:
    address = email()
    with signed_up(gateway, address.upper()) as client:
        me = client.get("/auth/v1/me").json()
        assert (me["email"], me["role"], me["has_password"], me["login"]["current"]) == (address, "owner", True, True)
        assert client.get("/v1/models").status_code == 200
        own = client.get("/v1/usage/me").json()
        assert own["key"] == me["id"] and own["budgets"][0]["limit_usd"] == "0.5"
        assert client.patch("/auth/v1/me", json={"name": "Alice"}).json()["name"] == "Alice"
        cookie = client.cookies["gateway_session"]
        assert client.post("/auth/v1/logout").json() == {"object": "logout", "logout_url": None}
        assert "gateway_session" not in client.cookies
        assert client.get("/auth/v1/me").status_code == 401
        client.cookies.set("gateway_session", cookie)
        answer = client.get("/auth/v1/me")
        assert answer.status_code == 401 and code(answer) == "invalid_token"
        client.cookies.clear()
        wrong = client.post("/auth/v1/login", json={"email": address, "password": "wrong"})
        assert wrong.status_code == 401 and code(wrong) == "invalid_credentials"
        assert client.post("/auth/v1/login", json={"email": address, "password": PASSWORD}).status_code == 200
    for action in ("user.signup", "user.login", "user.logout", "user.change"):
        assert any(entry["subject"] == me["id"] for entry in audited(gateway, action)), action
    failed = [one for one in audited(gateway, "user.login") if one["outcome"] == "invalid_credentials"]
    assert failed and PASSWORD not in json.dumps(failed)


def test_the_bonus_pays_until_it_is_used_up(gateway: Server) -> None:
    with signed_up(gateway, email()) as client:
        (budget,) = client.get("/v1/usage/me").json()["budgets"]
        assert (budget["limit_usd"], budget["spent_usd"]) == ("0.5", "0.0")
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 200, answer.text
        (budget,) = client.get("/v1/usage/me").json()["budgets"]
        assert float(budget["spent_usd"]) > 0
        for _ in range(10):
            answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 429 and code(answer) == "insufficient_quota"
        wallets = httpx.get(f"{gateway.url}/admin/v1/wallets", headers=ADMIN, params={"limit": 100}).json()["data"]
        own = client.get("/auth/v1/me").json()["org"]
        assert [one["tenant"] for one in wallets if own in (one["tenant"], one["id"])] == [own]


def test_inviting_gives_no_more_than_one_has(gateway: Server) -> None:
    def invite(client: httpx.Client, role: str, **more: str) -> httpx.Response:
        return client.post("/admin/v1/invitations", json={"email": email("guest"), "role": role} | more)

    @contextlib.contextmanager
    def join(answer: httpx.Response) -> Iterator[httpx.Client]:
        shown = answer.json()
        body = {"email": shown["email"], "password": PASSWORD, "invitation": shown["token"]}
        with browser(gateway) as client:
            joined = client.post("/auth/v1/signup", json=body)
            assert joined.status_code == 201 and joined.json()["role"] == shown["role"]
            assert client.post("/auth/v1/signup", json=body).json()["error"]["param"] == "invitation"
            yield client

    with signed_up(gateway, email()) as owner, signed_up(gateway, email("other")) as other:
        org = owner.get("/auth/v1/me").json()["org"]
        with join(invite(owner, "admin")) as admin, join(invite(owner, "viewer")) as viewer:
            assert admin.get("/auth/v1/me").json()["org"] == org
            for role, status in (("owner", 403), ("admin", 201), ("member", 201), ("king", 400)):
                assert invite(admin, role).status_code == status, role
            for client in (viewer, other):
                assert invite(client, "viewer", org_id=org).status_code in (403, 404)
            pending = admin.get("/admin/v1/invitations", params={"limit": 1}).json()
            assert pending["has_more"] and [one["token"] for one in pending["data"]] == [None]
            one = pending["data"][0]["id"]
            assert viewer.delete(f"/admin/v1/invitations/{one}").status_code == 403
            assert other.delete(f"/admin/v1/invitations/{one}").status_code == 404
            assert admin.delete(f"/admin/v1/invitations/{one}").status_code == 204
            assert admin.delete(f"/admin/v1/invitations/{one}").status_code == 404
            assert other.get("/admin/v1/invitations", params={"org_id": org}).status_code == 404
    assert httpx.get(f"{gateway.url}/admin/v1/invitations", headers=ADMIN).status_code == 400


def test_the_cookie_is_for_this_site_and_not_for_scripts(gateway: Server) -> None:
    body = {"email": email(), "password": PASSWORD}
    with browser(gateway) as client:
        header = client.post("/auth/v1/signup", json=body).headers["set-cookie"]
        assert "; HttpOnly; SameSite=Lax" in header and "; Path=/" in header and "Domain" not in header
        token = client.cookies["gateway_session"]
    assert len(token) == 43 and token.encode() not in (gateway.data_dir / "state" / "gateway.db").read_bytes()
    answer = httpx.post(f"{gateway.url}/auth/v1/login", json=body, headers={"Host": "gw.example"})
    assert answer.headers["set-cookie"].startswith("__Host-gateway_session=")
    assert answer.headers["set-cookie"].endswith("; Secure")


def test_another_site_changes_nothing_with_the_cookie(gateway: Server) -> None:
    with signed_up(gateway, email()) as client, contextlib.ExitStack() as stack:
        evil = [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}]
        for headers in evil:
            bare = stack.enter_context(httpx.Client(base_url=gateway.url, cookies=client.cookies, headers=headers))
            for method, path, body in (
                ("POST", "/v1/chat/completions", CHAT),
                ("PATCH", "/auth/v1/me", {"name": "Mallory"}),
                ("POST", "/auth/v1/password", {"password": "another horse battery", "current_password": PASSWORD}),
                ("DELETE", "/auth/v1/logins", None),
                ("POST", "/auth/v1/logout", None),
                ("POST", "/auth/v1/login", {"email": "a@example.test", "password": "x"}),
                ("POST", "/auth/v1/oidc/corp/link", None),
            ):
                answer = bare.request(method, path, json=body)
                assert answer.status_code == 403 and code(answer) == "permission_denied", (path, answer.text)
        with httpx.Client(base_url=gateway.url, cookies=client.cookies) as unknown:
            assert unknown.patch("/auth/v1/me", json={"name": "Mallory"}).status_code == 403
        assert client.get("/auth/v1/me").json()["name"] != "Mallory"


def test_a_token_that_was_put_into_the_browser_is_not_adopted(gateway: Server) -> None:
    address = email()
    with signed_up(gateway, address), browser(gateway) as client:
        client.cookies.set("gateway_session", "a" * 43)
        assert client.get("/auth/v1/me").status_code == 401
        assert client.post("/auth/v1/login", json={"email": address, "password": PASSWORD}).status_code == 200
        given = httpx.Cookies({"gateway_session": "a" * 43})
        assert httpx.get(f"{gateway.url}/auth/v1/me", cookies=given).status_code == 401


def test_log_ins_are_listed_and_ended(gateway: Server) -> None:
    address = email()
    with signed_up(gateway, address) as first, browser(gateway) as second, browser(gateway) as third:
        for client in (second, third):
            client.post("/auth/v1/login", json={"email": address, "password": PASSWORD})
        shown = second.get("/auth/v1/logins").json()["data"]
        assert len(shown) == 3 and [one["current"] for one in shown].count(True) == 1
        other = first.get("/auth/v1/me").json()["login"]["id"]
        with signed_up(gateway, email("mallory")) as mallory:
            assert mallory.delete(f"/auth/v1/logins/{other}").status_code == 404
        assert second.delete(f"/auth/v1/logins/{other}").status_code == 204
        assert first.get("/auth/v1/me").status_code == 401
        assert second.delete("/auth/v1/logins").json() == {"object": "logins.ended", "ended": 1}
        assert third.get("/auth/v1/me").status_code == 401
        assert second.get("/auth/v1/me").status_code == 200


def test_logging_in_at_a_provider(gateway: Server, provider: Provider) -> None:
    address = email("carol")
    provider.sit_down("carol", email=address, email_verified=True, name="Carol", groups=["research", "admins"])
    with browser(gateway) as client:
        ways = client.get("/auth/v1/ways").json()
        assert ways["signup"] == "open" and {"name": "corp", "title": "corp"} in ways["providers"]
        back = at_provider(client, "/auth/v1/oidc/corp/start?return_to=/ui/%3Fa%3Db")
        answer = client.get(back)
        assert answer.status_code == 303 and answer.headers["location"] == "/ui/?a=b"
        me = client.get("/auth/v1/me").json()
        assert (me["email"], me["name"], me["role"], me["has_password"]) == (address, "Carol", "admin", False)
        assert me["login"]["provider"] == "corp" and len(me["teams"]) == 1
        assert [one["provider"] for one in client.get("/auth/v1/identities").json()["data"]] == ["corp"]
        assert client.delete("/auth/v1/identities/corp").status_code == 409
        provider.sit_down("carol", email=address, email_verified=True, name="Carol", groups=[])
        client.get(at_provider(client, "/auth/v1/oidc/corp/start"))
        again = client.get("/auth/v1/me").json()
        assert (again["id"], again["role"], again["teams"]) == (me["id"], "member", [])
    actions = {one["action"] for one in audited(gateway, "") if one["subject"] == me["id"]}
    assert {"user.signup", "user.link", "user.login", "user.role", "member.role"} <= actions


def test_an_answer_counts_once_and_in_its_own_browser(gateway: Server, provider: Provider) -> None:
    provider.sit_down("dave", email=email("dave"), email_verified=True)
    with browser(gateway) as client, browser(gateway) as stranger:
        back = at_provider(client, "/auth/v1/oidc/corp/start")
        assert code(stranger.get(back)) == "invalid_value"
        assert code(client.get(back.copy_set_param("state", "x" * 43))) == "invalid_value"
        flow = client.cookies["gateway_flow"]
        assert client.get(back).status_code == 303
        assert "gateway_flow" not in client.cookies
        replayed = client.get(back)
        assert replayed.status_code == 400 and replayed.json()["error"]["param"] == "state"
        stranger.cookies.set("gateway_flow", flow)
        replayed = stranger.get(back)
        assert replayed.status_code == 401 and code(replayed) == "invalid_token"
        assert stranger.get("/auth/v1/me").status_code == 401


def test_wrong_answers_of_the_provider(gateway: Server, provider: Provider) -> None:
    provider.sit_down("eve", email=email("eve"), email_verified=True)
    changes = {"code": "made-up", "iss": "https://evil.example"}
    with browser(gateway) as client:
        for name, value in changes.items():
            back = at_provider(client, "/auth/v1/oidc/corp/start").copy_set_param(name, value)
            answer = client.get(back)
            assert answer.status_code == 401 and code(answer) == "invalid_token", name
        query = {"state": new_state(client), "error": "access_denied", "iss": provider.url}
        denied = client.get("/auth/v1/oidc/corp/callback", params=query)
        assert denied.status_code == 403 and code(denied) == "permission_denied"
        assert client.get("/auth/v1/me").status_code == 401


def new_state(client: httpx.Client) -> str:
    there = client.get("/auth/v1/oidc/corp/start").headers["location"]
    return parse_qs(urlsplit(there).query)["state"][0]


def test_an_address_that_is_not_verified_stays_out(gateway: Server, provider: Provider) -> None:
    provider.sit_down("frank", email=email("frank"), email_verified=False)
    with browser(gateway) as client:
        answer = client.get(at_provider(client, "/auth/v1/oidc/corp/start"))
        assert answer.status_code == 403 and "verified" in answer.json()["error"]["message"]
        assert client.get("/auth/v1/me").status_code == 401


def test_adding_a_provider_to_an_account(gateway: Server, provider: Provider) -> None:
    address = email("grace")
    provider.sit_down("grace", email=address, email_verified=True)
    with signed_up(gateway, address) as client:
        with browser(gateway) as other:
            assert code(other.get(at_provider(other, "/auth/v1/oidc/corp/start"))) == "conflict"
        url = client.post("/auth/v1/oidc/corp/link?return_to=/ui/").json()["url"]
        before = client.cookies["gateway_session"]
        answer = client.get(client.get(url).headers["location"])
        assert answer.status_code == 303 and answer.headers["location"] == "/ui/"
        assert client.cookies["gateway_session"] != before
    with browser(gateway) as other:
        other.get(at_provider(other, "/auth/v1/oidc/corp/start"))
        assert other.get("/auth/v1/me").json()["email"] == address
        assert other.delete("/auth/v1/identities/corp").status_code == 204


@pytest.mark.parametrize("path", ["//evil.example", "https://evil.example", "/\\evil.example", "/%09/evil", "ui", ""])
def test_nobody_is_led_elsewhere(gateway: Server, path: str) -> None:
    with browser(gateway) as client:
        answer = client.get("/auth/v1/oidc/corp/start", params={"return_to": path.replace("%09", "\t")})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "return_to"
        assert "location" not in answer.headers


def test_a_provider_is_not_told_an_address_that_somebody_made_up(gateway: Server) -> None:
    answer = httpx.get(f"{gateway.url}/auth/v1/oidc/corp/start", headers={"Host": "evil.example"})
    assert answer.status_code == 400 and "public_url" in answer.json()["error"]["message"]


def test_a_provider_that_is_away_is_503(gateway: Server, provider: Provider) -> None:
    answer = httpx.get(f"{gateway.url}/auth/v1/oidc/away/start")
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) <= 30
    provider.sit_down("heidi", email=email("heidi"), email_verified=True)
    with browser(gateway) as client:
        back = at_provider(client, "/auth/v1/oidc/corp/start")
        provider.stop()
        answer = client.get(back)
        assert answer.status_code == 503 and answer.headers["retry-after"], answer.text
        provider.start()


def test_a_key_does_not_change_an_account(gateway: Server) -> None:
    with gateway.client() as admin:
        for method, path in (("PATCH", "/auth/v1/me"), ("POST", "/auth/v1/password"), ("DELETE", "/auth/v1/logins")):
            answer = admin.request(method, path, json={"name": "x", "password": PASSWORD})
            assert answer.status_code == 403, (path, answer.text)
        for path in ("/auth/v1/me", "/auth/v1/logins", "/auth/v1/identities"):
            assert admin.get(path).status_code == 404


BODIES: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 400),
    "not JSON": (b"{", 400),
    "trailing": (b'{"email":"a@example.test","password":"x"} x', 400),
    "not UTF-8": (b'{"email":"\xff"}', 400),
    "lone surrogate": (b'{"email":"a@example.test","password":"\\ud800aaaaaaaaaaaaaaaa"}', 400),
    "deep": (b'{"email":' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
    "a list": (b"[]", 400),
    "null": (b'{"email":null,"password":null}', 400),
    "wrong types": (b'{"email":1,"password":[]}', 400),
    "nothing in it": (b"{}", 400),
    "unknown field": (b'{"email":"a@example.test","password":"x","admin":true}', 400),
    "role": (b'{"email":"a@example.test","password":"x","role":"owner"}', 400),
    "too long": (b'{"email":"a@example.test","password":"' + b"x" * 2000 + b'"}', 400),
    "too large": (b'{"email":"' + b"x" * 20_000 + b'"}', 413),
    "NUL": (b'{"email":"a\\u0000@example.test","password":"x","current_password":"\\u0000","name":"\\u0000"}', 400),
}
DOORS = ("POST /auth/v1/signup", "POST /auth/v1/login", "POST /auth/v1/password", "PATCH /auth/v1/me")


@pytest.mark.parametrize("door", DOORS)
def test_bad_input(gateway: Server, door: str) -> None:
    method, path = door.split()
    pid = gateway.process.pid
    with signed_up(gateway, email("ivan")) as client:
        for name, (body, status) in BODIES.items():
            answer = client.request(method, path, content=body, headers={"content-type": "application/json"})
            expected = {status} | ({401} if name == "NUL" and "login" in path else set())
            assert answer.status_code in expected, (name, answer.status_code, answer.text)
            error = answer.json()["error"]
            assert error["code"] and answer.headers["x-request-id"] and "Traceback" not in answer.text
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            answer = client.request(method, path, content=b"{}", headers={"content-type": kind})
            assert answer.status_code == 415
        assert client.get("/auth/v1/me").status_code == 200
    assert gateway.process.pid == pid and gateway.process.poll() is None


QUERIES = ["", "state=", "code=x", "state=x&state=y&code=z", "state=%00", "state=%ff&code=%ff", "state=" + "x" * 4000]
PATHS = ["corp/callback", "corp/start", "nothing/start", "%2e%2e/start", "CORP/start", "corp%00/callback"]


@pytest.mark.parametrize("path", PATHS)
def test_bad_input_at_the_way_back(gateway: Server, path: str) -> None:
    with browser(gateway) as client:
        for query in (*QUERIES, "return_to=//evil.example", "return_to=%0d%0aset-cookie:a=b"):
            for flow in (None, "x", "x.y", "e30.e30", "a" * 4000):
                cookie = {} if flow is None else {"Cookie": f"gateway_flow={flow}"}
                answer = client.get(f"/auth/v1/oidc/{path}?{query}", headers=cookie)
                expected = {303, 400} if path == "corp/start" else {400, 404}
                assert answer.status_code in expected, (query, flow, answer.text)
                assert "evil" not in answer.headers.get("location", "")
                if answer.status_code != 303:
                    assert answer.json()["error"]["code"] and "Traceback" not in answer.text
        for identity in ("x", "%00", "..", "%2e%2e", "login_" + "0" * 24, "x" * 4000):
            assert client.delete(f"/auth/v1/logins/{identity}").status_code in (401, 404)


def test_who_is_disabled_is_out_at_once(gateway: Server, provider: Provider) -> None:
    address = email("mallory")
    provider.sit_down("mallory", email=address, email_verified=True)
    with browser(gateway) as client:

        def come() -> httpx.Response:
            return client.get(at_provider(client, "/auth/v1/oidc/corp/start"))

        def until_out() -> None:
            deadline = time.monotonic() + 5
            while client.get("/v1/models").status_code != 401:
                assert time.monotonic() < deadline
                time.sleep(0.05)

        assert come().status_code == 303 and client.get("/v1/models").status_code == 200
        gateway_command(gateway, "users", "disable", address)
        until_out()
        refused = come()
        assert refused.status_code == 403 and code(refused) == "permission_denied"
        gateway_command(gateway, "users", "enable", address)
        assert come().status_code == 303 and client.get("/v1/models").status_code == 200
        gateway_command(gateway, "users", "logout", address)
        until_out()


def gateway_command(server: Server, *arguments: str) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(server.data_dir)}
    command = [sys.executable, "-m", "gateway", *arguments, "--data-dir", str(server.data_dir / "state")]
    subprocess.run(command, check=True, env=environ, cwd=ROOT, capture_output=True)


COOKIES = [
    "",
    "x",
    "a" * 43,
    "a" * 5000,
    "\u00e9" * 43,
    "../../etc/passwd",
    "' OR 1=1 --",
    "a" * 43 + "; gateway_session=b",
]


@pytest.mark.parametrize("cookie", COOKIES)
def test_a_cookie_that_is_nobody(gateway: Server, cookie: str) -> None:
    headers = {"Cookie": f"gateway_session={cookie}".encode("latin-1")}
    for path in ("/auth/v1/me", "/v1/models", "/admin/v1/audit"):
        answer = httpx.get(gateway.url + path, headers=headers)
        assert answer.status_code == 401 and code(answer) in ("invalid_token", "invalid_api_key")
    assert httpx.get(f"{gateway.url}/auth/v1/ways", headers=headers).status_code == 200


def test_wrong_passwords_end_in_a_429_that_says_when(gateway: Server) -> None:
    address = email("judy")
    with signed_up(gateway, address), browser(gateway) as client:
        answers = [
            client.post("/auth/v1/login", json={"email": address, "password": f"wrong {i}"}) for i in range(1000)
        ]
        codes = [code(answer) for answer in answers]
        assert codes.count("invalid_credentials") <= 12 and codes.count("rate_limit_exceeded") >= 988
        assert all(int(one.headers["retry-after"]) >= 1 for one in answers if one.status_code == 429)
        assert client.post("/auth/v1/login", json={"email": address, "password": PASSWORD}).status_code == 429


def test_a_log_in_holds_on_all_replicas_and_so_does_its_end(tmp_path: Path) -> None:
    with Postgres() as postgres, Valkey() as valkey:
        environ = {
            "GATEWAY_DATABASE_URL": postgres.database(),
            "GATEWAY_REDIS_URL": valkey.url,
            "GATEWAY_STATE__REPLICAS": "2",
            "GATEWAY_AUTH__PEPPER": "the-same-pepper-everywhere",
            "GATEWAY_AUTH__PEOPLE__SIGNUP": "open",
        }
        servers = [Server(tmp_path / name, config="models: []", ready=False, **environ) for name in "ab"]
        with servers[0] as one, servers[1] as other, signed_up(one, email()) as client:
            cookies = {"gateway_session": client.cookies["gateway_session"]}
            with httpx.Client(base_url=other.url, cookies=cookies) as there:
                assert there.get("/auth/v1/me").status_code == 200
                assert client.post("/auth/v1/logout").status_code == 200
                deadline = time.monotonic() + 5
                while there.get("/auth/v1/me").status_code != 401:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
