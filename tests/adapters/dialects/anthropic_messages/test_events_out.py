from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from adapters.dialects import anthropic_messages as dialect
from adapters.dialects import openai_wire
from adapters.errors import UpstreamInvalid
from adapters.types import (
    ChatRequest,
    ChoiceFinished,
    Event,
    Finished,
    Message,
    ModelCard,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    Thinking,
    ToolCallDelta,
    Usage,
)
from tests.fakes import DIAGNOSIS

HEAD = openai_wire.ResponseHead("msg_1", 1700000000, "m", "fp_1")
REQUEST = ChatRequest("m", (Message("user", "hi"),))
HIDDEN = ChatRequest("m", (Message("user", "hi"),), thinking=Thinking(True, shown=False))
USAGE = Usage(
    prompt_tokens=30,
    completion_tokens=9,
    cached_tokens=10,
    reasoning_tokens=4,
    cache_write_tokens=8,
    cache_write_1h_tokens=3,
)
USAGE_FIELDS = {
    "input_tokens": 12,
    "cache_creation_input_tokens": 8,
    "cache_read_input_tokens": 10,
    "cache_creation": {"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 3},
    "output_tokens": 9,
    "output_tokens_details": {"thinking_tokens": 4},
    "service_tier": "standard",
}
STARTED = Started(30, 10)
END = (ChoiceFinished(0, "stop"), Finished(USAGE))


def streamed(*events: Event, request: ChatRequest = REQUEST) -> list[dict[str, Any]]:
    """The data of all frames, whose names are checked against it."""
    renderer = dialect.ChunkRenderer(HEAD, openai_wire.Inbound(request, stream=True))
    frames = b"".join(map(renderer.render, events)).split(b"\n\n")
    assert frames.pop() == b""
    found = []
    for frame in frames:
        name, data = frame.decode().split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def whole(*events: Event, request: ChatRequest = REQUEST) -> Any:
    folded = openai_wire.Folded(1)
    for event in events:
        folded.add(event)
    return json.loads(dialect.render_answer(HEAD, request, folded))


def blocks(frames: Iterable[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What happens to blocks, in short."""
    short: list[tuple[Any, ...]] = []
    for frame in frames:
        match frame["type"]:
            case "content_block_start":
                short.append((frame["index"], frame["content_block"]))
            case "content_block_delta":
                short.append((frame["index"], *list(frame["delta"].values())))
            case "content_block_stop":
                short.append((frame["index"],))
    return short


def test_the_frames_of_a_text() -> None:
    frames = streamed(STARTED, TextDelta(0, "Hel"), TextDelta(0, ""), TextDelta(0, "lo\u2028"), *END)
    assert [frame["type"] for frame in frames] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, delta = frames[0]["message"], frames[-2]
    assert start == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 20,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 10,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"thinking_tokens": 0},
            "service_tier": "standard",
        },
    }
    assert delta == {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": USAGE_FIELDS,
    }
    assert blocks(frames) == [
        (0, {"type": "text", "text": ""}),
        (0, "text_delta", "Hel"),
        (0, "text_delta", "lo\u2028"),
        (0,),
    ]


def test_text_cannot_break_out_of_its_frame() -> None:
    evil = 'x\n\ndata: [DONE]\r\n\u2028\u0085"}</script>\x00'
    renderer = dialect.ChunkRenderer(HEAD, openai_wire.Inbound(REQUEST))
    for event in (TextDelta(0, evil), ReasoningDelta(0, evil), ToolCallDelta(0, 0, evil, "i", evil)):
        frames = renderer.render(event).decode().removesuffix("\n\n").split("\n\n")
        assert all(frame.splitlines()[1].startswith("data: ") and len(frame.splitlines()) == 2 for frame in frames)


def test_thoughts_words_and_calls_are_blocks_of_their_own() -> None:
    frames = streamed(
        STARTED,
        ReasoningDelta(0, "hm"),
        ReasoningDelta(0, "", signature="sig"),
        ReasoningDelta(0, "", redacted="xyz"),
        TextDelta(0, "well"),
        ToolCallDelta(0, 0, "", "t1", "f"),
        ToolCallDelta(0, 0, '{"a":'),
        ToolCallDelta(0, 0, "1}"),
        ToolCallDelta(0, 1, "{}", "t2", "g"),
        ChoiceFinished(0, "tool_calls"),
        Finished(USAGE),
    )
    assert blocks(frames) == [
        (0, {"type": "thinking", "thinking": "", "signature": ""}),
        (0, "thinking_delta", "hm"),
        (0, "signature_delta", "sig"),
        (0,),
        (1, {"type": "redacted_thinking", "data": "xyz"}),
        (1,),
        (2, {"type": "text", "text": ""}),
        (2, "text_delta", "well"),
        (2,),
        (3, {"type": "tool_use", "id": "t1", "name": "f", "input": {}}),
        (3, "input_json_delta", '{"a":'),
        (3, "input_json_delta", "1}"),
        (3,),
        (4, {"type": "tool_use", "id": "t2", "name": "g", "input": {}}),
        (4, "input_json_delta", "{}"),
        (4,),
    ]
    assert frames[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_call_that_goes_on_after_another_is_an_error() -> None:
    with pytest.raises(UpstreamInvalid):
        streamed(ToolCallDelta(0, 0, "{", "t1", "f"), ToolCallDelta(0, 1, "{", "t2", "g"), ToolCallDelta(0, 0, "}"))


def test_hidden_thoughts_leave_their_signature() -> None:
    events = (ReasoningDelta(0, "secret"), ReasoningDelta(0, "", signature="sig"), TextDelta(0, "x"), *END)
    frames = streamed(STARTED, *events, request=HIDDEN)
    assert "secret" not in json.dumps(frames)
    assert (0, "signature_delta", "sig") in blocks(frames)
    answer = whole(STARTED, *events, request=HIDDEN)
    assert answer["content"][0] == {"type": "thinking", "thinking": "", "signature": "sig"}


@pytest.mark.parametrize(
    ("end", "reason", "sequence"),
    [
        (ChoiceFinished(0, "stop"), "end_turn", None),
        (ChoiceFinished(0, "stop", stop_sequence="END"), "stop_sequence", "END"),
        (ChoiceFinished(0, "length"), "max_tokens", None),
        (ChoiceFinished(0, "length", detail="model_context_window_exceeded"), "model_context_window_exceeded", None),
        (ChoiceFinished(0, "tool_calls"), "tool_use", None),
        (ChoiceFinished(0, "content_filter"), "refusal", None),
        (ChoiceFinished(0, "stop", detail="pause_turn"), "pause_turn", None),
        (ChoiceFinished(0, "stop", detail="SAFETY_OF_ANOTHER"), "end_turn", None),
    ],
)
def test_why_it_ended(end: ChoiceFinished, reason: str, sequence: str | None) -> None:
    events = (STARTED, TextDelta(0, "x"), end, Finished(USAGE))
    assert streamed(*events)[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}
    answer = whole(*events)
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, sequence)


def test_words_of_refusal() -> None:
    events = (STARTED, RefusalDelta(0, "I will "), RefusalDelta(0, "not"), *END)
    details = {"type": "refusal", "category": None, "explanation": "I will not"}
    assert streamed(*events)[-2]["delta"] == {
        "stop_reason": "refusal",
        "stop_sequence": None,
        "stop_details": details,
    }
    answer = whole(*events)
    assert (answer["content"], answer["stop_reason"], answer["stop_details"]) == ([], "refusal", details)


def test_the_whole_answer() -> None:
    answer = whole(
        STARTED,
        ReasoningDelta(0, "h"),
        ReasoningDelta(0, "m"),
        ReasoningDelta(0, "", redacted="xyz"),
        ReasoningDelta(0, "so"),
        ReasoningDelta(0, "", signature="sig"),
        TextDelta(0, "well"),
        ToolCallDelta(0, 0, '{"a": 1}', "t1", "f"),
        ToolCallDelta(0, 1, '{"a": ', "t2", "f"),
        *END,
    )
    assert answer["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "redacted_thinking", "data": "xyz"},
        {"type": "thinking", "thinking": "so", "signature": "sig"},
        {"type": "text", "text": "well"},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "t2", "name": "f", "input": {}},
    ]
    assert answer["usage"] == USAGE_FIELDS
    assert {"id", "type", "role", "model"} <= set(answer) and "gateway" not in answer


def test_what_became_of_the_cache_is_told_to_who_asked() -> None:
    events = (Started(30, 10, cache=DIAGNOSIS), TextDelta(0, "x"), *END)
    assert whole(*events)["gateway"]["cache"]["session_tokens"] == 30
    assert streamed(*events)[0]["message"]["gateway"]["cache"]["session_tokens"] == 30


def test_models() -> None:
    card = ModelCard(context_tokens=2048)
    model = json.loads(dialect.render_model("a", 1700000000, card))
    assert model["created_at"] == "2023-11-14T22:13:20Z" and model["max_input_tokens"] == 2048
    page = json.loads(dialect.render_models([("a", 0, card), ("b", 0, card)], more=True))
    assert (page["first_id"], page["last_id"], page["has_more"], len(page["data"])) == ("a", "b", True, 2)
    empty = json.loads(dialect.render_models([], more=False))
    assert empty == {"data": [], "has_more": False, "first_id": None, "last_id": None}
