"""Anthropic's entrance with the official SDK, over a scripted model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anthropic
import pytest

from adapters import errors
from adapters.types import (
    ChatRequest,
    ChoiceFinished,
    Finished,
    Generation,
    Message,
    ModelCard,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from gateway.errors import error
from tests.fakes import HELLO, Step
from tests.gateway.api.openai.door import BODY_BYTES_MAX, Door, opened
from tests.gateway.api.wire import run, until

ASK: Any = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
VERSION = {"anthropic-version": "2023-06-01"}
PATH = "/v1/messages"


@contextlib.asynccontextmanager
async def claude(
    script: Sequence[Step] = HELLO, *, retries: int = 0, card: ModelCard | None = None
) -> AsyncIterator[tuple[Door, anthropic.AsyncAnthropic]]:
    async with (
        opened(script, card=card) as door,
        anthropic.AsyncAnthropic(
            api_key="k", base_url=f"http://127.0.0.1:{door.served.port}", max_retries=retries
        ) as sdk,
    ):
        yield door, sdk


def test_unary() -> None:
    async def scenario() -> None:
        async with claude() as (door, sdk):
            raw = await sdk.messages.with_raw_response.create(**ASK, metadata={"user_id": "s"})
            answer = await raw.parse()
            assert answer.content[0].text == "Hello world"
            assert (answer.type, answer.role, answer.model) == ("message", "assistant", "org/model")
            assert (answer.stop_reason, answer.usage.output_tokens) == ("end_turn", 2)
            assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens) == (4, 3)
            assert answer.id == "msg_" + raw.headers["request-id"]
            assert raw.headers["request-id"] == raw.headers["x-request-id"]
            assert "openai-version" not in raw.headers
            assert door.adapter.requests == [
                ChatRequest("m", (Message("user", "hi"),), generation=Generation(max_tokens=100), end_user="s")
            ]
            assert door.adapter.callers[0].session_key == "s"
            assert door.outcomes() == {"ok": 1}

    run(scenario())


def test_stream_helper() -> None:
    async def scenario() -> None:
        script = (
            Started(7, 3),
            ReasoningDelta(0, "hm"),
            ReasoningDelta(0, "", signature="sig"),
            TextDelta(0, "Let me see."),
            ToolCallDelta(0, 0, '{"city":', "toolu_1", "weather"),
            ToolCallDelta(0, 0, '"Paris"}'),
            ChoiceFinished(0, "tool_calls"),
            Finished(Usage(7, 5, 3)),
        )
        async with claude(script) as (_, sdk), sdk.messages.stream(**ASK) as stream:
            kinds = [event.type async for event in stream]
            assert {"thinking", "signature", "text", "input_json", "message_stop"} <= set(kinds)
            thought, text, call = (await stream.get_final_message()).content
            assert (thought.type, thought.thinking, thought.signature) == ("thinking", "hm", "sig")
            assert (text.text, call.name, call.input) == ("Let me see.", "weather", {"city": "Paris"})

    run(scenario())


FAILURES = {
    "invalid": (errors.InvalidRequest("No.", param="messages[0].content"), 400, "invalid_request_error"),
    "a full share": (errors.QueueFull("Wait.", retry_after_s=2), 429, "rate_limit_error"),
    "a full queue": (errors.Overloaded("Wait.", retry_after_s=2), 529, "overloaded_error"),
    "loading": (errors.ModelLoading("Soon."), 529, "overloaded_error"),
    "unavailable": (errors.ModelUnavailable("Gone."), 503, "api_error"),
    "late": (errors.Timeout("Late."), 504, "timeout_error"),
    "a bug": (RuntimeError("secret"), 500, "api_error"),
    "no money": (error("insufficient_quota", "Spent."), 402, "billing_error"),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_before_the_answer_has_its_status(name: str, stream: bool) -> None:
    failure, status, kind = FAILURES[name]

    async def scenario() -> None:
        async with claude([failure]) as (_, sdk):
            with pytest.raises(anthropic.APIStatusError) as caught:
                await sdk.messages.create(**ASK, stream=stream)
            answer = caught.value
            assert (answer.status_code, answer.type) == (status, kind)
            assert answer.request_id == answer.body["request_id"] == answer.response.headers["x-request-id"]
            assert "secret" not in answer.response.text

    run(scenario())


def test_a_stream_that_breaks_ends_with_an_error_event() -> None:
    async def scenario() -> None:
        async with claude([*HELLO[:2], errors.Overloaded("Wait.")]) as (_, sdk):
            stream = await sdk.messages.create(**ASK, stream=True)
            with pytest.raises(anthropic.APIStatusError) as caught:
                [event async for event in stream]
            assert (caught.value.type, caught.value.error_code) == ("overloaded_error", "overloaded")

    run(scenario())


def test_the_sdk_retries_what_is_worth_it() -> None:
    async def scenario() -> None:
        async with claude([errors.Overloaded("Wait.", retry_after_s=0.001)], retries=2) as (door, sdk):
            with pytest.raises(anthropic.APIStatusError):
                await sdk.messages.create(**ASK)
            assert len(door.adapter.requests) == 3
        async with claude([error("insufficient_quota", "Spent.")], retries=2) as (door, sdk):
            with pytest.raises(anthropic.APIStatusError):
                await sdk.messages.create(**ASK)
            assert len(door.adapter.requests) == 1

    run(scenario())


def test_a_client_that_leaves_stops_the_work() -> None:
    async def scenario() -> None:
        async with claude([*HELLO[:2], asyncio.Event()]) as (door, sdk):
            stream = await sdk.messages.create(**ASK, stream=True)
            async for event in stream:
                if event.type == "content_block_delta":
                    break
            await stream.close()
            await until(lambda: door.adapter.closed == 1)
            await until(lambda: door.outcomes() == {"cancelled": 1})

    run(scenario())


def test_tokens_are_counted() -> None:
    async def scenario() -> None:
        async with claude() as (door, sdk):
            count = await sdk.messages.count_tokens(model="m", messages=ASK["messages"], system="be kind")
            assert count.input_tokens == len("<system>be kind<user>hi")
            assert not door.adapter.requests

    run(scenario())


def test_models_in_anthropics_shape() -> None:
    async def scenario() -> None:
        async with claude() as (door, sdk):
            (model,) = [one async for one in sdk.models.list()]
            assert (model.id, model.type, model.max_input_tokens) == ("org/model", "model", 2048)
            assert (await sdk.models.retrieve("org/model")).created_at.year == 2023
            plain = (await door.http.get("/v1/models")).json()
            assert plain["object"] == "list"
            for query in ("limit=0", "limit=1001", "limit=x", "limit=²", "limit=" + "9" * 30, "after_id=nobody"):
                answer = await door.http.get(f"/v1/models?{query}", headers=VERSION)
                assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error"), query
            page = (await door.http.get("/v1/models?after_id=org/model", headers=VERSION)).json()
            assert page == {"data": [], "has_more": False, "first_id": None, "last_id": None}
            page = (await door.http.get("/v1/models?before_id=org/model&limit=1", headers=VERSION)).json()
            assert page["data"] == []

    run(scenario())


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", PATH, 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
        ("GET", "/v1/models/none", 404, "not_found_error"),
    ],
)
def test_errors_of_routes_have_anthropics_shape(method: str, path: str, status: int, kind: str) -> None:
    async def scenario() -> None:
        async with claude() as (door, _):
            answer = await door.http.request(method, path, headers=VERSION)
            assert (answer.status_code, answer.json()["type"]) == (status, "error")
            assert answer.json()["error"]["type"] == kind

    run(scenario())


def test_bodies_that_are_refused() -> None:
    async def scenario() -> None:
        async with claude() as (door, _):
            for content, headers, status, kind in (
                (b"{}", {"content-type": "text/plain"}, 415, "invalid_request_error"),
                (b"{}", {"content-encoding": "gzip"}, 415, "invalid_request_error"),
                (b" " * (BODY_BYTES_MAX + 1), {}, 413, "request_too_large"),
                (b"{", {}, 400, "invalid_request_error"),
                (b"[" * 100_000, {}, 400, "invalid_request_error"),
            ):
                for path in (PATH, f"{PATH}/count_tokens"):
                    sent = {"content-type": "application/json"} | headers
                    answer = await door.http.post(path, content=content, headers=sent)
                    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
            assert not door.adapter.requests

    run(scenario())
