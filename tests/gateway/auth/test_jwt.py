"""Tokens: who is let in, who is not, and what is asked of their issuer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest
from jwt import PyJWS

from gateway.auth import Open, Principal
from gateway.auth import jwks as jwks_module
from gateway.auth import jwt as module
from gateway.auth.jwt import Issuers, escape
from gateway.config_auth import IssuerConfig
from gateway.errors import GatewayError
from tests.issuer import AUDIENCE, HEADER, Issuer, Keys, signed, wrong_tokens

URL = "https://issuer.example"
NOW_S = 1_800_000_000.0
KEYS = Keys()
CONFIG = IssuerConfig(name="corp", issuer=URL, audience=AUDIENCE, algorithms=("RS256", "ES256", "EdDSA"))
CLAIMS: dict[str, Any] = {"iss": URL, "aud": AUDIENCE, "sub": "alice", "exp": NOW_S + 60, "iat": NOW_S, "nbf": NOW_S}


class World:
    """An issuer behind a fake transport, and both clocks, moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.away = False
        self.keys = KEYS.jwks()
        self.discovery: Any = {"issuer": URL, "jwks_uri": f"{URL}/keys"}
        self.answer: Callable[[httpx.Request], httpx.Response] = self.serve
        self.key_requests = 0

    def serve(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/keys":
            self.key_requests += 1
        if self.away:
            raise httpx.ConnectError("nobody there")
        if request.url.path == "/keys":
            return httpx.Response(200, content=json.dumps({"keys": self.keys}).encode())
        assert request.url.path == "/.well-known/openid-configuration"
        return httpx.Response(200, content=json.dumps(self.discovery).encode())

    def monotonic(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return NOW_S + self.seconds

    def issuers(self, *configs: IssuerConfig) -> Issuers:
        async def answer(request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(0)
            return self.answer(request)

        transport = httpx.MockTransport(answer)
        return Issuers(configs or (CONFIG,), Open(), transport=transport, clock=self.monotonic, now_s=self.wall)


def run(work: Callable[[World, Issuers], Awaitable[None]], *configs: IssuerConfig) -> None:
    async def inside() -> None:
        world = World()
        issuers = world.issuers(*configs)
        try:
            await work(world, issuers)
        finally:
            await issuers.close()

    asyncio.run(inside())


def token(*, kid: str = "rsa", **changes: Any) -> str:
    return signed(HEADER | {"kid": kid}, CLAIMS | changes, KEYS.by_rsa)


async def enter(issuers: Issuers, text: str) -> Principal:
    return await issuers.authenticate(f"Bearer {text}")


async def refused(issuers: Issuers, text: str) -> GatewayError:
    with pytest.raises(GatewayError) as info:
        await enter(issuers, text)
    return info.value


def principal(config: IssuerConfig = CONFIG, **changes: Any) -> Principal:
    found: list[Principal] = []

    async def work(world: World, issuers: Issuers) -> None:
        found.append(await enter(issuers, token(**changes)))

    run(work, config)
    return found[0]


@pytest.mark.parametrize(
    "text",
    [
        token(),
        token(aud=["other", AUDIENCE]),
        signed({"alg": "ES256", "kid": "p256"}, CLAIMS, KEYS.by_p256),
        signed({"alg": "EdDSA", "kid": "ed", "typ": "at+JWT"}, CLAIMS, KEYS.by_ed),
        token(exp=NOW_S - 20),
        signed(HEADER, {name: CLAIMS[name] for name in ("iss", "aud", "sub", "exp")}, KEYS.by_rsa),
    ],
    ids=["RS256", "list of audiences", "ES256", "EdDSA", "within the leeway", "no iat"],
)
def test_a_good_token_is_let_in(text: str) -> None:
    async def work(world: World, issuers: Issuers) -> None:
        me = "jwt:corp:alice"
        expected = Principal(tenant=me, key_id=me, name="corp:alice", user_id="corp:alice", kind="user")
        assert await enter(issuers, text) == expected

    run(work)


@pytest.mark.parametrize(("name", "text"), wrong_tokens(KEYS, CLAIMS).items())
def test_a_wrong_token_is_refused(name: str, text: str) -> None:
    async def work(world: World, issuers: Issuers) -> None:
        for _ in range(2):
            error = await refused(issuers, text)
            assert (error.status, error.code) == (401, "invalid_token")
            assert error.headers["WWW-Authenticate"].startswith("Bearer")
        assert world.key_requests <= 1
        assert (await enter(issuers, token())).user_id == "corp:alice"

    run(work)


def test_what_is_no_token_goes_on_to_the_keys() -> None:
    async def work(world: World, issuers: Issuers) -> None:
        for text in (None, "Bearer gw_live_x", "Basic a.b.c", "Bearer a.b.c.d.e", "Bearer"):
            assert (await issuers.authenticate(text)).key_id == "local"
        assert world.key_requests == 0

    run(work)


def test_unknown_keys_cost_one_fetch_in_thirty_seconds() -> None:
    async def work(world: World, issuers: Issuers) -> None:
        first = await asyncio.gather(*(refused(issuers, token(kid=f"k{i}")) for i in range(500)))
        assert {error.status for error in first} == {401} and world.key_requests == 1
        for i in range(10_000):
            assert (await refused(issuers, signed(HEADER | {"kid": f"u{i}"}, CLAIMS, bytes))).status == 401
        assert world.key_requests == 1
        await enter(issuers, token())
        world.seconds += jwks_module.FETCH_EVERY_S
        world.keys = [{**world.keys[0], "kid": "new"}]
        both = await asyncio.gather(enter(issuers, token(kid="new")), refused(issuers, token(kid="old")))
        assert both[0].user_id == "corp:alice" and both[1].status == 401 and world.key_requests == 2

    run(work)


def test_a_token_is_checked_once_until_its_keys_change(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World, issuers: Issuers) -> None:
        checked = []
        decode = PyJWS.decode

        def count(*given: Any, **named: Any) -> Any:
            checked.append(given)
            return decode(*given, **named)

        monkeypatch.setattr(PyJWS, "decode", count)
        text = token(exp=NOW_S + 3600)
        for _ in range(3):
            await enter(issuers, text)
        assert len(checked) == 1
        world.seconds += jwks_module.FRESH_S
        await enter(issuers, text)
        await _settle(issuers)
        await enter(issuers, text)
        assert world.key_requests == 2 and len(checked) == 1
        world.seconds += jwks_module.FRESH_S
        world.keys = world.keys[2:]
        await enter(issuers, text)
        await _settle(issuers)
        assert (await refused(issuers, text)).status == 401

    run(work)


async def _settle(issuers: Issuers) -> None:
    """Wait for the fetches behind the requests' backs."""
    for keys in issuers.key_sets:
        if keys._fetching is not None:
            await keys._fetching


def test_a_known_token_expires_too() -> None:
    async def work(world: World, issuers: Issuers) -> None:
        await enter(issuers, token())
        world.seconds += 60 + CONFIG.leeway_s
        assert (await refused(issuers, token())).status == 401

    run(work)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_MAX", 3)

    async def work(world: World, issuers: Issuers) -> None:
        for i in range(10):
            await enter(issuers, token(sub=f"user{i}"))
        assert len(issuers._verified) == 3

    run(work)


def test_the_last_good_keys_serve_while_the_issuer_is_away() -> None:
    async def work(world: World, issuers: Issuers) -> None:
        world.away = True
        error = await refused(issuers, token())
        assert (error.status, error.retry_after_s) == (503, 30)
        world.away, world.seconds = False, 30.0
        known = token(exp=NOW_S + 80_000)
        await enter(issuers, known)
        world.away, world.seconds = True, 1000.0
        await enter(issuers, known)
        await enter(issuers, token(sub="bob", exp=NOW_S + 2000))
        await _settle(issuers)
        assert (await refused(issuers, token(kid="new", exp=NOW_S + 2000))).status == 503
        world.seconds = 30 + jwks_module.KEEP_S
        assert (await refused(issuers, known)).status == 503
        asked = world.key_requests
        assert (await refused(issuers, known)).status == 503 and world.key_requests == asked
        world.away = False
        world.seconds += 30
        await enter(issuers, known)

    run(work)


JWKS = CONFIG.__class__(name="corp", issuer=URL, audience=AUDIENCE, jwks_url=f"{URL}/keys")
KEY_SET = json.dumps({"keys": KEYS.jwks()}).encode()


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(302, headers={"location": f"{URL}/elsewhere"}),
        httpx.Response(500),
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, content=b'{"keys": []}'),
        httpx.Response(200, content=b'{"keys": ' + b"[" * 100_000),
        httpx.Response(200, content=KEY_SET + b" " * jwks_module.BODY_BYTES_MAX),
        httpx.Response(200, headers={"content-encoding": "zstd-or-so"}, content=KEY_SET),
    ],
    ids=["redirect", "status", "no JSON", "no key", "deep", "too large", "compressed"],
)
def test_an_answer_that_holds_no_keys_is_an_outage(answer: httpx.Response) -> None:
    async def work(world: World, issuers: Issuers) -> None:
        asked = []

        def serve(request: httpx.Request) -> httpx.Response:
            asked.append(request.url.path)
            return answer

        world.answer = serve
        assert (await refused(issuers, token())).status == 503
        assert asked == ["/keys"]
        world.answer, world.seconds = world.serve, 30.0
        await enter(issuers, token())

    run(work, JWKS)


def test_an_issuer_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_module, "FETCH_TIMEOUT_S", 0.01)

    async def inside() -> None:
        async def hang(request: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError

        issuers = Issuers([JWKS], Open(), transport=httpx.MockTransport(hang), now_s=lambda: NOW_S)
        assert (await refused(issuers, token())).status == 503
        await issuers.close()

    asyncio.run(inside())


@pytest.mark.parametrize(
    "discovery",
    [
        {"issuer": "https://evil.example", "jwks_uri": f"{URL}/keys"},
        {"issuer": URL, "jwks_uri": "http://issuer.example/keys"},
        {"issuer": URL, "jwks_uri": "http://127.0.0.1:1/keys"},
        {"issuer": URL},
        [],
    ],
)
def test_a_configuration_that_leads_astray_is_an_outage(discovery: Any) -> None:
    async def work(world: World, issuers: Issuers) -> None:
        world.discovery = discovery
        assert (await refused(issuers, token())).status == 503
        assert world.key_requests == 0

    run(work)


def test_two_issuers_do_not_vouch_for_each_other() -> None:
    other = msgspec.structs.replace(CONFIG, name="other", issuer="https://other.example", jwks_url=f"{URL}/keys")

    async def work(world: World, issuers: Issuers) -> None:
        world.keys = [{**KEYS.jwks()[0], "kid": "rsa"}]
        text = token(iss="https://other.example")
        assert (await enter(issuers, text)).tenant == "jwt:other:alice"
        assert (await enter(issuers, token())).tenant == "jwt:corp:alice"

    run(work, CONFIG, other)


def test_claims_become_tenant_team_and_roles() -> None:
    config = msgspec.structs.replace(
        CONFIG,
        tenant_claim="org.id",
        team_claim="https://x.example/team",
        roles_claim="realm.roles",
        admin_roles=("ops",),
    )
    claims = {"org": {"id": "acme"}, "https://x.example/team": "Blue Team", "realm": {"roles": ["ops", 1]}}
    found = principal(config, **claims)
    assert (found.tenant, found.team_id, found.org_id, found.admin) == ("corp:acme", "corp:Blue:20Team", None, True)
    plain = msgspec.structs.replace(config, tenant_prefix="")
    assert principal(plain, **claims, sub="auth0|7").key_id == "jwt:corp:auth0:7C7"
    assert principal(plain, **claims).tenant == "acme"
    assert not principal(plain, **claims | {"realm": {"roles": ["dev"]}}).admin
    assert not principal(CONFIG, scope="ops admin", roles=["admin"], admin=True).admin
    assert principal(msgspec.structs.replace(CONFIG, tenant="one")).tenant == "one"


@pytest.mark.parametrize("claims", [{}, {"org": 7}, {"org": ""}, {"org": None}])
def test_a_token_without_its_tenant_is_refused(claims: dict[str, Any]) -> None:
    async def work(world: World, issuers: Issuers) -> None:
        assert (await refused(issuers, token(**claims))).code == "invalid_token"

    run(work, msgspec.structs.replace(CONFIG, tenant_claim="org"))


def test_a_required_scope() -> None:
    async def work(world: World, issuers: Issuers) -> None:
        for _ in range(2):
            error = await refused(issuers, token(scope="openid inferences"))
            assert (error.status, error.code) == (403, "permission_denied")
        await enter(issuers, token(scope="openid inference"))

    run(work, msgspec.structs.replace(CONFIG, required_roles=("inference",)))


def test_no_two_subjects_become_one() -> None:
    subjects = [
        "a",
        "a:b",
        "a:3Ab",
        "a~b",
        "a%7Eb",
        "a|b",
        "ä",
        "\ud800",
        "x" * 63,
        "x" * 64,
        "x" * 65,
        "a/b",
        "a b",
        ":",
    ]
    subjects += [escape("x" * 64)]
    assert len({escape(subject) for subject in subjects}) == len(subjects)
    assert all(len(escape(subject)) <= module.SUBJECT_LENGTH_MAX for subject in subjects)


def test_a_real_issuer_by_discovery() -> None:
    async def inside(issuer: Issuer) -> None:
        config = msgspec.structs.replace(CONFIG, issuer=issuer.url)
        issuers = Issuers([config], Open(), now_s=lambda: NOW_S)
        text = signed(HEADER, issuer.claims(NOW_S), KEYS.by_rsa)
        assert (await enter(issuers, text)).user_id == "corp:alice"
        assert issuer.key_requests == 1
        await issuers.close()

    with Issuer(KEYS) as issuer:
        asyncio.run(inside(issuer))
