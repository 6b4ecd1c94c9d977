from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from adapters import passthrough
from adapters.aws import event_message
from adapters.dialects.recognised import latest, usage_in
from adapters.errors import AdapterError, UpstreamFailed, UpstreamInvalid, UpstreamRefused
from adapters.passthrough import Exchange, Outgoing
from adapters.types import Usage
from tests.adapters.provider import KEY, chunks, remote, reply
from tests.adapters.upstream import Peer, answering, run


def outgoing(path: str = "files/a b:c", query: bytes = b"", method: str = "POST", **headers: str) -> Outgoing:
    return Outgoing(method, path, query, tuple((k.replace("_", "-"), v) for k, v in headers.items()), b'{"x":1}')


class Recording:
    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.heads: list[str] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            self.heads.append((await peer.request())[0].decode())
            await peer.send(self.answer)


@asynccontextmanager
async def exchange(script: Recording, request: Outgoing) -> AsyncIterator[Exchange]:
    async with remote(script) as (model, _):
        made = Exchange(model.upstream)
        await made.open(request)
        yield made
        await made.drop()


def test_what_goes_along() -> None:
    async def scenario() -> None:
        script = Recording(reply(b"{}", content_type="application/json", set_cookie="a=b"))
        query = b"key=mine&limit=10&API%5FKEY=x&a=b%20c&access_token=y&flag"
        asked = outgoing(
            query=query, accept="x/y", authorization="Bearer client", cookie="s", anthropic_beta="b", host="e"
        )
        async with exchange(script, asked) as made:
            assert await made.body() == b"{}"
        (head,) = script.heads
        assert head.startswith("POST /v1/files/a%20b:c?limit=10&a=b%20c&flag HTTP/1.1\r\n")
        assert f"authorization: Bearer {KEY}\r\n" in head and "anthropic-beta: b\r\n" in head and "accept: x/y" in head
        assert not any(word in head for word in ("client", "cookie", "host: e", "mine"))

    run(scenario())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply(f"bad key {KEY}".encode(), 401), UpstreamRefused),
        (reply(b"", 302, location="http://127.0.0.1:1/"), UpstreamInvalid),
        (reply(b"\x1f\x8b", content_encoding="gzip"), UpstreamInvalid),
        (b"nonsense\r\n\r\n", UpstreamFailed),
    ],
)
def test_what_is_not_passed_on(answer: bytes, kind: type[AdapterError]) -> None:
    async def scenario() -> None:
        with pytest.raises(kind) as caught:
            async with exchange(Recording(answer), outgoing()):
                raise AssertionError
        assert KEY not in caught.value.message

    run(scenario())


def test_errors_are_passed_on_without_the_key() -> None:
    async def scenario() -> None:
        async with exchange(Recording(reply(f'{{"error":"{KEY} at 127.0.0.1"}}'.encode(), 400)), outgoing()) as made:
            assert await made.body() == b'{"error":"[removed] at [removed]"}'

    run(scenario())


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("model/anthropic.claude-v1:0/invoke", "anthropic.claude-v1:0"),
        ("model/arn:aws:bedrock:us-east-1:1:inference-profile/us.x/invoke-with-response-stream",
         "arn:aws:bedrock:us-east-1:1:inference-profile/us.x"),
        ("v1beta/models/gemini-2.5-flash:generateContent", "gemini-2.5-flash"),
        ("v1/projects/p/locations/l/publishers/google/models/gemini-2.5-flash:streamGenerateContent",
         "gemini-2.5-flash"),
        ("deployments/gpt-4o/chat/completions", "gpt-4o"),
        ("models/gpt-4o", None),
        ("chat/completions", None),
    ],
)  # fmt: skip
def test_models_that_paths_name(path: str, model: str | None) -> None:
    assert outgoing(path).model == model


def test_what_amazon_needs() -> None:
    async def scenario() -> None:
        said = {"x-amzn-bedrock-input-token-count": "5", "x-amzn-bedrock-output-token-count": "3"}
        answer = reply(b"{}", 200, content_type="application/json", retry_after="3", server="x", **said)
        script = Recording(answer)
        asked = outgoing("model/arn:aws/x:0/invoke", x_amzn_bedrock_trace="ENABLED", x_amz_date="0")
        async with exchange(script, asked) as made:
            await made.body()
        assert script.heads[0].startswith("POST /v1/model/arn:aws%2Fx:0/invoke HTTP/1.1\r\n")
        assert "x-amzn-bedrock-trace: ENABLED" in script.heads[0] and "x-amz-date" not in script.heads[0]
        assert made.headers == {"retry-after": "3", **said}
        assert made.usage == Usage(5, 3)

    run(scenario())


@pytest.mark.parametrize("damaged", [False, True])
def test_messages_of_amazon_pass_as_they_come(damaged: bool) -> None:
    event = b64encode(b'{"type":"message_start","message":{"usage":{"input_tokens":5,"output_tokens":1}}}').decode()
    end = b64encode(b'{"amazon-bedrock-invocationMetrics":{"inputTokenCount":5,"outputTokenCount":9}}').decode()
    body = b"".join(event_message("chunk", b'{"bytes":"%b","p":"ab"}' % one.encode()) for one in (event, end))
    body = body[:-1] + b"?" if damaged else body

    async def scenario() -> None:
        script = Recording(reply(body, content_type="application/vnd.amazon.eventstream"))
        async with exchange(script, outgoing()) as made:
            assert made.is_stream and made.is_binary
            assert b"".join([piece async for piece in made.events()]) == body
        assert made.usage == (None if damaged else Usage(5, 9))

    run(scenario())


def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passthrough, "ANSWER_BYTES_MAX", 100)

    async def scenario() -> None:
        async with exchange(Recording(reply(b"x" * 101)), outgoing()) as made:
            with pytest.raises(UpstreamInvalid):
                await made.body()

    run(scenario())


def test_a_stream_is_framed_anew_and_its_usage_noticed() -> None:
    async def scenario() -> None:
        body = b'event: a\r\ndata: {"usage":{"input_tokens":3}}\r\n\r\n: hi\n\n' + chunks(
            b'{"usage":{"output_tokens":4}}'
        )
        async with exchange(Recording(reply(body)), outgoing()) as made:
            assert made.is_stream
            frames = b"".join([frame async for frame in made.events()])
        assert frames == b'event: a\ndata: {"usage":{"input_tokens":3}}\n\ndata: {"usage":{"output_tokens":4}}\n\n'
        assert made.usage == Usage(3, 4)

    run(scenario())


def test_a_stream_that_breaks_off_raises() -> None:
    async def scenario() -> None:
        cut = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 900\r\n\r\ndata: {}\n\n"
        async with remote(answering(cut, close=True)) as (model, _):
            made = Exchange(model.upstream)
            await made.open(outgoing())
            with pytest.raises(UpstreamFailed):
                _ = [frame async for frame in made.events()]

    run(scenario())


@pytest.mark.parametrize(
    ("payload", "usage"),
    [
        (
            b'{"usage":{"prompt_tokens":5,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}}',
            Usage(5, 2, 1),
        ),
        (
            b'{"usage":{"input_tokens":5,"cache_read_input_tokens":7,"cache_creation_input_tokens":2,"output_tokens":3}}',
            Usage(14, 3, 7, cache_write_tokens=2),
        ),
        (b'{"type":"message_start","message":{"usage":{"input_tokens":5}}}', Usage(5)),
        (b'{"type":"response.completed","response":{"usage":{"input_tokens":5,"output_tokens":1}}}', Usage(5, 1)),
        (b'{"usage":{"inputTokens":5,"outputTokens":1}}', Usage(5, 1)),
        (
            b'{"usageMetadata":{"promptTokenCount":5,"candidatesTokenCount":1,"thoughtsTokenCount":2,'
            b'"cachedContentTokenCount":4}}',
            Usage(5, 3, 4),
        ),
        (b'{"usage":"none"}', None),
        (b'{"message":"usage"}', None),
        (b"usage", None),
        (b"[]", None),
    ],
)
def test_usage_in_any_dialect(payload: bytes, usage: Usage | None) -> None:
    assert usage_in(payload) == usage
    assert latest(usage, None) == latest(None, usage) == latest(usage, usage) == usage
