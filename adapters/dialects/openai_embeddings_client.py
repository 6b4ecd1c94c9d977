"""OpenAI embeddings towards a provider: inputs to a body, its list of vectors to float32 bytes.

Vectors are asked for as numbers, because not every provider knows base64; either is understood. Float64 is lost.
"""

from __future__ import annotations

import binascii
import math
import struct

import msgspec

from adapters.dialects.openai_usage import WireUsage, parse_usage
from adapters.errors import UpstreamInvalid
from adapters.types import EmbeddingRequest, Embeddings

_encode = msgspec.json.Encoder().encode


def render_request(request: EmbeddingRequest) -> bytes:
    """The body of a request."""
    fields = {"model": request.model, "input": request.inputs, "encoding_format": "float"}
    return _encode(fields if request.dimensions is None else {**fields, "dimensions": request.dimensions})


class _Vector(msgspec.Struct):
    embedding: list[float] | str
    index: int | None = None


class _Answer(msgspec.Struct):
    data: list[_Vector]
    usage: WireUsage | None = None


_decoder = msgspec.json.Decoder(_Answer)


def parse_answer(body: bytes, request: EmbeddingRequest) -> Embeddings:
    """The vectors in the order of the inputs; `prompt_tokens` is 0 where it was not reported.

    Raises `UpstreamInvalid` when they are not one for each input, all of one length and finite.
    """
    try:
        answer = _decoder.decode(body)
        places = [index if one.index is None else one.index for index, one in enumerate(answer.data)]
        vectors = [_floats(one.embedding) for _, one in sorted(zip(places, answer.data, strict=True), key=_place)]
    except (ValueError, RecursionError, OverflowError, struct.error):
        raise UpstreamInvalid("The provider sent vectors that are none.") from None
    dimensions = len(vectors[0]) // 4 if vectors else 0
    if (
        sorted(places) != list(range(len(request.inputs)))
        or not dimensions
        or any(len(one) != 4 * dimensions for one in vectors)
    ):
        raise UpstreamInvalid("The provider sent other vectors than were asked for.")
    usage = parse_usage(answer.usage or WireUsage())
    return Embeddings(tuple(vectors), dimensions, usage.prompt_tokens)


def _place(numbered: tuple[int, _Vector]) -> int:
    return numbered[0]


def _floats(given: list[float] | str) -> bytes:
    """Little-endian float32 bytes."""
    if isinstance(given, str):
        raw = binascii.a2b_base64(given)
        given = list(struct.unpack(f"<{len(raw) // 4}f", raw))
    if not all(map(math.isfinite, given)):
        raise OverflowError
    return struct.pack(f"<{len(given)}f", *given)
