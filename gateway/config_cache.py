"""The settings of the response cache."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gateway.config_limits import Section
from gateway.secret import SecretUrl

Bytes = Annotated[int, Meta(ge=1024, le=1 << 50)]
# How long answers of a model are kept; null: not at all.
CacheTtl = Annotated[int, Meta(ge=1, le=365 * 86_400)] | None


class CacheConfig(Section, frozen=True, kw_only=True):
    """Answers that are given again to the same request of the same tenant; which models have that, says their own
    `cache_ttl_s`. A hit costs `hit_price_percent` of what its answer cost; keys with the tag `except_tag` have no part
    in it. `redis` None: each process has its own, in memory."""

    enabled: bool = False
    bytes_max: Bytes = 256 << 20
    tenant_bytes_max: Bytes = 64 << 20
    entry_bytes_max: Annotated[int, Meta(ge=1024, le=64 << 20)] = 1 << 20
    hit_price_percent: Annotated[int, Meta(ge=0, le=100)] = 0
    except_tag: Annotated[str, Meta(min_length=1, max_length=100)] = "no-cache"
    redis: SecretUrl | None = None
    redis_timeout_s: Annotated[float, Meta(gt=0, le=60)] = 0.5
