"""The header over a scripted model: what runs, what is kept, and what a drain does to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest

from adapters.errors import EngineFailed, Overloaded
from gateway.api import openai as api
from gateway.api.idempotent import Idempotent
from gateway.api.remote_images import RemoteImages
from gateway.catalog import Catalog, Target
from gateway.config import IdempotencyConfig, ImagesConfig
from gateway.idempotency import Idempotency
from gateway.inference import Inference
from gateway.telemetry import Telemetry
from tests.databases import open_migrated
from tests.fakes import HELLO, Scripted, Step
from tests.gateway.api.wire import run, serve, until

ASK = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
NAMED = {"Idempotency-Key": "k"}
PATH = "/v1/chat/completions"


@contextlib.asynccontextmanager
async def opened(folder: Path, script: Sequence[Step]) -> AsyncIterator[tuple[Scripted, httpx.AsyncClient, Idempotent]]:
    adapter = Scripted(script)
    catalog = Catalog([Target("m", adapter)])
    database = await open_migrated(folder, serve=True)
    idempotency = Idempotency(database, None, IdempotencyConfig(wait_timeout_s=5), alone=True)
    await idempotency.open()
    idempotent = Idempotent(idempotency, 1_000_000)
    inference = Inference(catalog, Telemetry("test"))
    endpoints = idempotent.wrap(api.endpoints(inference, catalog, RemoteImages(ImagesConfig()), 1_000_000))
    try:
        async with serve(endpoints) as served, httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}") as http:
            yield adapter, http, idempotent
    finally:
        await idempotent.close()
        await idempotency.close()
        await database.close()


@pytest.mark.parametrize("stream", [False, True])
def test_fifty_at_once_reach_the_model_once(tmp_path: Path, stream: bool) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with opened(tmp_path, [*HELLO[:2], gate, *HELLO[2:]]) as (adapter, http, _):
            ask = ASK | {"stream": stream}
            asked = [asyncio.create_task(http.post(PATH, json=ask, headers=NAMED)) for _ in range(50)]
            await until(lambda: bool(adapter.requests))
            gate.set()
            answers = await asyncio.gather(*asked)
            assert {answer.status_code for answer in answers} == {200}
            assert len({answer.content for answer in answers}) == len(adapter.requests) == 1
            assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_told_and_runs_again(tmp_path: Path, stream: bool) -> None:
    async def scenario() -> None:
        for script in ([Overloaded("full")], [*HELLO[:2], EngineFailed("broke")]):
            async with opened(tmp_path / str(len(script)), script) as (adapter, http, _):
                for runs in (1, 2):
                    answer = await http.post(PATH, json=ASK | {"stream": stream}, headers=NAMED)
                    begun = stream and len(script) > 1
                    assert answer.status_code == (200 if begun else 503)
                    assert "error" in answer.text and "idempotent-replayed" not in answer.headers
                    assert len(adapter.requests) == runs

    run(scenario())


def test_the_end_of_the_server_frees_the_key(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with opened(tmp_path, [*HELLO[:2], gate, *HELLO[2:]]) as (adapter, http, idempotent):
            async with http.stream("POST", PATH, json=ASK | {"stream": True}, headers=NAMED) as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                await idempotent.close()
                rest = [line async for line in lines]
                assert any("shutting_down" in line for line in rest) and "data: [DONE]" not in rest
            gate.set()
            again = await http.post(PATH, json=ASK | {"stream": True}, headers=NAMED)
            assert "data: [DONE]" in again.text and len(adapter.requests) == 2

    run(scenario())


def test_two_keys_are_one_too_many(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path, HELLO) as (adapter, http, _):
            twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
            assert (await http.post(PATH, json=ASK, headers=twice)).status_code == 400
            assert not adapter.requests

    run(scenario())
