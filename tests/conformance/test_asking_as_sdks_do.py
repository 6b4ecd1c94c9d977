"""What is asked of providers is what their own SDKs ask: Claude on Vertex, and how long a prompt is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import openai
import pytest
from anthropic import Anthropic, AnthropicVertex
from google.genai import types

from adapters.http1 import Client
from adapters.providers import ProviderKind
from adapters.remote import Remote, RemoteModel
from adapters.types import (
    Caller,
    ChatRequest,
    Event,
    Generation,
    Message,
    TextDelta,
    TokenCount,
    Tool,
)
from adapters.upstream import Upstream, UpstreamSettings
from tests.adapters.dialects.replay import recorded
from tests.conformance.test_dialect_sdks import SECRET, Mock, Text, amazon, google, serving

MODEL = "claude-sonnet-4-5@20250929"
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}}
REQUEST = ChatRequest(
    MODEL,
    (Message("system", "be kind"), Message("user", "weather?")),
    tools=(Tool("weather", "in a city", json.dumps(SCHEMA).encode()),),
    generation=Generation(max_tokens=100),
)
ASK: Any = {
    "model": MODEL,
    "system": "be kind",
    "messages": [{"role": "user", "content": "weather?"}],
    "tools": [{"name": "weather", "description": "in a city", "input_schema": SCHEMA}],
}


class Recorder(Mock):
    """Answers as it is told and keeps what it was asked: path, body and who."""

    def __init__(self, *answers: tuple[int, str, bytes]) -> None:
        super().__init__("recorder")
        self.answers = list(answers)
        self.got: list[tuple[str, Any, str]] = []

    def respond(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        self.got.append((unquote(path), json.loads(body), headers.get("authorization", "")))
        return self.answers.pop(0)


def said(answer: object, status: int = 200) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps(answer).encode()


async def with_remote(recorder: Recorder, kind: ProviderKind, model: str, settings: dict[str, Any], ask: Any) -> Any:
    client = Client(proxies={})
    given = {"name": "p", "kind": kind, "base_url": recorder.url} | settings
    provider = Upstream(UpstreamSettings(**given), client=client)
    try:
        return await ask(Remote(RemoteModel(name="public", model=model), provider))
    finally:
        await provider.close()


VERTEX: Any = {"region": "us-east5", "project": "mine", "api_key": Text("token")}


@pytest.fixture
def vertex() -> Iterator[Recorder]:
    stream = (200, "text/event-stream", recorded("anthropic_messages", "text.sse"))
    with serving(Recorder(stream, stream)) as recorder:
        assert isinstance(recorder, Recorder)
        yield recorder


def test_claude_on_vertex(vertex: Recorder) -> None:
    with (
        AnthropicVertex(
            region="us-east5", project_id="mine", access_token="token", base_url=f"{vertex.url}/v1"
        ) as client,
        client.messages.stream(**ASK, max_tokens=100) as stream,
    ):
        text = stream.get_final_text()

    async def ask(model: Remote) -> list[Event]:
        return [event async for event in model.chat(REQUEST, Caller("r", "t"))]

    events = asyncio.run(with_remote(vertex, "vertex-anthropic", MODEL, VERTEX, ask))
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == text
    theirs, ours = vertex.got
    assert ours[0] == theirs[0]
    assert ours[0].endswith("/publishers/anthropic/models/claude-sonnet-4-5@20250929:streamRawPredict")
    # The SDK sends a later version than Google documents.
    assert ours[1].pop("anthropic_version") == "vertex-2023-10-16" and theirs[1].pop("anthropic_version")
    assert ours[1] == theirs[1]
    assert ours[2] == theirs[2] == "Bearer token"


OPENAI_ASK: Any = {
    "model": "gpt-5",
    "input": [
        {"type": "message", "role": "system", "content": "be kind"},
        {"type": "message", "role": "user", "content": "weather?"},
    ],
    "tools": [
        {"type": "function", "name": "weather", "description": "in a city", "parameters": SCHEMA, "strict": False}
    ],
}


def by_anthropic(recorder: Recorder, model: str) -> int:
    with Anthropic(base_url=recorder.url, api_key="k", max_retries=0) as client:
        return client.messages.count_tokens(**ASK | {"model": model}).input_tokens


def by_vertex(recorder: Recorder, model: str) -> int:
    url = f"{recorder.url}/v1"
    with AnthropicVertex(region="us-east5", project_id="mine", access_token="token", base_url=url) as client:
        return client.messages.count_tokens(**ASK | {"model": model}).input_tokens


def by_openai(recorder: Recorder, model: str) -> int:
    with openai.OpenAI(base_url=f"{recorder.url}/v1", api_key="k", max_retries=0) as client:
        return client.responses.input_tokens.count(**OPENAI_ASK).input_tokens


def by_amazon(recorder: Recorder, model: str) -> int:
    client = amazon(recorder)
    spec = {"toolSpec": {"name": "weather", "description": "in a city", "inputSchema": {"json": SCHEMA}}}
    asked = {
        "messages": [{"role": "user", "content": [{"text": "weather?"}]}],
        "system": [{"text": "be kind"}],
        "toolConfig": {"tools": [spec]},
    }
    count: int = client.count_tokens(modelId=model, input={"converse": asked})["inputTokens"]
    client.close()
    return count


def by_google(recorder: Recorder, model: str) -> int:
    with google(recorder) as client:
        asked = types.Content(role="user", parts=[types.Part(text="weather?")])
        return client.models.count_tokens(model=model, contents=[asked]).total_tokens or 0


AMAZON: Any = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": Text(SECRET), "region": "us-east-1"}
KEY: Any = {"api_key": Text("k")}
COUNTS: dict[ProviderKind, Any] = {
    "anthropic": ("claude-sonnet-4-5", KEY, {"input_tokens": 42}, by_anthropic),
    "vertex-anthropic": (MODEL, VERTEX, {"input_tokens": 42}, by_vertex),
    "openai": ("gpt-5", KEY, {"object": "response.input_tokens", "input_tokens": 42}, by_openai),
    "bedrock": ("amazon.nova-pro-v1:0", AMAZON, {"inputTokens": 42}, by_amazon),
    "gemini": ("gemini-2.5-flash", KEY, {"totalTokens": 42, "promptTokensDetails": []}, by_google),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_how_long_a_prompt_is(kind: ProviderKind) -> None:
    model, settings, answer, sdk = COUNTS[kind]
    # What would only bound the answer is not part of the question.
    request = REQUEST if kind != "gemini" else ChatRequest(model, (Message("user", "weather?"),))
    with serving(Recorder(said(answer), said(answer))) as recorder:
        assert isinstance(recorder, Recorder)
        assert sdk(recorder, model) == 42
        base = {"base_url": f"{recorder.url}/v1"} if kind == "openai" else {}
        counted = asyncio.run(
            with_remote(recorder, kind, model, settings | base, lambda remote: remote.count_tokens(request))
        )
    assert counted == TokenCount(42)
    (path, theirs, _), (our_path, ours, _) = recorder.got
    assert our_path.replace("/v1beta/", "/v1/") == path
    if kind == "gemini":  # The SDK cannot ask about more than the turns.
        ours = ours["generateContentRequest"]
        assert ours.pop("model") == f"models/{model}"
    ours.pop("tool_choice", None)
    assert {**ours, "anthropic_version": None} == {**theirs, "anthropic_version": None}


def test_gemini_is_asked_about_the_whole_prompt() -> None:
    with serving(Recorder(said({"totalTokens": 7}))) as recorder:
        assert isinstance(recorder, Recorder)
        counted = asyncio.run(
            with_remote(recorder, "gemini", "gemini-x", KEY, lambda remote: remote.count_tokens(REQUEST))
        )
    assert counted == TokenCount(7)
    asked = recorder.got[0][1]["generateContentRequest"]
    assert asked["systemInstruction"] and asked["tools"] and asked["contents"]


@pytest.mark.parametrize(
    "answer",
    [said({"error": {"message": "no"}}, 404), said({"error": {}}, 500), said({}), said([]), said({"x": 1}, 302)],
)
def test_where_nobody_answers_it_is_estimated(answer: tuple[int, str, bytes]) -> None:
    with serving(Recorder(answer)) as recorder:
        assert isinstance(recorder, Recorder)
        counted = asyncio.run(
            with_remote(recorder, "anthropic", "claude-x", KEY, lambda remote: remote.count_tokens(REQUEST))
        )
    assert not counted.exact and counted.tokens > 10
