"""The response cache over HTTP: how full it is, and emptying it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from gateway import errors
from gateway.api.admin.routes import Call, Query, Route
from gateway.cache import Cache

CACHE = "/admin/v1/cache"


class CacheQuery(Query, kw_only=True, frozen=True):
    """Without a `tenant`: everybody's."""

    tenant: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class CacheShown(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept, as far as this process knows, and since its start how many answers made room for others and how
    many could not be looked up or kept."""

    object: str = "cache"
    size_bytes: int
    evicted: int
    failed: int


class Cleared(msgspec.Struct, frozen=True, kw_only=True):
    """How many answers were dropped."""

    object: str = "cache.cleared"
    answers: int


class CacheRoutes:
    """`/admin/v1/cache`."""

    def __init__(self, cache: Cache | None) -> None:
        self._maybe = cache

    @property
    def _cache(self) -> Cache:
        if self._maybe is None:
            raise errors.error("not_found", "The response cache is off (cache.enabled).")
        return self._maybe

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("GET", CACHE, "cache.read", self.get, "How full the response cache is", answer=CacheShown),
            Route(
                "DELETE",
                CACHE,
                "cache.write",
                self.clear,
                "Drop the answers in the response cache, or a tenant's",
                query=CacheQuery,
                answer=Cleared,
                action="cache.clear",
            ),
        )

    async def get(self, call: Call[None, None]) -> CacheShown:
        counts = self._cache.counts
        return CacheShown(size_bytes=counts.size_bytes, evicted=counts.evicted, failed=counts.failed)

    async def clear(self, call: Call[CacheQuery, None]) -> Cleared:
        dropped = await self._cache.clear(call.query.tenant)
        if dropped is None:
            raise errors.error("overloaded", "The cache's Redis cannot be reached, or not everything was dropped.")
        call.note(call.query.tenant or "", answers=dropped)
        return Cleared(answers=dropped)
