"""OpenAI chat completions from a provider: chunks to events.

Whatever a chunk holds besides is skipped, and what should be there and is not counts as absent. Lost on the way are the
provider's own id, time and fingerprint, annotations, audio, and the ids of tokens.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import msgspec

from adapters.dialects.failures import failure_in_stream
from adapters.dialects.openai_thoughts import ExtraContent, WireDetail, parse_signature
from adapters.dialects.openai_usage import WireUsage, parse_usage, together
from adapters.errors import UpstreamInvalid, UpstreamRefused
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


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    extra_content: ExtraContent | None = None


class _Thought(msgspec.Struct):
    text: str | None = None


class _Piece(msgspec.Struct):
    """A part of content in pieces, as Mistral's thinking models send it."""

    type: str = ""
    text: str | None = None
    thinking: list[_Thought] | str | None = None


class _Delta(msgspec.Struct):
    content: str | list[_Piece] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[WireDetail] | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Top(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Token(_Top):
    top_logprobs: list[_Top] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Groq(msgspec.Struct):
    usage: WireUsage | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: WireUsage | None = None
    x_groq: _Groq | None = None


_decoder = msgspec.json.Decoder(_Chunk)

CALLS_MAX = 1024

FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class EventParser:
    """The events of one stream of chunks."""

    def __init__(self, request: ChatRequest) -> None:
        self._choices = request.generation.n
        self._usage = Usage()
        self._started = self.done = False
        self._finished: set[int] = set()
        # The calls of each choice with their ids, and which of them was the last one of an index.
        self._calls: dict[int, list[str]] = {}
        self._latest: dict[tuple[int, int], int] = {}
        self._thoughts: dict[int, list[str]] = {}

    def feed(self, kind: str, payload: bytes) -> list[Event]:
        """The events of the next chunk."""
        if self.done or not payload:
            return []
        if payload == b"[DONE]":
            self.done = True
            return []
        if (problem := failure_in_stream(payload)) is not None:
            raise problem
        try:
            chunk = _decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UpstreamInvalid("The provider sent a chunk that is none.") from None
        events: list[Event] = []
        if not self._started:
            self._started = True
            events.append(Started(prompt_tokens=0))
        usage = chunk.usage or (chunk.x_groq.usage if chunk.x_groq is not None else None)
        if usage is not None:
            self._usage = together(self._usage, parse_usage(usage))
        for choice in chunk.choices or []:
            if not 0 <= choice.index < self._choices:
                raise UpstreamInvalid("The provider sent a choice that was not asked for.")
            if choice.index not in self._finished:
                events += self._choice(choice)
        return events

    def end(self) -> list[Event]:
        """What closes the stream. Without any sign of an end the stream has broken off."""
        if not self._started or not (self.done or self._finished):
            raise UpstreamInvalid("The provider's answer broke off.")
        open_choices = [index for index in range(self._choices) if index not in self._finished]
        if open_choices and not self.done:
            raise UpstreamInvalid("The provider's answer broke off.")
        ends: list[Event] = [self._finish(index, "stop") for index in open_choices]
        return [*ends, Finished(self._usage)]

    def _choice(self, choice: _Choice) -> Iterator[Event]:
        index, delta = choice.index, choice.delta or _Delta()
        yield from self._reasoning(index, delta)
        if delta.refusal:
            yield RefusalDelta(index, delta.refusal)
        text, thoughts = _texts(delta.content)
        if thoughts:
            yield ReasoningDelta(index, thoughts)
        logprobs = _logprobs(choice.logprobs)
        if text or logprobs:
            yield TextDelta(index, text, logprobs)
        for place, call in enumerate(delta.tool_calls or []):
            yield from self._call(index, place, call)
        if choice.finish_reason:
            if choice.finish_reason == "error":
                raise UpstreamRefused("The provider of this model failed.", 500)
            yield self._finish(index, FINISH_REASONS.get(choice.finish_reason, "stop"))

    def _reasoning(self, choice: int, delta: _Delta) -> Iterator[Event]:
        """vLLM and DeepSeek say `reasoning_content`, OpenRouter, Groq, Ollama and newer vLLMs `reasoning`; some both.

        A signature ends a thought. Whoever sends it with the whole of the thought has sent that in pieces before.
        """
        details = delta.reasoning_details or []
        signature = next((detail.signature for detail in details if detail.signature), None)
        text = delta.reasoning_content or delta.reasoning or ""
        if not text:
            text = "".join(detail.text or detail.summary or "" for detail in details)
            if signature is not None and text == "".join(self._thoughts.get(choice, ())):
                text = ""
        if signature is not None:
            self._thoughts.pop(choice, None)
        elif text:
            self._thoughts.setdefault(choice, []).append(text)
        if text or signature:
            yield ReasoningDelta(choice, text, signature)
        for detail in details:
            if detail.type == "reasoning.encrypted" and detail.data:
                yield ReasoningDelta(choice, "", redacted=detail.data)

    def _finish(self, index: int, reason: FinishReason) -> ChoiceFinished:
        self._finished.add(index)
        called = reason == "stop" and index in self._calls
        return ChoiceFinished(index, "tool_calls" if called else reason)

    def _call(self, choice: int, place: int, call: _Call) -> Iterator[Event]:
        """Some number their calls, some repeat the id and the name in each piece, some send neither with the next."""
        function = call.function or _Function()
        arguments = function.arguments or ""
        if isinstance(arguments, dict):
            arguments = _encode(arguments).decode()
        number = self._number(choice, place, call, function.name)
        calls = self._calls.setdefault(choice, [])
        if number < len(calls):
            if arguments:
                yield ToolCallDelta(choice, number, arguments)
            return
        if not function.name:
            raise UpstreamInvalid("The provider sent a tool call without a name.")
        calls.append(call.id or f"call_{secrets.token_hex(12)}")
        yield ToolCallDelta(choice, number, arguments, calls[-1], function.name, parse_signature(call.extra_content))

    def _number(self, choice: int, place: int, call: _Call, name: str | None) -> int:
        """Which call of a choice it is. Ollama and others give all of them one index, or none: then it is another one
        when it has an id of its own; and a name, where there is an index, as some have a new id in each piece."""
        calls, given = self._calls.get(choice, []), place if call.index is None else call.index
        number = self._latest.get((choice, given), len(calls))
        if number < len(calls) and call.id and call.id != calls[number] and (name or call.index is None):
            number = calls.index(call.id) if call.id in calls else len(calls)
        if not 0 <= given < CALLS_MAX or number >= CALLS_MAX:
            raise UpstreamInvalid("The provider sent a tool call that cannot be.")
        self._latest[choice, given] = number
        return number


def _texts(content: str | list[_Piece] | None) -> tuple[str, str]:
    """The text of content, and what was thought in it."""
    if content is None or isinstance(content, str):
        return content or "", ""
    text, thoughts = "", ""
    for piece in content:
        text += piece.text or ""
        given = piece.thinking or ()
        thoughts += given if isinstance(given, str) else "".join(one.text or "" for one in given)
    return text, thoughts


def _logprobs(given: _Logprobs | None) -> tuple[TokenLogprob, ...]:
    tokens = given.content if given is not None and given.content else []
    return tuple(
        TokenLogprob(
            -1,
            token.logprob,
            _raw(token),
            tuple(TopLogprob(-1, top.logprob, _raw(top)) for top in token.top_logprobs or ()),
        )
        for token in tokens
    )


def _raw(token: _Top) -> bytes:
    try:
        return token.token.encode() if token.bytes is None else bytes(token.bytes)
    except ValueError:
        return token.token.encode()
