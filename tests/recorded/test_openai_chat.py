from __future__ import annotations

from collections.abc import Sequence

import pytest

from adapters.dialects.openai_chat_events import EventParser
from adapters.sse import EventSplitter
from adapters.types import ChatRequest, Event, Generation
from tests.recorded.streams_openai import STREAMS


def replay(pieces: Sequence[bytes], choices: int) -> list[Event]:
    splitter, parser = EventSplitter(), EventParser(ChatRequest("m", (), generation=Generation(n=choices)))
    payloads = [payload for piece in pieces for payload in splitter.feed(piece)] + splitter.end()
    return [event for kind, payload in payloads for event in parser.feed(kind, payload)] + list(parser.end())


@pytest.mark.parametrize("name", STREAMS)
def test_what_a_stream_says(name: str) -> None:
    raw, choices, events = STREAMS[name]
    assert replay([raw], choices) == events


@pytest.mark.parametrize("name", STREAMS)
def test_split_at_every_byte(name: str) -> None:
    raw, choices, events = STREAMS[name]
    for cut in range(len(raw)):
        assert replay([raw[:cut], raw[cut:]], choices) == events
    assert replay([bytes([byte]) for byte in raw], choices) == events
