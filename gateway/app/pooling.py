"""Builds the pool of local models, and the doors that requests come in to them by."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from adapters.llama_cpp import LlamaCpp, forecast
from adapters.llama_cpp.pool import Entry, Pool, PoolSettings
from adapters.llama_cpp.resident import Need, Residence
from gateway.app.models import Local
from gateway.app.supply import LazyPulls, Supply
from gateway.config import Config, ConfigError
from gateway.library.errors import InvalidReference
from gateway.library.machine import available_bytes
from gateway.library.names import Reference, parse

if TYPE_CHECKING:
    from gateway.library.shelf import Shelf

# What of the memory that is available at the start models may take: the rest is for conversations and other programs.
MEMORY_SHARE = 0.9


def open_pool(
    config: Config, adapters: Iterable[Local], shelf: Shelf | None, stack: AsyncExitStack
) -> tuple[Pool, LazyPulls]:
    """The pool of all local models, and the pulls of this process, which `shelf` hears of; nothing is loaded or pulled
    yet. From now on requests come in by the pool's doors."""
    library = LazyPulls(config, shelf)
    stack.push_async_callback(library.close)
    chosen = config.pool.memory_bytes
    settings = PoolSettings(
        memory_bytes=memory_bytes(config),
        chosen=chosen is not None,
        loads_max=config.pool.loads_max,
        residency_s_min=config.pool.residency_s_min,
        wait_s_max=config.pool.wait_s_max,
    )
    entries, local = [], {}
    for model, adapter in zip(config.models, adapters, strict=True):
        if isinstance(adapter, LlamaCpp):
            how = Residence(lazy=model.lazy, pinned=model.pinned, priority=model.priority, ttl_s=model.ttl_s)
            look = partial(_look, adapter)
            source = None if model.pull is None else Supply(_reference(model.pull), library, adapter.locate)
            entries.append(
                Entry(model=adapter, look=look, how=how, queue_depth_max=model.queue_depth_max, source=source)
            )
            local[model.name] = adapter
    pool = Pool(entries, settings, resident_bytes=lambda model: local[model.name].resident_bytes())
    for name, adapter in local.items():
        adapter.door = pool.residents[name]
    stack.push_async_callback(pool.close)
    return pool, library


def _reference(name: str) -> Reference:
    try:
        return parse(name)
    except InvalidReference as error:
        raise ConfigError(str(error)) from None


def memory_bytes(config: Config) -> int:
    """What all models may take together."""
    chosen = config.pool.memory_bytes
    return int(available_bytes() * MEMORY_SHARE) if chosen is None else chosen


async def _look(model: LlamaCpp) -> Need:
    need, facts = await asyncio.to_thread(forecast.look, model.files)
    model.learn(facts)
    return need
