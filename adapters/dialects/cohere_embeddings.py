"""Cohere's `embed`, towards the provider and where others have its models."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from adapters.dialects.vectors import embeddings, read, texts_of
from adapters.types import EmbeddingRequest, Embeddings, Purpose

INPUTS_MAX = 96
# These models always want to know what the vectors are for. Most of all texts are those that are searched.
KINDS: Mapping[Purpose | None, str] = {
    None: "search_document",
    "query": "search_query",
    "document": "search_document",
    "classification": "classification",
    "clustering": "clustering",
}


class _Floats(msgspec.Struct, rename={"floats": "float"}):
    floats: list[list[float]]


class _Billed(msgspec.Struct, frozen=True):
    input_tokens: float = 0


class _Meta(msgspec.Struct, frozen=True):
    billed_units: _Billed = _Billed()


class _Answer(msgspec.Struct):
    embeddings: _Floats | list[list[float]]
    meta: _Meta = _Meta()


def inputs_max(model: str) -> int:
    """How many texts one request takes."""
    return INPUTS_MAX


def render_request(request: EmbeddingRequest) -> bytes:
    """The body; raises `InvalidRequest` for token ids."""
    return msgspec.json.encode({"model": request.model, **fields(request)})


def fields(request: EmbeddingRequest) -> dict[str, object]:
    """What a body says beside the name of the model."""
    said: dict[str, object] = {
        "texts": texts_of(request),
        "input_type": KINDS[request.purpose],
        "embedding_types": ["float"],
    }
    return said if request.dimensions is None else {**said, "output_dimension": request.dimensions}


def parse_answer(body: bytes, request: EmbeddingRequest) -> Embeddings:
    """The vectors, which older models have without their type."""
    answer = read(body, _Answer)
    given = answer.embeddings
    vectors = given.floats if isinstance(given, _Floats) else given
    return embeddings(vectors, request, answer.meta.billed_units.input_tokens)
