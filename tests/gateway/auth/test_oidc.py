"""The protocol of logging in at a provider: what is sent, what is believed, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
from base64 import b64decode
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx
import pytest

from gateway.auth.jwks import FETCH_EVERY_S, FRESH_S, KEEP_S
from gateway.auth.oidc import FLOW_S, Flow, Flows, Identity, Provider
from gateway.config_people import LoginConfig
from gateway.errors import GatewayError
from gateway.secret import Secret
from gateway.state.memory import Memory
from tests.issuer import HEADER, Keys, encode, signed, wrong_tokens

URL = "https://id.example"
NOW_S = 1_800_000_000.0
KEYS = Keys()
BACK = "https://gw.example/auth/v1/oidc/corp/callback"
CONFIG = LoginConfig(name="corp", issuer=URL, client_id="gate way", client_secret=Secret("s3cret/of the+client"))


class World:
    """A provider behind a fake transport, and both clocks, moved by hand. `token` None: what the provider would say."""

    def __init__(self, config: LoginConfig = CONFIG) -> None:
        self.seconds = 0.0
        self.requests: list[httpx.Request] = []
        self.metadata: dict[str, Any] = {
            "issuer": URL,
            "authorization_endpoint": f"{URL}/authorize?tenant=1",
            "token_endpoint": f"{URL}/token",
            "userinfo_endpoint": f"{URL}/userinfo",
            "end_session_endpoint": f"{URL}/logout",
            "jwks_uri": f"{URL}/keys",
        }
        self.claims: dict[str, Any] = {"email": "Alice@Example.test", "email_verified": True, "name": "Alice"}
        self.user_info: dict[str, Any] = {}
        self.answers: dict[str, httpx.Response | Exception] = {}
        self.token: str | None = None
        self.flows = Flows(b"p" * 32, Memory(), self.wall)
        self.flow = self.flows.begin("corp", "/ui/")
        client = httpx.AsyncClient(transport=httpx.MockTransport(self.serve))
        self.provider = Provider(config, client, clock=lambda: self.seconds, now_s=self.wall)

    def wall(self) -> float:
        return NOW_S + self.seconds

    def base(self) -> dict[str, Any]:
        times = {"exp": int(NOW_S) + 60, "iat": int(NOW_S)}
        return {"iss": URL, "aud": "gate way", "sub": "alice", "nonce": self.flows.nonce(self.flow)} | times

    async def serve(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        path = request.url.path
        if (answer := self.answers.get(path)) is not None:
            if isinstance(answer, Exception):
                raise answer
            return answer
        match path:
            case "/.well-known/openid-configuration":
                return httpx.Response(200, json=self.metadata)
            case "/keys":
                return httpx.Response(200, json={"keys": KEYS.jwks()})
            case "/userinfo":
                return httpx.Response(200, json={"sub": "alice"} | self.user_info)
        assert path == "/token"
        token = self.token or signed(HEADER, self.base() | self.claims, KEYS.by_rsa)
        return httpx.Response(200, json={"id_token": token, "access_token": "at", "token_type": "Bearer"})

    async def redeem(self, **query: str) -> Identity:
        return await self.provider.redeem({"code": "c0de"} | query, self.flow, self.flows, BACK)

    async def refused(self, **query: str) -> GatewayError:
        with pytest.raises(GatewayError) as refused:
            await self.redeem(**query)
        return refused.value

    def asked(self, path: str) -> int:
        return sum(request.url.path == path for request in self.requests)


def run(work: Callable[[World], Awaitable[None]], config: LoginConfig = CONFIG) -> None:
    async def inside() -> None:
        world = World(config)
        try:
            await work(world)
        finally:
            await world.provider.close()

    asyncio.run(inside())


def test_the_way_there() -> None:
    async def work(world: World) -> None:
        url = await world.provider.authorization_url(world.flow, world.flows, BACK)
        assert url.startswith(f"{URL}/authorize?tenant=1&")
        sent = dict(parse_qsl(urlsplit(url).query))
        verifier = world.flows.verifier(world.flow)
        assert 43 <= len(verifier) <= 128 and verifier not in url and world.flow.secret not in url
        assert sent == {
            "tenant": "1",
            "response_type": "code",
            "client_id": "gate way",
            "redirect_uri": BACK,
            "scope": "openid email profile",
            "state": world.flows.state(world.flow),
            "nonce": world.flows.nonce(world.flow),
            "code_challenge": encode(hashlib.sha256(verifier.encode()).digest()),
            "code_challenge_method": "S256",
        }

    run(work)


def test_the_way_back() -> None:
    async def work(world: World) -> None:
        assert await world.redeem() == Identity(issuer=URL, subject="alice", name="Alice", email="alice@example.test")
        request = next(request for request in world.requests if request.url.path == "/token")
        assert parse_qs(request.content.decode()) == {
            "grant_type": ["authorization_code"],
            "code": ["c0de"],
            "redirect_uri": [BACK],
            "code_verifier": [world.flows.verifier(world.flow)],
        }
        basic = b64decode(request.headers["authorization"].removeprefix("Basic ")).decode()
        assert basic == "gate+way:s3cret%2Fof+the%2Bclient"
        assert world.asked("/userinfo") == 0

    run(work)


def test_a_secret_in_the_body_and_none_at_all() -> None:
    async def work(world: World) -> None:
        world.metadata["token_endpoint_auth_methods_supported"] = ["client_secret_post", "none"]
        await world.redeem()
        request = next(request for request in world.requests if request.url.path == "/token")
        form = parse_qs(request.content.decode())
        assert "authorization" not in request.headers and form["client_id"] == ["gate way"]
        secret = world.provider.config.client_secret
        assert form.get("client_secret") == (None if secret is None else [secret.reveal()])

    run(work)
    run(work, LoginConfig(name="corp", issuer=URL, client_id="gate way"))


def test_what_the_token_leaves_out_comes_from_user_info() -> None:
    config = LoginConfig(name="corp", issuer=URL, client_id="gate way", organisation_claim="org.name")

    async def work(world: World) -> None:
        world.claims = {"groups": ["a", 1, "b c"], "email_verified": "true"}
        world.user_info = {"email": "A@b.test", "email_verified": False, "org": {"name": "Acme"}, "nonce": "x"}
        found = await world.redeem()
        assert (found.email, found.organisation) == ("a@b.test", "Acme")
        assert found.groups == {"a", "b c"}
        assert world.requests[-1].headers["authorization"] == "Bearer at"
        world.user_info["sub"] = "bob"
        assert (await world.refused()).code == "upstream_invalid"

    run(work, config)


@pytest.mark.parametrize("claims", [{}, {"email_verified": False}, {"email_verified": "false"}, {"email_verified": 1}])
def test_an_address_counts_when_the_provider_verified_it(claims: dict[str, Any]) -> None:
    async def work(world: World) -> None:
        world.claims = {"email": "alice@example.test"} | claims
        assert (await world.redeem()).email is None

    run(work)


WRONG: dict[str, dict[str, Any]] = {
    "nonce": {"nonce": "another"},
    "no nonce": {"nonce": None},
    "nonce of another type": {"nonce": 7},
    "issuer": {"iss": "https://evil.example"},
    "audience": {"aud": "another"},
    "several audiences": {"aud": ["gate way", "another"]},
    "another party": {"azp": "another"},
    "long subject": {"sub": "x" * 256},
    "subject with NUL": {"sub": "a\x00"},
    "expired": {"exp": NOW_S - 3600},
    "issued later": {"iat": NOW_S + 3600},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_claims(name: str) -> None:
    async def work(world: World) -> None:
        world.token = signed(HEADER, world.base() | WRONG[name], KEYS.by_rsa)
        error = await world.refused()
        assert (error.status, error.code) == (401, "invalid_token")

    run(work)


@pytest.mark.parametrize("name", wrong_tokens(KEYS, {"exp": 60, "iss": "", "aud": "gateway", "sub": "alice"}))
def test_wrong_tokens(name: str) -> None:
    async def work(world: World) -> None:
        world.token = wrong_tokens(KEYS, world.base())[name] or "."
        if name != "too long":
            assert (await world.refused()).code == "invalid_token"

    run(work)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"iss": "https://evil.example"}, 401),
        ({"error": "access_denied"}, 403),
        ({"error": "<script>"}, 403),
        ({"error": "temporarily_unavailable"}, 503),
        ({"code": ""}, 400),
        ({"code": "x" * 3000}, 400),
        ({"code": "\x00"}, 400),
    ],
)
def test_wrong_answers_of_the_browser(query: dict[str, str], status: int) -> None:
    async def work(world: World) -> None:
        error = await world.refused(**query)
        assert error.status == status and "<" not in error.message
        assert world.asked("/token") == 0

    run(work)


def test_a_provider_that_names_itself_has_to() -> None:
    async def work(world: World) -> None:
        world.metadata["authorization_response_iss_parameter_supported"] = True
        assert (await world.refused()).code == "invalid_token"
        assert (await world.redeem(iss=URL)).subject == "alice"

    run(work)


ANSWERS: dict[str, tuple[httpx.Response | Exception, int, str]] = {
    "replayed code": (httpx.Response(400, json={"error": "invalid_grant"}), 401, "invalid_token"),
    "wrong secret": (httpx.Response(401, json={"error": "invalid_client"}), 502, "upstream_error"),
    "HTML": (httpx.Response(200, text="<html>"), 502, "upstream_error"),
    "no token": (httpx.Response(200, json={"access_token": "x"}), 502, "upstream_error"),
    "redirect": (httpx.Response(302, headers={"location": "https://evil.example"}), 502, "upstream_error"),
    "failure": (httpx.Response(500, text="oops"), 503, "overloaded"),
    "busy": (httpx.Response(429), 503, "overloaded"),
    "endless": (httpx.Response(200, content=b" " * 300_000), 503, "overloaded"),
    "compressed": (httpx.Response(200, headers={"content-encoding": "br"}), 503, "overloaded"),
    "not there": (httpx.ConnectError("nobody"), 503, "overloaded"),
    "silent": (httpx.ReadTimeout("quiet"), 503, "overloaded"),
    "broken": (httpx.RemoteProtocolError("what"), 503, "overloaded"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_wrong_answers_of_the_provider(name: str) -> None:
    answer, status, code = ANSWERS[name]

    async def work(world: World) -> None:
        world.answers["/token"] = answer
        error = await world.refused()
        assert (error.status, error.code) == (status, code)
        assert error.retry_after_s if status == 503 else True

    run(work)


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://evil.example"},
        {"token_endpoint": "http://127.0.0.1/token"},
        {"token_endpoint": "http://id.example/token"},
        {"userinfo_endpoint": "file:///etc/passwd"},
        {"end_session_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": None},
    ],
)
def test_a_configuration_that_leads_astray(change: dict[str, Any]) -> None:
    async def work(world: World) -> None:
        world.metadata |= change
        assert (await world.refused()).status == 503
        assert world.asked("/token") == 0

    run(work)


def test_a_provider_that_is_away_is_asked_seldom_and_keeps_its_configuration() -> None:
    async def work(world: World) -> None:
        path = "/.well-known/openid-configuration"
        world.answers[path] = httpx.ConnectError("nobody")
        errors = [await world.refused() for _ in range(20)]
        assert {error.status for error in errors} == {503} and world.asked(path) == 1
        del world.answers[path]
        world.seconds += FETCH_EVERY_S
        await asyncio.gather(*(world.redeem() for _ in range(5)))
        assert world.asked(path) == 3  # One is that of the keys.
        world.answers[path] = httpx.ConnectError("nobody")
        world.seconds += FRESH_S
        world.claims["exp"] = NOW_S + KEEP_S
        await world.redeem()
        world.seconds += KEEP_S
        assert (await world.refused()).status == 503
        assert await world.provider.logout_url("https://gw.example/") is None

    run(work)


def test_logging_out_at_the_provider() -> None:
    async def work(world: World) -> None:
        url = await world.provider.logout_url("https://gw.example/ui/")
        assert url == f"{URL}/logout?client_id=gate+way&post_logout_redirect_uri=https%3A%2F%2Fgw.example%2Fui%2F"
        without = World()
        del without.metadata["end_session_endpoint"]
        assert await without.provider.logout_url("https://gw.example/") is None

    run(work)


def test_a_flow_is_good_for_its_own_answer_only() -> None:
    now = [NOW_S]
    flows = Flows(b"p" * 32, Memory(), lambda: now[0])
    flow, other = flows.begin("corp", "/ui/", "user_a"), flows.begin("corp", "/ui/")
    sealed, state = flows.seal(flow), flows.state(flow)
    assert flows.open(sealed, "corp", state) == flow
    assert len({flows.state(flow), flows.nonce(flow), flows.verifier(flow), flow.secret, flows.state(other)}) == 5
    changed = encode(json.dumps({"provider": "corp", "secret": flow.secret, "return_to": "//evil"}).encode())
    wrong = [
        (sealed, "corp", flows.state(other)),
        (sealed, "corp", ""),
        (sealed, "corp", "\u00e9\ud800"),
        (sealed, "another", state),
        (flows.seal(other), "corp", state),
        (Flows(b"q" * 32, Memory(), lambda: now[0]).seal(flow), "corp", state),
        (changed + "." + sealed.partition(".")[2], "corp", state),
        (sealed + "x", "corp", state),
        (sealed.partition(".")[0], "corp", state),
        ("", "corp", state),
        ("\u00e9.\u00e9", "corp", state),
    ]
    for cookie, provider, given in wrong:
        with pytest.raises(GatewayError) as refused:
            flows.open(cookie, provider, given)
        assert (refused.value.status, refused.value.param) == (400, "state")
    now[0] += FLOW_S
    with pytest.raises(GatewayError):
        flows.open(sealed, "corp", state)


def test_a_flow_is_spent_once() -> None:
    async def work() -> None:
        flows = Flows(b"p" * 32, Memory())
        flow = flows.begin("corp", "/")
        await flows.spend(flow)
        with pytest.raises(GatewayError) as refused:
            await flows.spend(flow)
        assert refused.value.code == "invalid_token"
        await flows.spend(flows.begin("corp", "/"))

    asyncio.run(work())


def test_a_flow_does_not_show_its_secrets() -> None:
    flows = Flows(b"p" * 32, Memory())
    flow = flows.begin("corp", "/")
    assert isinstance(flow, Flow)
    assert flows.verifier(flow) not in flows.seal(flow)
