"""What a client sends in a dialect reaches a provider of that dialect byte for byte, but for the routed fields, and so
does the answer on its way back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from adapters.providers import ProviderKind
from tests.adapters.upstream import Peer, Script
from tests.gateway.api.passing_door import opened, post
from tests.gateway.api.wire import run
from tests.gateway.guardrails.test_watch import guardrails

TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"model": {"type": "string"}, "größe": {"enum": [1, 1.5, None]}},
        },
    },
    "x-vendor": {"cache": {"ttl": 1e3}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "lookup", "arguments": '{"model": "a\\"b"}'}}
USER = {"role": "user", "content": 'Grüße, \u2028 \U0001f600 "model": "x" data: [DONE]\n\n'}
PARTS = {
    "role": "user",
    "content": [
        {"type": "text", "text": "look", "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "hologram", "hologram": {"depth": [[], [{}], {"deep": {"deeper": [None, True, -0.0]}}]}},
    ],
}
CHATS: list[dict[str, Any]] = [
    {"messages": [USER]},
    {"messages": [{"role": "developer", "content": "be brief"}, PARTS], "store": True, "metadata": {"model": "m"}},
    {"messages": [USER], "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "lookup"}}},
    {
        "messages": [
            USER,
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "4"},
        ]
    },
    {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": TOOL}}},
    {"messages": [USER], "logprobs": True, "top_logprobs": 3, "logit_bias": {"50256": -100}, "seed": 2**62, "n": 2},
    {"messages": [USER], "reasoning_effort": "high", "verbosity": "low", "modalities": ["text", "audio"]},
    {
        "messages": [USER],
        "prediction": {"type": "content", "content": "x"},
        "web_search_options": {"user_location": {}},
    },
    {"messages": [USER], "temperature": 1.0, "top_p": 1e-5, "max_completion_tokens": 2**31 - 1, "stop": ["\n", "ü"]},
    {
        "messages": [USER],
        "provider": {"order": ["a"]},
        "plugins": [{"id": "web"}],
        "chat_template_kwargs": {"a": {"b": 1}},
    },
    {"messages": [{"role": "assistant", "content": None, "audio": {"id": "a"}, "refusal": None, "annotations": [{}]}]},
    {"messages": [], "unknown": [[[[[[{"model": [{"model": {"stream": True, "stream_options": {}}}]}]]]]]]},
]
CHAT_CHUNKS = [
    '{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant"}}],"obfuscation":"x1"}',
    '{"id": "c", "choices": [{"delta": {"content": "Gr\\u00fc\\ud83d\\ude00\\n\\ndata: [DONE]"}, "logprobs": {}}]}',
    '{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"x","function":{"arguments":"{\\"error\\":1}"}}]}}],"usage":null}',
    '{"choices":[{"delta":{"reasoning_details":[{"signature":"a+/="}],"ü":[1E5,-0.0]}}],"x_vendor":{"timing":{"a":1}}}',
    '{"choices":[{"delta":{},"finish_reason":"stop","content_filter_results":{"hate":{}}}],"service_tier":"default"}',
]
CHAT = (
    b'{ "id":"chatcmpl-1","choices":[ {"message":{"role":"assistant","content":"\\u00fc\\n","x":[{"x":[1e2]}]},'
    b'"finish_reason":"stop"}],\n"usage" : {"prompt_tokens":1,"completion_tokens":2,"x":{"y":null}}, "z":"flex"}\n'
)

INPUT: list[Any] = [
    {"role": "user", "content": [{"type": "input_text", "text": USER["content"], "x": [{"y": -0.0}]}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "a+/=", "status": None},
    {"type": "web_search_call", "id": "ws_1", "action": {"type": "search", "model": "x", "sources": [{}]}},
    {"type": "function_call", "call_id": "c", "name": "lookup", "arguments": CALL["function"]["arguments"]},  # type: ignore[index]
    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "file_id": "file-1"}]},
    {"type": "hologram", "store": True, "depth": [[], [{"max_output_tokens": 1e2}]]},
]
RESPONSES: list[dict[str, Any]] = [
    {"input": "Grüße, \u2028 \U0001f600"},
    {"input": INPUT, "store": False, "metadata": {"store": "true", "model": "m"}},
    {
        "input": INPUT,
        "tools": [{"type": "web_search", "filters": {"allowed_domains": ["a"]}}, {"type": "mcp", "x": 1.0}],
    },
    {"input": INPUT, "tools": [{"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "lark"}}]},
    {"input": "x", "text": {"format": {"type": "json_schema", "name": "s", "schema": TOOL}, "verbosity": "low"}},
    {"input": "x", "reasoning": {"effort": "minimal", "summary": "detailed", "x": {}}, "include": ["a.b", "c"]},
    {"input": "x", "truncation": "auto", "max_tool_calls": 3, "service_tier": "flex", "stream_options": {"x": 1}},
    {"input": [], "store": None, "unknown": [[[{"store": [{"model": {"stream": True}}]}]]]},
]
RESPONSE_EVENTS = [
    '{"type":"response.created","sequence_number":0,"response":{"object":"response","usage":null,"error":null,"x":[1E2]}}',
    '{"type":"response.web_search_call.searching","sequence_number":1,"output_index":0,"item_id":"ws"}',
    '{"type":"response.output_text.delta", "delta":"Gr\\u00fc\\n\\ndata: [DONE]","obfuscation":"x","logprobs":[]}',
    '{"type":"response.of_tomorrow","ü":{"response.failed":1,"error":[{"a":-0.0}]}}',
    '{"type":"response.completed","response":{"object":"response","usage":{"input_tokens":1,"output_tokens":2,"x":{}}}}',
]
RESPONSE = (
    b'{ "id":"resp_1","object" : "response","output":[{"type":"message","x":[1e2,{"y":"\\u00fc"}]}],"error":null,'
    b'\n"usage":{"input_tokens":1,"output_tokens":2,"x":{"y":null}}, "z":"flex"}\n'
)

CONTENT: list[Any] = [
    {"type": "text", "text": USER["content"], "cache_control": {"type": "ephemeral", "ttl": "1h"}, "x": -0.0},
    {"type": "document", "source": {"type": "file", "file_id": "f"}, "citations": {"enabled": True}},
    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "search_result", "model": "x", "y": 1e2}]},
    {"type": "hologram", "depth": [[], [{"max_tokens": [None]}]]},
]
MESSAGES: list[dict[str, Any]] = [
    {"max_tokens": 9, "messages": [{"role": "user", "content": CONTENT}]},
    {"max_tokens": 9, "system": [CONTENT[0]], "messages": [{"role": "user", "content": "ü", "x": {"model": "m"}}]},
    {"max_tokens": 9, "messages": [], "tools": [{"type": "web_search_20260101", "name": "w", "max_uses": 1.0}]},
    {"max_tokens": 9, "messages": [], "mcp_servers": [{"url": "u"}], "container": {"skills": []}, "speed": "fast"},
    {"max_tokens": 9, "messages": [], "thinking": {"type": "tomorrow"}, "metadata": {"user_id": None, "x": 1}},
    {"max_tokens": 9, "messages": [], "context_management": {"edits": [{"model": [{"model": "x"}]}]}},
]
MESSAGE_EVENTS = [
    '{"type":"message_start","message":{"usage":{"input_tokens":1,"output_tokens":1,"x":{}},"model":"m","y":[1E2]}}',
    '{"type":"content_block_start","index":0,"content_block":{"type":"hologram","ü":{}}}',
    '{"type": "content_block_delta","index":0,"delta":{"type":"of_tomorrow","x":"\\n\\ndata: [DONE]","y":-0.0}}',
    '{"type":"message_delta","delta":{"stop_reason":"of_tomorrow"},"usage":{"output_tokens":2},"context":{"x":null}}',
    '{"type":"message_stop","x":{}}',
]
MESSAGE = (
    b'{ "type" : "message","content":[{"type":"hologram","x":[1e2,"\\u00fc"]}],"usage":{"input_tokens":1,'
    b'\n"output_tokens":2,"server_tool_use":{"x":null}}, "z":"flex"}\n'
)

EMBEDDINGS: list[dict[str, Any]] = [
    {"input": "Grüße"},
    {"input": [1, 2], "encoding_format": "float", "dimensions": 4, "user": "u"},
    {
        "input": [{"type": "image_url", "image_url": {"url": "x", "model": "m"}}],
        "input_type": "query",
        "x": [-0.0, 1e2],
    },
]
VECTORS = b'{ "object":"list","data":[ {"embedding":[1.0,-0.0,1e-9],"x":{}} ],\n"usage":{"prompt_tokens":1,"x":null}}\n'


class Corpus(NamedTuple):
    """Requests in a dialect with what a provider of it might answer; `stream` as it comes."""

    path: bytes
    kind: ProviderKind
    requests: list[dict[str, Any]]
    answer: bytes
    stream: str = ""


def named(events: list[str]) -> str:
    return "".join(f"event: {json.loads(event)['type']}\ndata: {event}\n\n" for event in events)


CORPORA = {
    "chat": Corpus(
        b"/v1/chat/completions",
        "openai-compatible",
        CHATS,
        CHAT,
        "".join(f"data: {chunk}\n\n" for chunk in [*CHAT_CHUNKS, "[DONE]"]),
    ),
    "responses": Corpus(b"/v1/responses", "openai", RESPONSES, RESPONSE, named(RESPONSE_EVENTS)),
    "messages": Corpus(b"/v1/messages", "anthropic", MESSAGES, MESSAGE, named(MESSAGE_EVENTS)),
    "vertex": Corpus(b"/v1/messages", "vertex-anthropic", MESSAGES, MESSAGE, named(MESSAGE_EVENTS)),
    "embeddings": Corpus(b"/v1/embeddings", "openai", EMBEDDINGS, VECTORS),
}
STREAMS = {name: corpus for name, corpus in CORPORA.items() if corpus.stream}


def spellings(fields: dict[str, Any]) -> Iterator[bytes]:
    """The same request as different libraries write it, the model in front and at the end."""
    for ordered in ({"model": "far", **fields}, {**fields, "model": "far"}):
        yield json.dumps(ordered).encode()
        yield json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
        yield json.dumps(ordered, ensure_ascii=False, indent="\t").replace("\n", "\r\n").encode()


def expected(body: bytes, fields: dict[str, Any], corpus: Corpus) -> bytes:
    """What the provider is to get: the routed fields are its own, and of responses nothing is to be kept."""
    if corpus.kind == "vertex-anthropic":
        return re.sub(rb'"model": ?"far"', b'"anthropic_version":"vertex-2023-10-16"', body)
    before, _, behind = body.rpartition(b'"far"')
    body = before + b'"their-model"' + behind
    if corpus.path == b"/v1/responses" and "store" not in fields:
        return body.replace(b"{", b'{"store":false,', 1)
    if corpus.path == b"/v1/responses" and fields["store"] is None:
        return re.sub(rb'"store":( ?)null', rb'"store":\1false', body, count=1)
    return body


def recorder(sent: list[bytes], answer: bytes) -> Script:
    async def record(peer: Peer) -> None:
        while True:
            sent.append((await peer.request())[1])
            await peer.send(answer)

    return record


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
@pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA)
def test_requests_and_answers_stay_byte_for_byte(corpus: Corpus, lane: bool) -> None:
    sent: list[bytes] = []
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(corpus.answer), corpus.answer)

    async def main() -> None:
        async with (
            opened(recorder(sent, answer), lane=lane, kind=corpus.kind) as door,
            door.served.client() as client,
        ):
            for fields in corpus.requests:
                for body in spellings(fields):
                    assert (await client.ask(post(body, path=corpus.path))).body == corpus.answer
                    assert sent[-1] == expected(body, fields, corpus)
        assert len(sent) == 6 * len(corpus.requests)

    run(main())


@pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA)
def test_behind_guardrails_only_what_is_masked_is_other_bytes(corpus: Corpus) -> None:
    sent: list[bytes] = []
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(corpus.answer), corpus.answer)

    async def main() -> None:
        guards = guardrails("mask", stage=("before", "during", "after"))
        async with (
            opened(recorder(sent, answer), kind=corpus.kind, guardrails=guards) as door,
            door.served.client() as client,
        ):
            # Token ids cannot be read behind guardrails.
            for fields in (one for one in corpus.requests if one.get("input") != [1, 2]):
                for more in ({}, {"note": [{"who": "ask bob@example.com", "ü": -0.0}]}):
                    for body in spellings(more | fields):
                        assert (await client.ask(post(body, path=corpus.path))).body == corpus.answer
                        assert sent[-1] == expected(body, fields, corpus).replace(b"bob@example.com", b"[EMAIL]")

    run(main())


WATCHED = ("none", "during", "after")


@pytest.mark.parametrize("watched", WATCHED)
@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
@pytest.mark.parametrize("size", [1, 3, 50, 100_000])
@pytest.mark.parametrize("corpus", STREAMS.values(), ids=STREAMS)
def test_streams_stay_byte_for_byte(corpus: Corpus, size: int, lane: bool, watched: Any) -> None:
    stream = corpus.stream.encode()
    sent: list[bytes] = []
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    answer = head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    guards = None if watched == "none" else guardrails("mask", stage=watched)

    async def main() -> None:
        async with (
            opened(recorder(sent, answer), lane=lane, kind=corpus.kind, guardrails=guards) as door,
            door.served.client() as client,
        ):
            for options in ({"stream_options": {"include_usage": True, "include_obfuscation": False}}, {}):
                fields = corpus.requests[1] | {"stream": True} | options
                body = json.dumps({"model": "far", **fields}).encode()
                assert (await client.ask(post(body, path=corpus.path))).body == stream
                wanted = expected(body, fields, corpus)
                if corpus.path == b"/v1/chat/completions" and not options:
                    wanted = wanted.replace(b"{", b'{"stream_options":{"include_usage":true},', 1)
                assert sent[-1] == wanted

    run(main())
