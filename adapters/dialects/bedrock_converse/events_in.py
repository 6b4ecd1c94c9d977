"""A ConverseStream, back to events."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from adapters.dialects.bedrock_converse.fields import Wire
from adapters.dialects.openai_usage import reported
from adapters.errors import UpstreamInvalid
from adapters.types import (
    CacheLifetime,
    ChatRequest,
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)

REASONS: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",
    "refusal": "content_filter",
}
_PLAIN = ("end_turn", "stop_sequence", "max_tokens", "tool_use", "content_filtered")


class _CacheDetail(Wire):
    ttl: CacheLifetime | str = ""
    input_tokens: int | None = None


class WireUsage(Wire):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_write_input_tokens: int | None = None
    cache_details: list[_CacheDetail] | None = None


class _ToolUse(Wire):
    tool_use_id: str = ""
    name: str = ""
    input: str = ""
    type: str | None = None


class _Reasoning(Wire):
    text: str | None = None
    signature: str | None = None
    redacted_content: str | None = None


class _Start(Wire):
    tool_use: _ToolUse | None = None


class _Delta(Wire):
    text: str | None = None
    tool_use: _ToolUse | None = None
    reasoning_content: _Reasoning | None = None


class _More(msgspec.Struct):
    stop_sequence: str | None = None


class _Event(Wire):
    content_block_index: int = 0
    start: _Start | None = None
    delta: _Delta | None = None
    stop_reason: str | None = None
    additional_model_response_fields: _More | None = None
    usage: WireUsage | None = None


_decoder = msgspec.json.Decoder(_Event)


def parse_usage(given: WireUsage) -> Usage:
    """What a cache read or wrote is no part of what Amazon counts as input."""
    read, written = reported(given.cache_read_input_tokens), reported(given.cache_write_input_tokens)
    long = sum(reported(one.input_tokens) for one in given.cache_details or [] if one.ttl == "1h")
    return Usage(
        prompt_tokens=reported(given.input_tokens) + read + written,
        completion_tokens=reported(given.output_tokens),
        cached_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=min(long, written),
    )


class EventParser:
    """The events of one stream. How long the prompt is becomes known at its end."""

    def __init__(self, request: ChatRequest) -> None:
        self._started = False
        self._calls: dict[int, int] = {}
        self._silent: set[int] = set()
        self._end: ChoiceFinished | None = None
        self._usage: Usage | None = None

    def feed(self, kind: str, payload: bytes) -> list[Event]:
        """The events of the next message, whose type is `kind`."""
        try:
            event = _decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UpstreamInvalid("The provider sent a message that is none.") from None
        if kind == "messageStart":
            if self._started:
                raise UpstreamInvalid("The provider began its answer twice.")
            self._started = True
            return [Started(prompt_tokens=0)]
        if not self._started:
            raise UpstreamInvalid("The provider's answer did not begin as it should.")
        match kind:
            case "contentBlockStart" if event.start is not None and event.start.tool_use is not None:
                return self._call(event.content_block_index, event.start.tool_use)
            case "contentBlockDelta":
                return self._delta(event.content_block_index, event.delta or _Delta())
            case "contentBlockStop" if event.content_block_index in self._silent:
                self._silent.discard(event.content_block_index)
                return [ToolCallDelta(0, self._calls[event.content_block_index], "{}")]
            case "messageStop":
                return self._stop(event)
            case "metadata" if event.usage is not None:
                self._usage = parse_usage(event.usage)
        return []

    @property
    def done(self) -> bool:
        """Its usage is the last that comes."""
        return self._end is not None and self._usage is not None

    def end(self) -> list[Event]:
        """The last event; raises when the stream ended before its end was said."""
        if self._end is None:
            raise UpstreamInvalid("The provider's answer broke off.")
        return [Finished(self._usage or Usage())]

    def _call(self, index: int, use: _ToolUse) -> list[Event]:
        if use.type is not None:
            return []
        if not use.tool_use_id or not use.name or index in self._calls:
            raise UpstreamInvalid("The provider sent a tool call that cannot be.")
        self._calls[index] = number = len(self._calls)
        self._silent.add(index)
        return [ToolCallDelta(0, number, "", use.tool_use_id, use.name)]

    def _delta(self, index: int, delta: _Delta) -> list[Event]:
        if delta.text:
            return [TextDelta(0, delta.text)]
        if delta.tool_use is not None and delta.tool_use.input and index in self._calls:
            self._silent.discard(index)
            return [ToolCallDelta(0, self._calls[index], delta.tool_use.input)]
        if (thought := delta.reasoning_content) is not None:
            if thought.redacted_content:
                return [ReasoningDelta(0, "", redacted=thought.redacted_content)]
            if thought.text or thought.signature:
                return [ReasoningDelta(0, thought.text or "", thought.signature or None)]
        return []

    def _stop(self, event: _Event) -> list[Event]:
        if self._end is not None:
            return []
        word = event.stop_reason or "end_turn"
        more = event.additional_model_response_fields
        self._end = ChoiceFinished(
            0,
            REASONS.get(word, "stop"),
            word == "malformed_tool_use",
            more.stop_sequence if more is not None else None,
            None if word in _PLAIN else word,
        )
        return [self._end]
