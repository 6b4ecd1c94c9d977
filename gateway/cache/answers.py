"""Answers as they are kept: who gave them, what they used, and everything they consist of, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec

from adapters.backlog import drained
from adapters.types import (
    ChoiceFinished,
    Embeddings,
    Event,
    Finished,
    Outlet,
    Ranking,
    ReasoningDelta,
    RefusalDelta,
    Relayed,
    Served,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)

# After so many pieces of one answer others get their turn.
PIECES_PER_TURN = 64


class Begun(msgspec.Struct, frozen=True):
    """A stream of bytes begins."""

    content_type: str


class Piece(msgspec.Struct, frozen=True):
    """Whole events of it, as they were written."""

    data: bytes
    outputs: int


Item = Event | Embeddings | Ranking | Begun | Piece | Relayed

# The place of a type in here is how its items are marked, so that new ones go to the end.
KINDS: tuple[type[Item], ...] = (
    Started,
    TextDelta,
    ReasoningDelta,
    RefusalDelta,
    ToolCallDelta,
    ChoiceFinished,
    Finished,
    Embeddings,
    Ranking,
    Begun,
    Piece,
    Relayed,
)
_PLACES = {kind: place for place, kind in enumerate(KINDS)}


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """`at_us` is the Unix time of its end."""

    at_us: int
    usage: Usage
    served: Served | None
    items: tuple[tuple[int, msgspec.Raw], ...]

    def __iter__(self) -> Iterator[Item]:
        for place, raw in self.items:
            yield msgspec.msgpack.decode(raw, type=KINDS[place])

    async def events(self) -> AsyncIterator[Event]:
        """The events of a canonical answer. Who gave it and how long that took are no longer true."""
        for count, item in enumerate(self, 1):
            if isinstance(item, Started):
                item = Started(item.prompt_tokens, item.cached_tokens)
            elif isinstance(item, Finished):
                item = Finished(item.usage, estimated=item.estimated)
            yield item  # type: ignore[misc]  # Only events were recorded.
            if count % PIECES_PER_TURN == 0:
                await asyncio.sleep(0)

    async def relay(self, sink: Outlet) -> Relayed:
        """Write an answer that was passed on into a sink, as fast as that takes it; raises ValueError for another."""
        for count, item in enumerate(self, 1):
            match item:
                case Begun():
                    sink.begin(item.content_type)
                case Piece():
                    if not sink.write(item.data, item.outputs):
                        await drained(sink)
                case Relayed():
                    return item
            if count % PIECES_PER_TURN == 0:
                await asyncio.sleep(0)
        raise ValueError("an answer without an end")


def read(blob: bytes) -> Answer | None:
    """What a recording has made; None when it is none, as one of another release may be."""
    try:
        answer = msgspec.msgpack.decode(blob, type=Answer)
        # Each item is read before the first is shown, so that a bad one is a miss and no broken answer.
        for _ in answer:
            pass
    except (msgspec.DecodeError, IndexError):
        return None
    return answer


class Tape:
    """Records the items of an answer."""

    def __init__(self) -> None:
        self._items: list[msgspec.Raw] = []
        self.size = 0
        self.usage = Usage()
        self.served: Served | None = None

    def add(self, item: Item) -> int:
        """How much longer it has become, in bytes."""
        packed = msgspec.msgpack.encode((_PLACES[type(item)], item))
        self._items.append(msgspec.Raw(packed))
        self.size += len(packed)
        return len(packed)

    def cut(self, at_us: int) -> bytes:
        """All of it, as `read` reads it."""
        return msgspec.msgpack.encode((at_us, self.usage, self.served, self._items))
