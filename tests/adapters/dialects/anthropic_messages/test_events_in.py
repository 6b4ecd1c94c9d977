from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.dialects.anthropic_messages import EventParser
from adapters.errors import AdapterError, RateLimited, UpstreamFailed, UpstreamInvalid
from adapters.sse import EventSplitter
from adapters.types import (
    ChoiceFinished,
    Event,
    Finished,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from tests.adapters.dialects.replay import REQUEST, halves, recorded, replayed

STREAMS: dict[str, list[Event]] = {
    "text.sse": [
        Started(165, 100),
        TextDelta(0, "Grüße"),
        TextDelta(0, ", 世界 😀!"),
        ChoiceFinished(0, "stop", stop_sequence="END"),
        Finished(Usage(165, 12, 100, cache_write_tokens=40, cache_write_1h_tokens=10)),
    ],
    "tools_and_thinking.sse": [
        Started(472),
        ReasoningDelta(0, "The user wants "),
        ReasoningDelta(0, "the weather."),
        ReasoningDelta(0, "", "EqQBCgIYAhIM1gbcDa9GJwZA2b3h=="),
        ReasoningDelta(0, "", redacted="EmwKAhgBEgy3va3pzix"),
        TextDelta(0, "Let me look."),
        ToolCallDelta(0, 0, "", "toolu_01T1", "get_weather"),
        ToolCallDelta(0, 0, '{"location":'),
        ToolCallDelta(0, 0, ' "São Paulo"}'),
        ToolCallDelta(0, 1, "", "toolu_01T2", "get_time"),
        ToolCallDelta(0, 1, "{}"),
        ChoiceFinished(0, "tool_calls"),
        Finished(Usage(472, 89, reasoning_tokens=20)),
    ],
    "refusal.sse": [
        Started(10),
        TextDelta(0, "I"),
        RefusalDelta(0, "This cannot be answered."),
        ChoiceFinished(0, "content_filter", detail="refusal"),
        Finished(Usage(10, 3)),
    ],
}


def play(*pieces: bytes) -> list[Event]:
    return replayed(EventParser(REQUEST), pieces, EventSplitter())


@pytest.mark.parametrize("name", STREAMS)
def test_recorded_streams(name: str) -> None:
    assert play(recorded("anthropic_messages", name)) == STREAMS[name]


@pytest.mark.parametrize("name", STREAMS)
def test_recorded_streams_cut_at_every_byte(name: str) -> None:
    data = recorded("anthropic_messages", name)
    for pieces in halves(data):
        assert play(*pieces) == STREAMS[name]
    assert play(*(data[at : at + 1] for at in range(len(data)))) == STREAMS[name]


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_breaks_off_is_an_error_wherever_it_does(name: str) -> None:
    data = recorded("anthropic_messages", name)
    last = data.index(b'data: {"type":"message_stop"}') + len(b'data: {"type":"message_stop"}')
    for end in range(0, last, 7):
        with pytest.raises(UpstreamInvalid):
            play(data[:end])


def event(**fields: Any) -> bytes:
    return f"event: {fields['type']}\ndata: {json.dumps(fields)}\n\n".encode()


START = event(type="message_start", message={"usage": {"input_tokens": 1}})
TEXT = event(type="content_block_start", index=0, content_block={"type": "text", "text": ""})
END = event(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 1})
LAST = event(type="message_stop")


def problem(kind: str) -> bytes:
    return event(type="error", error={"type": kind, "message": "sk-ant-secret says no"})


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (recorded("anthropic_messages", "overloaded.sse"), AdapterError),
        (START + problem("rate_limit_error"), RateLimited),
        (problem("api_error"), UpstreamFailed),
        (START + b"data: {\n\n", UpstreamInvalid),
        (START + b"data: <html>\n\n", UpstreamInvalid),
        (START + b"data: [1]\n\n", UpstreamInvalid),
        (START + b'data: {"type":"ping","x":"\xff"}\n\n', UpstreamInvalid),
        (START + START, UpstreamInvalid),
        (TEXT, UpstreamInvalid),
        (START + TEXT + TEXT, UpstreamInvalid),
        (START + event(type="content_block_delta", index=3, delta={"type": "text_delta"}), UpstreamInvalid),
        (START + event(type="content_block_start", index=0, content_block={"type": "tool_use"}), UpstreamInvalid),
        (START + LAST, UpstreamInvalid),
        (START + END, UpstreamInvalid),
    ],
)
def test_broken_streams_are_typed_errors(stream: bytes, error: type[AdapterError]) -> None:
    with pytest.raises(error) as caught:
        play(stream)
    assert "secret" not in caught.value.message


def test_what_comes_after_the_end_or_is_new_is_skipped() -> None:
    new = (
        event(type="something_new", index=0)
        + event(type="content_block_start", index=5, content_block={"type": "x", "data": 5})
        + event(type="content_block_delta", index=5, delta={"type": "citations_delta", "citation": {}})
    )
    events = play(START + new + END + LAST + LAST + START)
    assert events == [Started(1), ChoiceFinished(0, "stop"), Finished(Usage(1, 1))]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"output_tokens": -5, "input_tokens": -1}, Usage(1)),
        ({"output_tokens": 2, "output_tokens_details": {"thinking_tokens": 9}}, Usage(1, 2, reasoning_tokens=2)),
        ({"output_tokens": 2, "cache_creation": {"ephemeral_1h_input_tokens": 9}}, Usage(1, 2)),
        ({}, Usage(1)),
    ],
)
def test_usage_that_cannot_be(usage: Any, expected: Usage) -> None:
    end = event(type="message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
    assert play(START + end + LAST)[-1] == Finished(expected)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("max_tokens", ChoiceFinished(0, "length")),
        ("model_context_window_exceeded", ChoiceFinished(0, "length", detail="model_context_window_exceeded")),
        ("pause_turn", ChoiceFinished(0, "stop", detail="pause_turn")),
        ("of_another_age", ChoiceFinished(0, "stop", detail="of_another_age")),
    ],
)
def test_why_it_ended(reason: str, expected: ChoiceFinished) -> None:
    end = event(type="message_delta", delta={"stop_reason": reason}, usage={})
    assert play(START + end + LAST)[-2] == expected
