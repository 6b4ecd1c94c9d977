"""The official SDK as a client that only changed its `base_url`."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.server import ADMIN_KEY, Server

PARIS = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY) as client:
        yield client


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=PARIS, temperature=0)
    choice = answer.choices[0]
    assert "Paris" in (choice.message.content or "")
    assert choice.finish_reason == "stop"
    assert answer.model == "demo" and answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_stream_equals_unary(client: OpenAI) -> None:
    unary = client.chat.completions.create(model="demo", messages=PARIS, temperature=0, seed=1)
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=PARIS, temperature=0, seed=1, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert (
        "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == unary.choices[0].message.content
    )
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert all(one.usage is None for one in chunks[:-1])
    assert len({one.id for one in chunks}) == 1


def test_stream_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(model="demo", messages=PARIS, temperature=0) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert "Paris" in (final.choices[0].message.content or "")


def test_a_conversation_remembers_and_reuses_its_cache(client: OpenAI) -> None:
    messages: list[dict[str, str]] = []
    for text in ("Hello! My name is Ann.", "What is the capital of Italy?", "What is my name?"):
        messages.append({"role": "user", "content": text})
        answer = client.chat.completions.create(model="demo", messages=messages, temperature=0)  # type: ignore[arg-type]
        messages.append({"role": "assistant", "content": answer.choices[0].message.content or ""})
    assert "Ann" in messages[-1]["content"]
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    cached = answer.usage.prompt_tokens_details.cached_tokens or 0
    assert cached >= answer.usage.prompt_tokens * 0.6


def test_tools(client: OpenAI) -> None:
    asked = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = client.chat.completions.create(model="demo", messages=asked, tools=[TOOL], temperature=0)  # type: ignore[call-overload]
    assert answer.choices[0].finish_reason == "tool_calls"
    call = answer.choices[0].message.tool_calls[0]
    assert (call.function.name, call.function.arguments.replace(" ", "")) == ("get_weather", '{"city":"Paris"}')
    with client.chat.completions.stream(model="demo", messages=asked, tools=[TOOL], temperature=0) as stream:  # type: ignore[arg-type]
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls is not None
    assert final.choices[0].message.tool_calls[0].function.name == "get_weather"


def test_several_choices_and_seed(client: OpenAI) -> None:
    def ask() -> list[str]:
        answer = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "Tell me a short story about a fox."}],
            n=3,
            seed=42,
            temperature=1.0,
            max_tokens=20,
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert {choice.finish_reason for choice in answer.choices} <= {"length", "stop"}
        return [choice.message.content or "" for choice in answer.choices]

    assert ask() == ask()


def test_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=PARIS, logprobs=True, top_logprobs=3, max_tokens=5, temperature=0
    )
    scores = answer.choices[0].logprobs
    assert scores is not None and scores.content is not None
    assert "".join(one.token for one in scores.content) == answer.choices[0].message.content
    for one in scores.content:
        assert one.logprob <= 0 and len(one.top_logprobs) == 3
        assert one.top_logprobs[0].token == one.token


def test_stop_and_prefill(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=PARIS, temperature=0).choices[0].message.content or ""
    stopped = client.chat.completions.create(model="demo", messages=PARIS, temperature=0, stop=["Paris"])
    assert stopped.choices[0].message.content == whole[: whole.index("Paris")]
    assert stopped.choices[0].finish_reason == "stop"
    begun = [*PARIS, {"role": "assistant", "content": "The capital of France is"}]
    continued = client.chat.completions.create(model="demo", messages=begun, temperature=0)  # type: ignore[arg-type]
    assert (continued.choices[0].message.content or "").strip().startswith("Paris")


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(
        model="demo", prompt=["Once upon a time", "One day"], max_tokens=5, echo=True, n=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text[:7] for choice in answer.choices] == ["Once up"] * 2 + ["One day"] * 2
    pieces = client.completions.create(
        model="demo", prompt=[10, 11, 12], max_tokens=3, stream=True, extra_body={"ignore_eos": True}
    )
    assert [one.choices[0].finish_reason for one in pieces if one.choices][-1] == "length"


def test_completions_score_an_echoed_prompt(client: OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt="One day a fox", max_tokens=0, echo=True, logprobs=1)
    scores = answer.choices[0].logprobs
    assert scores is not None and scores.tokens is not None and scores.token_logprobs is not None
    assert "".join(scores.tokens) == "One day a fox"
    first, *rest = list[float | None](scores.token_logprobs)
    assert first is None and all(one is not None and one < 0 for one in rest)


def test_embeddings(client: OpenAI) -> None:
    texts = ["a cat", "a dog", "a longer sentence about nothing at all"]
    answer = client.embeddings.create(model="team/embedder", input=texts)
    floats = client.embeddings.create(model="team/embedder", input=texts, encoding_format="float")
    for mine, other in zip(answer.data, floats.data, strict=True):
        assert mine.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert np.linalg.norm(mine.embedding) == pytest.approx(1.0, abs=1e-3)
    cut = client.embeddings.create(model="team/embedder", input="a cat", dimensions=8)
    assert len(cut.data[0].embedding) == 8
    raw = client.embeddings.with_raw_response.create(model="team/embedder", input="a cat", encoding_format="base64")
    vector = np.frombuffer(base64.b64decode(raw.http_response.json()["data"][0]["embedding"]), "<f4")
    assert vector == pytest.approx(answer.data[0].embedding, abs=1e-5)


def test_models(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} >= {"demo", "team/embedder"}
    assert client.models.retrieve("team/embedder").id == "team/embedder"
    assert client.chat.completions.create(model="gpt-4o-mini", messages=PARIS, max_tokens=1).choices
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("absent")
    assert missing.value.code == "model_not_found"


def test_raw_response_tells_what_was_used(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="demo", messages=PARIS, max_tokens=3)
    assert raw.headers["x-gateway-model"] == "demo"
    assert raw.headers["x-request-id"] == raw.parse()._request_id
    assert "prefill;dur=" in raw.headers["server-timing"]


def test_errors_are_structured(client: OpenAI, server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="demo", messages=PARIS, temperature=9)
    assert (bad.value.param, bad.value.code, bad.value.type) == (
        "temperature",
        "invalid_value",
        "invalid_request_error",
    )
    assert bad.value.request_id
    stranger = OpenAI(base_url=f"{server.url}/v1", api_key="gw_live_nonsense")
    with stranger, pytest.raises(openai.AuthenticationError) as unknown:
        stranger.models.list()
    assert unknown.value.code == "invalid_api_key"
    long = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(openai.BadRequestError) as much:
        client.chat.completions.create(model="demo", messages=long)  # type: ignore[arg-type]
    assert (much.value.code, much.value.param) == ("context_length_exceeded", "messages")


def test_time_outs_and_no_retries_for_a_bad_request(server: Server) -> None:
    impatient = OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, timeout=0.005, max_retries=0)
    with impatient, pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(model="demo", messages=PARIS)


def test_async_client_with_many_streams(server: Server) -> None:
    async def one(client: AsyncOpenAI, number: int) -> str:
        stream = await client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": f"What is {number} + 1?"}],
            temperature=0,
            stream=True,
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    async def all_of_them() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY) as client:
            return await asyncio.gather(*(one(client, number) for number in range(1, 13)))

    answers = asyncio.run(all_of_them())
    assert len(answers) == 12 and all(answers)
