"""Legacy completions towards a provider: raw prompts to a body, its chunks to events.

Lost are the ids of tokens, where a token's text stands, and more alternatives of a token than were asked for.
"""

from __future__ import annotations

import msgspec

from adapters.dialects.client import Style
from adapters.dialects.failures import failure_in_stream
from adapters.dialects.openai_chat_events import FINISH_REASONS
from adapters.dialects.openai_chat_requests import generation_fields
from adapters.dialects.openai_completions import choice_count
from adapters.dialects.openai_usage import WireUsage, parse_usage
from adapters.errors import UpstreamInvalid
from adapters.types import (
    ChoiceFinished,
    CompletionRequest,
    Event,
    Finished,
    Started,
    TextDelta,
    TokenLogprob,
    TopLogprob,
    Usage,
)

_encode = msgspec.json.Encoder().encode


def render_request(request: CompletionRequest, style: Style) -> bytes:
    """The body of a request for a stream; raises `InvalidRequest` for what the dialect cannot say."""
    fields = generation_fields(request.generation, style)
    if style.max_tokens in fields:
        # Nobody calls it otherwise here.
        fields["max_tokens"] = fields.pop(style.max_tokens)
    prompts = request.prompts
    one = len(prompts) == 1 and isinstance(prompts[0], str)
    given = {
        "model": request.model,
        "prompt": prompts[0] if one else prompts,
        "suffix": request.suffix,
        "echo": request.echo or None,
        "logprobs": request.generation.logprobs,
    }
    return _encode({name: value for name, value in given.items() if value is not None} | fields)


class _Logprobs(msgspec.Struct):
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: WireUsage | None = None


_decoder = msgspec.json.Decoder(_Chunk)


class EventParser:
    """The events of one stream of chunks."""

    def __init__(self, request: CompletionRequest) -> None:
        self._choices = choice_count(request)
        self._usage = Usage()
        self._started = self.done = False
        self._finished: set[int] = set()

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
        events: list[Event] = [] if self._started else [Started(prompt_tokens=0)]
        self._started = True
        if chunk.usage is not None:
            self._usage = parse_usage(chunk.usage)
        for choice in chunk.choices or []:
            if not 0 <= choice.index < self._choices:
                raise UpstreamInvalid("The provider sent a choice that was not asked for.")
            if choice.index not in self._finished:
                events += self._choice(choice)
        return events

    def _choice(self, choice: _Choice) -> list[Event]:
        events: list[Event] = []
        logprobs = _logprobs(choice.logprobs)
        if choice.text or logprobs:
            events.append(TextDelta(choice.index, choice.text or "", logprobs))
        if choice.finish_reason:
            self._finished.add(choice.index)
            events.append(ChoiceFinished(choice.index, FINISH_REASONS.get(choice.finish_reason, "stop")))
        return events

    def end(self) -> list[Event]:
        """What closes the stream. Without any sign of an end the stream has broken off."""
        unfinished = [index for index in range(self._choices) if index not in self._finished]
        if not self._started or (unfinished and not self.done):
            raise UpstreamInvalid("The provider's answer broke off.")
        return [*(ChoiceFinished(index, "stop") for index in unfinished), Finished(self._usage)]


def _logprobs(given: _Logprobs | None) -> tuple[TokenLogprob, ...]:
    if given is None or not given.tokens:
        return ()
    logprobs, tops = given.token_logprobs or [], given.top_logprobs or []
    return tuple(
        TokenLogprob(
            -1,
            logprobs[index] if index < len(logprobs) else None,
            raw_token(token),
            tuple(
                TopLogprob(-1, logprob, raw_token(text))
                for text, logprob in ((tops[index] if index < len(tops) else None) or {}).items()
            ),
        )
        for index, token in enumerate(given.tokens)
    )


def raw_token(text: str) -> bytes:
    """The bytes of a token as OpenAI writes those that are no text: `bytes:\\xe2\\x82`."""
    if not text.startswith("bytes:\\x"):
        return text.encode()
    try:
        return bytes.fromhex(text.removeprefix("bytes:").replace("\\x", ""))
    except ValueError:
        return text.encode()
