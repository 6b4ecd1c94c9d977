"""The settings of the pool: how much memory local models share, and how they take turns in it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gateway.config_limits import Section


class PoolConfig(Section, frozen=True, kw_only=True):
    """`memory_bytes` None: as much as is available when the gateway starts, less a tenth. `residency_s_min` None: five
    times as long as the model took to load, a minute at most."""

    memory_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 50)] | None = None
    loads_max: Annotated[int, Meta(ge=1, le=64)] = 2
    residency_s_min: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    wait_s_max: Annotated[float, Meta(ge=0, le=600)] = 30.0
