"""The texts of requests and answers that are passed on, and the same with other texts in their places."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from adapters.dialects.endings import Ending
from adapters.dialects.openai_wire import one_line
from adapters.dialects.pieces import Piece, Pieces, pieces
from adapters.dialects.places import TEXTS_MAX, Place, Sort, TokenIds, places, put, too_many
from adapters.relay import PASSING
from adapters.types import Inbound

__all__ = [
    "TEXTS_MAX",
    "Ending",
    "Piece",
    "Pieces",
    "Place",
    "Sort",
    "answered",
    "ending",
    "readable",
    "saying",
    "saying_instead",
    "too_many",
]

# Larger bodies are walked over in a thread: it takes a second for ten megabytes of short texts.
INLINE_BYTES_MAX = 64 * 1024
# A choice, and what lies around something in it.
Around = tuple[int, tuple[str, ...]]


async def readable(inbound: Inbound) -> list[Place] | None:
    """All texts of a request, those in members that nobody knows included; None where not all can be read here. Raises
    `InvalidRequest` for too many."""
    try:
        if len(inbound.body) > INLINE_BYTES_MAX:
            return await asyncio.to_thread(places, inbound.body)
        return places(inbound.body)
    except (TokenIds, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def saying(inbound: Inbound, where: Sequence[Place], texts: Sequence[str]) -> Inbound:
    """The request with other texts in the places of those that were found; the same bytes everywhere else."""
    changed = [(place, text) for place, text in zip(where, texts, strict=True) if text != place.text]
    if not changed:
        return inbound
    head = replace(inbound.head, members=None, plain=False)
    return replace(inbound, body=put(inbound.body, changed), head=head)


def ending(inbound: Inbound) -> Ending:
    """How the answer to a request ends where somebody ends it."""
    return PASSING[inbound.dialect].ending(inbound)


async def answered(body: bytes) -> Pieces:
    """All texts of an answer; raises `UpstreamInvalid` for what is no JSON object."""
    return await asyncio.to_thread(pieces, body) if len(body) > INLINE_BYTES_MAX else pieces(body)


def saying_instead(
    body: bytes, found: Sequence[Piece], texts: Mapping[int, str], unsealed: Collection[Around] = ()
) -> bytes:
    """An answer or an event with some of its texts others, by their numbers. The tokens of a choice that was changed
    go, and so do seals of what is no longer what was sealed: also those around which something was changed before."""
    if not texts and not unsealed:
        return body
    changed = [found[at] for at in texts]
    choices = {one.choice for one in changed}
    around = {(one.choice, one.around) for one in changed}.union(unsealed)
    instead: list[tuple[Place, str]] = []
    for at, one in enumerate(found):
        if at in texts:
            instead.append((one.place, _valid(texts[at]) if one.place.tree else texts[at]))
        elif one.part == "tokens" and one.choice in choices:
            instead.append((one.place, "[]" if one.place.text.startswith("[") else "null"))
        elif one.part == "seal" and (one.choice, one.around) in around:
            instead.append((one.place, ""))
    return one_line(put(body, instead)) if instead else body


def _valid(tree: str) -> str:
    """JSON, or an empty object where a placeholder took the place of what is no text in it."""
    try:
        msgspec.json.decode(tree)
    except (msgspec.DecodeError, RecursionError):
        return "{}"
    return tree
