"""Requests of the Responses API passed on to a provider that has it."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import openai
import pytest

from tests.adapters.upstream import Peer
from tests.gateway.api.passing_door import Door, opened, post
from tests.gateway.api.wire import run

ASK: Any = {"model": "far", "input": "hi"}
PATH = b"/v1/responses"
USAGE = {
    "input_tokens": 7,
    "input_tokens_details": {"cached_tokens": 3},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 4},
    "total_tokens": 12,
}
WHOLE: Any = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "model": "their",
    "output": [],
    "error": None,
}


def event(kind: str, number: int, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': number, **fields})}\n\n"


CREATED = event("response.created", 0, response=WHOLE | {"status": "in_progress"})
DELTA = event("response.output_text.delta", 1, item_id="m", output_index=0, content_index=0, delta="Hi", logprobs=[])
DONE = event("response.completed", 2, response=WHOLE | {"usage": USAGE})
FAILURE = {"code": "rate_limit_exceeded", "message": "Over the limit of org-secret."}


class Provider:
    """Answers everybody the same and keeps what it was asked."""

    def __init__(self, content: str, *, stream: bool = False, status: int = 200) -> None:
        kind = "text/event-stream" if stream else "application/json"
        body = content.encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.answer = head.encode() + body
        self.bodies: list[bytes] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            self.bodies.append((await peer.request())[1])
            await peer.send(self.answer)


async def asked(door: Door, **more: Any) -> Any:
    async with door.served.client() as client:
        return await client.ask(post(json.dumps(ASK | more).encode(), path=PATH))


def sdk(door: Door) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="k", base_url=f"http://127.0.0.1:{door.served.port}/v1", max_retries=0)


def tokens(door: Door) -> dict[str, float]:
    text = door.telemetry.render().decode()
    kinds = ("prompt", "completion", "cached")
    return {kind: float(re.findall(rf"^gateway_{kind}_tokens_total.* (\S+)$", text, re.M)[0]) for kind in kinds}


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_usage_is_the_providers(lane: bool, stream: bool) -> None:
    provider = Provider(CREATED + DELTA + DONE if stream else json.dumps(WHOLE | {"usage": USAGE}), stream=stream)

    async def scenario() -> None:
        async with opened(provider, lane=lane, kind="openai") as door:
            answer = await asked(door, stream=stream)
            assert answer.status == 200 and answer.headers["x-gateway-model"] == "far"
            assert answer.headers["openai-version"]
            counted = tokens(door)
        assert (counted["prompt"], counted["completion"], counted["cached"]) == (7, 5, 3)

    run(scenario())


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        (
            event("response.failed", 2, response=WHOLE | {"error": FAILURE}),
            "rate_limit_exceeded",
            "limits how often",
        ),
        (event("error", 2, **FAILURE), "rate_limit_exceeded", "limits how often"),
        (event("error", 2, error=FAILURE), "rate_limit_exceeded", "limits how often"),
        ("", "upstream_error", "broke off"),
    ],
    ids=["failed", "error", "nested", "nothing"],
)
def test_a_stream_that_fails_ends_with_an_error_event(lane: bool, end: str, code: str, message: str) -> None:
    async def scenario() -> None:
        seen = asyncio.Event()

        async def provider(peer: Peer) -> None:
            await peer.request()
            length = len((CREATED + DELTA + end).encode())
            fields = f"Content-Type: text/event-stream\r\nContent-Length: {length}\r\n\r\n"
            await peer.send(f"HTTP/1.1 200 OK\r\n{fields}{CREATED}{DELTA}".encode())
            await seen.wait()
            await peer.send(end.encode())

        async with opened(provider, lane=lane, kind="openai") as door, sdk(door) as client:
            raw = await client.responses.with_raw_response.create(**ASK, stream=True)
            assert raw.status_code == 200
            seen.set()
            text = (await raw.http_response.aread()).decode()
            assert text.startswith(CREATED + DELTA) and "org-secret" not in text
            told = json.loads(text.removeprefix(CREATED + DELTA).removeprefix("event: error\ndata: "))
            assert (told["type"], told["sequence_number"], told["code"]) == ("error", 2, code)
            assert message in told["message"] and told["error"]["code"] == code

    run(scenario())


def test_a_stream_that_is_cut_anywhere_is_no_answer() -> None:
    whole = CREATED + DELTA + DONE

    async def scenario() -> None:
        for at in (0, 5, len(CREATED) - 5, len(CREATED), len(CREATED) + 30, len(CREATED + DELTA), len(whole) - 5):
            async with opened(Provider(whole[:at], stream=True), kind="openai") as door:
                answer = await asked(door, stream=True)
                told = answer.body.decode().rstrip().rpartition("data: ")[2]
                assert json.loads(told)["error"]["code"] in ("upstream_error", "upstream_invalid")
                assert (answer.status == 200) == (at >= len(CREATED)) and "response.completed" not in told
                assert "ok" not in door.outcomes() and sum(door.outcomes().values()) == 1

    run(scenario())


def test_a_stream_that_fails_at_once_has_a_status() -> None:
    async def scenario() -> None:
        failed = CREATED + event("response.failed", 1, response=WHOLE | {"error": FAILURE})
        async with opened(Provider(failed, stream=True), kind="openai") as door, sdk(door) as client:
            with pytest.raises(openai.RateLimitError):
                await client.responses.create(**ASK, stream=True)

    run(scenario())


def test_errors_have_their_status() -> None:
    problem = json.dumps(
        {"error": {"message": "No 'web_fetch' here", "type": "invalid_request_error", "param": "tools"}}
    )

    async def scenario() -> None:
        async with opened(Provider(problem, status=400), kind="openai") as door, sdk(door) as client:
            with pytest.raises(openai.BadRequestError, match="web_fetch") as caught:
                await client.responses.create(**ASK)
            assert caught.value.param == "tools"
        failed = json.dumps(WHOLE | {"status": "failed", "error": {"code": "server_error", "message": "Oops"}})
        async with opened(Provider(failed), kind="openai") as door, sdk(door) as client:
            with pytest.raises(openai.InternalServerError):
                await client.responses.create(**ASK)

    run(scenario())


@pytest.mark.parametrize(
    ("more", "param"),
    [({"store": True}, "store"), ({"previous_response_id": "resp_of_others"}, "previous_response_id")],
)
def test_what_would_be_kept_never_gets_there(more: dict[str, Any], param: str) -> None:
    provider = Provider("{}")

    async def scenario() -> None:
        async with opened(provider, kind="openai") as door:
            answer = await asked(door, **more)
            assert answer.status == 400 and json.loads(answer.body)["error"]["param"] == param
        assert provider.bodies == []

    run(scenario())


@pytest.mark.parametrize(
    ("given", "sent"),
    [(b"", b'"store":false,'), (b'"store":false,', b'"store":false,'), (b'"store" : null ,', b'"store" : false ,')],
)
def test_providers_are_told_to_keep_nothing(given: bytes, sent: bytes) -> None:
    provider = Provider(json.dumps(WHOLE | {"usage": USAGE}))

    async def scenario() -> None:
        async with opened(provider, kind="openai") as door, door.served.client() as client:
            await client.ask(post(b'{%b"model":"far","input":"hi"}' % given, path=PATH))
        assert provider.bodies == [b'{%b"model":"their-model","input":"hi"}' % sent]

    run(scenario())


COMPACTED = {"id": "resp_1", "object": "response.compaction", "created_at": 1, "usage": USAGE}
ITEMS = [{"type": "compaction", "id": "cmp_1", "encrypted_content": "a+/="}]


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
def test_conversations_are_compacted_where_they_are_answered(lane: bool) -> None:
    async def main() -> None:
        provider = Provider(json.dumps(COMPACTED | {"output": ITEMS, "zz": -0.0}))
        async with opened(provider, lane=lane, kind="openai") as door:
            body = b'{"input": [{"role":"user","content":"hi","x":1e2}], "model": "far", "instructions": "brief"}'
            reply = await door.served.ask(post(body, path=PATH + b"/compact"))
            assert json.loads(reply.body)["output"] == ITEMS and reply.headers["x-gateway-model"] == "far"
            assert provider.bodies == [body.replace(b'"far"', b'"their-model"')]
            assert door.outcomes() == {"ok": 1}

    run(main())


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "near"}, 400, "model"),
        ({"model": "far", "previous_response_id": "resp_0"}, 400, "previous_response_id"),
        ({"model": "far", "api_base": "http://x"}, 400, "api_base"),
        ({"model": "none"}, 404, "model"),
        ({}, 400, "model"),
    ],
)
def test_conversations_that_cannot_be_compacted(fields: dict[str, Any], status: int, param: str) -> None:
    async def main() -> None:
        provider = Provider("{}")
        async with opened(provider, kind="openai") as door:
            reply = await door.served.ask(post(json.dumps(fields).encode(), path=PATH + b"/compact"))
            assert (reply.status, reply.error["param"]) == (status, param)
            assert provider.bodies == []

    run(main())
