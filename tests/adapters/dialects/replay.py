"""Recorded streams, replayed in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from adapters.aws import MessageSplitter
from adapters.dialects.client import EventParser
from adapters.sse import EventSplitter
from adapters.types import ChatRequest, Event, Message

RECORDED = Path(__file__).parents[2] / "recorded"
REQUEST = ChatRequest("m", (Message("user", "hi"),))


def recorded(dialect: str, name: str) -> bytes:
    return (RECORDED / dialect / name).read_bytes()


def replayed(parser: EventParser, pieces: Iterable[bytes], splitter: EventSplitter | MessageSplitter) -> list[Event]:
    """All events of a stream that comes in these pieces."""
    events: list[Event] = []
    for piece in pieces:
        for kind, payload in splitter.feed(piece):
            events += parser.feed(kind, payload)
    for kind, payload in splitter.end():
        events += parser.feed(kind, payload)
    return [*events, *parser.end()]


def halves(data: bytes) -> Iterable[tuple[bytes, bytes]]:
    """The stream cut in two, at every byte."""
    return ((data[:at], data[at:]) for at in range(1, len(data)))
