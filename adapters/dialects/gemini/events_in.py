"""A stream of Gemini's, back to events."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping

import msgspec

from adapters.dialects.failures import failure_in_stream
from adapters.dialects.gemini.fields import FunctionCall, Wire
from adapters.dialects.gemini.request_in import signed
from adapters.dialects.openai_usage import reported, together
from adapters.errors import InvalidRequest, UpstreamInvalid
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

REASONS: Mapping[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
}
_PLAIN = ("STOP", "MAX_TOKENS")
_MALFORMED = ("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL")


class _Modality(Wire):
    modality: str = ""
    token_count: int | None = None


class WireUsage(Wire):
    prompt_token_count: int | None = None
    cached_content_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    prompt_tokens_details: list[_Modality] | None = None
    candidates_tokens_details: list[_Modality] | None = None


class _Part(Wire):
    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    function_call: FunctionCall | None = None


class _Content(Wire):
    parts: list[_Part] | None = None


class _Token(Wire):
    token: str = ""
    log_probability: float | None = None
    token_id: int | None = None


class _Tops(Wire):
    candidates: list[_Token] | None = None


class _Logprobs(Wire):
    chosen_candidates: list[_Token] | None = None
    top_candidates: list[_Tops] | None = None


class _Candidate(Wire):
    content: _Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None
    index: int | None = None
    logprobs_result: _Logprobs | None = None


class _Feedback(Wire):
    block_reason: str | None = None


class _Chunk(Wire):
    candidates: list[_Candidate] | None = None
    usage_metadata: WireUsage | None = None
    prompt_feedback: _Feedback | None = None


_decoder = msgspec.json.Decoder(_Chunk)


def parse_usage(given: WireUsage) -> Usage:
    """Thoughts are no part of what Gemini counts for candidates."""
    said, thought = reported(given.candidates_token_count), reported(given.thoughts_token_count)
    prompt = reported(given.prompt_token_count) + reported(given.tool_use_prompt_token_count)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=said + thought,
        cached_tokens=min(reported(given.cached_content_token_count), prompt),
        reasoning_tokens=thought,
        prompt_audio_tokens=_audio(given.prompt_tokens_details),
        completion_audio_tokens=_audio(given.candidates_tokens_details),
    )


def _audio(details: list[_Modality] | None) -> int:
    return sum(reported(one.token_count) for one in details or [] if one.modality == "AUDIO")


def new_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class EventParser:
    """The events of one stream, which only ends with its body. `new_id` names calls that Gemini left unnamed."""

    done = False

    def __init__(self, request: ChatRequest, new_id: Callable[[], str] = new_id) -> None:
        self._choices = request.generation.n
        self._new_id = new_id
        self._usage = Usage()
        self._started = False
        self._calls: dict[int, int] = {}
        self._finished: set[int] = set()

    def feed(self, kind: str, payload: bytes) -> list[Event]:
        """The events of the next chunk."""
        if (problem := failure_in_stream(payload)) is not None:
            raise problem
        try:
            str(payload, "utf-8")  # The decoder takes arguments without looking at their bytes.
            chunk = _decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UpstreamInvalid("The provider sent a chunk that is none.") from None
        events: list[Event] = []
        if chunk.usage_metadata is not None:
            self._usage = together(self._usage, parse_usage(chunk.usage_metadata))
        if not self._started:
            if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason and not chunk.candidates:
                message = "The provider's content filter refuses this conversation."
                raise InvalidRequest(message, code="content_filter", param="messages")
            self._started = True
            events.append(Started(self._usage.prompt_tokens, self._usage.cached_tokens))
        for candidate in chunk.candidates or []:
            index = candidate.index or 0
            if not 0 <= index < self._choices:
                raise UpstreamInvalid("The provider sent a choice that was not asked for.")
            if index not in self._finished:
                events += self._candidate(index, candidate)
        return events

    def end(self) -> list[Event]:
        """The last event. The stream has broken off when a choice did not end."""
        if len(self._finished) < self._choices:
            raise UpstreamInvalid("The provider's answer broke off.")
        return [Finished(self._usage)]

    def _candidate(self, index: int, candidate: _Candidate) -> Iterator[Event]:
        logprobs = _logprobs(candidate.logprobs_result)
        for part in (candidate.content.parts if candidate.content is not None else None) or []:
            signature = signed(part.thought_signature)
            if part.function_call is not None:
                yield self._call(index, part.function_call, signature)
                continue
            if part.text and part.thought:
                yield ReasoningDelta(index, part.text)
            elif part.text:
                yield TextDelta(index, part.text, logprobs)
                logprobs = ()
            if signature is not None:
                yield ReasoningDelta(index, "", signature)
        if logprobs:
            yield TextDelta(index, "", logprobs)
        if candidate.finish_reason:
            yield from self._finish(index, candidate.finish_reason, candidate.finish_message)

    def _call(self, index: int, call: FunctionCall, signature: str | None) -> Event:
        number = self._calls.get(index, 0)
        self._calls[index] = number + 1
        arguments = bytes(call.args).decode()
        return ToolCallDelta(
            index, number, arguments if arguments != "null" else "{}", call.id or self._new_id(), call.name, signature
        )

    def _finish(self, index: int, word: str, message: str | None) -> Iterator[Event]:
        self._finished.add(index)
        reason = REASONS.get(word, "stop")
        if reason == "content_filter" and message:
            yield RefusalDelta(index, message)
        if reason == "stop" and index in self._calls:
            reason = "tool_calls"
        yield ChoiceFinished(index, reason, word in _MALFORMED, detail=None if word in _PLAIN else word)


def _logprobs(given: _Logprobs | None) -> tuple[TokenLogprob, ...]:
    if given is None:
        return ()
    tops = given.top_candidates or []
    return tuple(
        TokenLogprob(
            -1 if token.token_id is None else token.token_id,
            token.log_probability,
            token.token.encode(),
            tuple(
                TopLogprob(-1 if top.token_id is None else top.token_id, top.log_probability or 0.0, top.token.encode())
                for top in (tops[at].candidates if at < len(tops) else None) or []
            ),
        )
        for at, token in enumerate(given.chosen_candidates or [])
    )
