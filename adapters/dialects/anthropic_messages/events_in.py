"""A stream of Anthropic's, back to events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from adapters.dialects.failures import failure_in_stream
from adapters.dialects.openai_usage import reported
from adapters.errors import UpstreamInvalid
from adapters.types import (
    ChatRequest,
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)

REASONS: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_OF_PROMPT = ("input", "written", "read")
_PLAIN = ("end_turn", "stop_sequence", "max_tokens", "tool_use")


class _CacheCreation(msgspec.Struct):
    ephemeral_1h_input_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    thinking_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """Fields that a later event leaves out keep what an earlier one said."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None
    output_tokens_details: _OutputDetails | None = None


class _Message(msgspec.Struct):
    usage: WireUsage | None = None


class _Block(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: Any = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _StopDetails(msgspec.Struct):
    explanation: str | None = None


class _Delta(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: _StopDetails | None = None


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: WireUsage | None = None


_decoder = msgspec.json.Decoder(_Event)


def parse_usage(*reports: WireUsage | None) -> Usage:
    """The usage that one report or several of a stream tell, the last word counting; one about nothing is none."""
    told: dict[str, int] = {}
    for report in reports:
        if report is None:
            continue
        given = {
            "input": report.input_tokens,
            "output": report.output_tokens,
            "written": report.cache_creation_input_tokens,
            "read": report.cache_read_input_tokens,
            "long": report.cache_creation and report.cache_creation.ephemeral_1h_input_tokens,
            "thought": report.output_tokens_details and report.output_tokens_details.thinking_tokens,
        }
        counts = {name: reported(value) for name, value in given.items() if isinstance(value, int)}
        # What of a prompt a cache had is taken out of the rest of it, of which nothing may be left.
        split = any(counts.get(name) for name in _OF_PROMPT)
        told |= {name: count for name, count in counts.items() if count or (split and name in _OF_PROMPT)}
    read, written = told.get("read", 0), told.get("written", 0)
    return Usage(
        prompt_tokens=told.get("input", 0) + read + written,
        completion_tokens=told.get("output", 0),
        cached_tokens=read,
        reasoning_tokens=min(told.get("thought", 0), told.get("output", 0)),
        cache_write_tokens=written,
        cache_write_1h_tokens=min(told.get("long", 0), written),
    )


class EventParser:
    """The events of one stream. Blocks that canonical events have no words for are left out."""

    def __init__(self, request: ChatRequest) -> None:
        self._reports: list[WireUsage | None] = []
        self._blocks: dict[int, str] = {}
        self._calls: dict[int, int] = {}
        self._silent: set[int] = set()
        self._end: ChoiceFinished | None = None
        self.done = False

    def feed(self, kind: str, payload: bytes) -> list[Event]:
        """The events of the next payload."""
        if kind == "error" or b'"error"' in payload:
            problem = failure_in_stream(payload)
            if problem is not None:
                raise problem
        try:
            str(payload, "utf-8")  # The decoder takes arguments without looking at their bytes.
            event = _decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UpstreamInvalid("The provider sent an event that is none.") from None
        if self.done:
            return []
        if not self._reports and event.type not in ("message_start", "ping"):
            raise UpstreamInvalid("The provider's answer did not begin as it should.")
        match event.type:
            case "message_start":
                return self._start(event)
            case "content_block_start":
                return self._begin(event.index, event.content_block or _Block())
            case "content_block_delta":
                return self._delta(event.index, event.delta or _Delta())
            case "content_block_stop":
                return self._stop(event.index)
            case "message_delta":
                return self._finish(event)
            case "message_stop":
                return self._last()
        return []

    def end(self) -> list[Event]:
        """Nothing; raises when the stream ended before its last event."""
        if not self.done:
            raise UpstreamInvalid("The provider's answer broke off.")
        return []

    def _start(self, event: _Event) -> list[Event]:
        if self._reports:
            raise UpstreamInvalid("The provider began its answer twice.")
        self._reports.append(event.message.usage if event.message is not None else None)
        usage = parse_usage(*self._reports)
        return [Started(usage.prompt_tokens, usage.cached_tokens)]

    def _begin(self, index: int, block: _Block) -> list[Event]:
        if index in self._blocks:
            raise UpstreamInvalid("The provider began a part of its answer twice.")
        self._blocks[index] = block.type
        match block.type:
            case "text":
                return [TextDelta(0, block.text)] if block.text else []
            case "thinking":
                signature = block.signature or None
                return [ReasoningDelta(0, block.thinking or "", signature)] if block.thinking or signature else []
            case "redacted_thinking":
                return [ReasoningDelta(0, "", redacted=block.data)] if isinstance(block.data, str) else []
            case "tool_use":
                if not block.id or not block.name:
                    raise UpstreamInvalid("The provider sent a tool call without a name.")
                self._calls[index] = number = len(self._calls)
                arguments = bytes(block.input).decode()
                if arguments in ("{}", "null"):
                    self._silent.add(index)
                    arguments = ""
                return [ToolCallDelta(0, number, arguments, block.id, block.name)]
        return []

    def _delta(self, index: int, delta: _Delta) -> list[Event]:
        kind = self._blocks.get(index)
        if kind is None:
            raise UpstreamInvalid("The provider continued a part of its answer that it had not begun.")
        match delta.type:
            case "text_delta" if kind == "text" and delta.text:
                return [TextDelta(0, delta.text)]
            case "thinking_delta" if kind == "thinking" and delta.thinking:
                return [ReasoningDelta(0, delta.thinking)]
            case "signature_delta" if kind == "thinking" and delta.signature:
                return [ReasoningDelta(0, "", delta.signature)]
            case "input_json_delta" if kind == "tool_use" and delta.partial_json:
                self._silent.discard(index)
                return [ToolCallDelta(0, self._calls[index], delta.partial_json)]
        return []

    def _stop(self, index: int) -> list[Event]:
        """A call of which nothing was said takes no arguments."""
        if index not in self._silent:
            return []
        self._silent.discard(index)
        return [ToolCallDelta(0, self._calls[index], "{}")]

    def _finish(self, event: _Event) -> list[Event]:
        self._reports.append(event.usage)
        delta = event.delta or _Delta()
        if delta.stop_reason is None or self._end is not None:
            return []
        reason = delta.stop_reason
        detail = None if reason in _PLAIN else reason
        self._end = ChoiceFinished(0, REASONS.get(reason, "stop"), False, delta.stop_sequence, detail)
        words = delta.stop_details.explanation if delta.stop_details is not None else None
        return [RefusalDelta(0, words)] if words else []

    def _last(self) -> list[Event]:
        if self._end is None:
            raise UpstreamInvalid("The provider's answer broke off.")
        self.done = True
        return [self._end, Finished(parse_usage(*self._reports))]
