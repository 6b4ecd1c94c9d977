"""What is sent to providers that depart from OpenAI's dialect, each in its own way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.dialects.client import Style
from adapters.dialects.openai_chat_requests import render_request
from adapters.errors import InvalidRequest
from adapters.providers import PROVIDERS, ProviderKind
from adapters.types import (
    ChatRequest,
    Constraint,
    DocumentPart,
    Generation,
    ImagePart,
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
)

ASKED = (Message("user", "hi", name="bob"),)


def sent(kind: ProviderKind, messages: tuple[Message, ...] = ASKED, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(render_request(ChatRequest("m", messages, **fields), PROVIDERS[kind].style))
    return body


def test_fields_by_other_names() -> None:
    generation = Generation(max_tokens=5, sampling=Sampling(seed=3, top_k=4))
    openai, mistral, vllm = (sent(kind, generation=generation) for kind in ("openai", "mistral", "vllm"))
    assert (openai["max_completion_tokens"], openai["seed"], openai["stream_options"]) == (
        5,
        3,
        {"include_usage": True},
    )
    assert (mistral["max_tokens"], mistral["random_seed"]) == (5, 3)
    assert not {"stream_options", "seed", "top_k"} & set(mistral) and "top_k" not in openai
    assert vllm["top_k"] == 4


def test_roles_and_names() -> None:
    messages = (Message("developer", "Be brief."), *ASKED)
    assert [one["role"] for one in sent("openai", messages)["messages"]] == ["developer", "user"]
    assert [one["role"] for one in sent("groq", messages)["messages"]] == ["system", "user"]
    assert "name" in sent("openai")["messages"][0] and "name" not in sent("groq")["messages"][0]


@pytest.mark.parametrize(
    ("kind", "thinking", "fields"),
    [
        ("openai", Thinking(True, "low"), {"reasoning_effort": "low"}),
        ("openai", Thinking(False), {"reasoning_effort": "none"}),
        ("openai", Thinking(), {}),
        ("openrouter", Thinking(True, "high"), {"reasoning": {"effort": "high", "enabled": True}}),
        ("openrouter", Thinking(True, None, 2000), {"reasoning": {"max_tokens": 2000, "enabled": True}}),
        ("mistral", Thinking(True, "low"), {}),
    ],
)
def test_how_much_to_think(kind: ProviderKind, thinking: Thinking, fields: dict[str, Any]) -> None:
    body = sent(kind, thinking=thinking)
    assert {name: body[name] for name in ("reasoning_effort", "reasoning") if name in body} == fields


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("openai", {}),
        ("deepseek", {"reasoning_content": "Hm"}),
        ("ollama", {"reasoning": "Hm"}),
        (
            "openrouter",
            {"reasoning_details": [{"type": "reasoning.text", "text": "Hm", "signature": "s", "index": 0}]},
        ),
    ],
)
def test_thoughts_go_back_to_those_who_want_them(kind: ProviderKind, fields: dict[str, Any]) -> None:
    said = Message("assistant", "Yes.", reasoning="Hm", thoughts=(Thought("Hm", "s"),))
    message = sent(kind, (*ASKED, said, *ASKED))["messages"][1]
    assert message == {"role": "assistant", "content": "Yes."} | fields


def test_ids_of_calls_that_a_provider_does_not_take() -> None:
    call = Message("assistant", None, tool_calls=(ToolCall("call_123", "f", "{}", "gemini:x"),))
    messages = (*ASKED, call, Message("tool", "1", tool_call_id="call_123"))
    _, calling, answer = sent("mistral", messages)["messages"]
    (made,) = calling["tool_calls"]
    assert made["id"] == answer["tool_call_id"] and len(made["id"]) == 9 and made["id"].isalnum()
    assert "extra_content" not in made
    assert sent("openai", messages)["messages"][2]["tool_call_id"] == "call_123"
    own = Message("tool", "1", tool_call_id="D681PevKs")
    assert sent("mistral", (*ASKED, own))["messages"][1]["tool_call_id"] == "D681PevKs"


def test_images_of_results_follow_them() -> None:
    result = Message("tool", (TextPart("a cat"), ImagePart(b"x", "image/png")), tool_call_id="c")
    _, first, second = sent("openai", (*ASKED, result))["messages"]
    assert (first["role"], first["content"]) == ("tool", "a cat")
    assert second["role"] == "user" and second["content"][0]["image_url"]["url"] == "data:image/png;base64,eA=="


def test_results_of_one_turn_stay_together() -> None:
    """Providers refuse anything between calls and their results."""
    results = [Message("tool", (ImagePart(id.encode(), "image/png"),), tool_call_id=id) for id in "ab"]
    told = sent("openai", (*ASKED, *results, Message("assistant", "I see.")))["messages"]
    assert [one["role"] for one in told] == ["user", "tool", "tool", "user", "assistant"]
    assert len(told[3]["content"]) == 2


def test_documents() -> None:
    parts = (DocumentPart(b"text", "text/plain"), DocumentPart(b"x", "application/pdf", title="a.pdf"))
    text, file = sent("openai", (Message("user", parts),))["messages"][0]["content"]
    assert text == {"type": "text", "text": "text"}
    assert file["file"] == {"filename": "a.pdf", "file_data": "data:application/pdf;base64,eA=="}


def test_markers_go_to_those_who_take_them() -> None:
    messages = (Message("user", (TextPart("a", "1h"),)),)
    assert sent("openai", messages)["messages"][0]["content"] == "a"
    (part,) = sent("openrouter", messages)["messages"][0]["content"]
    assert part["cache_control"] == {"type": "ephemeral", "ttl": "1h"}


def test_tools_and_choices() -> None:
    tools = (Tool("f", "does f", b'{"type":"object"}', True), Tool("g"))
    body = sent("openai", tools=tools, tool_choice=ToolChoice("required", ("f",), False))
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}} and len(body["tools"]) == 2
    assert body["parallel_tool_calls"] is False
    assert body["tools"][0]["function"]["strict"] is True and "strict" not in body["tools"][1]["function"]
    narrowed = sent("openai", tools=tools, tool_choice=ToolChoice("auto", ("g",)))
    assert [one["function"]["name"] for one in narrowed["tools"]] == ["g"] and "tool_choice" not in narrowed


@pytest.mark.parametrize(
    ("kind", "constraint", "fields"),
    [
        ("openai", Constraint("json_object"), {"response_format": {"type": "json_object"}}),
        ("vllm", Constraint("choice", '["a","b"]'), {"structured_outputs": {"choice": ["a", "b"]}}),
        ("vllm", Constraint("regex", "a+"), {"structured_outputs": {"regex": "a+"}}),
        ("llama-server", Constraint("gbnf", 'root ::= "a"'), {"grammar": 'root ::= "a"'}),
        ("fireworks", Constraint("gbnf", "g"), {"response_format": {"type": "grammar", "grammar": "g"}}),
    ],
)
def test_constraints(kind: ProviderKind, constraint: Constraint, fields: dict[str, Any]) -> None:
    assert fields.items() <= sent(kind, generation=Generation(constraint=constraint)).items()


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (ChatRequest("m", ASKED, generation=Generation(loras=(Lora("a"),))), "lora"),
        (ChatRequest("m", ASKED, generation=Generation(constraint=Constraint("regex", "a"))), "response_format"),
        (ChatRequest("m", (Message("user", (NativePart("gemini", b"{}"),)),)), "messages"),
        (ChatRequest("m", (Message("user", (DocumentPart(b"", "application/pdf", url="https://x"),)),)), "messages"),
    ],
)
def test_what_cannot_be_said(request_: ChatRequest, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render_request(request_, Style())
    assert caught.value.param == param
