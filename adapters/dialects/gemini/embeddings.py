"""Vectors of Google's models, towards the provider: Gemini's `batchEmbedContents`, and `predict` of Vertex."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from adapters.dialects.vectors import embeddings, read, texts_of
from adapters.types import EmbeddingRequest, Embeddings, Purpose

INPUTS_MAX = 100
VERTEX_INPUTS_MAX = 250
TASKS: Mapping[Purpose, str] = {
    "query": "RETRIEVAL_QUERY",
    "document": "RETRIEVAL_DOCUMENT",
    "classification": "CLASSIFICATION",
    "clustering": "CLUSTERING",
}


class _Vector(msgspec.Struct):
    values: list[float]


class _Usage(msgspec.Struct, rename="camel"):
    prompt_token_count: int = 0


class _Answer(msgspec.Struct, rename="camel"):
    embeddings: list[_Vector]
    usage_metadata: _Usage | None = None


class _Statistics(msgspec.Struct, frozen=True):
    token_count: float = 0


class _Predicted(msgspec.Struct):
    values: list[float]
    statistics: _Statistics = _Statistics()


class _Prediction(msgspec.Struct):
    embeddings: _Predicted


class _Predictions(msgspec.Struct):
    predictions: list[_Prediction]


def inputs_max(model: str) -> int:
    """How many texts one request takes."""
    return INPUTS_MAX


def render_request(request: EmbeddingRequest) -> bytes:
    """The body; raises `InvalidRequest` for token ids."""
    shared: dict[str, object] = {"model": f"models/{request.model}"}
    if request.dimensions is not None:
        shared["outputDimensionality"] = request.dimensions
    if request.purpose is not None:
        shared["taskType"] = TASKS[request.purpose]
    return msgspec.json.encode(
        {"requests": [{**shared, "content": {"parts": [{"text": text}]}} for text in texts_of(request)]}
    )


def parse_answer(body: bytes, request: EmbeddingRequest) -> Embeddings:
    """The vectors; `prompt_tokens` is 0 where Gemini does not tell them."""
    answer = read(body, _Answer)
    usage = answer.usage_metadata or _Usage()
    return embeddings([vector.values for vector in answer.embeddings], request, usage.prompt_token_count)


def vertex_inputs_max(model: str) -> int:
    """The same of Vertex: models of the Gemini family take one."""
    return 1 if model.startswith("gemini") else VERTEX_INPUTS_MAX


def render_vertex_request(request: EmbeddingRequest) -> bytes:
    """The body for Vertex; raises `InvalidRequest` for token ids."""
    task = {} if request.purpose is None else {"task_type": TASKS[request.purpose]}
    body: dict[str, object] = {"instances": [{"content": text, **task} for text in texts_of(request)]}
    if request.dimensions is not None:
        body["parameters"] = {"outputDimensionality": request.dimensions}
    return msgspec.json.encode(body)


def parse_vertex_answer(body: bytes, request: EmbeddingRequest) -> Embeddings:
    """The vectors of Vertex."""
    found = [one.embeddings for one in read(body, _Predictions).predictions]
    tokens = sum(one.statistics.token_count for one in found)
    return embeddings([one.values for one in found], request, tokens)
