"""Events in Gemini's words: the chunks of a stream, and a whole answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from adapters.dialects import openai_wire as wire
from adapters.dialects.gemini.events_in import REASONS
from adapters.dialects.gemini.request_in import own
from adapters.dialects.openai_thoughts import whole
from adapters.dialects.openai_tools import arguments_json
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
    ToolCall,
    ToolCallDelta,
    Usage,
)

Fields = dict[str, Any]

_WORDS: Mapping[FinishReason, str] = {
    "stop": "STOP",
    "length": "MAX_TOKENS",
    "tool_calls": "STOP",
    "content_filter": "SAFETY",
}

_encode = msgspec.json.Encoder().encode


class ChunkRenderer:
    """The events of one stream as chunks. A call is told when it is whole, as Gemini does it."""

    def __init__(self, head: wire.ResponseHead, inbound: wire.Inbound[ChatRequest]) -> None:
        self._fields: Fields = {"modelVersion": head.model, "responseId": head.id}
        self._usage: Fields = {}
        self._calls: dict[tuple[int, int], tuple[ToolCallDelta, list[str]]] = {}
        self._ends: list[Fields] = []
        self._refusals: dict[int, str] = {}

    def render(self, event: Event) -> bytes:
        """The frames of the next event."""
        match event:
            case Started():
                self._usage = {"promptTokenCount": event.prompt_tokens}
                if event.cached_tokens:
                    self._usage["cachedContentTokenCount"] = event.cached_tokens
            case TextDelta() if event.text:
                return self._parts(event.choice, {"text": event.text})
            case ReasoningDelta():
                return self._thought(event)
            case ToolCallDelta():
                return self._call(event)
            case RefusalDelta():
                self._refusals[event.choice] = self._refusals.get(event.choice, "") + event.text
            case ChoiceFinished():
                self._ends.append(_end(event, self._refusals.get(event.choice)))
                return self._whole_calls(event.choice)
            case Finished():
                self._usage = usage_fields(event.usage)
                return self._frame(self._ends)
        return b""

    def _thought(self, event: ReasoningDelta) -> bytes:
        part = _thought_part(event.text, event.signature)
        return b"" if part is None else self._parts(event.choice, part)

    def _call(self, event: ToolCallDelta) -> bytes:
        key = event.choice, event.index
        if key in self._calls:
            self._calls[key][1].append(event.arguments)
            return b""
        before = self._whole_calls(event.choice)
        self._calls[key] = (event, [event.arguments])
        return before

    def _whole_calls(self, choice: int) -> bytes:
        parts = [_call_part(*self._calls.pop(key)) for key in sorted(self._calls) if key[0] == choice]
        return self._frame([_candidate(choice, parts)]) if parts else b""

    def _parts(self, choice: int, part: Fields) -> bytes:
        return self._whole_calls(choice) + self._frame([_candidate(choice, [part])])

    def _frame(self, candidates: list[Fields]) -> bytes:
        chunk = {"candidates": candidates, "usageMetadata": self._usage, **self._fields}
        return b"data: " + wire.one_line(_encode(chunk)) + wire.FRAME_END


def render_answer(head: wire.ResponseHead, request: ChatRequest, folded: wire.Folded) -> bytes:
    """The whole answer as one chunk."""
    candidates = []
    for index, choice in enumerate(folded.choices):
        thoughts = [_thought_part(thought.text, thought.signature) for thought in whole(choice.thoughts)]
        parts = [part for part in thoughts if part is not None]
        parts += [{"text": choice.text}] if choice.text else []
        parts += [_function_call(call) for _, call in sorted(choice.calls.items())]
        end = ChoiceFinished(index, choice.reason or "stop", detail=choice.detail)
        candidates.append(_candidate(index, parts) | _end(end, choice.refusal or None))
    usage = usage_fields(folded.usage)
    return _encode(
        {"candidates": candidates, "usageMetadata": usage, "modelVersion": head.model, "responseId": head.id}
    )


def usage_fields(usage: Usage) -> Fields:
    """Gemini's usage object, in which thoughts stand beside the answer."""
    fields = {
        "promptTokenCount": usage.prompt_tokens,
        "candidatesTokenCount": max(0, usage.completion_tokens - usage.reasoning_tokens),
        "totalTokenCount": usage.prompt_tokens + usage.completion_tokens,
        "cachedContentTokenCount": usage.cached_tokens,
        "thoughtsTokenCount": usage.reasoning_tokens,
    }
    details: Fields = {}
    if usage.prompt_audio_tokens:
        details["promptTokensDetails"] = [{"modality": "AUDIO", "tokenCount": usage.prompt_audio_tokens}]
    if usage.completion_audio_tokens:
        details["candidatesTokensDetails"] = [{"modality": "AUDIO", "tokenCount": usage.completion_audio_tokens}]
    return {name: value for name, value in fields.items() if value or name == "promptTokenCount"} | details


def _candidate(choice: int, parts: list[Fields]) -> Fields:
    return {"content": {"role": "model", "parts": parts}, "index": choice}


def _end(event: ChoiceFinished, refusal: str | None) -> Fields:
    own = event.detail is not None and (event.detail in REASONS or event.detail.isupper())
    fields: Fields = {"finishReason": event.detail if own else _WORDS[event.reason], "index": event.choice}
    if refusal:
        fields |= {"finishMessage": refusal}
        if event.reason != "content_filter":
            fields["finishReason"] = "SAFETY"
    return fields


def _thought_part(text: str, signature: str | None) -> Fields | None:
    """A thought, or the end of one; None where nothing of it is left for Gemini's clients."""
    proof = _proof(signature)
    return {"text": text, "thought": True} | proof if text or proof else None


def _call_part(first: ToolCallDelta, pieces: list[str]) -> Fields:
    return _function_call(ToolCall(first.id or "", first.name or "", "".join(pieces), first.signature))


def _function_call(call: ToolCall) -> Fields:
    made = {"id": call.id, "name": call.name, "args": arguments_json(call.arguments)}
    return {"functionCall": made} | _proof(call.signature)


def _proof(signature: str | None) -> Fields:
    """Nobody but their makers can read signatures, so that those of others are left out."""
    proof = own(signature)
    return {} if proof is None else {"thoughtSignature": proof}
