from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from adapters.dialects.gemini import EventParser
from adapters.errors import AdapterError, InvalidRequest, RateLimited, UpstreamInvalid
from adapters.sse import EventSplitter
from adapters.types import (
    ChoiceFinished,
    Event,
    Finished,
    Generation,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from tests.adapters.dialects.replay import REQUEST, halves, recorded, replayed

STREAMS: dict[str, list[Event]] = {
    "text.sse": [
        Started(20, 8),
        TextDelta(0, "Grüße"),
        TextDelta(0, ", 世界 😀!"),
        ChoiceFinished(0, "stop"),
        Finished(Usage(20, 9, 8, prompt_audio_tokens=6)),
    ],
    "tools_and_thinking.sse": [
        Started(61),
        ReasoningDelta(0, "The user wants "),
        ReasoningDelta(0, "the weather."),
        ToolCallDelta(0, 0, '{"location":"São Paulo"}', "fc1", "get_weather", "gemini:CiQBjz1rX0a="),
        ToolCallDelta(0, 1, "{}", "made", "get_time"),
        ReasoningDelta(0, "", "gemini:EpQC"),
        ChoiceFinished(0, "tool_calls"),
        Finished(Usage(61, 50, reasoning_tokens=20)),
    ],
    "safety.sse": [
        Started(5),
        TextDelta(0, "I"),
        RefusalDelta(0, "This cannot be answered."),
        ChoiceFinished(0, "content_filter", detail="SAFETY"),
        Finished(Usage(5, 1)),
    ],
}


def play(*pieces: bytes, n: int = 1) -> list[Event]:
    request = replace(REQUEST, generation=Generation(n=n))
    return replayed(EventParser(request, lambda: "made"), pieces, EventSplitter())


@pytest.mark.parametrize("name", STREAMS)
def test_recorded_streams_whole_and_cut_at_every_byte(name: str) -> None:
    data = recorded("gemini", name)
    assert play(data) == STREAMS[name]
    for pieces in halves(data):
        assert play(*pieces) == STREAMS[name]
    assert play(*(data[at : at + 1] for at in range(len(data)))) == STREAMS[name]


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_breaks_off_is_an_error_wherever_it_does(name: str) -> None:
    data = recorded("gemini", name).rstrip()
    for end in range(0, len(data), 7):
        with pytest.raises(UpstreamInvalid):
            play(data[:end])


def chunk(**fields: Any) -> bytes:
    return f"data: {json.dumps(fields)}\n\n".encode()


def said(*parts: Any, **more: Any) -> bytes:
    return chunk(candidates=[{"content": {"parts": list(parts)}} | more])


STOP = said(finishReason="STOP")


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (chunk(error={"code": 429, "message": "no", "status": "RESOURCE_EXHAUSTED"}), RateLimited),
        (b"data: {\n\n", UpstreamInvalid),
        (b"data: [1]\n\n", UpstreamInvalid),
        (said({"functionCall": {"args": {}}}) + STOP, UpstreamInvalid),
        (said({"text": 5}), UpstreamInvalid),
        (said({"text": "x"}, index=4), UpstreamInvalid),
        (said({"text": "x"}), UpstreamInvalid),
        (chunk(promptFeedback={"blockReason": "SAFETY"}), InvalidRequest),
    ],
)
def test_broken_streams_are_typed_errors(stream: bytes, error: type[AdapterError]) -> None:
    with pytest.raises(error):
        play(stream)


def test_a_refused_prompt_can_be_asked_elsewhere() -> None:
    with pytest.raises(InvalidRequest) as caught:
        play(chunk(promptFeedback={"blockReason": "PROHIBITED_CONTENT"}))
    assert caught.value.code == "content_filter"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("MAX_TOKENS", ChoiceFinished(0, "length")),
        ("RECITATION", ChoiceFinished(0, "content_filter", detail="RECITATION")),
        ("MALFORMED_FUNCTION_CALL", ChoiceFinished(0, "stop", True, detail="MALFORMED_FUNCTION_CALL")),
        ("OF_ANOTHER_AGE", ChoiceFinished(0, "stop", detail="OF_ANOTHER_AGE")),
    ],
)
def test_why_it_ended(word: str, expected: ChoiceFinished) -> None:
    assert play(said(finishReason=word))[1] == expected


def test_several_choices_and_what_is_new() -> None:
    first = chunk(candidates=[{"index": 1, "content": {"parts": [{"text": "b"}, {"executableCode": {}}]}}], new=1)
    ends = chunk(candidates=[{"index": 0, "finishReason": "STOP"}, {"index": 1, "finishReason": "STOP"}])
    assert play(first + ends, n=2)[1:4] == [TextDelta(1, "b"), ChoiceFinished(0, "stop"), ChoiceFinished(1, "stop")]
    with pytest.raises(UpstreamInvalid):
        play(first + STOP, n=2)


def test_probabilities() -> None:
    chosen = [{"token": "x", "logProbability": -0.5, "tokenId": 7}]
    tops = [{"candidates": [{"token": "x", "logProbability": -0.5, "tokenId": 7}, {"token": "y"}]}]
    stream = said({"text": "x"}, logprobsResult={"chosenCandidates": chosen, "topCandidates": tops}) + STOP
    top = (TopLogprob(7, -0.5, b"x"), TopLogprob(-1, 0.0, b"y"))
    assert play(stream)[1] == TextDelta(0, "x", (TokenLogprob(7, -0.5, b"x", top),))
