"""Answers that were passed on and are given again, in the fast lane and through ASGI alike."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.auth import Principal
from gateway.cache import Cache
from gateway.config_cache import CacheConfig
from gateway.state.blobs import MemoryBlobs
from gateway.telemetry import Telemetry
from tests.adapters.test_relay import CHUNKS, FINISH, USAGE, chunk, sse, streaming, whole
from tests.adapters.upstream import Peer, Script
from tests.gateway.api.passing_door import body_of, opened, post
from tests.gateway.api.test_passing import ANSWER, either
from tests.gateway.api.wire import Client, run, until

STORE = 32 << 20


def cache(**settings: int) -> Cache:
    config = CacheConfig(enabled=True, **settings)  # type: ignore[arg-type]
    return Cache(MemoryBlobs(STORE, STORE), config, Telemetry("test"), now_us=lambda: 1_000_000)


class Counting:
    """A script, and how many requests it was sent."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.asked = 0

    async def __call__(self, peer: Peer) -> None:
        request = peer.request

        async def counted() -> tuple[bytes, bytes]:
            found = await request()
            self.asked += 1
            return found

        peer.request = counted  # type: ignore[method-assign]
        await self._script(peer)


class ByKey:
    """Each key is a tenant of its own."""

    async def authenticate(self, authorization: str | None, address: str = "") -> Principal:
        return Principal(tenant=authorization or "", key_id="k", name="n")


@either
def test_a_unary_answer_is_given_again_byte_for_byte(lane: bool) -> None:
    async def main() -> None:
        up = Counting(whole(ANSWER))
        async with opened(up, lane=lane, cache=cache()) as door:
            first = await door.served.ask(post(body_of()))
            again = await door.served.ask(post(b" " + body_of(user="somebody").replace(b'"far"', b'"f"')))
            assert first.body == again.body == ANSWER
            assert (first.headers["x-gateway-cache"], again.headers["x-gateway-cache"]) == ("miss", "hit")
            assert "age" not in first.headers and again.headers["age"] == "0"
            assert first.headers["x-request-id"] != again.headers["x-request-id"]
            assert up.asked == 1
            assert door.outcomes() == {"ok": 2}
            await until(lambda: door.served.log.getvalue().count("prompt_tokens=7") == 2)

    run(main())


@either
def test_a_stream_keeps_its_events(lane: bool) -> None:
    async def chunks(client: Client) -> tuple[str, list[bytes]]:
        _, headers = await client.head()
        found = []
        while part := await client.chunk():
            found.append(part)
        return dict(headers)["x-gateway-cache"], found

    async def main() -> None:
        up = Counting(streaming(sse(*CHUNKS)))
        async with opened(up, lane=lane, cache=cache()) as door, door.served.client() as client:
            request = post(body_of(stream=True))
            await client.send(request)
            outcome, first = await chunks(client)
            await client.send(request)
            again_outcome, again = await chunks(client)
            assert (outcome, again_outcome) == ("miss", "hit")
            assert b"".join(again) == b"".join(first)
            assert b"".join(first).endswith(b"data: [DONE]\n\n")
            # A stream is no answer to a request for a whole one.
            other = await door.served.ask(post(body_of()))
            assert other.status != 200
            assert up.asked == 2

    run(main())


@either
def test_one_tenants_answer_is_not_anothers(lane: bool) -> None:
    async def main() -> None:
        up = Counting(whole(ANSWER))
        async with opened(up, lane=lane, cache=cache(), authenticator=ByKey()) as door:
            for key, outcome in ((b"a", "miss"), (b"b", "miss"), (b"a", "hit"), (b"b", "hit")):
                reply = await door.served.ask(post(body_of(), b"Authorization: %b\r\n" % key))
                assert reply.headers["x-gateway-cache"] == outcome
            assert up.asked == 2

    run(main())


@either
def test_cache_control(lane: bool) -> None:
    async def main() -> None:
        up = Counting(whole(ANSWER))
        async with opened(up, lane=lane, cache=cache()) as door:
            refused = await door.served.ask(post(body_of(), b"Cache-Control: only-if-cached\r\n"))
            assert (refused.status, refused.error["code"]) == (504, "not_cached")
            assert refused.headers["x-should-retry"] == "false"
            assert up.asked == 0
            for control, outcome in ((b"no-store", "miss"), (b"no-cache", "bypass"), (b"max-age=5", "hit")):
                reply = await door.served.ask(post(body_of(), b"Cache-Control: %b\r\n" % control))
                assert reply.headers["x-gateway-cache"] == outcome
            assert up.asked == 2

    run(main())


@either
@pytest.mark.parametrize(
    "answer",
    [
        sse(chunk("Hi"), b"{}}"),
        sse(chunk("Hi"), end=b""),
        sse(chunk("Hi"), FINISH.replace(b"stop", b"content_filter")),
        sse(chunk("x" * 5000), *CHUNKS),
    ],
    ids=["broken", "cut", "filtered", "too large"],
)
def test_what_is_not_kept(answer: bytes, lane: bool) -> None:
    async def main() -> None:
        kept = cache(entry_bytes_max=4096)
        up = Counting(streaming(answer))
        async with opened(up, lane=lane, cache=kept) as door:
            for _ in range(2):
                reply = await door.served.ask(post(body_of(stream=True)))
                assert reply.headers.get("x-gateway-cache", "miss") == "miss"
            assert up.asked == 2
        assert (kept.recording_bytes, kept.gauges()[0][2]) == (0, 0)

    run(main())


@either
def test_a_reader_that_stops_reading_holds_a_kept_stream_up(lane: bool) -> None:
    text = "x" * 10_000

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for _ in range(1500):
            await peer.send(sse(chunk(text), end=b""))
        await peer.send(sse(*CHUNKS))
        peer.writer.close()

    async def main() -> None:
        store = cache(entry_bytes_max=20 << 20)
        async with opened(script, lane=lane, cache=store) as door:
            request = post(body_of(stream=True))
            first = await door.served.ask(request)
            assert store.gauges()[0][2] > 15_000_000
            async with door.served.client() as client:
                await client.send(request)
                status, headers = await client.head()
                assert (status, dict(headers)["x-gateway-cache"]) == (200, "hit")
                (connection,) = door.served.wheel.connections
                for _ in range(50):
                    await asyncio.sleep(0.001)
                    # What a socket and its buffer take, and not all of the answer.
                    assert connection.transport.get_write_buffer_size() < 2_000_000
                parts = []
                while part := await client.chunk():
                    parts.append(part)
            assert b"".join(parts) == first.body

    run(main())


def test_vectors_are_given_again() -> None:
    vectors = json.dumps({"object": "list", "data": [{"embedding": [0.5]}], "usage": USAGE}).encode()

    async def main() -> None:
        async with opened(whole(vectors), cache=cache()) as door:
            body = json.dumps({"model": "far", "input": "hi"}).encode()
            replies = [await door.served.ask(post(body, path=b"/v1/embeddings")) for _ in range(2)]
            assert [reply.headers["x-gateway-cache"] for reply in replies] == ["miss", "hit"]
            assert replies[0].body == replies[1].body == vectors

    run(main())
