"""Tool choices, thinking and what came of them, as OpenAI's chat dialect writes them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.dialects import openai_chat, openai_wire
from adapters.types import (
    ChoiceFinished,
    Event,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolChoice,
    Usage,
)
from tests.adapters.dialects.test_openai_chat import HEAD, TOOL, allowed, parse, rendered

OTHER = {"type": "function", "function": {"name": "g", "strict": True}}


@pytest.mark.parametrize(
    ("given", "choice"),
    [
        (None, ToolChoice()),
        ("none", ToolChoice("none")),
        ("auto", ToolChoice("auto")),
        ("required", ToolChoice("required")),
        (TOOL, ToolChoice("required", ("f",))),
        ({"type": "function", "name": "g"}, ToolChoice("required", ("g",))),
        (allowed("auto", "f"), ToolChoice("auto", ("f",))),
        (allowed("required", "g", "f"), ToolChoice("required", ("g", "f"))),
    ],
)
def test_choices(given: Any, choice: ToolChoice) -> None:
    assert parse(tools=[TOOL, OTHER], tool_choice=given).request.tool_choice == choice


def test_calls_one_by_one_and_strict_functions() -> None:
    request = parse(tools=[TOOL, OTHER], parallel_tool_calls=False).request
    assert request.tool_choice == ToolChoice("auto", (), parallel=False)
    assert [tool.strict for tool in request.tools] == [False, True]
    assert parse(tools=[TOOL], parallel_tool_calls=True).request.tool_choice.parallel


@pytest.mark.parametrize(
    ("fields", "arguments", "most"),
    [
        ({}, {}, None),
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high", "enable_thinking": True, "thinking": True}, None),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "low", "enable_thinking": False, "thinking": False}, 0),
        ({"reasoning": {"enabled": False}}, {"enable_thinking": False, "thinking": False}, 0),
        ({"reasoning": {"max_tokens": 9}}, {}, 9),
        ({"thinking_budget_tokens": 7}, {}, 7),
        ({"thinking_token_budget": 7, "reasoning_budget": 7}, {}, 7),
        ({"reasoning_budget": -1}, {}, None),
        ({"reasoning_budget": 0}, {}, 0),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}, 0),
        ({"chat_template_kwargs": {"thinking": True}}, {"thinking": True}, None),
        ({"chat_template_kwargs": {"thinking_budget": 5}}, {"thinking_budget": 5}, 5),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"thinking": False, "date_string": "26 Jul 2024"}},
            {"reasoning_effort": "low", "enable_thinking": True, "thinking": False, "date_string": "26 Jul 2024"},
            None,
        ),
    ],
)
def test_thinking(fields: dict[str, Any], arguments: dict[str, Any], most: int | None) -> None:
    request = parse(**fields).request
    assert request.template_arguments == arguments
    assert request.generation.reasoning_tokens_max == most


def test_thoughts_come_back_in_messages() -> None:
    turns = [
        {"role": "assistant", "content": "4", "reasoning_content": "two and two"},
        {"role": "assistant", "content": "4", "reasoning": "two and two"},
        {"role": "user", "content": "4", "reasoning_content": "not a thought of the model"},
    ]
    messages = parse(messages=turns).request.messages
    assert [message.reasoning for message in messages] == ["two and two", "two and two", None]


EVENTS: tuple[Event, ...] = (
    Started(prompt_tokens=3),
    ReasoningDelta(0, "Hm, "),
    ReasoningDelta(0, "well\u2028."),
    TextDelta(0, "<tool_call>no"),
    ChoiceFinished(0, "stop", malformed_call=True),
    Finished(Usage(3, 9, 2, reasoning_tokens=4)),
)


def test_thoughts_and_the_flag_of_a_broken_call() -> None:
    chunks = [chunk for chunk in rendered(EVENTS, stream_options={"include_usage": True}) if chunk != "[DONE]"]
    assert [chunk["choices"][0]["delta"] for chunk in chunks[1:4]] == [
        {"reasoning_content": "Hm, "},
        {"reasoning_content": "well\u2028."},
        {"content": "<tool_call>no"},
    ]
    assert chunks[4]["choices"][0]["gateway"] == {"malformed_tool_call": True}
    assert chunks[5]["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4
    folded = openai_wire.Folded(1)
    for event in EVENTS:
        folded.add(event)
    answer = json.loads(openai_chat.render_answer(HEAD, parse().request, folded))
    (choice,) = answer["choices"]
    assert choice["message"]["reasoning_content"] == "Hm, well\u2028."
    assert choice["message"]["content"] == "<tool_call>no"
    assert choice["gateway"] == {"malformed_tool_call": True}
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4


@pytest.mark.parametrize("fields", [{"reasoning": {"exclude": True}}, {"include_reasoning": False}])
def test_thoughts_that_are_not_to_be_shown(fields: dict[str, Any]) -> None:
    chunks = [chunk for chunk in rendered(EVENTS, **fields) if chunk != "[DONE]"]
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "<tool_call>no", None]
    folded = openai_wire.Folded(1)
    for event in EVENTS:
        folded.add(event)
    answer = json.loads(openai_chat.render_answer(HEAD, parse(**fields).request, folded))
    assert "reasoning_content" not in answer["choices"][0]["message"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4


def test_an_answer_of_calls_has_no_content() -> None:
    folded = openai_wire.Folded(1)
    for event in (ToolCallDelta(0, 0, "{}", "call_1", "f"), ChoiceFinished(0, "tool_calls"), Finished(Usage())):
        folded.add(event)
    (choice,) = json.loads(openai_chat.render_answer(HEAD, parse().request, folded))["choices"]
    assert choice["message"]["content"] is None and "reasoning_content" not in choice["message"]
    assert "gateway" not in choice
