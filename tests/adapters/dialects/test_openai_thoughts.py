"""Signed thoughts on their way to a client and back."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest
from msgspec.structs import replace
from openai.lib.streaming._deltas import accumulate_delta

from adapters.dialects import (
    anthropic_messages,
    bedrock_converse,
    gemini,
    openai_chat,
    openai_responses,
    openai_wire,
)
from adapters.types import (
    ChatRequest,
    ChoiceFinished,
    Event,
    Finished,
    Message,
    ReasoningDelta,
    Started,
    TextDelta,
    Thought,
    ToolCall,
    ToolCallDelta,
    Usage,
)

HEAD = openai_wire.ResponseHead("id", 1, "m", "fp")
EVENTS: list[Event] = [
    Started(1),
    ReasoningDelta(0, "Let me "),
    ReasoningDelta(0, "think.\u2028"),
    ReasoningDelta(0, "", "sig=="),
    ReasoningDelta(0, "", redacted="opaque"),
    ReasoningDelta(0, "And unsigned."),
    TextDelta(0, "Yes."),
    ToolCallDelta(0, 0, "{}", "call_1", "f", "gemini:abc"),
    ChoiceFinished(0, "tool_calls"),
    Finished(Usage(1, 1)),
]
REQUEST = ChatRequest("m", (Message("user", "hi"),))
GIVEN_BACK = Message(
    "assistant",
    "Yes.",
    tool_calls=(ToolCall("call_1", "f", "{}", "gemini:abc"),),
    reasoning="Let me think.\u2028And unsigned.",
    thoughts=(Thought("Let me think.\u2028", "sig=="), Thought("", redacted="opaque")),
)


def parsed(message: dict[str, Any]) -> Message:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}, message]}
    return openai_chat.parse_request(json.dumps(body).encode()).request.messages[1]


def test_a_whole_answer_can_be_given_back() -> None:
    folded = openai_wire.Folded(1)
    for event in EVENTS:
        folded.add(event)
    answer = json.loads(openai_chat.render_answer(HEAD, REQUEST, folded))
    assert parsed(answer["choices"][0]["message"]) == GIVEN_BACK


def test_a_stream_can_be_given_back_as_the_sdk_folds_it() -> None:
    renderer = openai_chat.ChunkRenderer(HEAD, openai_wire.Inbound(REQUEST, stream=True))
    frames = b"".join(map(renderer.render, EVENTS)).split(b"\n\n")
    message: dict[Any, Any] = {}
    for frame in frames:
        if frame.startswith(b"data: {"):
            message = accumulate_delta(message, json.loads(frame[6:])["choices"][0]["delta"])
    assert parsed(message) == GIVEN_BACK


def test_thoughts_without_a_signature_are_only_text() -> None:
    message = parsed(
        {"role": "assistant", "content": "x", "reasoning_details": [{"type": "reasoning.text", "text": "a"}]}
    )
    assert message.thoughts == ()


def test_a_whole_answer_has_the_signatures_that_a_stream_has() -> None:
    events: list[Event] = [
        Started(5),
        ReasoningDelta(0, "One"),
        ReasoningDelta(0, "", "gemini:1"),
        ReasoningDelta(0, "Two", "openai:2"),
        ReasoningDelta(0, "", redacted="dark"),
        ReasoningDelta(0, "Three", "3"),
        ToolCallDelta(0, 0, "{}", "call_1", "f", "gemini:4"),
        ChoiceFinished(0, "tool_calls"),
        Finished(Usage(5, 7)),
    ]
    folded = openai_wire.Folded(1)
    for event in events:
        folded.add(event)
    asked = b'{"model":"m","input":"x","include":["reasoning.encrypted_content"]}'
    output = json.loads(openai_responses.render_answer(HEAD, openai_responses.parse_request(asked), folded))["output"]
    assert [(item["summary"], item["encrypted_content"]) for item in output[:3]] == [
        ([{"type": "summary_text", "text": "One"}], None),
        ([{"type": "summary_text", "text": "Two"}], "2"),
        ([{"type": "summary_text", "text": "Three"}], None),
    ]
    (candidate,) = json.loads(gemini.render_answer(HEAD, REQUEST, folded))["candidates"]
    assert [part.get("thoughtSignature") for part in candidate["content"]["parts"]] == ["1", None, None, "4"]
    content = json.loads(bedrock_converse.render_answer(HEAD, REQUEST, folded))["output"]["message"]["content"]
    assert [block["reasoningContent"] for block in content[:4]] == [
        {"reasoningText": {"text": "One", "signature": "gemini:1"}},
        {"reasoningText": {"text": "Two", "signature": "openai:2"}},
        {"redactedContent": "dark"},
        {"reasoningText": {"text": "Three", "signature": "3"}},
    ]


@pytest.mark.parametrize("dialect", [anthropic_messages, bedrock_converse])
def test_claude_is_sent_no_signatures_of_others(dialect: ModuleType) -> None:
    """It would refuse the conversation, as where a route falls back from one provider to another."""
    thoughts = (Thought("a", "gemini:1"), Thought("b", "openai:2"), Thought("c", "3"))
    answered = replace(REQUEST, messages=(*REQUEST.messages, Message("assistant", "so", thoughts=thoughts)))
    body = dialect.render_request(answered)
    assert (b'"1"' in body, b":2" in body, b'"3"' in body) == (False, False, True)
