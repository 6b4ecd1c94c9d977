"""Vectors of models on Bedrock, towards the provider: `InvokeModel`, whose body is each maker's own."""

from __future__ import annotations

import msgspec

from adapters.dialects import cohere_embeddings
from adapters.dialects.unsayable import unsupported
from adapters.dialects.vectors import embeddings, read, texts_of
from adapters.types import EmbeddingRequest, Embeddings


class _Titan(msgspec.Struct, rename="camel"):
    embedding: list[float]
    input_text_token_count: int = 0


def inputs_max(model: str) -> int:
    """How many texts one request takes."""
    return cohere_embeddings.INPUTS_MAX if _is_coheres(model) else 1


def render_request(request: EmbeddingRequest) -> bytes:
    """The body, of one text for Titan; raises `InvalidRequest` for token ids and for models of other makers."""
    if _is_coheres(request.model):
        return msgspec.json.encode(cohere_embeddings.fields(request))
    if "titan-embed-text" not in request.model:
        raise unsupported("model", "of the models on Bedrock only Titan's and Cohere's give vectors of texts here")
    (text,) = texts_of(request)
    # The first version of Titan knows no dimensions, and says so.
    body: dict[str, object] = {"inputText": text}
    return msgspec.json.encode(body if request.dimensions is None else {**body, "dimensions": request.dimensions})


def parse_answer(body: bytes, request: EmbeddingRequest) -> Embeddings:
    """The vectors; Cohere's models do not tell here how many tokens they took."""
    if _is_coheres(request.model):
        return cohere_embeddings.parse_answer(body, request)
    answer = read(body, _Titan)
    return embeddings([answer.embedding], request, answer.input_text_token_count)


def _is_coheres(model: str) -> bool:
    return "cohere.embed" in model
