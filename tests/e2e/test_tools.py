"""Tools and reasoning through the real server: the SDK's helpers, every format, budgets and what must be refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI, pydantic_function_tool
from pydantic import BaseModel, Field

from adapters.llama_cpp.tools import NAMES
from tests.e2e.server import ADMIN_KEY, ROOT, START_S_MAX, Server
from tests.models import random_gguf

DEMO = ROOT / "adapters/llama_cpp/demo/demo.gguf"
CITIES = ["Paris", "Rome", "Oslo"]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": CITIES},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "where": {
            "type": "object",
            "properties": {"indoors": {"type": "boolean"}},
            "required": ["indoors"],
            "additionalProperties": False,
        },
    },
    "required": ["city", "days", "where"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": SCHEMA}}
CLOCK = {"type": "function", "function": {"name": "now", "strict": True, "parameters": NOTHING}}
ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]
# Whatever a model of random habits does, a forced call of these ends soon.
SHORT = {"temperature": 1.0, "max_tokens": 400}


# Begins to think in the prompt unless it is told not to.
THINKER = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content is defined %}{{- '<think>' + message.reasoning_content + '</think>' }}{% endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}
    {%- else %}{{- '<think>\\n' }}{%- endif %}
{%- endif %}
"""


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model under the name of each format: it writes none of them by itself, so the grammar must."""
    models = [
        {
            "name": name,
            "path": str(DEMO),
            "engine": {
                "tool_format": name,
                "reasoning_format": "think",
                "threads": 1,
                "parallel": 2,
                "context_tokens": 1024,
                "cache_tokens": 2048,
            },
        }
        for name in NAMES
    ]
    thinker = random_gguf.llama_tiny(tmp_path_factory.mktemp("models") / "thinker.gguf", chat_template=THINKER)
    models.append({"name": "thinker", "path": str(thinker), "engine": {"threads": 1}})
    with Server(tmp_path_factory.mktemp("formats"), config=json.dumps({"models": models})) as server:
        deadline = time.monotonic() + START_S_MAX
        with server.client() as client:
            while {one["state"] for one in client.get("/health").json()["models"].values()} != {"ready"}:
                assert time.monotonic() < deadline, server.log.read_text()
                time.sleep(0.1)
        yield server


@pytest.fixture(scope="module")
def client(formats: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{formats.url}/v1", api_key=ADMIN_KEY, max_retries=0) as client:
        yield client


def ask(client: OpenAI, model: str, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": model, "messages": ASKED, **SHORT, **fields})  # type: ignore[call-overload]


def check(call: Any) -> None:
    arguments = json.loads(call.function.arguments)
    assert call.id.startswith("call_") and call.type == "function"
    if call.function.name == "get_weather":
        assert arguments["city"] in CITIES and 1 <= arguments["days"] <= 7
        assert isinstance(arguments["where"]["indoors"], bool)
    else:
        assert call.function.name == "now" and isinstance(arguments, dict)


@pytest.mark.parametrize("name", NAMES)
def test_forced_calls_in_every_format(client: OpenAI, name: str) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = ask(client, name, tools=[WEATHER, CLOCK], tool_choice=choice, parallel_tool_calls=False)
    (call,) = answer.choices[0].message.tool_calls
    check(call)
    assert call.function.name == "get_weather"
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("tool_calls", None)


@pytest.mark.parametrize("name", NAMES)
def test_forced_calls_stream_in_every_format(client: OpenAI, name: str) -> None:
    stream = ask(client, name, tools=[WEATHER, CLOCK], tool_choice="required", stream=True, n=2)
    calls: dict[tuple[int, int], list[str]] = {}
    reasons, content = [], ""
    for chunk in stream:
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        reasons += [choice.finish_reason] if choice.finish_reason else []
        for piece in choice.delta.tool_calls or []:
            if piece.id:
                assert (choice.index, piece.index) not in calls
                calls[choice.index, piece.index] = [piece.function.name, ""]
            calls[choice.index, piece.index][1] += piece.function.arguments
    assert {choice for choice, _ in calls} == {0, 1}
    assert set(reasons) <= {"tool_calls", "length"}
    if set(reasons) == {"tool_calls"}:
        assert not content
        for called, arguments in calls.values():
            assert called in ("get_weather", "now") and isinstance(json.loads(arguments), dict)


def test_allowed_tools(client: OpenAI) -> None:
    only = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [CLOCK]}}
    for seed in range(4):
        answer = ask(client, "hermes", tools=[WEATHER, CLOCK], tool_choice=only, parallel_tool_calls=False, seed=seed)
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == "now"


class Weather(BaseModel):
    """Tell the weather."""

    city: str = Field(pattern="^[A-Z][a-z]{2,8}$")
    days: int


def test_parse_and_stream_helpers(client: OpenAI) -> None:
    tool = pydantic_function_tool(Weather)
    assert tool["function"]["strict"]
    parsed = client.chat.completions.parse(
        model="hermes",
        messages=ASKED,
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,  # type: ignore[arg-type]
    )
    (call,) = parsed.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)
    kinds = set()
    with client.chat.completions.stream(
        model="hermes",
        messages=ASKED,
        tools=[tool],
        tool_choice="required",
        temperature=0,  # type: ignore[arg-type]
    ) as stream:
        for event in stream:
            kinds.add(event.type)
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    final = stream.get_final_completion().choices[0].message.tool_calls
    assert final is not None and isinstance(final[0].function.parsed_arguments, Weather)


def test_auto_calls_and_answers_in_words(client: OpenAI) -> None:
    answer = ask(client, "hermes", tools=[WEATHER, CLOCK], temperature=0)
    (call,) = answer.choices[0].message.tool_calls
    check(call)
    turns = [*ASKED, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}]
    told = ask(client, "hermes", messages=turns, tools=[WEATHER], temperature=0)
    assert "18" in told.choices[0].message.content
    none = ask(client, "hermes", tools=[WEATHER], tool_choice="none", temperature=0)
    assert not none.choices[0].message.tool_calls and none.choices[0].message.content


def test_calls_or_structured_output(client: OpenAI) -> None:
    answer = ask(client, "hermes", tools=[WEATHER], response_format={"type": "json_object"}, temperature=0)
    message = answer.choices[0].message
    assert message.tool_calls or isinstance(json.loads(message.content), dict)


def test_scores_of_an_answer_with_calls(client: OpenAI) -> None:
    answer = ask(client, "hermes", tools=[WEATHER], tool_choice="required", logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.tool_calls and not answer.choices[0].logprobs.content
    answer = ask(client, "hermes", tools=[WEATHER], tool_choice="none", logprobs=True, temperature=0)
    scored = "".join(one.token for one in answer.choices[0].logprobs.content)
    assert scored.strip() == answer.choices[0].message.content


THINKING = [*ASKED, {"role": "assistant", "content": "<think>"}]


def test_thoughts(client: OpenAI) -> None:
    """A prefilled answer that has begun to think goes on thinking, up to the budget."""
    fields: dict[str, Any] = {"messages": THINKING, "max_tokens": 60}
    budget = {"extra_body": {"thinking_budget_tokens": 5, "ignore_eos": True}}
    answer = ask(client, "hermes", **fields, **budget)
    message, usage = answer.choices[0].message, answer.usage
    assert message.reasoning_content and "think>" not in message.content + message.reasoning_content
    spent = usage.completion_tokens_details.reasoning_tokens
    assert 5 < spent <= 5 + 12 and usage.completion_tokens >= spent
    texts = {"content": "", "reasoning_content": ""}
    for chunk in ask(client, "hermes", n=2, stream=True, **fields, **budget):
        for name in texts:
            texts[name] += getattr(chunk.choices[0].delta, name, None) or ""
    assert texts["reasoning_content"] and "think>" not in texts["content"] + texts["reasoning_content"]
    answer = ask(client, "hermes", reasoning_effort="none", **fields)
    assert not getattr(answer.choices[0].message, "reasoning_content", None)


def test_forced_calls_after_thoughts(client: OpenAI) -> None:
    forced = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    answer = ask(client, "hermes", messages=THINKING, extra_body={"thinking_budget_tokens": 8}, **forced)
    (call,) = answer.choices[0].message.tool_calls
    check(call)
    assert answer.choices[0].message.reasoning_content


def test_thoughts_that_the_prompt_begins(client: OpenAI) -> None:
    """Whatever is asked for comes after them, and their budget is kept to the token."""
    budget = {"extra_body": {"thinking_budget_tokens": 10, "ignore_eos": True}}
    marker = ask(client, "thinker", max_tokens=40, extra_body={"thinking_budget_tokens": 0, "ignore_eos": True})
    marker_tokens = marker.usage.completion_tokens_details.reasoning_tokens
    assert 0 < marker_tokens < 12 and not getattr(marker.choices[0].message, "reasoning_content", None)
    answer = ask(client, "thinker", max_tokens=40, n=2, **budget)
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2 * (10 + marker_tokens)
    for choice in answer.choices:
        assert choice.message.reasoning_content and choice.message.content
    spent = ask(client, "thinker", max_tokens=20, extra_body={"ignore_eos": True}).usage
    assert spent.completion_tokens == spent.completion_tokens_details.reasoning_tokens == 20
    off = ask(client, "thinker", max_tokens=20, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert off.usage.completion_tokens_details.reasoning_tokens == 0
    forced = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    called = ask(client, "thinker", **forced, extra_body={"thinking_budget_tokens": 10}).choices[0].message
    check(called.tool_calls[0])
    shape = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
    shaped = ask(client, "thinker", response_format=shape, extra_body={"thinking_budget_tokens": 10}).choices[0].message
    assert json.loads(shaped.content)["city"] in CITIES and shaped.reasoning_content and called.reasoning_content


def refusal(client: OpenAI, **fields: Any) -> tuple[str, str | None]:
    with pytest.raises(BadRequestError) as caught:
        ask(client, "hermes", **fields)
    return str(caught.value.code), caught.value.param


def test_strict_functions_that_cannot_be_held_to_are_refused(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": "no-such-format"}}}
    loose = {"type": "function", "function": {"name": "f", "parameters": schema}}
    strict = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    assert refusal(client, tools=[strict])[1] == "tools[0].function.parameters"
    assert ask(client, "hermes", tools=[loose], tool_choice="required").choices[0].message.tool_calls


def test_the_server_is_well(formats: Server) -> None:
    with formats.client() as client:
        assert client.get("/health").status_code == httpx.codes.OK
    assert "Traceback" not in Path(formats.log).read_text()
