"""OpenAI's legacy completions: raw prompts to canonical form, events to `text_completion` objects."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from adapters.dialects import openai_wire as wire
from adapters.dialects.openai_wire import ResponseHead
from adapters.errors import InvalidRequest
from adapters.types import ChoiceFinished, CompletionRequest, Event, Finished, Started, TextDelta, TokenLogprob

MAX_TOKENS_DEFAULT = 16
"""OpenAI's: whoever asks for more says so."""

_encode = msgspec.json.Encoder().encode


class Body(wire.GenerationFields, kw_only=True):
    prompt: wire.TextOrTokens
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None


_decoder = msgspec.json.Decoder(Body)


def parse_request(body: bytes) -> wire.Inbound[CompletionRequest]:
    """The request in canonical form; raises `InvalidRequest` with the path of the field at fault."""
    fields = wire.decode(_decoder, body)
    n = fields.n or 1
    if fields.best_of is not None and fields.best_of != n:
        raise InvalidRequest("Invalid value for 'best_of': this server only takes the value of 'n'.", param="best_of")
    max_tokens = MAX_TOKENS_DEFAULT if fields.max_tokens is None else fields.max_tokens
    if max_tokens == 0 and not fields.echo:
        message = "Invalid value for 'max_tokens': expected an integer >= 1 unless 'echo' is true."
        raise InvalidRequest(message, param="max_tokens")
    prompts = wire.parse_texts(fields.prompt, "prompt", wire.CHOICES_MAX)
    if fields.suffix and not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidRequest("Invalid value for 'suffix': it is only possible with prompts of text.", param="suffix")
    if len(prompts) * n > wire.CHOICES_MAX:
        message = f"Invalid value for 'n': all prompts together may have at most {wire.CHOICES_MAX} choices."
        raise InvalidRequest(message, param="n")
    request = CompletionRequest(
        model=fields.model,
        prompts=prompts,
        suffix=fields.suffix or None,
        echo=bool(fields.echo),
        generation=wire.parse_generation(fields, max_tokens=max_tokens, logprobs=fields.logprobs),
    )
    return wire.inbound(fields, request)


def choice_count(request: CompletionRequest) -> int:
    """How many choices the answer has."""
    return len(request.prompts) * request.generation.n


class ChunkRenderer:
    """The events of one stream as `text_completion` frames."""

    def __init__(self, head: ResponseHead, inbound: wire.Inbound[CompletionRequest]) -> None:
        request = inbound.request
        self._chunks = wire.Chunks(head, "text_completion", inbound.include_usage)
        self._top = request.generation.logprobs
        self._offsets = [0] * choice_count(request)
        self._opening = self._chunks.before + b'{"text":'
        self._middle = [b',"index":%d,"logprobs":' % choice for choice in range(choice_count(request))]
        self._closing = b',"finish_reason":null}' + self._chunks.after

    def render(self, event: Event) -> bytes:
        """The frames of the next event."""
        if type(event) is TextDelta:
            return self._text(event)
        match event:
            case Started(cache=cache) if cache is not None:
                end = b'null,"finish_reason":null}' + self._chunks.after_first(cache)
                return self._opening + b'""' + self._middle[0] + end
            case ChoiceFinished():
                end = b'null,"finish_reason":"%b"}' % event.reason.encode()
                return self._opening + b'""' + self._middle[event.choice] + end + self._chunks.after
            case Finished():
                return self._chunks.end(event.usage)
            case _:
                return b""

    def _text(self, event: TextDelta) -> bytes:
        logprobs = b"null"
        if self._top is not None and event.logprobs:
            fields, self._offsets[event.choice] = _logprobs(event.logprobs, self._top, self._offsets[event.choice])
            logprobs = wire.one_line(_encode(fields))
        elif not event.text:
            return b""
        return self._opening + wire.quoted(event.text) + self._middle[event.choice] + logprobs + self._closing


def _logprobs(
    tokens: tuple[TokenLogprob, ...] | list[TokenLogprob], top: int, offset: int
) -> tuple[dict[str, object], int]:
    """The parallel lists of the legacy format for tokens that start `offset` characters into the text, and its end."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += sum(byte & 0xC0 != 0x80 for byte in token.raw)  # A character counts where its first byte is.
    fields = {
        "tokens": [wire.token_text(token.raw) for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [_top_logprobs(token) for token in tokens] if top else None,
        "text_offset": offsets,
    }
    return fields, offset


def _top_logprobs(token: TokenLogprob) -> dict[str, float | None] | None:
    """The likeliest tokens and the drawn one; None where nothing was predicted, at the head of an echoed prompt."""
    if token.logprob is None:
        return None
    likeliest: dict[str, float | None] = {}
    for raw, logprob in [*((top.raw, top.logprob) for top in token.top), (token.raw, token.logprob)]:
        likeliest.setdefault(wire.token_text(raw), _finite(logprob))
    return likeliest


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, wire.LOGPROB_MIN)


def render_answer(head: ResponseHead, request: CompletionRequest, folded: wire.Folded) -> bytes:
    """The whole answer as a `text_completion`."""
    top = request.generation.logprobs
    choices = [
        {
            "text": choice.text,
            "index": index,
            "logprobs": None if top is None else _logprobs(choice.logprobs, top, 0)[0],
            "finish_reason": choice.reason,
        }
        for index, choice in enumerate(folded.choices)
    ]
    fields = wire.head_fields(head, "text_completion")
    usage = wire.usage_fields(folded.usage)
    return _encode({**fields, "choices": choices, "usage": usage, **wire.gateway_fields(folded.cache)})
