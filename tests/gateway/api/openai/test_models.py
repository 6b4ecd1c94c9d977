from __future__ import annotations

import openai
import pytest

from adapters.types import ModelCard
from tests.gateway.api.openai.door import opened
from tests.gateway.api.wire import run


def test_models() -> None:
    async def scenario() -> None:
        card = ModelCard(context_tokens=2048, kinds=("chat",), parameters=7, description="small")
        async with opened(card=card) as door:
            models = [model async for model in door.sdk.models.list()]
            assert [(model.id, model.object, model.created) for model in models] == [("org/model", "model", 1700000000)]
            assert (await door.http.get("/v1/models")).json()["data"] == [
                {
                    "id": "org/model",
                    "object": "model",
                    "created": 1700000000,
                    "owned_by": "inference-gateway",
                    "context_length": 2048,
                    "parameters": 7,
                    "description": "small",
                    "capabilities": ["chat"],
                }
            ]

    run(scenario())


@pytest.mark.parametrize("name", ["org/model", "org%2Fmodel", "m"])
def test_one_model(name: str) -> None:
    """Names may hold slashes, plain or encoded; an alias leads to its model."""

    async def scenario() -> None:
        async with opened() as door:
            reply = await door.http.get(f"/v1/models/{name}")
            assert (reply.status_code, reply.json()["id"]) == (200, "org/model")
            assert (await door.sdk.models.retrieve("org/model")).id == "org/model"

    run(scenario())


def test_an_unknown_model() -> None:
    async def scenario() -> None:
        async with opened() as door:
            with pytest.raises(openai.NotFoundError) as caught:
                await door.sdk.models.retrieve("org/other")
            assert caught.value.code == "model_not_found"

    run(scenario())
