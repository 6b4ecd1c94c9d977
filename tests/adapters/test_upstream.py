"""What requests to each kind of provider look like: where they go, and what authorises them."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from adapters.asking import ask
from adapters.errors import ModelUnavailable, Unreachable, UpstreamRefused
from adapters.http1 import Client
from adapters.providers import PROVIDERS, ProviderKind
from adapters.types import DialectName
from adapters.upstream import Upstream, UpstreamSettings, tls
from tests.adapters.provider import KEY, Key, reply
from tests.adapters.upstream import Peer, answering, run, upstream

BASE = "https://own.example/base"


def opened(kind: ProviderKind, **settings: Any) -> Upstream:
    given: dict[str, Any] = {"name": "p", "kind": kind, "api_key": Key()}
    if PROVIDERS[kind].base_url is None:
        given["base_url"] = BASE
    return Upstream(UpstreamSettings(**(given | settings)), client=Client(proxies={}))


def head(made: Upstream, dialect: DialectName, model: str = "some/model:1", *, stream: bool = True) -> list[str]:
    """The lines of a request's head."""
    target = made.target(dialect, model, stream=stream)
    return asyncio.run(made.head("POST", target, b"{}")).decode().split("\r\n")


# kind, settings, dialect, request line, host, the header that authorises
ROWS: list[tuple[ProviderKind, dict[str, Any], DialectName, str, str, str]] = [
    ("openai", {}, "openai_chat", "/v1/chat/completions", "api.openai.com", f"authorization: Bearer {KEY}"),
    ("openai", {}, "openai_responses", "/v1/responses", "api.openai.com", f"authorization: Bearer {KEY}"),
    ("azure", {}, "openai_chat", "/base/openai/v1/chat/completions", "own.example", f"api-key: {KEY}"),
    (
        "azure",
        {"api_version": "2024-10-21"},
        "openai_embeddings",
        "/base/openai/deployments/some%2Fmodel%3A1/embeddings?api-version=2024-10-21",
        "own.example",
        f"api-key: {KEY}",
    ),
    (
        "azure",
        {"api_version": "preview"},
        "openai_responses",
        "/base/openai/responses?api-version=preview",
        "own.example",
        f"api-key: {KEY}",
    ),
    ("anthropic", {}, "anthropic_messages", "/v1/messages", "api.anthropic.com", f"x-api-key: {KEY}"),
    (
        "anthropic",
        {"oauth": True},
        "anthropic_messages",
        "/v1/messages",
        "api.anthropic.com",
        f"authorization: Bearer {KEY}",
    ),
    (
        "bedrock",
        {"region": "eu-west-1"},
        "bedrock_converse",
        "/model/some%2Fmodel%3A1/converse-stream",
        "bedrock-runtime.eu-west-1.amazonaws.com",
        f"authorization: Bearer {KEY}",
    ),
    (
        "gemini",
        {},
        "gemini",
        "/v1beta/models/some%2Fmodel%3A1:streamGenerateContent?alt=sse",
        "generativelanguage.googleapis.com",
        f"x-goog-api-key: {KEY}",
    ),
    (
        "gemini",
        {},
        "gemini_embeddings",
        "/v1beta/models/some%2Fmodel%3A1:batchEmbedContents",
        "generativelanguage.googleapis.com",
        f"x-goog-api-key: {KEY}",
    ),
    (
        "vertex",
        {"region": "europe-west1", "project": "mine"},
        "gemini",
        "/v1/projects/mine/locations/europe-west1/publishers/google/models/some%2Fmodel%3A1:streamGenerateContent?alt=sse",
        "europe-west1-aiplatform.googleapis.com",
        f"authorization: Bearer {KEY}",
    ),
    (
        "vertex",
        {"region": "global", "project": "mine"},
        "gemini",
        "/v1/projects/mine/locations/global/publishers/google/models/some%2Fmodel%3A1:streamGenerateContent?alt=sse",
        "aiplatform.googleapis.com",
        f"authorization: Bearer {KEY}",
    ),
    (
        "vertex-anthropic",
        {"region": "eu", "project": "mine"},
        "anthropic_messages",
        "/v1/projects/mine/locations/eu/publishers/anthropic/models/some%2Fmodel%3A1:streamRawPredict",
        "aiplatform.eu.rep.googleapis.com",
        f"authorization: Bearer {KEY}",
    ),
    ("openrouter", {}, "openai_chat", "/api/v1/chat/completions", "openrouter.ai", f"authorization: Bearer {KEY}"),
    ("xai", {}, "openai_chat", "/v1/chat/completions", "api.x.ai", f"authorization: Bearer {KEY}"),
    ("mistral", {}, "openai_embeddings", "/v1/embeddings", "api.mistral.ai", f"authorization: Bearer {KEY}"),
    ("deepseek", {}, "openai_completions", "/beta/completions", "api.deepseek.com", f"authorization: Bearer {KEY}"),
    ("groq", {}, "openai_chat", "/openai/v1/chat/completions", "api.groq.com", f"authorization: Bearer {KEY}"),
    ("together", {}, "rerank", "/v1/rerank", "api.together.xyz", f"authorization: Bearer {KEY}"),
    (
        "fireworks",
        {},
        "openai_chat",
        "/inference/v1/chat/completions",
        "api.fireworks.ai",
        f"authorization: Bearer {KEY}",
    ),
    ("cohere", {}, "rerank", "/v2/rerank", "api.cohere.ai", f"authorization: Bearer {KEY}"),
    ("ollama", {}, "openai_chat", "/v1/chat/completions", "127.0.0.1:11434", f"authorization: Bearer {KEY}"),
    ("vllm", {}, "anthropic_messages", "/base/messages", "own.example", f"authorization: Bearer {KEY}"),
    ("llama-server", {}, "rerank", "/v1/rerank", "127.0.0.1:8080", f"authorization: Bearer {KEY}"),
    ("gateway", {}, "openai_chat", "/base/chat/completions", "own.example", f"authorization: Bearer {KEY}"),
    ("openai-compatible", {}, "openai_chat", "/base/chat/completions", "own.example", f"authorization: Bearer {KEY}"),
]


@pytest.mark.parametrize(("kind", "settings", "dialect", "target", "host", "authorised"), ROWS)
def test_where_requests_go_and_what_authorises_them(
    kind: ProviderKind, settings: dict[str, Any], dialect: DialectName, target: str, host: str, authorised: str
) -> None:
    lines = head(opened(kind, **settings), dialect)
    assert lines[0] == f"POST {target} HTTP/1.1"
    assert f"host: {host}" in lines
    assert authorised in lines
    assert sum(KEY in line for line in lines) == 1


def test_every_kind_has_a_row() -> None:
    assert {row[0] for row in ROWS} == set(PROVIDERS)


def test_what_else_goes_with_requests() -> None:
    settings = {"organization": "org", "project": "proj", "headers": {"X-Team": "a"}}
    assert {"openai-organization: org", "openai-project: proj", "x-team: a"} <= set(
        head(opened("openai", **settings), "openai_chat")
    )
    lines = head(opened("anthropic", oauth=True, headers={"anthropic-beta": "mine"}), "anthropic_messages")
    assert {"anthropic-version: 2023-06-01", "anthropic-beta: oauth-2025-04-20,mine"} <= set(lines)


def test_unary_paths() -> None:
    assert "/converse HTTP" in head(opened("bedrock", region="x"), "bedrock_converse", stream=False)[0]
    assert ":generateContent HTTP" in head(opened("gemini"), "gemini", stream=False)[0]


def test_a_signed_request() -> None:
    made = opened(
        "bedrock",
        region="us-east-1",
        api_key=None,
        aws_access_key_id="AKIAX",
        aws_secret_access_key=Key(),
        aws_session_token=Key(),
    )
    lines = head(made, "bedrock_converse")
    (signature,) = [line for line in lines if line.startswith("authorization: AWS4-HMAC-SHA256 Credential=AKIAX/")]
    assert "/us-east-1/bedrock/aws4_request, SignedHeaders=host;x-amz-date;x-amz-security-token" in signature
    assert KEY not in signature


def test_no_key_at_all() -> None:
    assert not [line for line in head(opened("vllm", api_key=None), "openai_chat") if line.startswith("authorization")]


def test_a_key_in_a_file_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "key"
    made = opened("openai", api_key=None, api_key_file=str(path))
    with pytest.raises(ModelUnavailable):
        head(made, "openai_chat")
    for moment, key in enumerate(("first\n", "second")):
        path.write_text(key)
        os.utime(path, (moment, moment))
        assert f"authorization: Bearer {key.strip()}" in head(made, "openai_chat")
    path.unlink()
    assert "authorization: Bearer second" in head(made, "openai_chat")


def test_a_providers_words_say_nothing_of_us() -> None:
    made = opened("openai", organization="org-of-ours", base_url="https://secret-host.example/v1")
    words = made.scrubbed(f"no {KEY} at secret-host.example for org-of-ours")
    assert not any(word in words for word in (KEY, "secret-host", "org-of-ours"))
    assert made.redacted(f"x {KEY} secret-host.example".encode()) == b"x [removed] [removed]"


def service_account(tmp_path: Path, port: int) -> tuple[Path, Any]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    path = tmp_path / "account.json"
    account = {
        "client_email": "me@x",
        "private_key": pem,
        "private_key_id": "k1",
        "token_uri": f"http://127.0.0.1:{port}/t",
    }
    path.write_text(json.dumps(account))
    return path, key.public_key()


def test_tokens_of_a_service_account_are_fetched_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        asked: list[bytes] = []

        async def tokens(peer: Peer) -> None:
            while True:
                asked.append((await peer.request())[1])
                await peer.send(reply(b'{"access_token":"ya29.x","expires_in":3600}', content_type="application/json"))

        async with upstream(tokens) as peers:
            path, public = service_account(tmp_path, peers.port)
            made = opened("vertex", api_key=None, google_file=str(path), region="global", project="p")
            heads = await asyncio.gather(*(made.head("POST", "/x", b"") for _ in range(5)))
            assert all(b"authorization: Bearer ya29.x\r\n" in one for one in heads)
            await made.close()
        (form,) = asked
        claims = jwt.decode(
            form.decode().partition("assertion=")[2], public, ["RS256"], audience=f"http://127.0.0.1:{peers.port}/t"
        )
        assert claims["iss"] == "me@x" and claims["scope"].endswith("/cloud-platform")

    run(scenario())


@pytest.mark.parametrize("answer", [reply(b"{}", 403), reply(b"no", 200), reply(b"{}", 200)])
def test_no_token(tmp_path: Path, answer: bytes) -> None:
    async def scenario() -> None:
        async with upstream(answering(answer)) as peers:
            path, _ = service_account(tmp_path, peers.port)
            made = opened("vertex", api_key=None, google_file=str(path), region="global", project="p")
            with pytest.raises(ModelUnavailable):
                await made.head("POST", "/x", b"")
            await made.close()

    run(scenario())


def test_whose_certificates_are_trusted(tmp_path: Path) -> None:
    assert tls(UpstreamSettings(name="p", kind="openai")).verify_mode is ssl.CERT_REQUIRED
    assert tls(UpstreamSettings(name="p", kind="openai", verify=False)).verify_mode is ssl.CERT_NONE
    with pytest.raises(FileNotFoundError):
        tls(UpstreamSettings(name="p", kind="openai", ca_file=str(tmp_path / "gone")))


def test_asking_a_provider_whether_it_takes_the_key() -> None:
    async def scenario() -> None:
        for answer, expected in ((reply(b'{"data":[]}'), None), (reply(b"{}", 401), UpstreamRefused)):
            async with upstream(answering(answer)) as peers:
                settings = UpstreamSettings(
                    name="p", kind="openai", api_key=Key(), base_url=f"http://127.0.0.1:{peers.port}/v1"
                )
                if expected is None:
                    assert await ask(settings) == frozenset()
                else:
                    with pytest.raises(expected):
                        await ask(settings)
        with pytest.raises(Unreachable):
            await ask(UpstreamSettings(name="p", kind="vllm", base_url="http://127.0.0.1:1/v1"))
        assert await ask(UpstreamSettings(name="p", kind="bedrock", api_key=Key(), region="x")) is None

    run(scenario())


def test_a_base_url_that_leads_nowhere_is_told_with_the_path_that_was_asked_for() -> None:
    async def scenario() -> None:
        async with upstream(answering(reply(b"not found", 404))) as peers:
            url = f"http://127.0.0.1:{peers.port}/v1"
            with pytest.raises(UpstreamRefused, match="There is nothing at /v1/v1/models of its host") as caught:
                await ask(UpstreamSettings(name="p", kind="anthropic", api_key=Key(), base_url=url))
            assert caught.value.status == 404

    run(scenario())


@pytest.mark.parametrize(
    ("kind", "body", "listed"),
    [
        (
            "openai",
            b'{"object":"list","data":[{"id":"a","object":"model"},{"id":"b/c"}],"has_more":false}',
            {"a", "b/c"},
        ),
        ("gemini", b'{"models":[{"name":"models/g"}]}', {"g"}),
        ("gemini", b'{"models":[{"name":"models/g"}],"nextPageToken":"x"}', set()),
        ("anthropic", b'{"data":[{"id":"a"}],"has_more":true}', set()),
        ("azure", b'{"data":[{"id":"a"}]}', set()),
        ("together", b'[{"id":"a"}]', set()),
        ("vllm", b"<html>", set()),
    ],
)
def test_the_models_that_a_provider_lists(kind: ProviderKind, body: bytes, listed: set[str]) -> None:
    async def scenario() -> None:
        async with upstream(answering(reply(body))) as peers:
            url = f"http://127.0.0.1:{peers.port}"
            assert await ask(UpstreamSettings(name="p", kind=kind, api_key=Key(), base_url=url)) == frozenset(listed)

    run(scenario())
