"""Which of several failures a client is told when no target of a route answered.

The one that helps most: what passes by itself before what may not, and what the request itself is at fault for only
where every target says so. Of equals that which passes first, and else the last one that was tried.

| in this order | status |
|---|---|
| a provider's rate limit, a full queue | 429, or 503 where the queue is not the caller's own |
| a model that is being loaded | 503 |
| a model that is broken, a target that rests because it failed | 503 |
| a provider that did not answer in time | 504 |
| a provider that failed | 502 |
| a request that no target can answer | 400 |
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from adapters.errors import (
    AdapterError,
    Busy,
    EngineFailed,
    InvalidRequest,
    ModelLoading,
    Timeout,
    Unavailable,
    UpstreamFailed,
)

HELPFUL: tuple[tuple[type[AdapterError], ...], ...] = (
    (Busy,),
    (ModelLoading,),
    (Unavailable, EngineFailed),
    (Timeout,),
    (UpstreamFailed,),
    (InvalidRequest,),
)


def most_helpful(failures: Sequence[AdapterError]) -> AdapterError:
    """One of at least one failure, in the order in which they were met."""
    return min(reversed(failures), key=_rank)


def _rank(error: AdapterError) -> tuple[int, float]:
    place = next((i for i, kinds in enumerate(HELPFUL) if isinstance(error, kinds)), len(HELPFUL))
    return place, math.inf if error.retry_after_s is None else error.retry_after_s
