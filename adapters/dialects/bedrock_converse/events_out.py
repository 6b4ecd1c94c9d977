"""Events in the words of the Converse API: the messages of an event stream, and a whole answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from adapters.aws import event_message
from adapters.dialects import openai_wire as wire
from adapters.dialects.openai_thoughts import whole
from adapters.dialects.openai_tools import arguments_json
from adapters.errors import UpstreamInvalid
from adapters.types import (
    ChatRequest,
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    Thought,
    ToolCall,
    ToolCallDelta,
    Usage,
)

Fields = dict[str, Any]

_WORDS: Mapping[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "content_filtered",
}
_DETAILS = (
    "guardrail_intervened",
    "model_context_window_exceeded",
    "malformed_model_output",
    "malformed_tool_use",
)

_encode = msgspec.json.Encoder().encode


class ChunkRenderer:
    """The events of one stream as messages: blocks that open and close one after the other.

    Raises `UpstreamInvalid` when a call goes on after another one has begun, since its block is closed by then.
    """

    def __init__(self, head: wire.ResponseHead, inbound: wire.Inbound[ChatRequest]) -> None:
        self._block = -1
        self._open: str | int | None = None
        self._calls: set[int] = set()

    def render(self, event: Event) -> bytes:
        """The messages of the next event."""
        match event:
            case Started():
                return _message("messageStart", {"role": "assistant"})
            case TextDelta() if event.text:
                return self._begin("text") + self._delta({"text": event.text})
            case ReasoningDelta():
                return self._thought(event)
            case ToolCallDelta():
                return self._call(event)
            case ChoiceFinished():
                return self._close() + _message("messageStop", _stop_fields(event))
            case Finished():
                return _message("metadata", {"usage": usage_fields(event.usage), "metrics": {"latencyMs": 0}})
        return b""

    def _thought(self, event: ReasoningDelta) -> bytes:
        if event.redacted is not None:
            thought = {"redactedContent": event.redacted}
            return self._close() + self._begin("redacted") + self._delta({"reasoningContent": thought}) + self._close()
        messages = b""
        if event.text:
            messages += self._begin("thought") + self._delta({"reasoningContent": {"text": event.text}})
        if event.signature is not None:
            thought = {"signature": event.signature}
            messages += self._begin("thought") + self._delta({"reasoningContent": thought}) + self._close()
        return messages

    def _call(self, event: ToolCallDelta) -> bytes:
        messages = b""
        if self._open != event.index:
            if event.index in self._calls:
                raise UpstreamInvalid("The model's calls came mixed up.")
            self._calls.add(event.index)
            messages = self._begin(event.index)
            use = {"toolUseId": event.id or f"call_{event.index}", "name": event.name or ""}
            messages += _message("contentBlockStart", {"start": {"toolUse": use}, "contentBlockIndex": self._block})
        return messages + (self._delta({"toolUse": {"input": event.arguments}}) if event.arguments else b"")

    def _begin(self, kind: str | int) -> bytes:
        if self._open == kind:
            return b""
        closing = self._close()
        self._open = kind
        self._block += 1
        return closing

    def _delta(self, delta: Fields) -> bytes:
        return _message("contentBlockDelta", {"delta": delta, "contentBlockIndex": self._block})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _message("contentBlockStop", {"contentBlockIndex": self._block})


def _message(kind: str, fields: Fields) -> bytes:
    return event_message(kind, _encode(fields))


def render_answer(head: wire.ResponseHead, request: ChatRequest, folded: wire.Folded) -> bytes:
    """The whole answer."""
    choice = folded.choices[0]
    content: list[Fields] = [{"reasoningContent": _thought(thought)} for thought in whole(choice.thoughts)]
    if choice.text:
        content.append({"text": choice.text})
    content += [_tool_use(call) for _, call in sorted(choice.calls.items())]
    end = ChoiceFinished(0, choice.reason or "stop", False, choice.stop_sequence, choice.detail)
    answer = {
        "output": {"message": {"role": "assistant", "content": content}},
        **_stop_fields(end),
        "usage": usage_fields(folded.usage),
        "metrics": {"latencyMs": 0},
    }
    return _encode(answer)


def _thought(thought: Thought) -> Fields:
    if thought.redacted is not None:
        return {"redactedContent": thought.redacted}
    signature = {} if thought.signature is None else {"signature": thought.signature}
    return {"reasoningText": {"text": thought.text} | signature}


def _tool_use(call: ToolCall) -> Fields:
    return {"toolUse": {"toolUseId": call.id, "name": call.name, "input": arguments_json(call.arguments)}}


def _stop_fields(end: ChoiceFinished) -> Fields:
    word = _WORDS[end.reason]
    if end.detail in _DETAILS:
        word = end.detail
    if end.reason != "stop" or end.stop_sequence is None:
        return {"stopReason": word}
    return {"stopReason": "stop_sequence", "additionalModelResponseFields": {"stop_sequence": end.stop_sequence}}


def usage_fields(usage: Usage) -> Fields:
    """Amazon's usage object, in which the parts of a prompt that a cache read or wrote stand beside the rest."""
    read, written, long = usage.cached_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens
    fields: Fields = {
        "inputTokens": max(0, usage.prompt_tokens - read - written),
        "outputTokens": usage.completion_tokens,
        "totalTokens": usage.prompt_tokens + usage.completion_tokens,
        "cacheReadInputTokens": read,
        "cacheWriteInputTokens": written,
    }
    if written:
        details = [{"ttl": "5m", "inputTokens": written - long}, {"ttl": "1h", "inputTokens": long}]
        fields["cacheDetails"] = [one for one in details if one["inputTokens"]]
    return fields
