"""Events in Anthropic's words: a stream's server-sent events, a whole message, errors, models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

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
    ModelCard,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    Thought,
    ToolCall,
    ToolCallDelta,
    Usage,
)

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

_REASONS: Mapping[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
# Anthropic's own words for what ended an answer, where the canonical ones say less.
_DETAILS = ("pause_turn", "model_context_window_exceeded", "refusal")

_encode = msgspec.json.Encoder().encode


def _event(kind: str, **fields: object) -> bytes:
    data = wire.one_line(_encode({"type": kind, **fields}))
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


class ChunkRenderer:
    """The events of one stream as Anthropic's: blocks that open and close one after the other.

    Raises `UpstreamInvalid` when a call goes on after another one has begun, since its block is closed by then.
    """

    def __init__(self, head: wire.ResponseHead, inbound: wire.Inbound[ChatRequest]) -> None:
        self._head = head
        self._hidden = inbound.request.thinking.shown is False
        self._block = -1
        self._open: str | int | None = None  # The kind of the open block, or the number of the call in it.
        self._calls: set[int] = set()
        self._before_text = b""
        self._end = ChoiceFinished(0, "stop")
        self._refusal: list[str] = []

    def render(self, event: Event) -> bytes:
        """The frames of the next event."""
        if type(event) is TextDelta:
            return self._text(event.text)
        match event:
            case Started():
                return self._start(event)
            case ReasoningDelta():
                return self._thought(event)
            case ToolCallDelta():
                return self._call(event)
            case RefusalDelta():
                self._refusal.append(event.text)
            case ChoiceFinished():
                self._end = event
                return self._close()
            case Finished():
                return self._finish(event.usage)
        return b""

    def _start(self, event: Started) -> bytes:
        usage = usage_fields(Usage(prompt_tokens=event.prompt_tokens, cached_tokens=event.cached_tokens))
        message = _message(self._head, []) | {"usage": usage} | wire.gateway_fields(event.cache)
        return _event("message_start", message=message) + PING

    def _text(self, text: str) -> bytes:
        if not text:
            return b""
        frames = b""
        if self._open != "text":
            frames = self._begin("text", {"type": "text", "text": ""})
            self._before_text = (
                b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
                b'"delta":{"type":"text_delta","text":' % self._block
            )
        return frames + self._before_text + wire.quoted(text) + b"}}\n\n"

    def _thought(self, event: ReasoningDelta) -> bytes:
        if event.redacted is not None:
            return self._begin("redacted", {"type": "redacted_thinking", "data": event.redacted}) + self._close()
        text = "" if self._hidden else event.text
        if not text and event.signature is None and (self._open == "thinking" or not self._hidden):
            return b""
        frames = b""
        if self._open != "thinking":
            frames = self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        if text:
            frames += self._delta("thinking_delta", thinking=text)
        if event.signature is not None:
            frames += self._delta("signature_delta", signature=event.signature) + self._close()
        return frames

    def _call(self, event: ToolCallDelta) -> bytes:
        frames = b""
        if self._open != event.index:
            if event.index in self._calls:
                raise UpstreamInvalid("The model's calls came mixed up.")
            self._calls.add(event.index)
            call = ToolCall(event.id or f"toolu_{event.index}", event.name or "", "{}")
            frames = self._begin(event.index, _call_block(call))
        return frames + self._delta("input_json_delta", partial_json=event.arguments) if event.arguments else frames

    def _begin(self, kind: str | int, block: dict[str, object]) -> bytes:
        closing = self._close()
        self._open = kind
        self._block += 1
        return closing + _event("content_block_start", index=self._block, content_block=block)

    def _delta(self, kind: str, **fields: object) -> bytes:
        return _event("content_block_delta", index=self._block, delta={"type": kind, **fields})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._block)

    def _finish(self, usage: Usage) -> bytes:
        end = self._end
        delta = _stop_fields(end.reason, end.stop_sequence, end.detail, "".join(self._refusal))
        return self._close() + _event("message_delta", delta=delta, usage=usage_fields(usage)) + STOP


def render_answer(head: wire.ResponseHead, request: ChatRequest, folded: wire.Folded) -> bytes:
    """The whole answer as a message: thoughts, then text, then calls."""
    choice = folded.choices[0]
    shown = request.thinking.shown is not False
    blocks = [_thought_block(thought, shown) for thought in whole(choice.thoughts)]
    if choice.text:
        blocks.append({"type": "text", "text": choice.text})
    blocks += [_call_block(call) for _, call in sorted(choice.calls.items())]
    stop = _stop_fields(choice.reason or "stop", choice.stop_sequence, choice.detail, choice.refusal)
    message = _message(head, blocks) | stop | {"usage": usage_fields(folded.usage)}
    return _encode(message | wire.gateway_fields(folded.cache))


def render_count(tokens: int) -> bytes:
    """The answer to a question for a number of tokens."""
    return _encode({"input_tokens": tokens})


def usage_fields(usage: Usage) -> dict[str, object]:
    """Anthropic's usage object, in which the parts of a prompt that a cache read or wrote stand beside the rest."""
    cached, written, long = usage.cached_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens
    return {
        "input_tokens": max(0, usage.prompt_tokens - cached - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "cache_creation": {"ephemeral_5m_input_tokens": max(0, written - long), "ephemeral_1h_input_tokens": long},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "service_tier": "standard",
    }


def _message(head: wire.ResponseHead, blocks: list[dict[str, object]]) -> dict[str, object]:
    return {
        "id": head.id,
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": blocks,
        "stop_reason": None,
        "stop_sequence": None,
    }


def _stop_fields(reason: FinishReason, sequence: str | None, detail: str | None, refusal: str) -> dict[str, object]:
    """Why an answer ended. Words of refusal stand in the details, where there is a field for them."""
    stop = "refusal" if refusal else _REASONS[reason]
    if stop == "end_turn" and sequence is not None:
        stop = "stop_sequence"
    elif detail in _DETAILS:
        stop = detail
    fields: dict[str, object] = {"stop_reason": stop, "stop_sequence": sequence}
    if refusal:
        fields["stop_details"] = {"type": "refusal", "category": None, "explanation": refusal}
    return fields


def _thought_block(thought: Thought, shown: bool) -> dict[str, object]:
    if thought.redacted is not None:
        return {"type": "redacted_thinking", "data": thought.redacted}
    return {"type": "thinking", "thinking": thought.text if shown else "", "signature": thought.signature or ""}


def _call_block(call: ToolCall) -> dict[str, object]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments_json(call.arguments)}


# Models


def render_model(name: str, created_s: int, card: ModelCard) -> bytes:
    """One model."""
    return _encode(_model(name, created_s, card))


def render_models(models: Sequence[tuple[str, int, ModelCard]], *, more: bool) -> bytes:
    """A page of them, each as its name, its Unix time of creation and its card; `more` follow."""
    ids = [name for name, _, _ in models]
    return _encode(
        {
            "data": [_model(*model) for model in models],
            "has_more": more,
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
        }
    )


def _model(name: str, created_s: int, card: ModelCard) -> dict[str, object]:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(created_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": card.context_tokens,
        "max_tokens": card.context_tokens,
    }
