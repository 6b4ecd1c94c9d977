from __future__ import annotations

import pytest

from adapters.errors import UpstreamInvalid
from adapters.sse import EventSplitter

STREAM = (
    b'\xef\xbb\xbf: hello\r\n\r\nevent: message_start\r\ndata: {"a":1}\r\nid: 7\r\n\r\n'
    b'data:{"b":\ndata: 2}\n\n'
    b"retry: 10\ndata\rdata: x\r\r"
    b"event: only\n\n"
    b"data: \xe2\x82\xac\n\n\n\n"
    b"data: [DONE]\n\n"
)
EVENTS = [
    ("message_start", b'{"a":1}'),
    ("", b'{"b":\n2}'),
    ("", b"\nx"),
    ("", "€".encode()),
    ("", b"[DONE]"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_pieces_of_any_size(size: int) -> None:
    splitter = EventSplitter()
    found = [event for at in range(0, len(STREAM), size) for event in splitter.feed(STREAM[at : at + size])]
    assert found + splitter.end() == EVENTS


@pytest.mark.parametrize("cut", range(len(STREAM)))
def test_a_cut_anywhere(cut: int) -> None:
    splitter = EventSplitter()
    assert splitter.feed(STREAM[:cut]) + splitter.feed(STREAM[cut:]) + splitter.end() == EVENTS


def test_the_last_event_may_lack_its_empty_line() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: a\n\ndata: b") == [("", b"a")]
    assert splitter.end() == [("", b"b")]
    assert splitter.end() == []


@pytest.mark.parametrize("piece", [b"x", b"data: xxxx\n"])
def test_events_and_lines_are_bounded(piece: bytes) -> None:
    splitter = EventSplitter(bytes_max=100)
    with pytest.raises(UpstreamInvalid):
        for _ in range(200):
            splitter.feed(piece)
