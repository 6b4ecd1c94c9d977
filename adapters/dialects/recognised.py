"""Usage in whatever a provider answers, when the dialect of the request is not known."""

from __future__ import annotations

import msgspec

from adapters.dialects.openai_usage import Count, WireUsage, parse_usage, reported, together
from adapters.types import Usage


class _Usage(WireUsage):
    """OpenAI's, and Anthropic's and Amazon's beside it."""

    cache_read_input_tokens: Count = None
    cache_creation_input_tokens: Count = None
    inputTokens: Count = None  # noqa: N815
    outputTokens: Count = None  # noqa: N815


class _Google(msgspec.Struct, rename="camel"):
    prompt_token_count: Count = None
    candidates_token_count: Count = None
    thoughts_token_count: Count = None
    cached_content_token_count: Count = None


class _Inner(msgspec.Struct):
    usage: _Usage | None = None


class _Amazons(msgspec.Struct, rename="camel"):
    input_token_count: Count = None
    output_token_count: Count = None


class _Payload(msgspec.Struct):
    usage: _Usage | None = None
    message: _Inner | None = None
    response: _Inner | None = None
    usageMetadata: _Google | None = None  # noqa: N815
    metrics: _Amazons | None = msgspec.field(name="amazon-bedrock-invocationMetrics", default=None)
    # An event of the model in one of Amazon's.
    within: bytes | None = msgspec.field(name="bytes", default=None)


_decoder = msgspec.json.Decoder(_Payload)


def usage_in(payload: bytes) -> Usage | None:
    """What a JSON answer, or one payload of a stream, reports; None when it reports nothing."""
    if not any(sign in payload for sign in (b"sage", b'"bytes"', b"invocationMetrics")):
        return None
    try:
        found = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if found.within is not None:
        return usage_in(found.within)
    if found.metrics is not None:
        counted = found.metrics
        return parse_usage(WireUsage(counted.input_token_count, counted.output_token_count))
    inner = found.message or found.response or _Inner()
    if (usage := found.usage or inner.usage) is not None:
        return _of(usage)
    return None if found.usageMetadata is None else _of_google(found.usageMetadata)


def latest(known: Usage | None, found: Usage | None) -> Usage | None:
    """Both together, or the one that there is."""
    return known or found if known is None or found is None else together(known, found)


def _of(usage: _Usage) -> Usage:
    """Anthropic's input is only what came from no cache."""
    read, written = reported(usage.cache_read_input_tokens), reported(usage.cache_creation_input_tokens)
    usage.prompt_tokens = usage.prompt_tokens or (usage.inputTokens or usage.input_tokens or 0) + read + written
    usage.completion_tokens = usage.completion_tokens or usage.outputTokens
    parsed = parse_usage(usage)
    cached = min(parsed.prompt_tokens, max(parsed.cached_tokens, read))
    return msgspec.structs.replace(parsed, cached_tokens=cached, cache_write_tokens=written)


def _of_google(usage: _Google) -> Usage:
    """Google's answer and its thoughts are counted apart."""
    thoughts = usage.thoughts_token_count or 0
    return parse_usage(
        WireUsage(
            prompt_tokens=usage.prompt_token_count,
            completion_tokens=(usage.candidates_token_count or 0) + thoughts,
            prompt_cache_hit_tokens=usage.cached_content_token_count,
        )
    )
