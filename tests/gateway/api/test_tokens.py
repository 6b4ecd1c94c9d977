from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.api.openai.door import opened
from tests.gateway.api.wire import run

USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("/v1/tokenize", {"content": "ab"}, {"tokens": [97, 98]}),
        ("/tokenize", {"model": "m", "prompt": "ab", "add_special": True}, {"tokens": [1, 97, 98]}),
        ("/v1/detokenize", {"tokens": [97, 98]}, {"content": "ab"}),
        ("/detokenize", {"tokens": []}, {"content": ""}),
        ("/v1/apply-template", {"messages": [USER]}, {"prompt": "<user>hi"}),
        ("/apply-template", {"model": "org/model", "messages": [USER]}, {"prompt": "<user>hi"}),
        ("/v1/count_tokens", {"messages": [USER]}, {"object": "response.input_tokens", "input_tokens": 8}),
        ("/v1/count_tokens", {"input": "ab"}, {"object": "response.input_tokens", "input_tokens": 3}),
    ],
)
def test_answers(path: str, body: dict[str, Any], answer: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with opened() as door:
            reply = await door.http.post(path, json=body)
            assert (reply.status_code, reply.json()) == (200, answer)

    run(scenario())


@pytest.mark.parametrize("path", ["/v1/tokenize", "/v1/detokenize", "/v1/apply-template", "/v1/count_tokens"])
def test_bad_bodies(path: str) -> None:
    async def scenario() -> None:
        async with opened() as door:
            replies = [
                await door.http.post(path, content=content, headers={"content-type": "application/json"})
                for content in (b"{", b"{}", b'{"api_base":"x"}', b'{"tokens":1,"content":1,"messages":1,"input":1}')
            ]
            assert [reply.status_code for reply in replies] == [400] * 4
            assert replies[0].json()["error"]["code"] == "invalid_json"
            assert (await door.http.post(path, content=b"{}")).status_code == 415

    run(scenario())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/tokenize", {"content": "x"}),
        ("/v1/detokenize", {"tokens": []}),
        ("/v1/apply-template", {"messages": [USER]}),
        ("/v1/count_tokens", {"input": "x"}),
    ],
)
def test_unknown_models(path: str, body: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with opened() as door:
            reply = await door.http.post(path, json={**body, "model": "x"})
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")

    run(scenario())
