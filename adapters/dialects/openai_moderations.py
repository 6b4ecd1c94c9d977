"""OpenAI's moderations as a client has them: texts in, and for each which categories it falls into."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from adapters.errors import UpstreamInvalid

_encode = msgspec.json.Encoder().encode


class Judgement(msgspec.Struct, frozen=True):
    """What a text was found to be: the provider's own verdict, and its scores by category, from 0 to 1."""

    flagged: bool
    categories: dict[str, bool | None] = {}
    scores: dict[str, float | None] = msgspec.field(default={}, name="category_scores")


class _Answer(msgspec.Struct):
    results: list[Judgement]


_decoder = msgspec.json.Decoder(_Answer)


def render_request(model: str | None, texts: Sequence[str]) -> bytes:
    """The body of a request; without a model the provider takes its own."""
    return _encode({"input": texts} if model is None else {"model": model, "input": texts})


def parse_answer(body: bytes, count: int) -> list[Judgement]:
    """One judgement for each of `count` texts; raises `UpstreamInvalid` when there is not."""
    try:
        results = _decoder.decode(body).results
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamInvalid("The provider sent judgements that are none.") from None
    scores = [score for one in results for score in one.scores.values() if score is not None]
    if len(results) != count or not all(map(math.isfinite, scores)):
        raise UpstreamInvalid("The provider sent other judgements than were asked for.")
    return results
