from __future__ import annotations

import asyncio
import struct
from typing import Any, cast

import msgspec
import pytest
from msgspec.structs import replace

from adapters.errors import (
    AdapterError,
    InvalidRequest,
    RateLimited,
    Timeout,
    Unreachable,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamRefused,
)
from adapters.providers import ProviderKind
from adapters.types import (
    ChatRequest,
    ChoiceFinished,
    CompletionRequest,
    EmbeddingRequest,
    Finished,
    Generation,
    Head,
    Inbound,
    Message,
    ReasoningDelta,
    RerankRequest,
    Started,
    TextDelta,
    Usage,
)
from tests.adapters.provider import CALLER, KEY, chunks, drained, remote, reply
from tests.adapters.upstream import Peer, answering, run

HELLO = chunks(
    b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}',
    b'{"choices":[{"index":0,"delta":{"content":"Hello"}}]}',
    b'{"choices":[{"index":0,"delta":{"content":" world"},"finish_reason":"stop"}]}',
    b'{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}}',
    b"[DONE]",
)
REQUEST = ChatRequest("public", (Message("user", "Say hello to the world"),))


def asked(peers: Any, index: int = 0) -> tuple[str, dict[str, Any]]:
    head, body = peers.requests[index]
    return head.decode(), msgspec.json.decode(body)


class Recording:
    """Answers and keeps what was asked."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.requests: list[tuple[bytes, bytes]] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            self.requests.append(await peer.request())
            await peer.send(self.answer)


def test_a_chat() -> None:
    async def scenario() -> None:
        script = Recording(reply(HELLO))
        async with remote(script) as (model, _):
            events = await drained(model.chat(REQUEST, CALLER))
        assert events == [
            Started(prompt_tokens=10),
            TextDelta(0, "Hello"),
            TextDelta(0, " world"),
            ChoiceFinished(0, "stop"),
            Finished(Usage(9, 2, cached_tokens=4)),
        ]
        head, body = asked(script)
        assert head.startswith("POST /v1/chat/completions HTTP/1.1\r\n")
        assert f"authorization: Bearer {KEY}\r\n" in head
        assert body == {
            "model": "theirs",
            "messages": [{"role": "user", "content": "Say hello to the world"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    run(scenario())


def test_usage_that_is_missing_or_cannot_be_is_counted() -> None:
    thinking = b'{"choices":[{"delta":{"reasoning_content":"hm"}}]}'
    text = b'{"choices":[{"delta":{"content":"four times four bytes"},"finish_reason":"stop"}]}'
    for usage in (b"null", b'{"prompt_tokens":-5,"completion_tokens":-1}', b"{}"):

        async def scenario(usage: bytes = usage) -> None:
            body = chunks(thinking, text, b'{"usage":%b}' % usage, b"[DONE]")
            async with remote(answering(reply(body))) as (model, _):
                *_, last = await drained(model.chat(REQUEST, CALLER))
            assert last == Finished(Usage(10, 7, reasoning_tokens=1), estimated=True)

        run(scenario())


def test_requests_that_need_what_the_target_cannot_do_are_not_sent() -> None:
    async def scenario() -> None:
        script = Recording(reply(HELLO))
        async with remote(script, "groq") as (model, _):
            with pytest.raises(InvalidRequest) as caught:
                model.chat(replace(REQUEST, generation=Generation(logprobs=2)), CALLER)
            assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "logprobs")
            assert caught.value.message == "The model 'public' does not support logprobs."
            with pytest.raises(InvalidRequest):
                model.complete(CompletionRequest("public", ("a",)), CALLER)
            with pytest.raises(InvalidRequest):
                await model.embed(EmbeddingRequest("public", ("a",)), CALLER)
            with pytest.raises(InvalidRequest):
                await model.tokenize("a", special=True)
            assert await model.list_sessions(None) == []
        assert script.requests == []

    run(scenario())


def test_capabilities_of_a_model_replace_its_providers() -> None:
    async def scenario() -> None:
        settings = {"capabilities": frozenset(("logprobs",))}
        async with remote(answering(reply(HELLO)), "groq", settings) as (model, _):
            await drained(model.chat(replace(REQUEST, generation=Generation(logprobs=2)), CALLER))
            assert model.refusal(replace(REQUEST, generation=Generation(n=2))) is not None

    run(scenario())


def test_only_providers_out_there_are_sent_addresses_of_images() -> None:
    async def scenario(kind: ProviderKind) -> bool:
        async with remote(answering(b""), kind) as (model, _):
            assert model.card.vision
            return model.card.image_urls

    body = b'{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"http://10.0.0.1/x"}}]}]}'

    async def passed_on(kind: ProviderKind) -> bool:
        async with remote(answering(b""), kind) as (model, _):
            return model.takes(Inbound("openai_chat", body, Head("m")))

    assert run(passed_on("openai")) and not run(passed_on("vllm")) and not run(passed_on("openai-compatible"))
    assert run(scenario("openai")) and not run(scenario("vllm")) and not run(scenario("openai-compatible"))


async def failing(answer: bytes, *, close: bool = False) -> AdapterError:
    async with remote(answering(answer, close=close)) as (model, _):
        with pytest.raises(AdapterError) as caught:
            await drained(model.chat(REQUEST, CALLER))
        return caught.value


LEAKING = b'{"error":{"message":"Incorrect API key provided: sk-the-gateways-own-key at 127.0.0.1","code":"bad"}}'
BAD_UPSTREAMS: list[tuple[str, bytes, type[AdapterError]]] = [
    ("a page with 200", reply(b"<html>Welcome</html>", content_type="text/html"), UpstreamInvalid),
    (
        "an error with 200",
        reply(b'{"error":{"message":"x","code":500}}', content_type="application/json"),
        UpstreamRefused,
    ),
    ("an empty stream", reply(b""), UpstreamInvalid),
    ("only its end", reply(chunks(b"[DONE]")), UpstreamInvalid),
    ("a redirect", reply(b"", 307, location="http://127.0.0.1:1/"), UpstreamInvalid),
    ("no JSON", reply(chunks(b"hello")), UpstreamInvalid),
    ("JSON of another kind", reply(chunks(b'"hello"')), UpstreamInvalid),
    ("wrong types", reply(chunks(b'{"choices":[{"index":"a"}]}')), UpstreamInvalid),
    ("a choice too many", reply(chunks(b'{"choices":[{"index":7,"delta":{"content":"x"}}]}')), UpstreamInvalid),
    ("a negative choice", reply(chunks(b'{"choices":[{"index":-1,"delta":{"content":"x"}}]}')), UpstreamInvalid),
    ("no end", reply(chunks(b'{"choices":[{"delta":{"content":"x"}}]}')), UpstreamInvalid),
    ("an error in the stream", reply(chunks(b'{"error":{"message":"x","type":"server_error"}}')), UpstreamRefused),
    ("the end of the connection", b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\ndata:", UpstreamFailed),
    ("no HTTP", b"SSH-2.0-OpenSSH_9.6\r\n", UpstreamFailed),
    ("too many headers", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000, UpstreamInvalid),
    ("429", reply(b"{}", 429, "application/json", retry_after="7"), RateLimited),
    ("500", reply(LEAKING, 500), UpstreamRefused),
    ("401", reply(LEAKING, 401), UpstreamRefused),
    ("400", reply(LEAKING, 400), InvalidRequest),
    ("504", reply(b"", 504), Timeout),
]


@pytest.mark.parametrize(("answer", "kind"), [row[1:] for row in BAD_UPSTREAMS], ids=[row[0] for row in BAD_UPSTREAMS])
def test_what_a_bad_upstream_becomes(answer: bytes, kind: type[AdapterError]) -> None:
    error = run(failing(answer, close=True))
    assert isinstance(error, kind)
    assert KEY not in error.message and "127.0.0.1" not in error.message
    if kind is RateLimited:
        assert error.retry_after_s == 7


def test_an_upstream_that_is_not_there() -> None:
    async def scenario() -> None:
        async with remote(answering(b""), base_url="http://127.0.0.1:1/v1") as (model, _):
            with pytest.raises(Unreachable):
                await drained(model.chat(REQUEST, CALLER))

    run(scenario())


def test_an_endless_event_is_cut() -> None:
    async def endless(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: ")
        while True:
            await peer.send(b"x" * (1 << 20))

    async def scenario() -> None:
        async with remote(endless) as (model, _):
            with pytest.raises(UpstreamInvalid, match="too large"):
                await drained(model.chat(REQUEST, CALLER))

    run(scenario())


def test_leaving_a_stream_drops_the_connection_at_once() -> None:
    async def scenario() -> None:
        dropped = asyncio.Event()

        async def slow(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            await peer.send(chunks(b'{"choices":[{"delta":{"content":"x"}}]}'))
            await peer.gone()
            dropped.set()

        async with remote(slow) as (model, _):
            events = cast(Any, model.chat(REQUEST, CALLER))
            assert isinstance(await anext(events), Started)
            await events.aclose()
            await dropped.wait()

    run(scenario())


def test_a_stream_cut_at_every_byte_never_ends_well() -> None:
    """Each cut before the last finish reason is an error, whatever was already seen."""

    async def scenario() -> None:
        for cut in range(0, HELLO.index(b'"stop"'), 7):
            assert isinstance(await failing(reply(HELLO[:cut])), UpstreamFailed)

    run(scenario())


@pytest.mark.parametrize("end", [b"", b"5\r\nhalf", b"no chunk"])
def test_whatever_a_connection_does_behind_the_end_the_answer_is_whole(end: bytes) -> None:
    async def scenario() -> None:
        async def open_ended(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            await peer.send(b"%x\r\n%b\r\n" % (len(HELLO), HELLO))
            await peer.send(end)
            await peer.gone()

        async with remote(open_ended) as (model, _):
            *_, last = await drained(model.chat(REQUEST, CALLER))
            assert last == Finished(Usage(9, 2, cached_tokens=4))

    run(scenario())


def test_completions() -> None:
    async def scenario() -> None:
        body = chunks(
            b'{"choices":[{"index":1,"text":"b","logprobs":{"tokens":["b"],"token_logprobs":[-0.5],'
            b'"top_logprobs":[{"b":-0.5,"bytes:\\\\xe2":-1.0}]}}]}',
            b'{"choices":[{"index":0,"text":"a","finish_reason":"length"},{"index":1,"text":"","finish_reason":"stop"}]}',
            b'{"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":2}}',
            b"[DONE]",
        )
        script = Recording(reply(body))
        request = CompletionRequest("public", ("x", (1, 2)), generation=Generation(max_tokens=5, logprobs=1))
        async with remote(script, model={"kinds": ("completion",)}) as (model, _):
            events = await drained(model.complete(request, CALLER))
        text = cast(TextDelta, events[1])
        assert (text.choice, text.text) == (1, "b")
        assert [top.raw for top in text.logprobs[0].top] == [b"b", b"\xe2"]
        assert events[2:] == [
            TextDelta(0, "a"),
            ChoiceFinished(0, "length"),
            ChoiceFinished(1, "stop"),
            Finished(Usage(2, 2)),
        ]
        head, sent = asked(script)
        assert head.startswith("POST /v1/completions ")
        assert sent["prompt"] == ["x", [1, 2]] and sent["max_tokens"] == 5 and sent["logprobs"] == 1

    run(scenario())


def test_embeddings() -> None:
    async def scenario() -> None:
        vectors = b'[{"index":1,"embedding":[0.5,1]},{"index":0,"embedding":"AAAAPwAAgL4="}]'
        body = b'{"data":%b,"usage":{"prompt_tokens":3}}' % vectors
        script = Recording(reply(body, content_type="application/json"))
        async with remote(script) as (model, _):
            found = await model.embed(EmbeddingRequest("public", ("a", "b"), 2), CALLER)
        assert found.vectors == (struct.pack("<2f", 0.5, -0.25), struct.pack("<2f", 0.5, 1))
        assert (found.dimensions, found.prompt_tokens) == (2, 3)
        assert asked(script)[1] == {"model": "theirs", "input": ["a", "b"], "encoding_format": "float", "dimensions": 2}

    run(scenario())


def test_embeddings_of_gemini() -> None:
    async def scenario() -> None:
        script = Recording(reply(b'{"embeddings":[{"values":[0.5,1]}]}', content_type="application/json"))
        async with remote(script, "gemini") as (model, _):
            found = await model.embed(EmbeddingRequest("public", ("a",), 2), CALLER)
        assert (found.vectors, found.prompt_tokens) == ((struct.pack("<2f", 0.5, 1),), 1)
        head, body = asked(script)
        assert head.startswith("POST /v1/v1beta/models/theirs:batchEmbedContents ")
        assert body["requests"][0]["outputDimensionality"] == 2

    run(scenario())


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"data":[]}',
        b'{"data":[{"embedding":[]}]}',
        b'{"data":[{"embedding":[1]},{"embedding":[1]}]}',
        b'{"data":[{"index":3,"embedding":[1]}]}',
        b'{"data":[{"embedding":"!"}]}',
        b'{"data":[{"embedding":"\\u00e9"}]}',
        b'{"data":[{"embedding":[1e999]}]}',
        b"<html>",
    ],
)
def test_vectors_that_are_none(body: bytes) -> None:
    async def scenario() -> None:
        async with remote(answering(reply(body))) as (model, _):
            with pytest.raises(UpstreamInvalid):
                await model.embed(EmbeddingRequest("public", ("a",)), CALLER)

    run(scenario())


def test_reranking() -> None:
    async def scenario() -> None:
        body = b'{"results":[{"index":1,"relevance_score":0.9},{"index":0,"relevance_score":0.1}]}'
        script = Recording(reply(body, content_type="application/json"))
        async with remote(script, "cohere", {"kinds": ("rerank",)}) as (model, _):
            found = await model.rerank(RerankRequest("public", "q", ("a", "b")), CALLER)
        assert found.scores == (0.1, 0.9) and found.prompt_tokens > 0
        assert asked(script)[0].startswith("POST /v1/v2/rerank ")

    run(scenario())


@pytest.mark.parametrize(
    "body", [b'{"results":[]}', b'{"results":[{"index":0}]}', b"[]", b'{"results":[{"index":5,"score":1}]}']
)
def test_scores_that_are_none(body: bytes) -> None:
    async def scenario() -> None:
        async with remote(answering(reply(body)), "vllm") as (model, _):
            with pytest.raises(UpstreamInvalid):
                await model.rerank(RerankRequest("public", "q", ("a",)), CALLER)

    run(scenario())


def test_thoughts_are_apart_from_the_answer() -> None:
    async def scenario() -> None:
        body = chunks(
            b'{"choices":[{"delta":{"reasoning":"hm"}}]}',
            b'{"choices":[{"delta":{"content":"yes"},"finish_reason":"stop"}]}',
        )
        async with remote(answering(reply(body)), "openrouter") as (model, _):
            events = await drained(model.chat(REQUEST, CALLER))
        assert events[1:3] == [ReasoningDelta(0, "hm"), TextDelta(0, "yes")]

    run(scenario())
