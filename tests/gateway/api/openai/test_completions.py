from __future__ import annotations

from typing import Any

import pytest

from adapters.types import ChoiceFinished, CompletionRequest, Finished, Started, TextDelta, Usage
from tests.gateway.api.openai.door import opened
from tests.gateway.api.wire import run

ASK: Any = {"model": "m", "prompt": ["a", "b"]}
SCRIPT = (
    Started(prompt_tokens=2),
    TextDelta(1, "B"),
    TextDelta(0, "A"),
    TextDelta(0, "a"),
    ChoiceFinished(1, "length"),
    ChoiceFinished(0, "stop"),
    Finished(Usage(2, 3)),
)


def test_unary() -> None:
    async def scenario() -> None:
        async with opened(SCRIPT) as door:
            answer = await door.sdk.completions.create(**ASK, echo=True, suffix="s")
            assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [
                (0, "Aa", "stop"),
                (1, "B", "length"),
            ]
            assert answer.id.startswith("cmpl-") and answer.model == "org/model"
            assert answer.usage is not None and answer.usage.completion_tokens == 3
            request = door.adapter.requests[0]
            assert isinstance(request, CompletionRequest)
            assert (request.prompts, request.suffix, request.echo) == (("a", "b"), "s", True)

    run(scenario())


def test_stream() -> None:
    async def scenario() -> None:
        async with opened(SCRIPT) as door:
            options: Any = {"include_usage": True}
            stream = await door.sdk.completions.create(**ASK, stream=True, stream_options=options)
            *chunks, last = [chunk async for chunk in stream]
            choices = [chunk.choices[0] for chunk in chunks]
            assert "".join(choice.text for choice in choices if choice.index == 0) == "Aa"
            assert "".join(choice.text for choice in choices if choice.index == 1) == "B"
            assert last.choices == [] and last.usage is not None and last.usage.total_tokens == 5

    run(scenario())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"model":"m","prompt":"x"', 400, "invalid_json"),
        (b'{"model":"m","prompt":[]}', 400, "invalid_value"),
        (b'{"model":"m","prompt":"x","base_url":"http://x"}', 400, "unknown_parameter"),
        (b'{"model":"x","prompt":"x"}', 404, "model_not_found"),
    ],
)
def test_bad_bodies_reach_no_model(body: bytes, status: int, code: str) -> None:
    async def scenario() -> None:
        async with opened(SCRIPT) as door:
            headers = {"content-type": "application/json"}
            reply = await door.http.post("/v1/completions", content=body, headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
            assert door.adapter.requests == []

    run(scenario())
