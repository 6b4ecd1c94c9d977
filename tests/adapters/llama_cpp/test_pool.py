"""The pool: models loaded one after the other, each on its own."""

from __future__ import annotations

import asyncio

import pytest

from adapters import open_adapter
from adapters.errors import ModelLoading, ModelUnavailable
from adapters.llama_cpp import LlamaCpp
from adapters.llama_cpp.messages import EngineSettings
from adapters.llama_cpp.pool import Pool
from tests.adapters.llama_cpp.test_process import argv, run


def model(name: str, scenario: str) -> LlamaCpp:
    return LlamaCpp(name, "m.gguf", EngineSettings(), argv=argv(scenario))


def test_one_after_the_other_and_a_failure_stops_nobody() -> None:
    async def test() -> None:
        pool = Pool([model("broken", "invalid"), model("good", "plain"), model("late", "plain")])
        with pytest.raises(ModelUnavailable):
            pool.ensure_ready("good")
        starting = asyncio.create_task(pool.start())
        loading_together = 0
        while not starting.done():
            await asyncio.sleep(0.002)
            loading = sum(status.state == "loading" for status in pool.statuses().values())
            loading_together = max(loading_together, loading)
        assert loading_together == 1
        assert pool.ensure_ready("good").name == "good"
        assert pool.statuses()["late"].state == "ready"
        with pytest.raises((ModelUnavailable, ModelLoading)):
            pool.ensure_ready("broken")
        with pytest.raises(KeyError):
            pool.ensure_ready("unknown")
        await pool.close()
        assert {status.state for status in pool.statuses().values()} == {"stopped"}

    run(test)


def test_closing_while_starting_starts_nothing_more() -> None:
    async def test() -> None:
        pool = Pool([model("slow", "silent"), model("next", "plain")])
        starting = asyncio.create_task(pool.start())
        await asyncio.sleep(0.01)
        await pool.close()
        await starting
        assert {status.state for status in pool.statuses().values()} == {"stopped"}
        assert pool.statuses()["next"].pid is None

    run(test)


def test_open_adapter_builds_without_starting() -> None:
    async def test() -> None:
        adapter = open_adapter("name", "m.gguf", EngineSettings(), queue_depth_max=3)
        assert (adapter.name, adapter.status().state) == ("name", "stopped")
        assert adapter.card.context_tokens is None
        await adapter.close()

    run(test)
