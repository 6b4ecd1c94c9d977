"""What of a request of the Responses API is replaced on its way to a provider that speaks it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.dialects.client import Style
from adapters.dialects.openai_responses import render_request
from adapters.dialects.openai_responses.passing import read_head, rewrite
from adapters.providers import PROVIDERS
from adapters.types import ChatRequest, Inbound, Message

ENCRYPTED = "reasoning.encrypted_content"
OPENAI = PROVIDERS["openai"].style


def rewritten(model: str, style: Style, output_tokens_max: int | None = None, **fields: Any) -> Any:
    body = json.dumps({"model": "far", "input": "hi"} | fields).encode()
    parts = rewrite(Inbound("openai_responses", body, read_head(body), output_tokens_max), model, style)
    return {name: value for name, value in json.loads(b"".join(parts)).items() if name not in ("model", "input")}


@pytest.mark.parametrize(
    "model", ["o3", "o4-mini", "gpt-5", "gpt-5.2-codex", "gpt-6-sol", "codex-mini-latest", "gpt-10"]
)
def test_models_that_think_are_asked_for_their_thoughts_where_nothing_is_kept(model: str) -> None:
    assert rewritten(model, OPENAI) == {"store": False, "include": [ENCRYPTED]}
    assert rewritten(model, OPENAI, store=None, include=None) == {"store": False, "include": [ENCRYPTED]}
    assert rewritten(model, OPENAI, include=["x"]) == {"store": False, "include": ["x", ENCRYPTED]}
    assert rewritten(model, OPENAI, include=[ENCRYPTED, "x"]) == {"store": False, "include": [ENCRYPTED, "x"]}
    assert rewritten(model, OPENAI, store=False) == {"store": False}, "who says so knows what to ask for"


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4.1-mini", "gpt-5-chat-latest", "chatgpt-4o-latest", "gpt-3.5-turbo"])
def test_models_that_refuse_it_are_not(model: str) -> None:
    assert rewritten(model, OPENAI) == {"store": False}
    asked = ChatRequest(model, (Message("user", "hi"),))
    assert json.loads(render_request(asked, OPENAI))["include"] == []
    assert json.loads(render_request(asked, Style()))["include"] == [ENCRYPTED]


def test_other_providers_get_no_more_than_they_were_sent() -> None:
    assert rewritten("gpt-5", PROVIDERS["openrouter"].style) == {"store": False}


def test_bounds() -> None:
    assert rewritten("m", Style(), 9) == {"store": False, "max_output_tokens": 9}
    assert rewritten("m", Style(), 9, store=False, max_output_tokens=None) == {"store": False, "max_output_tokens": 9}
