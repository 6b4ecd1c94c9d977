"""Gemini's `batchEmbedContents`, towards the provider."""

from __future__ import annotations

import struct

import msgspec

from adapters.dialects.unsayable import unsupported
from adapters.errors import UpstreamInvalid
from adapters.types import EmbeddingRequest, Embeddings

INPUTS_MAX = 100


class _Vector(msgspec.Struct):
    values: list[float]


class _Usage(msgspec.Struct, rename="camel"):
    prompt_token_count: int = 0


class _Answer(msgspec.Struct, rename="camel"):
    embeddings: list[_Vector]
    usage_metadata: _Usage | None = None


def render_request(request: EmbeddingRequest) -> bytes:
    """The body; raises `InvalidRequest` for token ids and for more texts than one request takes."""
    if len(request.inputs) > INPUTS_MAX:
        raise unsupported("input", f"this model takes at most {INPUTS_MAX} texts at once")
    requests = []
    for text in request.inputs:
        if not isinstance(text, str):
            raise unsupported("input", "this model takes texts, not token ids")
        one: dict[str, object] = {"model": f"models/{request.model}", "content": {"parts": [{"text": text}]}}
        if request.dimensions is not None:
            one["outputDimensionality"] = request.dimensions
        requests.append(one)
    return msgspec.json.encode({"requests": requests})


def parse_answer(body: bytes, request: EmbeddingRequest) -> Embeddings:
    """The vectors; `prompt_tokens` is 0 where Gemini does not tell them."""
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamInvalid("The provider's answer holds no vectors.") from None
    sizes = {len(vector.values) for vector in answer.embeddings}
    if len(answer.embeddings) != len(request.inputs) or len(sizes) != 1 or 0 in sizes:
        raise UpstreamInvalid("The provider's answer does not hold one vector for each text.")
    (size,) = sizes
    vectors = tuple(struct.pack(f"<{size}f", *vector.values) for vector in answer.embeddings)
    usage = answer.usage_metadata or _Usage()
    return Embeddings(vectors, size, max(0, usage.prompt_token_count))
