"""Anthropic's requests passed on to Anthropic: unharmed there and back, through the SDK and byte by byte."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anthropic
import httpx
import pytest

from adapters.connection import Timeouts
from adapters.http1 import Client
from adapters.remote import Remote, RemoteModel
from adapters.upstream import Upstream, UpstreamSettings
from gateway.api import openai as api
from gateway.api.anthropic import Messages
from gateway.api.passing import Passer
from gateway.api.remote_images import RemoteImages
from gateway.catalog import Catalog, Target
from gateway.config import ImagesConfig
from gateway.inference import Inference
from gateway.secret import Secret
from gateway.telemetry import Telemetry
from tests.adapters.dialects.replay import recorded
from tests.adapters.upstream import Peer, upstream
from tests.gateway.api.wire import run, serve

BODY_BYTES_MAX = 1_000_000
ASK: Any = {"model": "far", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
TEXT = recorded("anthropic_messages", "text.sse")
WHOLE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [{"type": "text", "text": "Grüße", "citations": None}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 3, "new": {"x": 1}},
    "of_another_age": [1, {"y": None}],
}


class Provider:
    """Answers in turn and keeps what it was asked."""

    def __init__(self, *answers: tuple[int, str, bytes]) -> None:
        self.answers = list(answers)
        self.heads: list[str] = []
        self.bodies: list[bytes] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            head, body = await peer.request()
            self.heads.append(head.decode().lower())
            self.bodies.append(body)
            status, kind, content = self.answers.pop(0)
            fields = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
            await peer.send(fields.encode() + content)


@contextlib.asynccontextmanager
async def opened(
    provider: Provider, models: Sequence[str] = ("far",), *, lane: bool = True
) -> AsyncIterator[tuple[httpx.AsyncClient, anthropic.AsyncAnthropic, Telemetry]]:
    async with upstream(provider) as up:
        client = Client(proxies={}, timeouts=Timeouts(connect_s=20, first_byte_s=5, idle_s=5, total_s=20))
        url = f"http://127.0.0.1:{up.port}"
        settings = UpstreamSettings(name="p", kind="anthropic", base_url=url, api_key=Secret("upstream-key"))
        remote = Remote(RemoteModel(name="far", model="claude-x"), Upstream(settings, client=client))
        telemetry = Telemetry("test")
        catalog = Catalog([Target(name, remote) for name in models])
        inference, images = Inference(catalog, telemetry), RemoteImages(ImagesConfig())
        endpoints = (
            *api.endpoints(inference, catalog, images, BODY_BYTES_MAX),
            *Messages(inference, images, BODY_BYTES_MAX).endpoints(),
        )
        async with serve(endpoints, passer=Passer(inference, BODY_BYTES_MAX), lane=lane) as served:
            address = f"http://127.0.0.1:{served.port}"
            async with (
                httpx.AsyncClient(base_url=address) as http,
                anthropic.AsyncAnthropic(api_key="k", base_url=address, max_retries=0) as sdk,
            ):
                yield http, sdk, telemetry
        await client.close()


def whole(answer: object = WHOLE) -> tuple[int, str, bytes]:
    return 200, "application/json", json.dumps(answer).encode()


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
def test_requests_and_answers_are_not_touched(lane: bool) -> None:
    async def scenario() -> None:
        provider = Provider(whole(), (200, "text/event-stream", TEXT))
        async with opened(provider, lane=lane) as (http, _, telemetry):
            odd = b'{ "model" : "far","max_tokens":9, "messages":[{"role":"user","content":[{"type":"new"}]}],"z":1e2'
            headers = {
                "content-type": "application/json",
                "anthropic-version": "2026-10-21",
                "anthropic-beta": "a-1,b-2",
                "x-api-key": "the-clients-own",
            }
            answer = await http.post("/v1/messages", content=odd + b"}", headers=headers)
            assert answer.content == whole()[2]
            assert answer.headers["request-id"] == answer.headers["x-request-id"]
            assert "openai-version" not in answer.headers and "openai-processing-ms" not in answer.headers
            assert answer.headers["x-gateway-model"] == "far"
            streamed = await http.post("/v1/messages", content=odd + b',"stream":true}', headers=headers)
            assert streamed.content == TEXT
            lines = telemetry.render().decode()
        assert provider.bodies[0] == odd.replace(b'"far"', b'"claude-x"') + b"}"
        head = provider.heads[0]
        assert head.startswith("post /v1/messages ") and "x-api-key: upstream-key\r\n" in head
        assert head.count("anthropic-version:") == 1 and "anthropic-version: 2026-10-21\r\n" in head
        assert "anthropic-beta: a-1,b-2\r\n" in head and "the-clients-own" not in head
        assert 'gateway_inference_requests_total{model="far",outcome="ok"} 2' in lines.replace(".0", "")

    run(scenario())


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
def test_the_sdk_sees_what_anthropic_said(lane: bool) -> None:
    async def scenario() -> None:
        tools = recorded("anthropic_messages", "tools_and_thinking.sse")
        provider = Provider(whole(), (200, "text/event-stream", tools))
        async with opened(provider, lane=lane) as (_, sdk, _):
            answer = await sdk.messages.create(**ASK)
            assert answer.content[0].text == "Grüße" and answer.model == "claude-x"
            async with sdk.messages.stream(**ASK) as stream:
                message = await stream.get_final_message()
            kinds = [block.type for block in message.content]
            assert kinds[:4] == ["thinking", "redacted_thinking", "text", "server_tool_use"]
            assert message.usage.output_tokens == 89
        assert "anthropic-version: 2026-10-21" in provider.heads[0]

    run(scenario())


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_provider_are_told_in_its_shape(stream: bool, lane: bool) -> None:
    async def scenario() -> None:
        problem = {"type": "error", "error": {"type": "rate_limit_error", "message": "No."}, "request_id": "theirs"}
        async with opened(Provider((429, "application/json", json.dumps(problem).encode())), lane=lane) as (_, sdk, _):
            with pytest.raises(anthropic.RateLimitError) as caught:
                await sdk.messages.create(**ASK, stream=stream)
            assert caught.value.type == "rate_limit_error" and "theirs" not in caught.value.response.text
            assert caught.value.response.headers["request-id"] == caught.value.request_id

    run(scenario())


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
def test_a_stream_that_fails_ends_with_an_error_event(lane: bool) -> None:
    async def scenario() -> None:
        cut = TEXT[: TEXT.index(b"event: message_delta")]
        async with opened(Provider((200, "text/event-stream", cut)), lane=lane) as (http, _, _):
            answer = await http.post("/v1/messages", json=ASK | {"stream": True})
            *_, last = answer.text.rstrip().split("\n\n")
            assert last.startswith("event: error\n") and "message_stop" not in answer.text
        overloaded = recorded("anthropic_messages", "overloaded.sse")
        async with opened(Provider((200, "text/event-stream", overloaded)), lane=lane) as (http, _, _):
            answer = await http.post("/v1/messages", json=ASK | {"stream": True})
            assert answer.status_code == 502 and answer.json()["type"] == "error"

    run(scenario())


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
def test_what_is_wrong_is_refused_before_it_is_sent(lane: bool) -> None:
    async def scenario() -> None:
        provider = Provider()
        async with opened(provider, lane=lane) as (http, _, _):
            for body in (ASK | {"api_base": "http://x"}, ASK | {"max_tokens": -1}, ASK | {"model": 5}):
                answer = await http.post("/v1/messages", json=body)
                assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
            answer = await http.post("/v1/messages", json=ASK | {"model": "nobody"})
            assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
        assert not provider.bodies

    run(scenario())


def test_tokens_that_nobody_here_can_count_are_estimated() -> None:
    async def scenario() -> None:
        async with opened(Provider()) as (_, sdk, _):
            count = await sdk.messages.count_tokens(model="far", messages=[{"role": "user", "content": "a" * 400}])
            assert count.input_tokens == 104
            with pytest.raises(anthropic.NotFoundError):
                await sdk.messages.count_tokens(model="none", messages=[{"role": "user", "content": "a"}])

    run(scenario())


def test_openai_clients_reach_anthropic_too() -> None:
    async def scenario() -> None:
        async with opened(Provider((200, "text/event-stream", TEXT))) as (http, _, _):
            ask = {"model": "far", "messages": [{"role": "user", "content": "hi"}]}
            answer = (await http.post("/v1/chat/completions", json=ask)).json()
            assert answer["choices"][0]["message"]["content"] == "Grüße, 世界 😀!"
            assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 100

    run(scenario())
