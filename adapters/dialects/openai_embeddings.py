"""OpenAI embeddings: texts or token ids to canonical form, vectors to a list of `embedding` objects."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping

import msgspec

from adapters.dialects import openai_wire as wire
from adapters.errors import InvalidRequest
from adapters.types import EmbeddingRequest, Embeddings, Purpose

INPUTS_MAX = 2048
PURPOSES: Mapping[str, Purpose] = {
    "query": "query",
    "search_query": "query",
    "document": "document",
    "passage": "document",
    "search_document": "document",
    "classification": "classification",
    "clustering": "clustering",
}

_encode = msgspec.json.Encoder().encode


class Body(wire.RequestFields, kw_only=True):
    model: wire.ModelName
    input: wire.TextOrTokens
    encoding_format: str | None = None
    dimensions: wire.Count | None = None
    input_type: str | None = None


class EmbeddingInbound(msgspec.Struct, frozen=True):
    """A parsed request and how its vectors are to be written."""

    request: EmbeddingRequest
    base64: bool = False


_decoder = msgspec.json.Decoder(Body)


def parse_request(body: bytes) -> EmbeddingInbound:
    """The request in canonical form; raises `InvalidRequest` with the path of the field at fault."""
    fields = wire.decode(_decoder, body)
    wire.refuse_redirects(fields)
    encoding = fields.encoding_format or "float"
    if encoding not in ("float", "base64"):
        message = "Invalid value for 'encoding_format': expected 'float' or 'base64'."
        raise InvalidRequest(message, param="encoding_format")
    inputs = wire.parse_texts(fields.input, "input", INPUTS_MAX)
    # No field of OpenAI's: what others call it who have it.
    purpose = PURPOSES.get(fields.input_type or "")
    return EmbeddingInbound(EmbeddingRequest(fields.model, inputs, fields.dimensions, purpose), encoding == "base64")


def render_answer(model: str, embeddings: Embeddings, *, as_base64: bool) -> Iterator[bytes]:
    """The list of vectors, as base64 of their float32 bytes or as numbers.

    It comes in pieces of at most one vector, because writing thousands of them takes a while.
    """
    numbers = struct.Struct(f"<{embeddings.dimensions}f")
    yield b'{"object":"list","data":['
    for index, vector in enumerate(embeddings.vectors):
        written = base64.b64encode(vector).decode() if as_base64 else numbers.unpack(vector)
        item = _encode({"object": "embedding", "index": index, "embedding": written})
        yield b"," + item if index else item
    usage = {"prompt_tokens": embeddings.prompt_tokens, "total_tokens": embeddings.prompt_tokens}
    yield b"]," + _encode({"model": model, "usage": usage})[1:]
