"""Streams of events that have a shorter way than through whoever reads them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol, cast

from adapters.types import Event

Take = Callable[[Event], bool]


class Direct(Protocol):
    """A stream whose events can go straight from where they come from to where they go to."""

    def divert(self, take: Take) -> None:
        """Offer what comes while the reader waits to `take` first, in the call in which it came.

        What that declines (False) is for the reader, and so is everything that comes before the reader waits again,
        the ends of choices and of the stream, and what `take` raises.
        """
        ...


def divert(events: AsyncIterator[Event], take: Take) -> None:
    """As `Direct` says, where a stream is one."""
    if hasattr(events, "divert"):
        cast(Direct, events).divert(take)
