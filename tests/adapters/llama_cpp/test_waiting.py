"""Requests that wait for a model whose worker dies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from adapters.errors import EngineFailed, ModelLoading
from adapters.llama_cpp import EMBEDDING_MAX, PREPARING_MAX, LlamaCpp
from adapters.llama_cpp.pool import Entry, Pool, PoolSettings
from adapters.llama_cpp.resident import Need
from adapters.types import EmbeddingRequest, Embeddings
from tests.adapters.llama_cpp.fake_worker import PARALLEL
from tests.adapters.llama_cpp.test_adapter import caller, chat, collect, first_delta, text_of, until, with_adapter


def in_pool(test: Callable[[LlamaCpp], Awaitable[None]]) -> Callable[[LlamaCpp], Awaitable[None]]:
    """The same with an adapter that a pool has loaded, whose door says when it is back."""

    async def look() -> Need:
        return Need(1)

    async def pooled(adapter: LlamaCpp) -> None:
        pool = Pool([Entry(model=adapter, look=look)], PoolSettings(memory_bytes=10, chosen=True))
        adapter.door = pool.residents["m"]
        await pool.start()
        await test(adapter)
        await pool.close()

    return pooled


def test_who_waits_in_line_when_the_worker_dies_is_served_by_the_next_one() -> None:
    async def test(adapter: LlamaCpp) -> None:
        streams = [adapter.chat(chat("forever"), caller()) for _ in range(PARALLEL - 1)]
        for stream in streams:
            await first_delta(stream)
        crash = asyncio.create_task(collect(adapter.chat(chat("crash"), caller())))
        await until(lambda: adapter.status().running == PARALLEL)
        queued = [asyncio.create_task(collect(adapter.chat(chat(f"say 1 {name}"), caller()))) for name in "ab"]
        for at_work in (*map(collect, streams), crash):
            with pytest.raises(EngineFailed):
                await at_work
        assert [text_of(await task) for task in queued] == [" a", " b"]

    with_adapter(in_pool(test))


def test_who_got_a_place_at_the_tokenisers_when_the_worker_died_takes_only_one() -> None:
    async def test(adapter: LlamaCpp) -> None:
        hanging = [asyncio.create_task(collect(adapter.chat(chat("hang"), caller()))) for _ in range(PREPARING_MAX)]
        await until(lambda: adapter._preparing.queue.running == PREPARING_MAX)
        waiting = asyncio.create_task(collect(adapter.chat(chat("say 1 x"), caller())))
        await until(lambda: adapter._preparing.queue.waiting == 1)
        assert adapter._worker._link is not None
        adapter._worker._link.abort("it broke")
        # The worker is gone before whoever gets the place can do anything with it.
        adapter._preparing.leave(next(iter(adapter._preparing.queue._running.values())))
        for task in hanging:
            task.cancel()
        assert text_of(await waiting) == " x"

    with_adapter(in_pool(test))


def test_inputs_that_wait_when_the_worker_dies_are_embedded_by_the_next_one() -> None:
    def embed(adapter: LlamaCpp, text: str) -> asyncio.Task[Embeddings]:
        return asyncio.create_task(adapter.embed(EmbeddingRequest("m", (text,)), caller()))

    async def test(adapter: LlamaCpp) -> None:
        hanging = [embed(adapter, "hang") for _ in range(EMBEDDING_MAX)]
        waiting = embed(adapter, "one")
        await until(lambda: adapter._embedding.queue.waiting == 1)
        with pytest.raises(ModelLoading):
            await adapter.tokenize("crash", special=True)
        for task in hanging:
            with pytest.raises(ModelLoading):
                await task
        assert (await waiting).prompt_tokens == 1

    with_adapter(in_pool(test), scenario="embedder")
