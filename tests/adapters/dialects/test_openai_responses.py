"""The Responses API: what is taken in, and that what is written is what OpenAI's own SDK reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from adapters.dialects import openai_wire as wire
from adapters.dialects.client import Style
from adapters.dialects.openai_responses import ChunkRenderer, parse_request, render_answer, render_request
from adapters.errors import InvalidRequest, UpstreamInvalid
from adapters.sse import EventSplitter
from adapters.types import (
    ChatRequest,
    ChoiceFinished,
    Constraint,
    DocumentPart,
    Event,
    Finished,
    Generation,
    ImagePart,
    ImageUrl,
    Lora,
    Message,
    ReasoningDelta,
    RefusalDelta,
    Sampling,
    Started,
    TextDelta,
    TextPart,
    Thinking,
    Thought,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Usage,
)

HEAD = wire.ResponseHead("resp_1", 1_700_000_000, "m", "fp")
CONVERSATION: list[Any] = [
    {"role": "developer", "content": "Be brief."},
    {
        "type": "message",
        "role": "user",
        "content": [
            {"type": "input_text", "text": "What is this?"},
            {"type": "input_image", "image_url": "data:image/png;base64,YW4=", "detail": "high"},
            {"type": "input_image", "image_url": "https://example.com/x.png", "detail": "low"},
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,YW4="},
        ],
    },
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm"}], "encrypted_content": "x="},
    {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
    {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look", "arguments": '{"a":1}'},
    {"type": "function_call", "call_id": "call_2", "name": "look", "arguments": ""},
    {"type": "function_call_output", "call_id": "call_1", "output": "a cat"},
    {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "a dog"}]},
    {"type": "message", "role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Sure?"},
]


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "input": "hi"} | fields).encode()


def test_a_conversation() -> None:
    request = parse_request(body(input=CONVERSATION, instructions="Help.")).request
    assert request.messages == (
        Message("developer", "Help."),
        Message("developer", "Be brief."),
        Message(
            "user",
            (
                TextPart("What is this?"),
                ImagePart(b"an", "image/png"),
                ImageUrl("https://example.com/x.png", detail="low"),
                DocumentPart(b"an", "application/pdf", title="a.pdf"),
            ),
        ),
        Message(
            "assistant",
            "I look.",
            tool_calls=(ToolCall("call_1", "look", '{"a":1}'), ToolCall("call_2", "look", "{}")),
            reasoning="Hm",
            thoughts=(Thought("Hm", "openai:x="),),
        ),
        Message("tool", "a cat", tool_call_id="call_1"),
        Message("tool", "a dog", tool_call_id="call_2"),
        Message("assistant", "A cat."),
        Message("user", "Sure?"),
    )


def test_settings() -> None:
    inbound = parse_request(
        body(
            stream=True,
            max_output_tokens=9,
            temperature=0.5,
            tools=[{"type": "function", "name": "f", "parameters": {"type": "object"}}],
            tool_choice={"type": "function", "name": "f"},
            parallel_tool_calls=False,
            reasoning={"effort": "low"},
            text={"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}},
            include=["reasoning.encrypted_content", "message.output_text.logprobs"],
            prompt_cache_key="k",
            previous_response_id="resp_0",
            store=False,
            safety_identifier="bob",
        )
    )
    assert (inbound.stream, inbound.session_key, inbound.store, inbound.thoughts) == (True, "k", False, True)
    assert parse_request(body()).store is None
    assert inbound.previous_response_id == "resp_0"
    request = inbound.request
    assert request.tools == (Tool("f", "", b'{"type": "object"}', True),)
    assert request.tool_choice == ToolChoice("required", ("f",), False)
    assert request.thinking == Thinking(True, "low") and request.end_user == "bob"
    assert request.template_arguments == {"reasoning_effort": "low", "enable_thinking": True, "thinking": True}
    assert request.generation == Generation(
        max_tokens=9,
        logprobs=0,
        sampling=Sampling(temperature=0.5),
        constraint=Constraint("json_schema", '{"type": "object"}', True, "text.format"),
    )


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "name": "f"} | fields


def said(role: str, **piece: str) -> list[Any]:
    return [{"role": role, "content": [piece]}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"role": "nobody", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        (
            {"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0]",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///x"}]}]},
            "input[0].content[0]",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0].file_data",
        ),
        ({"input": said("user", type="input_file", file_url="http://10.0.0.1/a")}, "input[0].content[0].file_url"),
        ({"input": said("user", type="input_file", file_url="file:///a.pdf")}, "input[0].content[0].file_url"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [function(name="a b")]}, "tools[0].name"),
        ({"tools": [function(), function()]}, "tools[1].name"),
        ({"tools": [function(parameters={"type": "array"})]}, "tools[0].parameters"),
        ({"tools": [function(parameters=[])]}, "tools[0].parameters"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "some"}, "truncation"),
        ({"conversation": 5}, "conversation"),
        ({"temperature": 3}, "temperature"),
        ({"api_base": "http://x"}, "api_base"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(body(**fields))
    assert caught.value.param == param


def test_what_is_rendered_is_parsed_back() -> None:
    request = parse_request(body(input=CONVERSATION, reasoning={"effort": "high"}, max_output_tokens=5)).request
    assert parse_request(render_request(request, Style())).request == request


@pytest.mark.parametrize(
    ("generation", "param"),
    [
        (Generation(n=2), "n"),
        (Generation(stop=("x",)), "stop"),
        (Generation(loras=(Lora("a"),)), "lora"),
        (Generation(sampling=Sampling(logit_bias={1: 1})), "logit_bias"),
        (Generation(constraint=Constraint("regex", "a")), "response_format"),
    ],
)
def test_what_the_dialect_cannot_say(generation: Generation, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render_request(ChatRequest("m", (), generation=generation), Style())
    assert caught.value.param == param


EVENTS: list[Event] = [
    Started(5),
    ReasoningDelta(0, "Hm"),
    ReasoningDelta(0, "", "openai:abc"),
    TextDelta(0, "Hi \u2028", (TokenLogprob(3, -0.5, b"Hi"),)),
    TextDelta(0, "!"),
    RefusalDelta(0, "But no"),
    ToolCallDelta(0, 0, "", "call_1", "f"),
    ToolCallDelta(0, 0, '{"a":1}'),
    ToolCallDelta(0, 1, "{}", "call_2", "g"),
    ChoiceFinished(0, "tool_calls"),
    Finished(Usage(5, 7, 3, 2)),
]


def test_a_stream_is_what_the_sdk_expects() -> None:
    inbound = parse_request(body(include=["reasoning.encrypted_content"], stream=True))
    renderer, splitter = ChunkRenderer(HEAD, inbound), EventSplitter()
    frames = splitter.feed(b"".join(map(renderer.render, EVENTS)))
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    read = [adapter.validate_json(payload) for _, payload in frames]
    assert [kind for kind, _ in frames] == [event.type for event in read]
    assert [event.sequence_number for event in read] == list(range(len(read)))
    assert frames[0][0] == "response.created" and frames[-1][0] == "response.completed"
    whole = read[-1].response
    assert [item.type for item in whole.output] == ["reasoning", "message", "message", "function_call", "function_call"]
    assert whole.output[0].encrypted_content == "abc"
    assert whole.output_text == "Hi \u2028!"
    assert [item.arguments for item in whole.output[3:]] == ['{"a":1}', "{}"]
    assert (whole.usage.input_tokens, whole.usage.output_tokens, whole.usage.total_tokens) == (5, 7, 12)
    # Every item that was begun was ended, with the same id and place.
    begun = [(event.output_index, event.item.id) for event in read if event.type == "response.output_item.added"]
    ended = [(event.output_index, event.item.id) for event in read if event.type == "response.output_item.done"]
    assert begun == ended == [(index, item.id) for index, item in enumerate(whole.output)]


def test_a_whole_answer_is_what_the_sdk_expects() -> None:
    inbound = parse_request(body(text={"format": {"type": "json_object"}}, metadata={"a": "b"}))
    folded = wire.Folded(1)
    for event in [*EVENTS[:5], ChoiceFinished(0, "length"), EVENTS[-1]]:
        folded.add(event)
    whole = Response.model_validate_json(render_answer(HEAD, inbound, folded))
    assert whole.status == "incomplete" and whole.incomplete_details.reason == "max_output_tokens"  # type: ignore[union-attr]
    assert whole.output_text == "Hi \u2028!" and whole.metadata == {"a": "b"}


def test_a_bare_call() -> None:
    folded = wire.Folded(1)
    called: list[Event] = [Started(1), ToolCallDelta(0, 0, "{}", "c", "f"), ChoiceFinished(0, "tool_calls")]
    for event in called:
        folded.add(event)
    whole = json.loads(render_answer(HEAD, parse_request(body()), folded))
    assert [item["type"] for item in whole["output"]] == ["function_call"]
    assert whole["status"] == "completed"


MIXED: dict[str, list[Event]] = {
    "another call": [
        ToolCallDelta(0, 0, '{"a":', "call_1", "f"),
        ToolCallDelta(0, 1, "{}", "call_2", "g"),
        ToolCallDelta(0, 0, "1}"),
    ],
    "text": [ToolCallDelta(0, 0, '{"a":', "call_1", "f"), TextDelta(0, "so"), ToolCallDelta(0, 0, "1}")],
}


@pytest.mark.parametrize("way", MIXED)
def test_calls_that_come_mixed_up_are_not_taken_for_each_other(way: str) -> None:
    renderer = ChunkRenderer(HEAD, parse_request(body(stream=True)))
    *first, last = [Started(5), *MIXED[way]]
    for event in first:
        renderer.render(event)
    with pytest.raises(UpstreamInvalid):
        renderer.render(last)


def test_tokens_of_calls_interrupt_no_call_and_those_of_a_text_come_with_it() -> None:
    """vLLM tells the tokens of calls too, as a text of none."""
    early, of_call, later = ((TokenLogprob(-1, -0.5, raw),) for raw in (b"\xc3", b"{", b"\xbc"))
    renderer, splitter = ChunkRenderer(HEAD, parse_request(body(stream=True))), EventSplitter()
    events: list[Event] = [
        *(Started(5), TextDelta(0, "", early), TextDelta(0, "\u00fc", later)),
        *(TextDelta(0, "", of_call), ToolCallDelta(0, 0, "{", "call_1", "f")),
        *(TextDelta(0, "", of_call), ToolCallDelta(0, 0, "}")),
        *(ChoiceFinished(0, "tool_calls"), Finished(Usage(5, 4))),
    ]
    frames = splitter.feed(b"".join(map(renderer.render, events)))
    message, call = json.loads(frames[-1][1])["response"]["output"]
    assert call["arguments"] == "{}"
    assert [one["bytes"] for one in message["content"][0]["logprobs"]][:2] == [[0xC3], [0xBC]]
