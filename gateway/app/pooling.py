"""Builds the pool of local models, and the doors that requests come in to them by."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

from adapters.llama_cpp import LlamaCpp, forecast
from adapters.llama_cpp.pool import Entry, Pool, PoolSettings
from adapters.llama_cpp.resident import Need, Residence
from gateway.app.models import Local
from gateway.config import Config
from gateway.library.hardware import available_bytes

# What of the memory that is available at the start models may take: the rest is for conversations and other programs.
MEMORY_SHARE = 0.9


def open_pool(config: Config, adapters: Iterable[Local]) -> Pool:
    """The pool of all local models; nothing is loaded yet. From now on requests come in by its doors."""
    chosen = config.pool.memory_bytes
    settings = PoolSettings(
        memory_bytes=int(available_bytes() * MEMORY_SHARE) if chosen is None else chosen,
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
            entries.append(Entry(model=adapter, look=look, how=how, queue_depth_max=model.queue_depth_max))
            local[model.name] = adapter
    pool = Pool(entries, settings, resident_bytes=lambda model: local[model.name].resident_bytes())
    for name, adapter in local.items():
        adapter.door = pool.residents[name]
    return pool


async def _look(model: LlamaCpp) -> Need:
    need, facts = await asyncio.to_thread(forecast.look, model.files)
    model.learn(facts)
    return need
