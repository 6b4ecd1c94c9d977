"""Canonical events as the events of a response, and the whole of one."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from adapters.dialects import openai_wire as wire
from adapters.dialects.openai_responses.objects import (
    INCOMPLETE,
    Fields,
    call_item,
    ended,
    message_item,
    reasoning_item,
    refusal_part,
    response,
    text_part,
)
from adapters.dialects.openai_responses.request_in import ResponsesInbound
from adapters.dialects.openai_thoughts import whole
from adapters.errors import UpstreamInvalid
from adapters.types import (
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

_encode = msgspec.json.Encoder().encode

Kind = Literal["reasoning", "text", "refusal", "call"]
_EVENTS: dict[Kind, tuple[str, str]] = {
    "reasoning": ("response.reasoning_summary_text", "text"),
    "text": ("response.output_text", "text"),
    "refusal": ("response.refusal", "refusal"),
    "call": ("response.function_call_arguments", "arguments"),
}
_PREFIXES: dict[Kind, str] = {"reasoning": "rs", "text": "msg", "refusal": "msg", "call": "fc"}


class _Open:
    """The item that is being written. `call` is the one it is, and `number` that among the calls."""

    def __init__(self, kind: Kind, id: str, index: int, call: ToolCall | None, number: int | None) -> None:
        self.kind = kind
        self.id = id
        self.index = index
        self.call = call
        self.number = number
        self.parts: list[str] = []
        self.signature: str | None = None
        self.logprobs: list[Fields] = []


class ChunkRenderer:
    """The events of one stream, one item after the other.

    Raises `UpstreamInvalid` when a call goes on after something else has begun, since its item is closed by then.
    """

    def __init__(self, head: wire.ResponseHead, inbound: ResponsesInbound) -> None:
        self._head = head
        self._inbound = inbound
        self._number = 0
        self._output: list[Fields] = []
        self._open: _Open | None = None
        self._calls: set[int] = set()
        self._tokens: list[Fields] = []
        self._reason: FinishReason | None = None
        self._more: Fields = {}

    def render(self, event: Event) -> bytes:
        """The frames of the next event."""
        match event:
            case Started():
                self._more = wire.gateway_fields(event.cache)
                made = self._response("in_progress")
                return self._frame("response.created", response=made) + self._frame(
                    "response.in_progress", response=made
                )
            case TextDelta():
                return self._text(event)
            case RefusalDelta():
                return self._delta("refusal", event.text)
            case ReasoningDelta():
                return self._reasoning(event)
            case ToolCallDelta():
                return self._call(event)
            case ChoiceFinished():
                self._reason = event.reason
                return self._close()
            case Finished():
                made = ended(self._response("completed"), self._reason, event.usage)
                return self._frame(f"response.{made['status']}", response=made)

    def _text(self, event: TextDelta) -> bytes:
        """Tokens without a text wait for it, but for those of calls, which some tell like that and nobody is told."""
        kind = None if self._open is None else self._open.kind
        if event.text or kind != "call":
            self._tokens += _logprobs(event.logprobs)
        if not event.text and kind != "text":
            return b""
        tokens, self._tokens = self._tokens, []
        return self._delta("text", event.text, tokens)

    def _reasoning(self, event: ReasoningDelta) -> bytes:
        frames = self._delta("reasoning", event.text) if event.text else b""
        if event.signature is not None:
            if self._open is None or self._open.kind != "reasoning":
                frames += self._close() + self._begin("reasoning")
            if self._open is not None:
                self._open.signature = event.signature
            frames += self._close()
        return frames

    def _call(self, event: ToolCallDelta) -> bytes:
        frames = b""
        if self._open is None or self._open.number != event.index:
            if event.index in self._calls:
                raise UpstreamInvalid("The model's calls came mixed up.")
            self._calls.add(event.index)
            self._tokens.clear()
            call = ToolCall(event.id or f"call_{event.index}", event.name or "", "")
            frames = self._close() + self._begin("call", call, event.index)
        return frames + (self._delta("call", event.arguments) if event.arguments else b"")

    def _delta(self, kind: Kind, text: str, logprobs: list[Fields] | None = None) -> bytes:
        frames = b""
        if self._open is None or self._open.kind != kind:
            frames = self._close() + self._begin(kind)
        item = self._open
        assert item is not None
        item.parts.append(text)
        item.logprobs += logprobs or []
        more = {"logprobs": logprobs or []} if kind == "text" else {}
        return frames + self._of(item, _EVENTS[kind][0] + ".delta", delta=text, **more)

    def _begin(self, kind: Kind, call: ToolCall | None = None, number: int | None = None) -> bytes:
        index = len(self._output)
        id = f"{_PREFIXES[kind]}_{self._head.id.removeprefix('resp_')}_{index}"
        self._open = item = _Open(kind, id, index, call, number)
        match kind:
            case "call":
                assert call is not None
                made = call_item(id, call, "in_progress")
            case "reasoning":
                made = reasoning_item(id, "", None, shown=False) | {"status": "in_progress"}
            case _:
                made = message_item(id, [], "in_progress")
        added = self._frame("response.output_item.added", output_index=index, item=made)
        if kind == "reasoning":
            part: Fields = {"type": "summary_text", "text": ""}
            return added + self._of(item, "response.reasoning_summary_part.added", part=part)
        if kind == "call":
            return added
        part = text_part("") if kind == "text" else refusal_part("")
        return added + self._of(item, "response.content_part.added", part=part)

    def _close(self) -> bytes:
        """End the item that is open."""
        item, self._open = self._open, None
        if item is None:
            return b""
        text, (event, field) = "".join(item.parts), _EVENTS[item.kind]
        more: Fields = {"logprobs": item.logprobs} if item.kind == "text" else {}
        if item.call is not None:
            more["name"] = item.call.name
        frames = self._of(item, event + ".done", **{field: text}, **more)
        match item.kind:
            case "call":
                assert item.call is not None
                made = call_item(item.id, ToolCall(item.call.id, item.call.name, text))
            case "reasoning":
                part: Fields = {"type": "summary_text", "text": text}
                frames += self._of(item, "response.reasoning_summary_part.done", part=part)
                made = reasoning_item(item.id, text, item.signature, self._inbound.thoughts)
            case _:
                part = text_part(text, item.logprobs) if item.kind == "text" else refusal_part(text)
                frames += self._of(item, "response.content_part.done", part=part)
                made = message_item(item.id, [part], "incomplete" if self._reason in INCOMPLETE else "completed")
        self._output.append(made)
        return frames + self._frame("response.output_item.done", output_index=item.index, item=made)

    def _of(self, item: _Open, kind: str, **fields: Any) -> bytes:
        place = {} if item.kind == "call" else {"summary_index" if item.kind == "reasoning" else "content_index": 0}
        return self._frame(kind, item_id=item.id, output_index=item.index, **place, **fields)

    def _frame(self, kind: str, **fields: Any) -> bytes:
        payload = _encode({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + wire.one_line(payload) + b"\n\n"

    def _response(self, status: str) -> Fields:
        return response(self._head, self._inbound, status, list(self._output)) | self._more


def render_answer(head: wire.ResponseHead, inbound: ResponsesInbound, folded: wire.Folded) -> bytes:
    """The whole of a response."""
    (choice,) = folded.choices
    id, output = head.id.removeprefix("resp_"), list[Fields]()
    for thought in whole(choice.thoughts):
        if thought.redacted is None:
            output.append(reasoning_item(f"rs_{id}_{len(output)}", thought.text, thought.signature, inbound.thoughts))
    if choice.text or choice.refusal or not choice.calls:
        said = [text_part(choice.text, _logprobs(tuple(choice.logprobs)))] if choice.text or not choice.refusal else []
        parts = said + ([refusal_part(choice.refusal)] if choice.refusal else [])
        status = "incomplete" if choice.reason in INCOMPLETE else "completed"
        output.append(message_item(f"msg_{id}_{len(output)}", parts, status))
    for _, call in sorted(choice.calls.items()):
        output.append(call_item(f"fc_{id}_{len(output)}", call))
    made = ended(response(head, inbound, "completed", output), choice.reason, folded.usage)
    return _encode(made | wire.gateway_fields(folded.cache))


def render_count(tokens: int) -> bytes:
    """How long an input is."""
    return _encode({"object": "response.input_tokens", "input_tokens": tokens})


def _logprobs(tokens: tuple[TokenLogprob, ...]) -> list[Fields]:
    return [
        {**_token(token.raw, token.logprob), "top_logprobs": [_token(top.raw, top.logprob) for top in token.top]}
        for token in tokens
    ]


def _token(raw: bytes, logprob: float | None) -> Fields:
    value = wire.LOGPROB_MIN if logprob is None else max(logprob, wire.LOGPROB_MIN)
    return {"token": wire.token_text(raw), "logprob": value, "bytes": list(raw)}
