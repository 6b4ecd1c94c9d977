"""Counts as providers tell them, in every dialect that has its own names for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from adapters.dialects import (
    bedrock_embeddings,
    cohere_embeddings,
    openai_embeddings_client,
    recognised,
    rerank_client,
)
from adapters.dialects.anthropic_messages import events_in as anthropic
from adapters.dialects.bedrock_converse import events_in as bedrock
from adapters.dialects.gemini import embeddings as gemini_embeddings
from adapters.dialects.gemini import events_in as gemini
from adapters.dialects.openai_usage import TOKENS_END
from adapters.types import EmbeddingRequest, RerankRequest, Usage

TEXT = EmbeddingRequest("cohere.embed", ("a",))
TITAN = EmbeddingRequest("titan-embed-text", ("a",))
RANKED = RerankRequest("m", "q", ("a",))


def usage_of(answer: dict[str, Any]) -> Usage:
    return recognised.usage_in(json.dumps(answer).encode()) or Usage()


def embedded(parse: Callable[[bytes, EmbeddingRequest], Any], answer: Any, request: EmbeddingRequest = TEXT) -> int:
    tokens: int = parse(json.dumps(answer).encode(), request).prompt_tokens
    return tokens


def ranked(count: Any) -> int:
    answer = {"results": [{"index": 0, "score": 1}], "usage": {"total_tokens": count}}
    return rerank_client.parse_answer(json.dumps(answer).encode(), RANKED).prompt_tokens


@pytest.mark.parametrize("count", [-1, TOKENS_END, 10**30])
def test_no_count_that_cannot_be_is_believed(count: int) -> None:
    """A number that does not fit into the ledger would keep everything behind it from being written."""
    assert anthropic.parse_usage(anthropic.WireUsage(count, count, count, count)) == Usage()
    assert bedrock.parse_usage(bedrock.WireUsage(count, count, count, count)) == Usage()
    assert gemini.parse_usage(gemini.WireUsage(count, count, count, count, count)) == Usage()
    for one in (
        {"input_tokens": count, "output_tokens": count, "cache_read_input_tokens": count},
        {"inputTokens": count, "cache_creation_input_tokens": count},
    ):
        assert usage_of({"usage": one}) == Usage()
    assert usage_of({"usageMetadata": {"promptTokenCount": count, "candidatesTokenCount": count}}) == Usage()
    assert ranked(count) == 0
    vector = [{"index": 0, "embedding": [1]}]
    assert embedded(openai_embeddings_client.parse_answer, {"data": vector, "usage": {"prompt_tokens": count}}) == 0
    billed = {"embeddings": [[1]], "meta": {"billed_units": {"input_tokens": count}}}
    assert embedded(cohere_embeddings.parse_answer, billed) == 0
    assert embedded(bedrock_embeddings.parse_answer, {"embedding": [1], "inputTextTokenCount": count}, TITAN) == 0
    counted = {"embeddings": [{"values": [1]}], "usageMetadata": {"promptTokenCount": count}}
    assert embedded(gemini_embeddings.parse_answer, counted) == 0
    predicted = {"predictions": [{"embeddings": {"values": [1], "statistics": {"token_count": count}}}]}
    assert embedded(gemini_embeddings.parse_vertex_answer, predicted) == 0


def test_a_later_report_of_nothing_takes_nothing_back() -> None:
    begun, ended = anthropic.WireUsage(input_tokens=25), anthropic.WireUsage(input_tokens=0, output_tokens=9)
    assert anthropic.parse_usage(begun, ended) == Usage(25, 9)
    cached = anthropic.WireUsage(input_tokens=0, cache_read_input_tokens=25)
    assert anthropic.parse_usage(begun, cached, ended) == Usage(25, 9, 25)
