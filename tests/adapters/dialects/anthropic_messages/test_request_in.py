from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from adapters.dialects import anthropic_messages as dialect
from adapters.dialects import openai_wire
from adapters.errors import InvalidRequest
from adapters.types import (
    ChatRequest,
    Constraint,
    DocumentPart,
    Generation,
    ImagePart,
    ImageUrl,
    Message,
    NativePart,
    Sampling,
    TextPart,
    Thinking,
    Thought,
    Tool,
    ToolCall,
    ToolChoice,
)

USER = {"role": "user", "content": "hi"}
TOOL = {"name": "f", "description": "does", "input_schema": {"type": "object"}}
PNG = base64.b64encode(b"an image").decode()
MARK = {"type": "ephemeral"}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "max_tokens": 2000, "messages": [USER]} | fields, separators=(",", ":")).encode()


def parse(**fields: Any) -> openai_wire.Inbound[ChatRequest]:
    return dialect.parse_request(body(**fields))


def messages(*given: Any) -> tuple[Message, ...]:
    return parse(messages=given).request.messages


def said(*blocks: Any) -> Any:
    return {"role": "user", "content": list(blocks)}


def answered(*blocks: Any) -> Any:
    return {"role": "assistant", "content": list(blocks)}


def refused(raw: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        dialect.parse_request(raw)
    return caught.value


def test_everything_of_a_plain_request() -> None:
    parsed = parse(
        system="be kind",
        stream=True,
        stop_sequences=["END"],
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        metadata={"user_id": "user-1"},
        service_tier="auto",
        tools=[TOOL | {"strict": True}],
        thinking={"type": "enabled", "budget_tokens": 1024},
        output_config={"effort": "xhigh", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        unheard_of={"of": 1},
    )
    assert parsed == openai_wire.Inbound(
        ChatRequest(
            "m",
            (Message("system", "be kind"), Message("user", "hi")),
            tools=(Tool("f", "does", b'{"type":"object"}', strict=True),),
            template_arguments={"reasoning_effort": "high", "enable_thinking": True, "thinking": True},
            generation=Generation(
                max_tokens=2000,
                stop=("END",),
                sampling=Sampling(temperature=0.5, top_p=0.9, top_k=40),
                constraint=Constraint("json_schema", '{"type":"object"}', True, "output_config.format"),
                reasoning_tokens_max=1024,
            ),
            thinking=Thinking(True, "xhigh", 1024),
            end_user="user-1",
        ),
        stream=True,
        include_usage=True,
        session_key="user-1",
    )


@pytest.mark.parametrize(
    ("thinking", "arguments", "expected", "budget"),
    [
        ({"type": "disabled"}, {"enable_thinking": False, "thinking": False}, Thinking(False), 0),
        ({"type": "adaptive"}, {"enable_thinking": True, "thinking": True}, Thinking(True), None),
        (
            {"type": "adaptive", "display": "omitted"},
            {"enable_thinking": True, "thinking": True},
            Thinking(True, shown=False),
            None,
        ),
    ],
)
def test_thinking(thinking: Any, arguments: Any, expected: Thinking, budget: int | None) -> None:
    request = parse(thinking=thinking).request
    assert (request.template_arguments, request.thinking) == (arguments, expected)
    assert request.generation.reasoning_tokens_max == budget


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, ToolChoice()),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice("auto", (), False)),
        ({"type": "any"}, ToolChoice("required")),
        ({"type": "tool", "name": "f"}, ToolChoice("required", ("f",))),
        ({"type": "none"}, ToolChoice("none")),
    ],
)
def test_tool_choice(choice: Any, expected: ToolChoice) -> None:
    assert parse(tools=[TOOL], tool_choice=choice).request.tool_choice == expected


def test_a_turn_with_tools() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "ü"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "18"}], "is_error": True}
    bare = {"type": "tool_result", "tool_use_id": "t2"}
    given = messages(
        USER, answered({"type": "text", "text": "well"}, call), said(result, bare, {"type": "text", "text": "so?"})
    )
    assert given == (
        Message("user", "hi"),
        Message("assistant", "well", tool_calls=(ToolCall("t1", "f", '{"a":"\\u00fc"}'),)),
        Message("tool", "18", tool_call_id="t1", is_error=True),
        Message("tool", "", tool_call_id="t2"),
        Message("user", "so?"),
    )


def test_thoughts_keep_their_signatures() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "sig"}
    redacted = {"type": "redacted_thinking", "data": "xyz"}
    (signed,) = messages(answered(thought, redacted, {"type": "text", "text": "yes"}))
    assert signed == Message(
        "assistant", "yes", reasoning="hm", thoughts=(Thought("hm", "sig"), Thought("", redacted="xyz"))
    )
    (plain,) = messages(answered({"type": "thinking", "thinking": "hm", "signature": ""}))
    assert plain == Message("assistant", "", reasoning="hm")


def test_images_and_documents() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    web = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}, "cache_control": MARK}
    text = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "ö"}, "title": "T"}
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PNG}}
    far = {"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}, "context": "c"}
    cited = pdf | {"citations": {"enabled": True}}
    file = {"type": "image", "source": {"type": "file", "file_id": "file_1"}}
    upload = {"type": "container_upload", "file_id": "file_1"}
    ((user),) = messages(said(image, web, text, far, cited, file, upload))
    assert user.content == (
        ImagePart(b"an image", "image/png"),
        ImageUrl("https://example.com/a.png", cache="5m"),
        DocumentPart("ö".encode(), "text/plain", title="T"),
        DocumentPart(b"", "application/pdf", "https://example.com/a.pdf", context="c"),
        DocumentPart(b"an image", "application/pdf", cite=True),
        NativePart("anthropic_messages", json.dumps(file, separators=(",", ":")).encode()),
        NativePart("anthropic_messages", json.dumps(upload, separators=(",", ":")).encode()),
    )
    (tool,) = messages(said({"type": "tool_result", "tool_use_id": "t", "content": [image]}))
    assert tool == Message("tool", (ImagePart(b"an image", "image/png"),), tool_call_id="t")


def test_cache_markers_stay_where_they_are() -> None:
    request = parse(
        system=[{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": MARK | {"ttl": "1h"}}],
        tools=[TOOL | {"cache_control": MARK}],
        messages=[
            said({"type": "text", "text": "c", "cache_control": MARK}),
            answered({"type": "tool_use", "id": "t", "name": "f", "input": {}, "cache_control": MARK}),
            said({"type": "tool_result", "tool_use_id": "t", "content": "d", "cache_control": MARK}),
        ],
    ).request
    assert request.messages == (
        Message("system", (TextPart("a"), TextPart("b", "1h"))),
        Message("user", (TextPart("c", "5m"),)),
        Message("assistant", tool_calls=(ToolCall("t", "f", "{}", cache="5m"),)),
        Message("tool", "d", tool_call_id="t", cache="5m"),
    )
    assert request.tools[0].cache == "5m"


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (USER, Message("user", (TextPart("hi", "1h"),))),
        (
            said({"type": "tool_result", "tool_use_id": "t", "content": "d"}),
            Message("tool", "d", tool_call_id="t", cache="1h"),
        ),
        (
            answered({"type": "tool_use", "id": "t", "name": "f", "input": {}}),
            Message("assistant", tool_calls=(ToolCall("t", "f", "{}", cache="1h"),)),
        ),
    ],
)
def test_one_marker_for_all_goes_to_the_end(last: Any, expected: Message) -> None:
    request = parse(messages=[last], cache_control=MARK | {"ttl": "1h"}).request
    assert request.messages[-1] == expected


def test_tools_that_are_not_functions_stay_as_they_are() -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    request = parse(tools=[search, TOOL], tool_choice={"type": "tool", "name": "web_search"}).request
    assert [tool.name for tool in request.tools] == ["f"]
    assert request.native_tools == (
        NativePart("anthropic_messages", b'{"type":"web_search_20250305","name":"web_search"}'),
    )


def test_a_count_needs_no_bound() -> None:
    assert dialect.parse_count(
        b'{"model":"m","messages":[{"role":"user","content":"hi"}],"system":"s"}'
    ) == ChatRequest("m", (Message("system", "s"), Message("user", "hi")))


BAD_FIELDS: dict[str, tuple[dict[str, Any], str | None]] = {
    "no bound": ({"max_tokens": None}, "max_tokens"),
    "a bound below zero": ({"max_tokens": -1}, "max_tokens"),
    "a bound past 31 bits": ({"max_tokens": 2**31}, "max_tokens"),
    "a bound as text": ({"max_tokens": "5"}, "max_tokens"),
    "no messages": ({"messages": []}, "messages"),
    "messages of another type": ({"messages": {"a": 1}}, "messages"),
    "an unknown role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "empty content": ({"messages": [said()]}, "messages[0].content"),
    "a block without a type": ({"messages": [said({"text": "x"})]}, "messages[0].content[0].type"),
    "a block that is none": ({"messages": [said(1)]}, "messages[0].content[0]"),
    "a text of another type": ({"messages": [said({"type": "text", "text": 1})]}, "messages[0].content[0].text"),
    "an image without a source": ({"messages": [said({"type": "image"})]}, "messages[0].content[0].source"),
    "an image of another kind": (
        {"messages": [said({"type": "image", "source": {"type": "base64", "media_type": "image/tiff", "data": PNG}})]},
        "messages[0].content[0].source",
    ),
    "an image in broken base64": (
        {"messages": [said({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "?"}})]},
        "messages[0].content[0].source",
    ),
    "a file as an image": (
        {"messages": [said({"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}})]},
        "messages[0].content[0].source.url",
    ),
    "a file as a document": (
        {"messages": [said({"type": "document", "source": {"type": "url", "url": "file:///etc/passwd"}})]},
        "messages[0].content[0].source.url",
    ),
    "a source of an unknown type": (
        {"messages": [said({"type": "image", "source": {"type": "ftp"}})]},
        "messages[0].content[0].source.type",
    ),
    "input that is no object": (
        {"messages": [answered({"type": "tool_use", "id": "t", "name": "f", "input": [1]})]},
        "messages[0].content[0].input",
    ),
    "a result said by the assistant": (
        {"messages": [answered({"type": "tool_result", "tool_use_id": "t"})]},
        "messages[0].content[0]",
    ),
    "a thought of the user": (
        {"messages": [said({"type": "thinking", "thinking": "x", "signature": "y"})]},
        "messages[0].content[0].type",
    ),
    "an unknown marker": (
        {"messages": [said({"type": "text", "text": "x", "cache_control": {"type": "eternal"}})]},
        "messages[0].content[0].cache_control.type",
    ),
    "a system image": ({"system": [{"type": "image", "text": "x"}]}, "system[0].type"),
    "too hot": ({"temperature": 1.1}, "temperature"),
    "top_p past one": ({"top_p": 1.5}, "top_p"),
    "top_k below -1": ({"top_k": -2}, "top_k"),
    "an empty stop": ({"stop_sequences": [""]}, "stop_sequences[0]"),
    "too many stops": ({"stop_sequences": ["x"] * 65}, "stop_sequences"),
    "a stop of another type": ({"stop_sequences": "x"}, "stop_sequences"),
    "a schema that is none": ({"tools": [TOOL | {"input_schema": "x"}]}, "tools[0].input_schema"),
    "a schema of another type": ({"tools": [TOOL | {"input_schema": {"type": "array"}}]}, "tools[0].input_schema"),
    "a tool without a schema": ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    "a tool without a name": ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
    "a tool with a bad name": ({"tools": [TOOL | {"name": "a b"}]}, "tools[0].name"),
    "two tools of a name": ({"tools": [TOOL, TOOL]}, "tools[1].name"),
    "ten thousand tools": ({"tools": [TOOL] * 10_000}, "tools"),
    "a call without tools": ({"tool_choice": {"type": "any"}}, "tool_choice"),
    "an unknown tool": ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
    "a tool left unnamed": ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    "an unknown choice": ({"tools": [TOOL], "tool_choice": {"type": "maybe"}}, "tool_choice.type"),
    "a choice as text": ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
    "an unknown way to think": ({"thinking": {"type": "deeply"}}, "thinking.type"),
    "thinking without a budget": ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    "a budget that leaves no answer": (
        {"thinking": {"type": "enabled", "budget_tokens": 2000}},
        "thinking.budget_tokens",
    ),
    "an unknown effort": ({"output_config": {"effort": "some"}}, "output_config.effort"),
    "an unknown format": ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    "a format without a schema": (
        {"output_config": {"format": {"type": "json_schema"}}},
        "output_config.format.schema",
    ),
    "a long name of a user": ({"metadata": {"user_id": "x" * 513}}, "metadata.user_id"),
    "another address": ({"api_base": "http://x"}, "api_base"),
    "another key": ({"api_key": "x"}, "api_key"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_field_that_is_wrong_is_named(name: str) -> None:
    fields, param = BAD_FIELDS[name]
    whole = {"model": "m", "max_tokens": 2000, "messages": [USER]} | fields
    error = refused(json.dumps({key: value for key, value in whole.items() if value is not None}).encode())
    assert error.param == param, error.message


NOT_JSON = {
    "empty": b"",
    "truncated": body()[:-2],
    "trailing": body() + b"x",
    "invalid UTF-8": body().replace(b"hi", b"\xff"),
    "a lone surrogate in a block": body(messages=[said({"type": "text", "text": "QQ"})]).replace(b"QQ", b"\\ud800"),
    "depth": body()[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "depth in a block": body(messages=[said({"type": "text", "x": "QQ"})]).replace(
        b'"QQ"', b"[" * 9_000 + b"]" * 9_000
    ),
    "NaN": body()[:-1] + b',"temperature":NaN}',
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_not_json_is_refused(name: str) -> None:
    assert refused(NOT_JSON[name]).code in ("invalid_json", "invalid_value")
