"""Reranking towards a provider that speaks Cohere's or Jina's dialect. Lost are scores beyond 0 to 1, and documents."""

from __future__ import annotations

import math

import msgspec

from adapters.dialects.openai_usage import Count, reported
from adapters.errors import UpstreamInvalid
from adapters.types import Ranking, RerankRequest

_encode = msgspec.json.Encoder().encode


def render_request(request: RerankRequest) -> bytes:
    """The body of a request; `raw_scores` is ours and llama-server's."""
    fields = {
        "model": request.model,
        "query": request.query,
        "documents": request.documents,
        "top_n": len(request.documents),
    }
    return _encode({**fields, "raw_scores": True} if request.raw else fields)


class _Result(msgspec.Struct):
    index: int
    relevance_score: float | None = None
    score: float | None = None


class _Usage(msgspec.Struct):
    total_tokens: Count = None
    prompt_tokens: Count = None
    input_tokens: Count = None


class _Meta(msgspec.Struct):
    tokens: _Usage | None = None


class _Answer(msgspec.Struct):
    results: list[_Result]
    usage: _Usage | None = None
    meta: _Meta | None = None


_decoder = msgspec.json.Decoder(_Answer)


def parse_answer(body: bytes, request: RerankRequest) -> Ranking:
    """The scores in the order of the documents; `prompt_tokens` is 0 where it was not reported.

    Raises `UpstreamInvalid` when there is not one for each document.
    """
    try:
        answer = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamInvalid("The provider sent scores that are none.") from None
    scores = {one.index: _score(one) for one in answer.results}
    if sorted(scores) != list(range(len(request.documents))):
        raise UpstreamInvalid("The provider sent other scores than were asked for.")
    usage = answer.usage or (answer.meta.tokens if answer.meta is not None else None) or _Usage()
    tokens = reported(usage.prompt_tokens or usage.input_tokens or usage.total_tokens)
    return Ranking(tuple(scores[index] for index in range(len(scores))), tokens)


def _score(result: _Result) -> float:
    score = result.relevance_score if result.score is None else result.score
    if score is None or not math.isfinite(score):
        raise UpstreamInvalid("The provider sent a score that is none.")
    return score
