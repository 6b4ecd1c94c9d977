"""Streams of the Responses API as canonical events."""

from __future__ import annotations

import msgspec

from adapters.conversation import OPENAI
from adapters.dialects.failures import failure_in_stream
from adapters.dialects.openai_usage import WireUsage, parse_usage
from adapters.errors import AdapterError, UpstreamInvalid, UpstreamRefused
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
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)

_encode = msgspec.json.Encoder().encode


class _Item(msgspec.Struct):
    type: str = ""
    call_id: str | None = None
    name: str | None = None
    encrypted_content: str | None = None


class _Top(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Token(_Top):
    top_logprobs: list[_Top] = []


class _Details(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    usage: WireUsage | None = None
    incomplete_details: _Details | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Event(msgspec.Struct):
    type: str
    delta: str | None = None
    output_index: int = 0
    summary_index: int = 0
    item: _Item | None = None
    response: _Response | None = None
    logprobs: list[_Token] = []


_decoder = msgspec.json.Decoder(_Event)

ENDS = ("response.completed", "response.incomplete", "response.failed", "error")
_REASONS: dict[str, FinishReason] = {"max_output_tokens": "length", "content_filter": "content_filter"}


def failed(error: bytes | msgspec.Raw) -> AdapterError:
    """What an event of type `error`, or the error of a response, means."""
    given = bytes(error)
    problem = failure_in_stream(given) or failure_in_stream(b'{"error":%b}' % given)
    return problem or UpstreamRefused("The provider of this model failed.", 500)


class _Call:
    """A call whose pieces wait until those before it are over."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.waiting: list[Event] = []
        self.over = False


class EventParser:
    """The events of one stream. Pieces of several calls may come mixed; they are told one call after the other."""

    def __init__(self, request: ChatRequest) -> None:
        self._started = False
        self._calls: dict[int, _Call] = {}
        self._usage: Usage | None = None
        self._reason: FinishReason = "stop"

    def feed(self, kind: str, payload: bytes) -> list[Event]:
        """The events of the next one."""
        if self._usage is not None or not payload or payload == b"[DONE]":
            return []
        try:
            event = _decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise failure_in_stream(payload) or UpstreamInvalid("The provider sent an event that is none.") from None
        if event.type in ENDS:
            self._end(event, payload)
        events: list[Event] = [] if self._started else [Started(prompt_tokens=0)]
        self._started = True
        return events + self._deltas(event)

    @property
    def done(self) -> bool:
        """One event ends it."""
        return self._usage is not None

    def end(self) -> list[Event]:
        """What closes the stream."""
        if self._usage is None:
            raise UpstreamInvalid("The provider's answer broke off.")
        for call in self._calls.values():
            call.over = True
        reason = "tool_calls" if self._calls and self._reason == "stop" else self._reason
        return [*self._due(), ChoiceFinished(0, reason), Finished(self._usage)]

    def _end(self, event: _Event, payload: bytes) -> None:
        response = event.response or _Response()
        if event.type in ("error", "response.failed"):
            raise failed(response.error if event.type == "response.failed" else payload)
        self._usage = parse_usage(response.usage or WireUsage())
        if event.type == "response.incomplete":
            details = response.incomplete_details or _Details()
            self._reason = _REASONS.get(details.reason or "", "length")

    def _deltas(self, event: _Event) -> list[Event]:
        text = event.delta or ""
        match event.type:
            case "response.output_text.delta" if text or event.logprobs:
                return [TextDelta(0, text, _logprobs(event.logprobs))]
            case "response.refusal.delta" if text:
                return [RefusalDelta(0, text)]
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" if text:
                return [ReasoningDelta(0, text)]
            case "response.reasoning_summary_part.added" if event.summary_index:
                return [ReasoningDelta(0, "\n\n")]
            case "response.output_item.added" if event.item is not None and event.item.type == "function_call":
                return self._call(event.output_index, event.item)
            case "response.function_call_arguments.delta" if text:
                call = self._calls.get(event.output_index)
                if call is None:
                    raise UpstreamInvalid("The provider sent arguments of no call.")
                call.waiting.append(ToolCallDelta(0, call.index, text))
                return self._due()
            case "response.output_item.done" if (call := self._calls.get(event.output_index)) is not None:
                call.over = True
                return self._due()
            case "response.output_item.done" if event.item is not None and event.item.encrypted_content:
                return [ReasoningDelta(0, "", OPENAI + event.item.encrypted_content)]
        return []

    def _call(self, output_index: int, item: _Item) -> list[Event]:
        if not item.name or not item.call_id or output_index in self._calls:
            raise UpstreamInvalid("The provider sent a tool call without a name, or in the place of another one.")
        call = self._calls[output_index] = _Call(len(self._calls))
        call.waiting.append(ToolCallDelta(0, call.index, "", item.call_id, item.name))
        return self._due()

    def _due(self) -> list[Event]:
        """What has come of the first call that is not over, and of all before it."""
        events: list[Event] = []
        for call in self._calls.values():
            events += call.waiting
            call.waiting.clear()
            if not call.over:
                break
        return events


def _logprobs(tokens: list[_Token]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(
            -1, token.logprob, _raw(token), tuple(TopLogprob(-1, top.logprob, _raw(top)) for top in token.top_logprobs)
        )
        for token in tokens
    )


def _raw(token: _Top) -> bytes:
    try:
        return token.token.encode() if token.bytes is None else bytes(token.bytes)
    except ValueError:
        return token.token.encode()
