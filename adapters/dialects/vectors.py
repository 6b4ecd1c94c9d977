"""Vectors of providers that have an API of their own for them, and the texts they are made of."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from adapters.dialects.openai_usage import Count, reported
from adapters.dialects.unsayable import unsupported
from adapters.errors import UpstreamInvalid
from adapters.types import EmbeddingRequest, Embeddings

T = TypeVar("T")


def texts_of(request: EmbeddingRequest) -> list[str]:
    """The inputs; raises `InvalidRequest` for token ids."""
    texts = [one for one in request.inputs if isinstance(one, str)]
    if len(texts) < len(request.inputs):
        raise unsupported("input", "this model takes texts, not token ids")
    return texts


def read(body: bytes, kind: type[T]) -> T:
    """An answer; raises `UpstreamInvalid` for what is none."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamInvalid("The provider's answer holds no vectors.") from None


def embeddings(vectors: Sequence[Sequence[float]], request: EmbeddingRequest, prompt_tokens: Count) -> Embeddings:
    """`vectors` in the order of the inputs as float32; raises `UpstreamInvalid` when they are not one for each, all of
    one length and finite. `prompt_tokens` is 0 where nobody tells."""
    sizes = {len(vector) for vector in vectors}
    if len(vectors) != len(request.inputs) or len(sizes) != 1 or 0 in sizes:
        raise UpstreamInvalid("The provider's answer does not hold one vector for each text.")
    (size,) = sizes
    if not all(math.isfinite(number) for vector in vectors for number in vector):
        raise UpstreamInvalid("The provider sent vectors that are none.")
    try:
        packed = tuple(struct.pack(f"<{size}f", *vector) for vector in vectors)
    except OverflowError:
        raise UpstreamInvalid("The provider sent vectors that are none.") from None
    return Embeddings(packed, size, reported(prompt_tokens))
