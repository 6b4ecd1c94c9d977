"""Anthropic's SDK and LangChain's over it, as clients that only changed their base URL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from pydantic import BaseModel

from tests.e2e.server import ADMIN_KEY, Server

PARIS = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
GREEDY: Any = {"extra_body": {"temperature": 0}}
TOOL = {
    "name": "get_weather",
    "description": "Get the weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key=ADMIN_KEY) as client:
        yield client


def test_a_stream_is_the_same_as_the_whole(client: Anthropic) -> None:
    whole = client.messages.create(model="demo", max_tokens=50, messages=PARIS, **GREEDY)
    assert "Paris" in whole.content[0].text
    assert (whole.stop_reason, whole.model) == ("end_turn", "demo")
    with client.messages.stream(model="demo", max_tokens=50, messages=PARIS, **GREEDY) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        message = stream.get_final_message()
    assert message.usage.output_tokens == whole.usage.output_tokens
    cached = message.usage.cache_read_input_tokens or 0
    assert cached > 0
    assert (
        cached + message.usage.input_tokens == client.messages.count_tokens(model="demo", messages=PARIS).input_tokens
    )


def test_async(server: Server) -> None:
    async def ask() -> list[str]:
        async with AsyncAnthropic(base_url=server.url, auth_token=ADMIN_KEY) as client:
            asked = [client.messages.create(model="demo", max_tokens=30, messages=PARIS, **GREEDY) for _ in range(3)]
            return [answer.content[0].text for answer in await asyncio.gather(*asked)]

    assert all("Paris" in text for text in asyncio.run(ask()))


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_is_called_and_its_result_told(client: Anthropic, choice: Any) -> None:
    first = client.messages.create(
        model="demo", max_tokens=100, messages=WEATHER, tools=[TOOL], tool_choice=choice, **GREEDY
    )
    (call,) = first.content
    assert (first.stop_reason, call.type, call.name, call.input) == (
        "tool_use", "tool_use", "get_weather", {"city": "Paris"},
    )  # fmt: skip
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "18 degrees"}]}
    turns = [*WEATHER, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    told = client.messages.create(model="demo", max_tokens=60, messages=turns, tools=[TOOL], **GREEDY)
    assert "18" in told.content[0].text


def test_streamed_calls_are_folded_by_the_sdk(client: Anthropic) -> None:
    with client.messages.stream(
        model="demo", max_tokens=100, messages=WEATHER, tools=[TOOL], tool_choice={"type": "any"}, **GREEDY
    ) as stream:
        assert "input_json" in {event.type for event in stream}
        (call,) = stream.get_final_message().content
    assert call.input == {"city": "Paris"}


def test_what_ended_it(client: Anthropic) -> None:
    stopped = client.messages.create(model="demo", max_tokens=50, messages=PARIS, stop_sequences=["France"], **GREEDY)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "France")
    short = client.messages.create(model="demo", max_tokens=2, messages=PARIS, **GREEDY)
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 2)


def test_an_answer_that_was_begun_is_continued(client: Anthropic) -> None:
    turns = [*PARIS, {"role": "assistant", "content": "The capital of France is"}]
    answer = client.messages.create(model="demo", max_tokens=20, messages=turns, **GREEDY)
    assert answer.content[0].text.strip().startswith("Paris")


def test_documents_that_are_text_are_read(client: Anthropic) -> None:
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x " * 300}}
    turns = [{"role": "user", "content": [document, {"type": "text", "text": "Hello"}]}]
    assert client.messages.count_tokens(model="demo", messages=turns).input_tokens > 300


def test_a_schema_holds(client: Anthropic) -> None:
    class City(BaseModel):
        name: str

    answer = client.messages.parse(model="demo", max_tokens=60, messages=PARIS, output_format=City, **GREEDY)
    assert isinstance(answer.parsed_output, City)


def test_thinking_is_taken(client: Anthropic) -> None:
    answer = client.messages.create(
        model="demo", max_tokens=1100, messages=PARIS, thinking={"type": "enabled", "budget_tokens": 1024}, **GREEDY
    )
    assert answer.content[-1].type == "text"


def test_errors(client: Anthropic, server: Server) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="none", max_tokens=5, messages=PARIS)
    assert missing.value.type == "not_found_error" and missing.value.request_id
    wrong = Anthropic(base_url=server.url, api_key="wrong")
    with wrong, pytest.raises(anthropic.AuthenticationError):
        wrong.messages.create(model="demo", max_tokens=5, messages=PARIS)


def test_the_key_in_its_own_header_a_session_and_a_retry(server: Server) -> None:
    body = {"model": "demo", "max_tokens": 5, "messages": PARIS, "metadata": {"user_id": "claude-session"}}
    headers = {"x-api-key": ADMIN_KEY, "anthropic-version": "2023-06-01", "Idempotency-Key": "anthropic-1"}
    with server.client() as http:
        http.headers.pop("authorization")
        first, again = (http.post("/v1/messages", json=body, headers=headers) for _ in range(2))
        assert first.status_code == 200 and first.content == again.content
        assert again.headers["idempotent-replayed"] == "true"
        sessions = http.get("/v1/sessions", headers=headers).json()["data"]
        assert "claude-session" in [one["key"] for one in sessions]
        used = http.get(f"/v1/requests/{first.headers['request-id']}", headers=headers).json()
        assert used["data"][0]["usage"]["completion_tokens"] == first.json()["usage"]["output_tokens"]


def test_models(client: Anthropic) -> None:
    assert "demo" in [model.id for model in client.models.list(limit=1)]
    assert client.models.retrieve("demo").display_name == "demo"


def test_langchain(server: Server) -> None:
    llm = ChatAnthropic(model="demo", base_url=server.url, api_key=ADMIN_KEY, temperature=0, max_tokens=100)  # type: ignore[call-arg]
    question = [HumanMessage("What is the capital of France?")]
    answer = llm.invoke(question)
    assert "Paris" in str(answer.content)
    assert answer.usage_metadata is not None and answer.usage_metadata["input_tokens"] > 0
    streamed = "".join(str(chunk.text) for chunk in llm.stream(question))
    assert "Paris" in streamed


def test_langchain_tools(server: Server) -> None:
    llm = ChatAnthropic(model="demo", base_url=server.url, api_key=ADMIN_KEY, temperature=0, max_tokens=100)  # type: ignore[call-arg]
    bound = llm.bind_tools([TOOL], tool_choice="any")
    question = HumanMessage("What is the weather in Paris?")
    answer = bound.invoke([question])
    (call,) = answer.tool_calls
    assert call["args"] == {"city": "Paris"}
    told = llm.bind_tools([TOOL]).invoke([question, answer, ToolMessage("18 degrees", tool_call_id=call["id"])])
    assert "18" in str(told.content)
