from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from hypothesis import HealthCheck, given, settings
from msgspec.structs import replace
from pydantic import TypeAdapter

from adapters.dialects import anthropic_messages as dialect
from adapters.errors import InvalidRequest
from adapters.types import (
    ChatRequest,
    Constraint,
    DocumentPart,
    Event,
    Generation,
    ImagePart,
    ImageUrl,
    Lora,
    Message,
    NativePart,
    Sampling,
    TextPart,
    Thinking,
    Thought,
    Tool,
    ToolCall,
    ToolChoice,
    Usage,
)
from tests.conformance.conversations import requests
from tests.conformance.test_dialects import DIALECTS

USER = Message("user", "hi")
ASK = ChatRequest("claude-sonnet-4-6", (USER,))
OLDER = replace(ASK, model="claude-sonnet-4-5-20250929")
TOOL = Tool("f")
CALL = Message("assistant", tool_calls=(ToolCall("t1", "f", '{"a":1}'),))
RESULT = Message("tool", "18", tool_call_id="t1")


def rendered(request: ChatRequest) -> Any:
    return json.loads(dialect.render_request(request))


def again(request: ChatRequest) -> ChatRequest:
    return dialect.parse_request(dialect.render_request(request)).request


def said(*messages: Message) -> Any:
    return rendered(replace(ASK, messages=messages))["messages"]


def with_sampling(**fields: Any) -> ChatRequest:
    return replace(ASK, generation=Generation(sampling=Sampling(**fields)))


def test_the_least() -> None:
    assert rendered(ASK) == {
        "model": "claude-sonnet-4-6",
        "max_tokens": 8192,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
    }


@pytest.mark.slow
@given(requests(DIALECTS["anthropic_messages"].words))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_sent_is_of_the_sdks_types(request: ChatRequest) -> None:
    # The SDK no longer has the fields that its newest models do not take.
    fields = rendered(replace(request, generation=replace(request.generation, sampling=Sampling())))
    TypeAdapter(MessageCreateParamsStreaming).validate_python(fields)


def test_results_and_what_is_said_then_are_one_message() -> None:
    assert said(USER, CALL, RESULT, replace(RESULT, tool_call_id="t2", is_error=True), Message("user", "so?")) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "18"},
                {"type": "tool_result", "tool_use_id": "t2", "content": "18", "is_error": True},
                {"type": "text", "text": "so?"},
            ],
        },
    ]
    assert [message["role"] for message in said(USER, CALL, RESULT)] == ["user", "assistant", "user"]
    assert [message["role"] for message in said(USER, CALL, RESULT, CALL)] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("model", "thinking", "max_tokens", "expected"),
    [
        ("claude-sonnet-4-6", Thinking(True), None, {"type": "adaptive"}),
        ("claude-opus-5", Thinking(True, tokens_max=3000), None, {"type": "adaptive"}),
        ("claude-sonnet-4-5", Thinking(True, tokens_max=3000), None, {"type": "enabled", "budget_tokens": 3000}),
        ("claude-opus-4-20250514", Thinking(True), None, {"type": "enabled", "budget_tokens": 8192}),
        ("claude-3-7-sonnet-latest", Thinking(True, "low"), None, {"type": "enabled", "budget_tokens": 2048}),
        ("claude-3-7-sonnet-latest", Thinking(True, "high"), 2000, {"type": "enabled", "budget_tokens": 1999}),
        ("claude-3-7-sonnet-latest", Thinking(True, "high"), 500, None),
        ("anything", Thinking(True, tokens_max=100), None, None),
        ("claude-sonnet-4-6", Thinking(False), None, {"type": "disabled"}),
        ("claude-sonnet-4-6", Thinking(True, shown=False), None, {"type": "adaptive", "display": "omitted"}),
        ("claude-sonnet-4-6", Thinking(), None, None),
    ],
)
def test_thinking(model: str, thinking: Thinking, max_tokens: int | None, expected: Any) -> None:
    request = ChatRequest(model, (USER,), thinking=thinking, generation=Generation(max_tokens=max_tokens))
    fields = rendered(request)
    assert fields.get("thinking") == expected
    assert fields["max_tokens"] > (expected or {}).get("budget_tokens", 0)


def test_no_thinking_where_the_thoughts_before_a_call_are_gone() -> None:
    thinking = replace(ASK, thinking=Thinking(True), messages=(USER, CALL, RESULT))
    assert "thinking" not in rendered(thinking)
    thought = replace(CALL, thoughts=(Thought("hm", "sig"),))
    assert rendered(replace(thinking, messages=(USER, thought, RESULT)))["thinking"] == {"type": "adaptive"}
    assert "thinking" in rendered(replace(thinking, messages=(USER, CALL, RESULT, USER)))


REFUSED = {
    "lora": replace(ASK, generation=Generation(loras=(Lora("a"),))),
    "n": replace(ASK, generation=Generation(n=2)),
    "logprobs": replace(ASK, generation=Generation(logprobs=0)),
    "logit_bias": with_sampling(logit_bias={1: 1.0}),
    "response_format": replace(ASK, generation=Generation(constraint=Constraint("json_object"))),
    "messages": replace(ASK, messages=(Message("user", (NativePart("openai_chat", b"{}"),)),)),
    "tools": replace(ASK, native_tools=(NativePart("gemini", b"{}"),)),
}


@pytest.mark.parametrize("param", REFUSED)
def test_what_would_change_the_answer_is_refused(param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rendered(REFUSED[param])
    assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")


@pytest.mark.parametrize("part", [ImagePart(b"x", "image/bmp"), DocumentPart(b"x", "application/msword")])
def test_images_and_documents_of_other_types_are_refused(part: Any) -> None:
    with pytest.raises(InvalidRequest):
        said(Message("user", (part,)))


def test_native_parts_and_tools_go_through() -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    upload = {"type": "container_upload", "file_id": "f"}
    native = NativePart("anthropic_messages", json.dumps(search).encode())
    fields = rendered(
        replace(
            ASK,
            native_tools=(native,),
            messages=(Message("user", (NativePart("anthropic_messages", json.dumps(upload).encode()),)),),
        )
    )
    assert (fields["tools"], fields["messages"][0]["content"]) == ([search], [upload])


def test_a_schema_gets_its_type() -> None:
    assert rendered(replace(ASK, tools=(TOOL,)))["tools"] == [{"name": "f", "input_schema": {"type": "object"}}]


THREE = (Tool("f"), Tool("g"), Tool("h"))
LOSSES: dict[str, Callable[[], object]] = {
    "seed": lambda: again(with_sampling(seed=5)).generation.sampling == Sampling(),
    "penalties": lambda: (
        again(with_sampling(presence_penalty=1, frequency_penalty=1)).generation.sampling == Sampling()
    ),
    "min_p": lambda: (
        again(replace(ASK, generation=Generation(ignore_eos=True, sampling=Sampling(min_p=0.1)))) == again(ASK)
    ),
    "temperature over 1": lambda: (
        rendered(with_sampling(temperature=1.7))["temperature"] == 1.0
        and "temperature" not in rendered(replace(with_sampling(temperature=0.1, top_k=4), thinking=Thinking(True)))
    ),
    "top_p beside temperature": lambda: "top_p" not in rendered(with_sampling(temperature=0.5, top_p=0.5)),
    "developer": lambda: again(replace(ASK, messages=(Message("developer", "s"), USER))).messages[0].role == "system",
    "later system messages": lambda: (
        again(replace(ASK, messages=(Message("system", "a"), USER, Message("system", "b")))).messages
        == (Message("system", "a\nb"), USER)
    ),
    "names": lambda: again(replace(ASK, messages=(replace(USER, name="Ann"),))).messages == (USER,),
    "unsigned thoughts": lambda: (
        said(USER, Message("assistant", "x", reasoning="hm"))[1]["content"]
        == said(USER, Message("assistant", "x", thoughts=(Thought("hm", "gemini:a"),)))[1]["content"]
        == [{"type": "text", "text": "x"}]
    ),
    "signatures of calls": lambda: (
        again(
            replace(ASK, messages=(USER, replace(CALL, tool_calls=(ToolCall("t1", "f", '{"a":1}', "gemini:s"),))))
        ).messages[1]
        == CALL
    ),
    "detail of images": lambda: (
        again(replace(ASK, messages=(Message("user", (ImageUrl("https://example.com", "low"),)),))).messages[0].content
        == (ImageUrl("https://example.com"),)
    ),
    "texts without a marker": lambda: (
        again(replace(ASK, messages=(Message("user", (TextPart("a"), TextPart(""), TextPart("b"))),))).messages
        == (Message("user", "a\nb"),)
    ),
    "forced thinking": lambda: (
        again(replace(ASK, tools=THREE, tool_choice=ToolChoice("required"), thinking=Thinking(True))).thinking
        == Thinking()
    ),
    "order of an answer": lambda: (
        [block["type"] for block in said(USER, replace(CALL, content="x"))[1]["content"]] == ["text", "tool_use"]
    ),
    "letters of ids": lambda: (
        again(replace(ASK, messages=(USER, replace(CALL, tool_calls=(ToolCall("a.b:c", "f", "{}"),)))))
        .messages[1]
        .tool_calls[0]
        .id
        == "a_b_c"
    ),
    "budget of thinking": lambda: (
        again(replace(ASK, thinking=Thinking(True, tokens_max=2000))).thinking == Thinking(True)
        and again(replace(OLDER, thinking=Thinking(True, "low"))).thinking == Thinking(True, None, 2048)
    ),
    "a narrowed choice": lambda: (
        [tool.name for tool in again(replace(ASK, tools=THREE, tool_choice=ToolChoice("auto", ("f", "h")))).tools]
        == ["f", "h"]
    ),
    "audio tokens": lambda: not [name for name in usage(Usage(5, 5, prompt_audio_tokens=3)) if "audio" in name],
    "citations": lambda: not cited(),
}


def cited() -> list[Event]:
    parser = dialect.EventParser(ASK)
    parser.feed("", b'{"type":"message_start"}')
    parser.feed("", b'{"type":"content_block_start","index":0,"content_block":{"type":"text"}}')
    return parser.feed("", b'{"type":"content_block_delta","index":0,"delta":{"type":"citations_delta"}}')


def usage(given: Usage) -> Any:
    from adapters.dialects.anthropic_messages.events_out import usage_fields

    return usage_fields(given)


def test_what_is_said_to_be_lost_is_just_that() -> None:
    assert set(LOSSES) == set(dialect.LOST)
    assert not [name for name, proof in LOSSES.items() if not proof()]
