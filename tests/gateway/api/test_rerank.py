from __future__ import annotations

import asyncio

import pytest

from adapters.errors import Overloaded
from adapters.types import ModelCard, RerankRequest
from gateway.api.rerank import PATHS
from tests.gateway.api.openai.door import opened
from tests.gateway.api.wire import run

ASK = {"model": "m", "query": "which?", "documents": ["a", "longer", "long"], "top_n": 2}


@pytest.mark.parametrize("path", PATHS)
def test_documents_are_ordered(path: str) -> None:
    async def scenario() -> None:
        async with opened([]) as door:
            answer = await door.http.post(path, json=ASK)
            assert answer.status_code == 200 and answer.headers["x-gateway-model"] == "org/model"
            assert [found["index"] for found in answer.json()["results"]] == [1, 2]
            assert answer.json()["id"] == "rerank-" + answer.headers["x-request-id"]
            assert door.adapter.requests == [RerankRequest("m", "which?", ("a", "longer", "long"))]
            assert door.outcomes() == {"ok": 1}

    run(scenario())


def test_failures() -> None:
    async def scenario() -> None:
        async with opened([Overloaded("full", retry_after_s=4)]) as door:
            busy = await door.http.post("/v1/rerank", json=ASK)
            assert (busy.status_code, busy.headers["retry-after"]) == (503, "4")
            assert (await door.http.post("/v1/rerank", json=ASK | {"model": "x"})).status_code == 404
        async with opened([], card=ModelCard()) as door:
            refused = await door.http.post("/v1/rerank", json=ASK)
            assert refused.status_code == 400 and "does not support reranking" in refused.text
        async with opened([asyncio.Event()]) as door:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(door.http.post("/v1/rerank", json=ASK), 0.2)

    run(scenario())
