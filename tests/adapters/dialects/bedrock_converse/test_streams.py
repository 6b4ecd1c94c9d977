from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer

from adapters.aws import MessageSplitter, event_message
from adapters.dialects import openai_wire
from adapters.dialects.bedrock_converse import ChunkRenderer, EventParser
from adapters.errors import AdapterError, RateLimited, UpstreamInvalid
from adapters.types import (
    ChoiceFinished,
    Event,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from tests.adapters.dialects.replay import REQUEST, halves, recorded, replayed

STREAMS: dict[str, list[Event]] = {
    "text.bin": [
        Started(0),
        TextDelta(0, "Grüße"),
        TextDelta(0, ", 世界 😀!"),
        ChoiceFinished(0, "stop", stop_sequence="END"),
        Finished(Usage(165, 12, 100, cache_write_tokens=40, cache_write_1h_tokens=10)),
    ],
    "tools_and_thinking.bin": [
        Started(0),
        ReasoningDelta(0, "The user wants "),
        ReasoningDelta(0, "the weather."),
        ReasoningDelta(0, "", "EqQBCgIYAhIM"),
        ReasoningDelta(0, "", redacted="EmwKAhgBEgy3"),
        TextDelta(0, "Let me look."),
        ToolCallDelta(0, 0, "", "tooluse_1", "get_weather"),
        ToolCallDelta(0, 0, '{"location":'),
        ToolCallDelta(0, 0, ' "São Paulo"}'),
        ToolCallDelta(0, 1, "", "tooluse_2", "get_time"),
        ToolCallDelta(0, 1, "{}"),
        ChoiceFinished(0, "tool_calls"),
        Finished(Usage(472, 89)),
    ],
    "guardrail.bin": [
        Started(0),
        TextDelta(0, "Sorry."),
        ChoiceFinished(0, "content_filter", detail="guardrail_intervened"),
        Finished(Usage(5, 2)),
    ],
}


def play(*pieces: bytes) -> list[Event]:
    return replayed(EventParser(REQUEST), pieces, MessageSplitter())


@pytest.mark.parametrize("name", STREAMS)
def test_recorded_streams_whole_and_cut_at_every_byte(name: str) -> None:
    data = recorded("bedrock_converse", name)
    assert play(data) == STREAMS[name]
    for pieces in halves(data):
        assert play(*pieces) == STREAMS[name]
    assert play(*(data[at : at + 1] for at in range(len(data)))) == STREAMS[name]


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_breaks_off_is_an_error_wherever_it_does(name: str) -> None:
    data = recorded("bedrock_converse", name)
    last = data.rindex(b":event-type") - 13
    for end in range(0, len(data), 7):
        if end != last:  # There the end was said and only the usage is missing.
            with pytest.raises(UpstreamInvalid):
                play(data[:end])
    assert play(data[:last])[-1] == Finished(Usage())


@pytest.mark.parametrize("name", STREAMS)
def test_a_byte_that_was_changed_is_noticed(name: str) -> None:
    data = recorded("bedrock_converse", name)
    for at in range(0, len(data), 11):
        with pytest.raises(AdapterError):
            play(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])


def event(kind: str, **fields: Any) -> bytes:
    return event_message(kind, json.dumps(fields).encode())


START = event("messageStart", role="assistant")
END = event("messageStop", stopReason="end_turn")


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (recorded("bedrock_converse", "throttled.bin"), RateLimited),
        (START + START, UpstreamInvalid),
        (END, UpstreamInvalid),
        (START, UpstreamInvalid),
        (START + event_message("contentBlockDelta", b"{"), UpstreamInvalid),
        (START + event("contentBlockStart", start={"toolUse": {"name": "f"}}), UpstreamInvalid),
    ],
)
def test_broken_streams_are_typed_errors(stream: bytes, error: type[AdapterError]) -> None:
    with pytest.raises(error):
        play(stream)


def test_what_is_new_is_skipped_and_usage_that_cannot_be_is_none() -> None:
    new = event("somethingNew", x=1) + event("contentBlockDelta", delta={"citation": {}}, contentBlockIndex=9)
    usage = event("metadata", usage={"inputTokens": -4, "outputTokens": -1})
    assert play(START + new + END + usage) == [Started(0), ChoiceFinished(0, "stop"), Finished(Usage())]


def test_botocore_reads_what_is_written() -> None:
    renderer = ChunkRenderer(openai_wire.ResponseHead("i", 0, "m", "f"), openai_wire.Inbound(REQUEST))
    buffer = EventStreamBuffer()
    for one in STREAMS["tools_and_thinking.bin"]:
        buffer.add_data(renderer.render(one))
    kinds = [message.to_response_dict()["headers"][":event-type"] for message in buffer]
    assert kinds[0] == "messageStart" and kinds[-2:] == ["messageStop", "metadata"]
    assert kinds.count("contentBlockStop") == 5
