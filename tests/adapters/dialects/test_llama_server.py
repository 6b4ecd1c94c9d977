from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from adapters.dialects import llama_server
from adapters.dialects.llama_server import TextInput, TokensInput
from adapters.errors import InvalidRequest
from adapters.types import ChatRequest, Message

USER = {"role": "user", "content": "hi"}


def raw(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def test_tokenize_takes_both_spellings() -> None:
    assert llama_server.parse_tokenize(raw(content="")) == TextInput(None, "")
    assert llama_server.parse_tokenize(raw(model="m", prompt="x", add_special=True)) == TextInput("m", "x", True)
    assert llama_server.parse_tokenize(raw(prompt="x", add_special_tokens=True, parse_special=True)).special


def test_detokenize() -> None:
    assert llama_server.parse_detokenize(raw(tokens=[1, 2])) == TokensInput(None, [1, 2])


def test_conversations_and_counts() -> None:
    request = ChatRequest("", (Message("user", "hi"),))
    assert llama_server.parse_conversation(raw(messages=[USER])) == request
    assert llama_server.parse_count(raw(messages=[USER])) == request
    assert llama_server.parse_count(raw(input="x", model="m")) == TextInput("m", "x", True)


@pytest.mark.parametrize(
    ("parse", "fields", "param"),
    [
        (llama_server.parse_tokenize, {}, "content"),
        (llama_server.parse_tokenize, {"content": 1}, "content"),
        (llama_server.parse_tokenize, {"content": "x", "with_pieces": True}, "with_pieces"),
        (llama_server.parse_tokenize, {"content": "x", "parse_special": False}, "parse_special"),
        (llama_server.parse_tokenize, {"content": "x", "model": ""}, "model"),
        (llama_server.parse_tokenize, {"content": "x", "api_base": "y"}, "api_base"),
        (llama_server.parse_detokenize, {}, "tokens"),
        (llama_server.parse_detokenize, {"tokens": [-1]}, "tokens[0]"),
        (llama_server.parse_detokenize, {"tokens": [1], "api_base": "y"}, "api_base"),
        (llama_server.parse_conversation, {}, "messages"),
        (llama_server.parse_conversation, {"messages": []}, "messages"),
        (llama_server.parse_conversation, {"messages": [USER], "tools": [{"type": "x"}]}, "tools[0].type"),
        (llama_server.parse_conversation, {"messages": [USER], "base_url": "y"}, "base_url"),
        (llama_server.parse_count, {}, "messages"),
        (llama_server.parse_count, {"input": [1]}, "input"),
        (llama_server.parse_count, {"input": "x", "api_key": "y"}, "api_key"),
    ],
)
def test_wrong_values_name_their_field(parse: Callable[[bytes], object], fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(raw(**fields))
    assert caught.value.param == param
