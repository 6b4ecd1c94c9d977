from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from adapters import errors
from adapters.types import (
    ChatRequest,
    ChoiceFinished,
    Finished,
    Message,
    ModelCard,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from tests.fakes import DIAGNOSIS, HELLO
from tests.gateway.api.openai.door import BODY_BYTES_MAX, opened
from tests.gateway.api.wire import run, until

USER: Any = {"role": "user", "content": "hi"}
ASK: Any = {"model": "m", "messages": [USER]}
PATH = "/v1/chat/completions"


def test_unary() -> None:
    async def scenario() -> None:
        async with opened(strict=True) as door:
            raw = await door.sdk.chat.completions.with_raw_response.create(**ASK, prompt_cache_key="s")
            answer = raw.parse()
            assert answer.choices[0].message.content == "Hello world"
            assert answer.choices[0].finish_reason == "stop"
            assert answer.model == "org/model"
            assert answer.id == "chatcmpl-" + raw.headers["x-request-id"]
            assert answer.usage is not None and answer.usage.total_tokens == 9
            assert answer.usage.prompt_tokens_details is not None
            assert answer.usage.prompt_tokens_details.cached_tokens == 3
            headers = {name: raw.headers[name] for name in ("x-gateway-model", "x-gateway-cached-tokens")}
            assert headers == {"x-gateway-model": "org/model", "x-gateway-cached-tokens": "3"}
            assert raw.headers["openai-processing-ms"].isdecimal()
            assert door.adapter.requests == [ChatRequest("m", (Message("user", "hi"),))]
            caller = door.adapter.callers[0]
            assert (caller.tenant, caller.session_key) == ("local", "s")
            assert caller.request_id == raw.headers["x-request-id"]
            assert door.outcomes() == {"ok": 1}

    run(scenario())


def test_stream() -> None:
    async def scenario() -> None:
        async with opened(strict=True) as door:
            raw = await door.sdk.chat.completions.with_raw_response.create(
                **ASK, stream=True, stream_options={"include_usage": True}
            )
            assert raw.headers["content-type"].startswith("text/event-stream")
            assert raw.headers["x-gateway-queue-ms"] == "1.5"
            assert raw.headers["server-timing"] == "queue;dur=1.5, prefill;dur=2.5"
            *chunks, last = [chunk async for chunk in raw.parse()]
            assert chunks[0].choices[0].delta.role == "assistant"
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello world"
            assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
            assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 2
            assert door.outcomes() == {"ok": 1}

    run(scenario())


def test_the_sdks_stream_helper_gathers_tool_calls_and_log_probabilities() -> None:
    logprobs = (TokenLogprob(1, -0.5, b"a", (TopLogprob(2, -1.0, b"b"),)),)
    script = (
        HELLO[0],
        TextDelta(0, "a", logprobs),
        ToolCallDelta(0, 0, "", "call_1", "f"),
        ToolCallDelta(0, 0, '{"x":'),
        ToolCallDelta(0, 0, "1}"),
        ToolCallDelta(0, 1, "{}", "call_2", "g"),
        ChoiceFinished(0, "tool_calls"),
        Finished(Usage(7, 5)),
    )

    async def scenario() -> None:
        async with opened(script, strict=True) as door:
            async with door.sdk.chat.completions.stream(**ASK, logprobs=True, top_logprobs=1) as stream:
                streamed = (await stream.get_final_completion()).choices[0]
            unary = (await door.sdk.chat.completions.create(**ASK, logprobs=True, top_logprobs=1)).choices[0]
            for choice in (streamed, unary):
                assert choice.finish_reason == "tool_calls"
                calls = [call for call in choice.message.tool_calls or [] if call.type == "function"]
                assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
                    ("call_1", "f", '{"x":1}'),
                    ("call_2", "g", "{}"),
                ]
                assert choice.message.content == "a"
                assert choice.logprobs is not None and choice.logprobs.content is not None
                assert choice.logprobs.content[0].top_logprobs[0].token == "b"

    run(scenario())


def test_several_choices() -> None:
    script = (
        Started(prompt_tokens=1),
        TextDelta(1, "b"),
        TextDelta(0, "a"),
        ChoiceFinished(1, "length"),
        ChoiceFinished(0, "stop"),
        Finished(Usage(1, 2)),
    )

    async def scenario() -> None:
        async with opened(script) as door:
            answer = await door.sdk.chat.completions.create(**ASK, n=2)
            assert [(choice.index, choice.message.content, choice.finish_reason) for choice in answer.choices] == [
                (0, "a", "stop"),
                (1, "b", "length"),
            ]

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "kind", "code"),
    [
        (errors.InvalidRequest("long", code="context_length_exceeded"), 400, openai.BadRequestError, None),
        (errors.QueueFull("full", retry_after_s=2.2), 429, openai.RateLimitError, "queue_full"),
        (errors.Overloaded("all", retry_after_s=1), 503, openai.InternalServerError, "overloaded"),
        (errors.ModelLoading("soon", retry_after_s=9), 503, openai.InternalServerError, "model_loading"),
        (errors.EngineFailed("died"), 503, openai.InternalServerError, "model_unavailable"),
        (ZeroDivisionError("secret"), 500, openai.InternalServerError, "internal_error"),
    ],
)
def test_failures_before_the_first_event_have_a_status(
    failure: Exception, status: int, kind: type[openai.APIStatusError], code: str | None, stream: bool
) -> None:
    async def scenario() -> None:
        async with opened([failure]) as door:
            with pytest.raises(kind) as caught:
                await door.sdk.chat.completions.create(**ASK, stream=stream)
            assert caught.value.status_code == status
            assert caught.value.code == (code or "context_length_exceeded")
            assert "secret" not in caught.value.response.text
            if status == 429:
                assert caught.value.response.headers["retry-after"] == "3"

    run(scenario())


def test_a_failure_in_the_stream_is_an_error_event() -> None:
    async def scenario() -> None:
        async with opened([*HELLO[:2], errors.EngineFailed("The engine died.")]) as door:
            reply = await door.http.post(PATH, json={**ASK, "stream": True})
            payloads = [line[6:] for line in reply.text.splitlines() if line]
            assert reply.status_code == 200
            assert json.loads(payloads[-1])["error"]["message"] == "The engine died."
            assert "[DONE]" not in payloads
            assert door.outcomes() == {"engine_failed": 1}
            with pytest.raises(openai.APIError, match=r"The engine died\."):
                _ = [chunk async for chunk in await door.sdk.chat.completions.create(**ASK, stream=True)]

    run(scenario())


def test_a_failure_in_the_middle_of_a_unary_answer_has_a_status() -> None:
    async def scenario() -> None:
        async with opened([*HELLO[:2], errors.EngineFailed("died")]) as door:
            reply = await door.http.post(PATH, json=ASK)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_unavailable")

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("sent", [0, 2])
def test_a_client_that_leaves_stops_the_work(sent: int, stream: bool) -> None:
    async def scenario() -> None:
        async with opened([*HELLO[:sent], asyncio.Event()]) as door:
            body = json.dumps({**ASK, "stream": stream}).encode()
            head = (
                f"POST {PATH} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            )
            async with door.served.client() as client:
                await client.send(head.encode() + b"\r\n" + body)
                if sent and stream:
                    await client.head()
                else:
                    await until(lambda: bool(door.adapter.requests))
            await until(lambda: door.adapter.closed == 1)
            assert door.outcomes() == {"cancelled": 1}

    run(scenario())


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"", 400, "invalid_json", None),
        (b"{", 400, "invalid_json", None),
        (b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', 400, "invalid_json", None),
        (b'{"x":' * 100_000, 400, "invalid_json", None),
        (b'{"model":"m","messages":[{"role":"user","content":"x"}],"n":0}', 400, "invalid_value", "n"),
        (b'{"model":"m","messages":[],"api_key":"x"}', 400, "invalid_value", "messages"),
        (
            b'{"model":"m","messages":[{"role":"user","content":"x"}],"api_base":"http://x"}',
            400,
            "unknown_parameter",
            "api_base",
        ),
        (b'{"model":"gpt","messages":[{"role":"user","content":"x"}]}', 404, "model_not_found", "model"),
        (b" " * (BODY_BYTES_MAX + 1), 413, "request_too_large", None),
    ],
)
def test_bad_bodies_reach_no_model(body: bytes, status: int, code: str, param: str | None) -> None:
    async def scenario() -> None:
        async with opened() as door:
            reply = await door.http.post(PATH, content=body, headers={"content-type": "application/json"})
            error = reply.json()["error"]
            assert (reply.status_code, error["code"], error["param"]) == (status, code, param)
            assert reply.headers["x-request-id"]
            assert door.adapter.requests == []
            assert (await door.http.post(PATH, json=ASK)).status_code == 200

    run(scenario())


def test_a_model_of_another_kind() -> None:
    async def scenario() -> None:
        async with opened(card=ModelCard(kinds=("embedding",))) as door:
            with pytest.raises(openai.BadRequestError, match="does not support chat completions"):
                await door.sdk.chat.completions.create(**ASK)

    run(scenario())


def test_a_cache_diagnosis_on_request() -> None:
    """It reaches clients of the official SDK as an extra field, also through its fold of a stream."""

    async def scenario() -> None:
        explain = {"X-Gateway-Explain": "cache"}
        async with opened((Started(7, cache=DIAGNOSIS), *HELLO[1:])) as door:
            answer = await door.sdk.chat.completions.create(**ASK, extra_headers=explain)
            assert answer.model_extra is not None
            assert answer.model_extra["gateway"]["cache"]["divergence"]["role"] == "user"
            async with door.sdk.chat.completions.stream(**ASK, extra_headers=explain) as stream:
                final = await stream.get_final_completion()
            assert final.choices[0].message.content == "Hello world"
            assert final.model_extra is not None and final.model_extra["gateway"]["cache"]["tier"] == "disk"
            await door.sdk.chat.completions.create(**ASK)
            assert [caller.explain_cache for caller in door.adapter.callers] == [True, True, False]
            with pytest.raises(openai.BadRequestError) as caught:
                await door.sdk.chat.completions.create(**ASK, extra_headers={"X-Gateway-Explain": "all"})
            assert caught.value.param == "X-Gateway-Explain"

    run(scenario())


def test_the_session_header() -> None:
    async def ask(http: httpx.AsyncClient, session: str, **fields: Any) -> int:
        return (await http.post(PATH, json={**ASK, **fields}, headers={"X-Session-Id": session.encode()})).status_code

    async def scenario() -> None:
        async with opened() as door:
            statuses = [
                await ask(door.http, "a"),
                await ask(door.http, "a", prompt_cache_key="b"),
                await ask(door.http, ""),
                await ask(door.http, "c/ d"),
                await ask(door.http, "x" * 512),
                await ask(door.http, "x" * 513),
                await ask(door.http, "a\tb"),
                await ask(door.http, "\xe9"),
                await ask(door.http, "a", user="u"),
            ]
            assert statuses == [200, 200, 200, 200, 200, 400, 400, 400, 200]
            keys = [caller.session_key for caller in door.adapter.callers]
            assert keys == ["a", "b", None, "c/ d", "x" * 512, "a"]
            assert (await door.http.post(PATH, json=ASK | {"user": "u"})).status_code == 200
            assert door.adapter.callers[-1].session_key is None, "a user may have many conversations"

    run(scenario())


def test_the_access_log_knows_the_tokens() -> None:
    async def scenario() -> None:
        async with opened() as door:
            for stream in (False, True):
                await door.http.post(PATH, json={**ASK, "stream": stream})
            await until(lambda: door.served.log.getvalue().count("completion_tokens=2") == 2)
            assert door.served.log.getvalue().count("model=org/model prompt_tokens=7") == 2

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_cannot_be_written_stops_the_work(stream: bool) -> None:
    async def scenario() -> None:
        async with opened([HELLO[0], TextDelta(5, "a choice nobody asked for"), asyncio.Event()]) as door:
            reply = await door.http.post(PATH, json={**ASK, "stream": stream})
            assert "internal_error" in reply.text
            assert reply.status_code == (200 if stream else 500)
            assert door.adapter.closed == 1
            assert door.outcomes() == {"cancelled": 1}

    run(scenario())
