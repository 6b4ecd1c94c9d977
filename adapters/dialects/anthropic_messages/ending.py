"""How a message that is passed on ends where somebody ended it."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from adapters.dialects.anthropic_messages.events_out import STOP
from adapters.dialects.endings import Fields, decode, encode, framed
from adapters.dialects.passing import decoded
from adapters.types import Inbound, Usage

_REFUSED: Fields = {"stop_reason": "refusal", "stop_sequence": None}


class _Event(msgspec.Struct):
    """What is read of an event."""

    type: str = ""
    index: int = 0


_events = msgspec.json.Decoder(_Event)


class MessageEnding:
    """`Ending` of a message, which is one choice of blocks, one open at a time."""

    def __init__(self, inbound: Inbound) -> None:
        self._open: int | None = None

    def opened(self, payload: bytes) -> None:
        """It is read when it is shown."""

    def noted(self, payload: bytes) -> None:
        event = decoded(_events, payload)
        if event.type == "content_block_start":
            self._open = event.index
        elif event.type == "content_block_stop":
            self._open = None

    def blocked(self, choice: int) -> bytes:
        index, self._open = self._open, None
        stop = {"type": "content_block_stop", "index": index}
        return b"" if index is None else framed(stop, "content_block_stop")

    def end(self, usage: Usage) -> bytes:
        used = {"output_tokens": usage.completion_tokens}
        return framed({"type": "message_delta", "delta": _REFUSED, "usage": used}, "message_delta") + STOP

    def whole(self, body: bytes, choices: Collection[int]) -> bytes:
        return encode({**decode(body), "content": [], **_REFUSED})
