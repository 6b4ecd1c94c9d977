"""Requests that are passed on behind guardrails that look at the answer too, in the fast lane and through ASGI."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from adapters.providers import ProviderKind
from gateway.guardrails.rules import Guardrails
from tests.adapters.test_relay import chunk, sse, streaming
from tests.gateway.api.passing_door import Door, opened, post
from tests.gateway.api.test_cached_passing import ByKey, Counting, cache
from tests.gateway.api.wire import Reply, run
from tests.gateway.guardrails.test_watch import guardrails

DONE = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
CHAT = sse(chunk("Hello "), chunk("bob@exam"), chunk("ple.com, bye"), json.dumps(DONE).encode(), chunk(None, usage={}))
either = pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
both = pytest.mark.parametrize("stream", [False, True])


def named(*events: dict[str, Any]) -> bytes:
    return "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events).encode()


def said(text: str) -> list[dict[str, Any]]:
    """A stream of Anthropic's."""
    message = {"id": "m", "role": "assistant", "content": [], "model": "x", "usage": {"input_tokens": 3}}
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]


def body_of(stream: bool, **fields: Any) -> bytes:
    message = {"role": "user", "content": "I am ann@example.com", "zz": {"new": [1e2]}}
    given = {"model": "far", "messages": [message], "from_tomorrow": {"x": -0.0}} | fields
    return json.dumps(given | ({"stream": True} if stream else {})).encode()


def two_stages() -> Guardrails:
    return guardrails("mask", stage=("before", "during"))


MESSAGE = {
    "role": "assistant",
    "content": "Hello bob@example.com, bye",
    "annotations": [],
    "from_tomorrow": {"x": -0.0},
}
CHOICE = {"index": 0, "message": MESSAGE, "logprobs": {"content": [{"token": "bob"}]}, "finish_reason": "stop"}
WHOLE = json.dumps({"id": "c", "choices": [CHOICE], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}).encode()


async def answered(door: Door, body: bytes, path: bytes = b"/v1/chat/completions", headers: bytes = b"") -> Reply:
    return await door.served.ask(post(body, headers, path))


@either
@both
def test_the_request_stays_as_it_came_and_the_answer_is_masked(lane: bool, stream: bool) -> None:
    async def main() -> None:
        sent: list[bytes] = []
        async with opened(recorded(sent, CHAT, WHOLE), lane=lane, guardrails=two_stages()) as door:
            body = body_of(stream)
            reply = await answered(door, body)
            assert reply.status == 200 and b"Hello [EMAIL], bye" in joined(reply.body)
            assert reply.headers["x-gateway-model"] == "far"
            wanted = body.replace(b'"far"', b'"their-model"').replace(b"ann@example.com", b"[EMAIL]")
            assert sent == [wanted.replace(b"{", b'{"stream_options":{"include_usage":true},', 1) if stream else wanted]
            assert door.outcomes() == {"ok": 1}

    run(main())


@either
@both
def test_an_answer_that_is_blocked_ends_where_it_is(lane: bool, stream: bool) -> None:
    async def main() -> None:
        async with opened(recorded([], CHAT, WHOLE), lane=lane, guardrails=guardrails("block")) as door:
            reply = await answered(door, body_of(stream))
            assert reply.status == 200 and b"bob" not in reply.body and b'"content_filter"' in reply.body
            assert (b"Hello" in reply.body, reply.body.endswith(b"data: [DONE]\n\n")) == (stream, stream)
            assert door.outcomes() == {"ok": 1}

    run(main())


@either
@both
def test_who_answers_is_told_and_charged(lane: bool, stream: bool) -> None:
    async def main() -> None:
        async with opened(recorded([], CHAT, WHOLE), lane=lane, guardrails=two_stages()) as door:
            reply = await answered(door, body_of(stream, model="both"))
            assert b"Hello" in reply.body
            assert (reply.headers["x-gateway-target"], reply.headers["x-gateway-attempts"]) == ("0", "1")
            assert reply.headers["x-gateway-queue-ms"] == "1.5"

    run(main())


@either
def test_a_blocked_request_is_sent_nowhere(lane: bool) -> None:
    async def main() -> None:
        up = Counting(streaming(CHAT))
        async with opened(up, lane=lane, guardrails=guardrails("block", stage="before")) as door:
            reply = await answered(door, body_of(False, messages=[], smuggled={"deep": ["to ann@example.com"]}))
            assert (reply.status, reply.error["code"]) == (400, "content_blocked")
            assert (up.asked, door.outcomes()) == (0, {"content_blocked": 1})

    run(main())


@either
@both
def test_anthropics_messages(lane: bool, stream: bool) -> None:
    async def main() -> None:
        sent: list[bytes] = []
        kind: ProviderKind = "anthropic"
        answer = {"type": "message", "content": [{"type": "text", "text": "Ask bob@example.com"}], "usage": {}}
        script = recorded(sent, named(*said("Ask bob@example.com")), json.dumps(answer).encode())
        async with opened(script, lane=lane, kind=kind, guardrails=two_stages()) as door:
            body = body_of(stream, max_tokens=9, context_management={"edits": [{}]})
            headers = b"anthropic-version: 2023-06-01\r\nanthropic-beta: context-management-2026\r\n"
            reply = await answered(door, body, b"/v1/messages", headers)
            assert reply.status == 200 and b"Ask [EMAIL]" in joined(reply.body)
            assert sent == [body.replace(b"ann@example.com", b"[EMAIL]").replace(b'"far"', b'"their-model"')]

    run(main())


@either
def test_compactions(lane: bool) -> None:
    async def main() -> None:
        item = {"type": "compaction", "id": "cmp_1", "encrypted_content": "QUJD" * 30}
        said = {"type": "message", "content": [{"type": "output_text", "text": "ask bob@example.com"}]}
        whole = json.dumps({"object": "response.compaction", "output": [item, said], "usage": None}).encode()
        script = recorded([], b"", whole)
        async with opened(script, lane=lane, kind="openai", guardrails=two_stages()) as door:
            reply = await answered(door, b'{"model":"far","input":"hi"}', b"/v1/responses/compact")
            assert (reply.status, reply.body) == (200, whole.replace(b"bob@example.com", b"[EMAIL]"))

    run(main())


@either
def test_the_cache_keeps_what_nobody_has_looked_at_yet(lane: bool) -> None:
    async def main() -> None:
        up = Counting(recorded([], CHAT, WHOLE))
        settings: Any = {"cache": cache(), "authenticator": ByKey(), "lane": lane}
        async with opened(up, guardrails=guardrails("mask"), **settings) as door:
            key = b"Authorization: a\r\n"
            first = await answered(door, body_of(False), headers=key)
            again = await answered(door, body_of(False), headers=key)
            other = await answered(door, body_of(False, from_tomorrow={"x": 1}), headers=key)
            assert [one.headers["x-gateway-cache"] for one in (first, again, other)] == ["miss", "hit", "miss"]
            assert b"[EMAIL]" in first.body and b"[EMAIL]" in again.body
            assert up.asked == 2

    run(main())


def joined(body: bytes) -> bytes:
    """The text of a stream, or a body as it is."""
    if not body.startswith((b"data: ", b"event: ")):
        return body
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    deltas = [one["delta"] if "delta" in one else (one.get("choices") or [{}])[0].get("delta", {}) for one in events]
    return "".join(one.get("content") or one.get("text") or "" for one in deltas).encode()


def recorded(sent: list[bytes], stream: bytes, whole: bytes) -> Any:
    """A provider that answers as it is asked: with a stream or with a whole."""

    async def script(peer: Any) -> None:
        while True:
            sent.append((await peer.request())[1])
            streamed = json.loads(sent[-1]).get("stream") is True
            kind, body = (b"text/event-stream", stream) if streamed else (b"application/json", whole)
            head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (kind, len(body))
            await peer.send(head + body)
            await asyncio.sleep(0)

    return script
