"""Ends streams of events before their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from adapters.types import Event


async def close(events: AsyncIterator[Event]) -> None:
    """Stop the work behind a stream, also when this task is being cancelled once more; raises what that raises."""
    aclose = getattr(events, "aclose", None)
    if aclose is not None:
        await asyncio.shield(asyncio.ensure_future(aclose()))
