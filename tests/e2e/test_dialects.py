"""Clients of each API through the real gateway to providers of each other one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import boto3  # type: ignore[import-untyped]
import openai
import pytest
from anthropic import Anthropic
from botocore import UNSIGNED
from botocore.config import Config
from google import genai
from google.genai import errors as genai_errors
from google.genai import types

from adapters.types import (
    ChoiceFinished,
    Event,
    Finished,
    ImagePart,
    Message,
    ReasoningDelta,
    Started,
    TextDelta,
    TextPart,
    Thinking,
    Thought,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from tests.conformance.test_dialect_sdks import SECRET, Mock, serving
from tests.e2e.server import ADMIN_KEY, Server

CONFIG = """
providers:
  - {{name: google, kind: gemini, base_url: "{gemini}", api_key: k, passthrough: true}}
  - {{name: amazon, kind: bedrock, base_url: "{bedrock}", region: us-east-1, aws_access_key_id: AKIDEXAMPLE,
     aws_secret_access_key: "${{AWS_SECRET}}", passthrough: true}}
  - {{name: next, kind: anthropic, base_url: "{behind}", api_key: "{key}"}}
routes:
  - {{name: gemini, groups: [[{{provider: google, model: gemini-2.5-flash, price: {{input: "1", output: "2"}}}}]]}}
  - {{name: claude, groups: [[{{provider: amazon, model: "anthropic.claude-sonnet-4-6-v1:0",
     price: {{input: "1", output: "1"}}}}]]}}
  - {{name: titan, groups: [[{{provider: amazon, model: "amazon.titan-embed-text-v2:0", kinds: [embedding]}}]]}}
  - {{name: cohere, groups: [[{{provider: amazon, model: "us.cohere.embed-v4:0", kinds: [embedding]}}]]}}
  - {{name: messages, groups: [[{{provider: next, model: demo}}]]}}
"""
PARIS: Any = [{"role": "user", "content": "What is the capital of France?"}]
TOOL: Any = {
    "name": "get_weather",
    "description": "Get the weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
GREEDY: Any = {"max_tokens": 50, "extra_body": {"temperature": 0}}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def mocks() -> Iterator[dict[str, Mock]]:
    with serving(Mock("gemini")) as gemini, serving(Mock("bedrock")) as bedrock:
        yield {"gemini": gemini, "claude": bedrock}


@pytest.fixture(scope="module")
def front(server: Server, mocks: dict[str, Mock], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    urls = {"gemini": mocks["gemini"].url, "bedrock": mocks["claude"].url, "behind": server.url, "key": ADMIN_KEY}
    folder = tmp_path_factory.mktemp("dialects")
    with Server(folder, config=CONFIG.format(**urls), AWS_SECRET=SECRET) as front:
        yield front


@pytest.fixture(scope="module")
def claude(front: Server) -> Iterator[Anthropic]:
    with Anthropic(base_url=front.url, api_key=ADMIN_KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def gpt(front: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key=ADMIN_KEY, max_retries=0) as client:
        yield client


def script(*events: Event, reason: Any = "stop") -> list[Event]:
    usage = Usage(30, 9, 10)
    return [Started(30, 10), *events, ChoiceFinished(0, reason), Finished(usage)]


SIGNATURES = {"gemini": "gemini:c2lnbmVk", "claude": "c2lnbmVk"}


@pytest.mark.parametrize("model", ["gemini", "claude"])
def test_anthropics_client_keeps_the_signatures_of_others(
    model: str, mocks: dict[str, Mock], claude: Anthropic
) -> None:
    mock, signature = mocks[model], SIGNATURES[model]
    thought = [ReasoningDelta(0, "hm"), ReasoningDelta(0, "", signature)]
    call = [ToolCallDelta(0, 0, "", "call_1", "get_weather"), ToolCallDelta(0, 0, '{"city": "Paris"}')]
    mock.scripts = [script(*thought, *call, reason="tool_calls"), script(TextDelta(0, "18 degrees"))]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    turns: Any = [{"role": "user", "content": [{"type": "text", "text": "weather?"}, image]}]
    ask: Any = {"model": model, "max_tokens": 4000, "tools": [TOOL], "thinking": {"type": "adaptive"}}
    with claude.messages.stream(**ask, messages=turns, system="be kind") as stream:
        answer = stream.get_final_message()
    assert [block.type for block in answer.content] == ["thinking", "tool_use"]
    assert answer.stop_reason == "tool_use" and answer.usage.cache_read_input_tokens == 10
    result = {"type": "tool_result", "tool_use_id": answer.content[1].id, "content": "18", "is_error": True}
    turns += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert claude.messages.create(**ask, messages=turns).content[0].text == "18 degrees"
    first, second = mock.asked[-2:]
    assert first.messages[0] == Message("system", "be kind")
    content = first.messages[1].content
    assert isinstance(content, tuple) and content[0] == TextPart("weather?") and isinstance(content[1], ImagePart)
    assert second.messages[1:] == (
        Message(
            "assistant",
            tool_calls=(ToolCall("call_1", "get_weather", '{"city":"Paris"}'),),
            reasoning="hm",
            thoughts=(Thought("hm", signature),),
        ),
        Message("tool", "18", tool_call_id="call_1", is_error=True),
    )
    assert second.thinking == Thinking(True)


@pytest.mark.parametrize("model", ["gemini", "claude"])
def test_openais_client_reaches_them(model: str, mocks: dict[str, Mock], gpt: openai.OpenAI) -> None:
    mock = mocks[model]
    mock.scripts = [script(TextDelta(0, "Grüße, "), TextDelta(0, "世界 😀"))] * 2
    answer = gpt.chat.completions.create(model=model, messages=PARIS, max_completion_tokens=50)
    assert answer.choices[0].message.content == "Grüße, 世界 😀"
    assert answer.usage is not None and answer.usage.prompt_tokens == 30
    chunks = gpt.chat.completions.create(model=model, messages=PARIS, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Grüße, 世界 😀"
    assert mock.asked[-2].generation.max_tokens == 50


def test_what_a_provider_cannot_do_is_refused(claude: Anthropic, gpt: openai.OpenAI) -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    for model in ("gemini", "claude"):
        with pytest.raises(Exception, match="unsupported_parameter"):
            claude.messages.create(model=model, max_tokens=5, messages=PARIS, tools=[search])
    with pytest.raises(openai.BadRequestError, match="does not support"):
        gpt.chat.completions.create(model="claude", messages=PARIS, n=2)


def test_through_two_gateways_in_both_dialects(claude: Anthropic, gpt: openai.OpenAI) -> None:
    passed = claude.messages.create(model="messages", messages=PARIS, **GREEDY)
    assert "Paris" in passed.content[0].text and passed.model == "demo"
    with claude.messages.stream(model="messages", messages=PARIS, **GREEDY) as stream:
        assert stream.get_final_text() == passed.content[0].text
    answer = gpt.chat.completions.create(model="messages", messages=PARIS, temperature=0, max_tokens=50)
    assert answer.choices[0].message.content == passed.content[0].text
    function = {"name": TOOL["name"], "description": TOOL["description"], "parameters": TOOL["input_schema"]}
    called = gpt.chat.completions.create(
        model="messages",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[{"type": "function", "function": function}],
        tool_choice="required",
        temperature=0,
    )
    (call,) = called.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')
    assert called.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("model", ["gemini", "claude"])
def test_what_a_provider_says_of_its_failure_is_told_to_each(
    model: str, mocks: dict[str, Mock], claude: Anthropic, gpt: openai.OpenAI
) -> None:
    kinds = {
        "gemini": b'{"error":{"code":429,"message":"no","status":"RESOURCE_EXHAUSTED"}}',
        "claude": b'{"message":"no"}',
    }
    mocks[model].failure = 429, kinds[model]
    try:
        with pytest.raises(openai.RateLimitError):
            gpt.chat.completions.create(model=model, messages=PARIS)
        with pytest.raises(Exception, match="rate_limit_error"):
            claude.messages.create(model=model, max_tokens=5, messages=PARIS)
    finally:
        mocks[model].failure = None


def test_googles_client_in_its_own_dialect(mocks: dict[str, Mock], front: Server) -> None:
    mock = mocks["gemini"]
    mock.scripts = [script(TextDelta(0, "Grüße")), script(TextDelta(0, "Grüße, "), TextDelta(0, "世界"))]
    options = types.HttpOptions(base_url=f"{front.url}/v1/providers/google", api_version="v1beta")
    with genai.Client(api_key=ADMIN_KEY, http_options=options) as client:
        config = types.GenerateContentConfig(system_instruction="be kind", max_output_tokens=50)
        whole = client.models.generate_content(model="gemini-2.5-flash", contents="hi", config=config)
        assert whole.text == "Grüße" and whole.usage_metadata is not None
        assert whole.usage_metadata.prompt_token_count == 30
        pieces = client.models.generate_content_stream(model="gemini-2.5-flash", contents="hi", config=config)
        assert "".join(piece.text or "" for piece in pieces) == "Grüße, 世界"
        mock.failure = 429, b'{"error":{"code":429,"message":"no","status":"RESOURCE_EXHAUSTED"}}'
        try:
            with pytest.raises(genai_errors.ClientError):
                client.models.generate_content(model="gemini-2.5-flash", contents="hi")
        finally:
            mock.failure = None
    assert mock.asked[-1].messages == (Message("system", "be kind"), Message("user", "hi"))


def test_amazons_client_in_its_own_dialect(mocks: dict[str, Mock], front: Server) -> None:
    """Its requests are signed anew. A bearer token it only sends over HTTPS by itself, so that is put there for it."""
    mock = mocks["claude"]
    mock.scripts = [script(TextDelta(0, "Grüße")), script(TextDelta(0, "Grüße, "), TextDelta(0, "世界"))]
    url = f"{front.url}/v1/providers/amazon"
    client: Any = boto3.client(
        "bedrock-runtime", endpoint_url=url, region_name="us-east-1", config=Config(signature_version=UNSIGNED)
    )
    key = {"Authorization": f"Bearer {ADMIN_KEY}"}
    client.meta.events.register("before-call.bedrock-runtime", lambda params, **_: params["headers"].update(key))
    ask: Any = {
        "modelId": "anthropic.claude-sonnet-4-6-v1:0",
        "messages": [{"role": "user", "content": [{"text": "hi"}]}],
    }
    whole = client.converse(**ask)
    assert whole["output"]["message"]["content"][-1]["text"] == "Grüße"
    with closing(client.converse_stream(**ask)["stream"]) as stream:
        told = [event["contentBlockDelta"]["delta"]["text"] for event in stream if "contentBlockDelta" in event]
    assert "".join(told) == "Grüße, 世界"
    # The API of each model: its own dialect as the body.
    mock.scripts = [script(TextDelta(0, "Grüße")), script(TextDelta(0, "Grüße, "), TextDelta(0, "世界"))]
    body = {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "hi"}],
    }
    invoke: Any = {"modelId": ask["modelId"], "body": json.dumps(body)}
    answer = client.invoke_model(**invoke)
    assert json.loads(answer["body"].read())["content"][-1]["text"] == "Grüße"
    assert answer["ResponseMetadata"]["HTTPHeaders"]["x-gateway-cost-usd"] == "0.000039"
    with closing(client.invoke_model_with_response_stream(**invoke)["body"]) as stream:
        events = [json.loads(event["chunk"]["bytes"]) for event in stream]
    assert "".join(event.get("delta", {}).get("text", "") for event in events) == "Grüße, 世界"
    assert mock.asked[-1].messages == (Message("user", "hi"),)
    client.close()


def test_vectors_of_models_on_bedrock(gpt: openai.OpenAI) -> None:
    titan = gpt.embeddings.create(model="titan", input=["a", "bcd", "ef"], dimensions=2)
    assert [one.embedding for one in titan.data] == [[1, 0.5], [3, 0.5], [2, 0.5]]
    assert titan.usage.prompt_tokens == 6
    cohere = gpt.embeddings.create(model="cohere", input=["a", "bc"], extra_body={"input_type": "query"})
    assert [one.embedding for one in cohere.data] == [[1, 0.25], [2, 0.25]]
    assert cohere.usage.prompt_tokens > 0
    with pytest.raises(openai.BadRequestError, match="token ids"):
        gpt.embeddings.create(model="cohere", input=[1, 2])
