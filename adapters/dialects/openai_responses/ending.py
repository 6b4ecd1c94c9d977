"""How a response that is passed on ends where somebody ended it."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from adapters.dialects.endings import Fields, decode, encode, framed
from adapters.dialects.openai_responses.objects import usage_fields
from adapters.dialects.passing import decoded
from adapters.types import Inbound, Usage

_FILTERED: Fields = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}


class _Event(msgspec.Struct):
    """What is read of an event."""

    type: str = ""
    sequence_number: int = 0
    output_index: int = 0
    content_index: int = 0
    response: Fields | None = None
    item: Fields | None = None
    part: Fields | None = None
    delta: str = ""


_events = msgspec.json.Decoder(_Event)


class ResponseEnding:
    """`Ending` of a response: its items as far as they were shown, those that were open `incomplete`."""

    def __init__(self, inbound: Inbound) -> None:
        self._response: Fields = {"object": "response"}
        self._items: dict[int, Fields] = {}
        self._open: set[int] = set()
        self._number = 0

    def opened(self, payload: bytes) -> None:
        """It is read when it is shown."""

    def noted(self, payload: bytes) -> None:
        event = decoded(_events, payload)
        self._number = event.sequence_number + 1
        if event.response is not None:
            self._response = event.response
        elif event.item is not None:
            self._items[event.output_index] = event.item
            (self._open.discard if event.type == "response.output_item.done" else self._open.add)(event.output_index)
        elif event.output_index in self._open:
            self._said(self._items[event.output_index], event)

    def _said(self, item: Fields, event: _Event) -> None:
        """Note what becomes of an item while it is written."""
        parts = item.setdefault("content", []) if item.get("type") == "message" else []
        if event.part is not None and item.get("type") == "message":
            parts.append(event.part)
        elif event.type == "response.output_text.delta" and event.content_index < len(parts):
            part = parts[event.content_index]
            part["text"] = part.get("text", "") + event.delta
        elif event.type == "response.function_call_arguments.delta":
            item["arguments"] = item.get("arguments", "") + event.delta

    def blocked(self, choice: int) -> bytes:
        frames = []
        for index in sorted(self._open):
            item = self._items[index] = {**self._items[index], "status": "incomplete"}
            for at, part in enumerate(item.get("content", ()) if item.get("type") == "message" else ()):
                of = {"item_id": item.get("id"), "output_index": index, "content_index": at}
                if part.get("type") == "output_text":
                    frames.append(self._frame("response.output_text.done", **of, text=part.get("text"), logprobs=[]))
                frames.append(self._frame("response.content_part.done", **of, part=part))
            frames.append(self._frame("response.output_item.done", output_index=index, item=item))
        return b"".join(frames)

    def end(self, usage: Usage) -> bytes:
        output = [self._items[index] for index in sorted(self._items)]
        response = {**self._response, **_FILTERED, "output": output, "usage": usage_fields(usage)}
        return self._frame("response.incomplete", response=response)

    def _frame(self, kind: str, **fields: object) -> bytes:
        self._number += 1
        return framed({"type": kind, "sequence_number": self._number - 1, **fields}, kind)

    def whole(self, body: bytes, choices: Collection[int]) -> bytes:
        return encode({**decode(body), **_FILTERED, "output": []})
