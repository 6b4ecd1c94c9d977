"""Opens the response cache, and says when a model's answers may have become others."""

from __future__ import annotations

import hashlib
import itertools
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from gateway.cache import Cache
from gateway.catalog import Caching
from gateway.config import Config, ModelConfig, RouteConfig
from gateway.state.blobs import Blobs, MemoryBlobs
from gateway.telemetry import Telemetry


async def open_cache(config: Config, telemetry: Telemetry, stack: AsyncExitStack) -> Cache | None:
    """The cache, where there is to be one."""
    settings = config.cache
    if not settings.enabled:
        return None
    blobs: Blobs
    if settings.redis is None:
        blobs = MemoryBlobs(settings.bytes_max, settings.tenant_bytes_max)
    else:
        # Imported by those who use it.
        from gateway.state.redis_blobs import RedisBlobs

        url, timeout_s = settings.redis.reveal(), settings.redis_timeout_s
        blobs = remote = RedisBlobs(url, settings.bytes_max, settings.tenant_bytes_max, timeout_s=timeout_s)
        await remote.open()
    stack.push_async_callback(blobs.close)
    cache = Cache(blobs, settings, telemetry)
    telemetry.gauge_source(cache.gauges)
    return cache


def caching_of(config: Config, one: ModelConfig | RouteConfig) -> Caching | None:
    """How answers of a model or route are kept, if they are; its version follows its settings and its files."""
    if one.cache_ttl_s is None:
        return None
    if isinstance(one, ModelConfig):
        return Caching(one.cache_ttl_s, _version(_of_model(one)))
    targets = list(itertools.chain.from_iterable(one.groups))
    providers, models = {target.provider for target in targets}, {target.model for target in targets}
    parts: list[object] = [one.groups]
    parts += [
        (each.name, each.kind, each.base_url, each.region, each.api_version, each.headers)
        for each in config.providers
        if each.name in providers
    ]
    parts += [_of_model(each) for each in config.models if each.name in models]
    return Caching(one.cache_ttl_s, _version(parts))


def _of_model(model: ModelConfig) -> object:
    engine, files = (
        model.engine,
        [model.file or model.pull, model.engine.mmproj, *(lora.path for lora in model.engine.loras)],
    )
    return engine, [(file, *_stamp(file)) for file in files if file]


def _stamp(path: str) -> tuple[int, int]:
    """The size of a file and when it was changed, as far as it is there."""
    try:
        found = Path(path).stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _version(parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:16]
