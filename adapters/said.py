"""The texts of requests that are passed on, and the same requests with other texts in their places."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from adapters.dialects.places import Place, Sort, TokenIds, places, put
from adapters.types import Inbound

__all__ = ["Place", "Sort", "readable", "saying"]

# Larger bodies are walked over in a thread: it takes a second for ten megabytes of short texts.
INLINE_BYTES_MAX = 64 * 1024


async def readable(inbound: Inbound) -> list[Place] | None:
    """All texts of a request, those in members that nobody knows included; None where not all can be read here."""
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
