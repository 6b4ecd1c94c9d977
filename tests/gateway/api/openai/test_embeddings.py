from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from adapters.errors import Overloaded
from adapters.types import EmbeddingRequest, ModelCard
from tests.gateway.api.openai.door import opened
from tests.gateway.api.wire import run, until

ASK: Any = {"model": "m", "input": ["abc", "de"]}


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_vectors(encoding: Any) -> None:
    """Without a format the SDK asks for base64 and decodes it itself."""

    async def scenario() -> None:
        async with opened([]) as door:
            answer = await door.sdk.embeddings.create(**ASK, **encoding, dimensions=2)
            vectors = [item.embedding for item in answer.data]
            expected: object = [0.5, -0.25] if encoding.get("encoding_format") != "base64" else "AAAAPwAAgL4="
            assert vectors == [expected, expected]
            assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("org/model", 5, 5)
            assert door.adapter.requests == [EmbeddingRequest("m", ("abc", "de"), 2)]
            assert door.outcomes() == {"ok": 1}

    run(scenario())


def test_failures() -> None:
    async def scenario() -> None:
        async with opened([Overloaded("full", retry_after_s=4)]) as door:
            with pytest.raises(openai.InternalServerError) as caught:
                await door.sdk.embeddings.create(**ASK)
            assert caught.value.response.headers["retry-after"] == "4"
            with pytest.raises(openai.BadRequestError) as refused:
                await door.sdk.embeddings.create(model="m", input=[])
            assert refused.value.param == "input"
            with pytest.raises(openai.NotFoundError):
                await door.sdk.embeddings.create(model="x", input="x")
        async with opened([], card=ModelCard()) as door:
            with pytest.raises(openai.BadRequestError, match="does not support embeddings"):
                await door.sdk.embeddings.create(**ASK)

    run(scenario())


def test_a_client_that_leaves_stops_the_work() -> None:
    async def scenario() -> None:
        async with opened([asyncio.Event()]) as door:
            body = json.dumps(ASK)
            head = "POST /v1/embeddings HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
            async with door.served.client() as client:
                await client.send(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                await until(lambda: bool(door.adapter.requests))
            await until(lambda: door.outcomes() == {"cancelled": 1})

    run(scenario())
