"""What a client sends in a dialect reaches a provider of that dialect byte for byte, but for the routed fields, and so
does the answer on its way back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.adapters.upstream import Peer
from tests.gateway.api.passing_door import opened, post
from tests.gateway.api.wire import run

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
REQUESTS: list[dict[str, Any]] = [
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
CHUNKS = [
    '{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant"}}],"obfuscation":"x1"}',
    '{"id": "c", "choices": [{"delta": {"content": "Gr\\u00fc\\ud83d\\ude00\\n\\ndata: [DONE]"}, "logprobs": {}}]}',
    '{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"x","function":{"arguments":"{\\"error\\":1}"}}]}}],"usage":null}',
    '{"choices":[{"delta":{"reasoning_details":[{"signature":"a+/="}],"ü":[1E5,-0.0]}}],"x_vendor":{"timing":{"a":1}}}',
    '{"choices":[{"delta":{},"finish_reason":"stop","content_filter_results":{"hate":{}}}],"service_tier":"default"}',
]
ANSWER = (
    b'{ "id":"chatcmpl-1","choices":[ {"message":{"role":"assistant","content":"\\u00fc\\n","x":[{"x":[1e2]}]},'
    b'"finish_reason":"stop"}],\n"usage" : {"prompt_tokens":1,"completion_tokens":2,"x":{"y":null}}, "z":"flex"}\n'
)


def spellings(fields: dict[str, Any]) -> Iterator[bytes]:
    """The same request as different libraries write it, the model in front and at the end."""
    for ordered in ({"model": "far", **fields}, {**fields, "model": "far"}):
        yield json.dumps(ordered).encode()
        yield json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
        yield json.dumps(ordered, ensure_ascii=False, indent="\t").replace("\n", "\r\n").encode()


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
def test_requests_and_answers_stay_byte_for_byte(lane: bool) -> None:
    sent: list[bytes] = []

    async def record(peer: Peer) -> None:
        while True:
            sent.append((await peer.request())[1])
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER))

    async def main() -> None:
        async with opened(record, lane=lane) as door, door.served.client() as client:
            for fields in REQUESTS:
                for body in spellings(fields):
                    assert (await client.ask(post(body))).body == ANSWER
                    before, _, behind = body.rpartition(b'"far"')
                    assert sent[-1] == before + b'"their-model"' + behind
        assert len(sent) == 6 * len(REQUESTS)

    run(main())


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
@pytest.mark.parametrize("size", [1, 3, 50, 100_000])
def test_streams_stay_byte_for_byte(lane: bool, size: int) -> None:
    stream = "".join(f"data: {chunk}\n\n" for chunk in [*CHUNKS, "[DONE]"]).encode()
    sent: list[bytes] = []

    async def record(peer: Peer) -> None:
        while True:
            sent.append((await peer.request())[1])
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
            await peer.send(head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n")

    async def main() -> None:
        async with opened(record, lane=lane) as door, door.served.client() as client:
            for options in ({"stream_options": {"include_usage": True, "include_obfuscation": False}}, {}):
                body = json.dumps({"model": "far", **REQUESTS[1], "stream": True, **options}).encode()
                assert (await client.ask(post(body))).body == stream
                expected = body.replace(b'"far"', b'"their-model"', 1)
                if not options:
                    expected = expected.replace(b"{", b'{"stream_options":{"include_usage":true},', 1)
                assert sent[-1] == expected

    run(main())
