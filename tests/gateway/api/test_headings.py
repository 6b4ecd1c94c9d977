"""Heads that a connection repeats: when what is known of one counts for the next, and when it is parsed again."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest

from gateway.api.headings import CHANGES_MAX, HEAD_BYTES_MAX, Heading, Repeating, repeating
from gateway.auth import Principal
from gateway.config import ServerConfig
from gateway.errors import error
from tests.adapters.test_relay import whole
from tests.adapters.upstream import Peer, until
from tests.gateway.api.passing_door import body_of, opened, post
from tests.gateway.api.test_passing import ANSWER

PATH = "/v1/chat/completions"
START = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"


def heading_of(head: bytes) -> Heading:
    pairs = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line]
    return Heading(PATH, [(name.lower(), value) for name, value in pairs])


def learned(head: bytes, body: bytes = b"{}") -> Repeating | None:
    return repeating(head + b"\r\n" + body, heading_of(head))


def test_the_length_is_all_that_may_change() -> None:
    known = learned(START + b"Content-Length: 2\r\nX: y\r\n")
    assert known is not None

    def found(head: bytes, body: bytes) -> tuple[bytes, int] | None:
        return known.body_in(head + b"\r\n" + body)

    assert found(START + b"Content-Length: 2\r\nX: y\r\n", b"[]") == (b"[]", 0)
    assert found(START + b"Content-Length: 12\r\nX: y\r\n", b"123456789012") == (b"123456789012", 0)
    assert found(START + b"Content-Length: 0\r\nX: y\r\n", b"") == (b"", 0)
    assert found(START + b"Content-Length: 12\r\nX: y\r\n", b"123") == (b"123", 9)
    others = [
        (START + b"Content-Length: 2\r\nX: z\r\n", b"[]"),
        (START.replace(b"a", b"b") + b"Content-Length: 2\r\nX: y\r\n", b"[]"),
        (START + b"Content-Length: 2\r\nX: y\r\nZ: y\r\n", b"[]"),
        (START + b"Content-Length: 2\r\nX: y\r\n", b"[]P"),
        (START + b"Content-Length: +2\r\nX: y\r\n", b"[]"),
        (START + b"Content-Length: 2 \r\nX: y\r\n", b"[]"),
        (START + b"Content-Length: \r\nX: y\r\n", b""),
        (START + b"Content-Length: 00000002\r\nX: y\r\n", b"[]"),
        (START + b"Content-Length: \xb2\r\nX: y\r\n", b"[]"),
    ]
    for head, body in others:
        assert found(head, body) is None, head
    head = START + b"Content-Length: 2\r\nX: y\r\n\r\n"
    for size in range(len(head)):
        assert known.body_in(head[:size]) is None


@pytest.mark.parametrize(
    "head",
    [
        START,
        START + b"Content-Length: 1\r\n",
        START + b"Content-Length: 2\r\nContent-Length: 2\r\n",
        START + b"Content-Length:  2\r\n",
        START + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        START + b"Expect: 100-continue\r\nContent-Length: 2\r\n",
        START + b"X: " + b"y" * HEAD_BYTES_MAX + b"\r\nContent-Length: 2\r\n",
    ],
)
def test_heads_that_are_not_kept(head: bytes) -> None:
    assert learned(head) is None


def test_what_a_heading_says() -> None:
    heading = heading_of(START + b"Content-Type: application/json\r\nX-Session-Id: s\r\nX-Session-Id: t\r\n")
    assert heading.is_json and not heading.unusual
    assert heading.named["x-session-id"] == "s"
    assert heading.request_id is None
    assert heading.hostname == "a"
    assert heading_of(START.replace(b"a\r", b"[::1]:80\r")).hostname == "::1"
    assert heading_of(START + b"Cookie: a=b\r\n").unusual
    assert heading_of(START + b"X-Request-Id: mine\r\n").request_id == "mine"
    assert heading_of(START + b"X-Request-Id: not mine\r\n").request_id is None


class Fickle:
    """An authenticator that stops to let in who it let in before."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        self.lets_in = True

    async def authenticate(self, authorization: str | None, address: str = "") -> Principal:
        self.asked.append(authorization)
        if not self.lets_in:
            raise error("key_revoked", "The API key has been revoked.")
        return Principal(tenant="t", key_id="k", name="k", admin=True)


def test_repeated_heads_are_requests_like_any_other() -> None:
    async def main() -> None:
        fickle = Fickle()
        key = b"Authorization: Bearer good\r\n"
        received: list[bytes] = []

        async def script(peer: Peer) -> None:
            while True:
                received.append((await peer.request())[1])
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                await peer.send(head % len(ANSWER) + ANSWER)

        async with opened(script, authenticator=fickle) as door, door.served.client() as client:
            replies = []
            for size in (1, 2000, 1, 30):
                sent = body_of(zz="x" * size)
                replies.append(await client.ask(post(sent, key)))
                assert json.loads(received[-1]) == {**json.loads(sent), "model": "their-model"}
            assert [reply.body for reply in replies] == [ANSWER] * 4
            assert len({reply.headers["x-request-id"] for reply in replies}) == 4
            assert len({tuple(sorted(reply.headers.keys())) for reply in replies}) == 1
            # Another head, a handler's request, and a broken body on the same connection.
            assert (await client.ask(post(body_of(), b"Authorization: Bearer other\r\n"))).body == ANSWER
            assert (await client.ask(post(body_of(model="near"), key))).status == 200
            assert (await client.ask(post(b"{", key))).error["code"] == "invalid_json"
            assert (await client.ask(post(body_of(), key))).body == ANSWER
            # Each was asked for anew, those for handlers twice, and a key that is revoked is out at once.
            assert fickle.asked.count("Bearer good") == 9
            fickle.lets_in = False
            assert (await client.ask(post(body_of(), key))).error["code"] == "key_revoked"

    asyncio.run(main())


def test_repeated_heads_beside_other_ways_to_send_requests() -> None:
    async def main() -> None:
        limits = ServerConfig(body_bytes_max=3_000_000)
        async with opened(whole(ANSWER), limits=limits) as door, door.served.client() as client:
            one, large = post(body_of()), post(body_of(zz="x" * 200_000))
            for _ in range(3):
                assert (await client.ask(one)).body == ANSWER
            await client.send(one + one)
            assert [(await client.reply()).body for _ in range(2)] == [ANSWER] * 2
            await client.send(one[:40])
            assert (await client.ask(one[40:])).body == ANSWER
            await client.send(one[:-3])
            assert (await client.ask(one[-3:])).body == ANSWER
            assert (await client.ask(large)).body == ANSWER
            assert (await client.ask(one)).body == ANSWER
            too_large: Any = await client.ask(post(b"x" * 9_000_000)[:2000])
            assert too_large.error["code"] == "request_too_large"

    asyncio.run(main())


def test_heads_and_bodies_that_come_apart() -> None:
    async def main() -> None:
        limits = ServerConfig(body_bytes_max=3_000_000)
        async with opened(whole(ANSWER), limits=limits) as door, door.served.client() as client:
            (connection,) = door.served.wheel.connections
            for size in (1, 30_000, 5, 400_000, 2):
                head, end, body = post(body_of(zz="x" * size)).partition(b"\r\n\r\n")
                await client.send(head + end)
                await until(lambda: connection.exchange is not None)
                await client.send(body[: size // 2])
                assert (await client.ask(body[size // 2 :])).body == ANSWER
            too_large: Any = await client.ask(post(b"x" * 9_000_000)[:2000])
            assert too_large.error["code"] == "request_too_large"

    asyncio.run(main())


@pytest.mark.parametrize("cut", [-20, -1])
def test_the_rest_of_a_body_with_the_next_request_behind_it(cut: int) -> None:
    async def main() -> None:
        async with opened(whole(ANSWER)) as door, door.served.client() as client:
            one = post(body_of(zz="x" * 20_000))
            for _ in range(3):
                await client.send(one[:cut])
                await client.send(one[cut:] + one)
                assert [(await client.reply()).body for _ in range(2)] == [ANSWER] * 2
            assert door.outcomes() == {"ok": 6}

    asyncio.run(main())


def test_heads_that_change_each_time_are_parsed_each_time() -> None:
    async def main() -> None:
        async with opened(whole(ANSWER)) as door, door.served.client() as client:
            for i in range(CHANGES_MAX + 3):
                reply = await client.ask(post(body_of(), b"X-Request-Id: id-%d\r\n" % i))
                assert (reply.body, reply.headers["x-request-id"]) == (ANSWER, f"id-{i}")
            assert door.outcomes() == {"ok": CHANGES_MAX + 3}

    asyncio.run(main())


def test_a_drain_is_told_to_repeated_heads_too() -> None:
    async def main() -> None:
        async with opened(whole(ANSWER)) as door, door.served.client() as client:
            for _ in range(2):
                assert (await client.ask(post(body_of()))).body == ANSWER
            door.served.edge.draining = True
            assert (await client.ask(post(body_of()))).error["code"] == "shutting_down"

    asyncio.run(main())


def test_requests_leave_no_cycles_behind() -> None:
    """Looking for cycles among what requests leave behind once took a fifth of the time they took themselves."""

    async def main() -> None:
        async with opened(whole(ANSWER)) as door, door.served.client() as client:
            for _ in range(2):
                assert (await client.ask(post(body_of()))).body == ANSWER
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                for _ in range(3):
                    assert (await client.ask(post(body_of()))).body == ANSWER
                await asyncio.sleep(0)
                gc.collect()
                left = {type(one).__name__ for one in gc.garbage}
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
            assert left.isdisjoint({"Exchange", "Passage", "Record", "Meter", "Inbound", "Connection"})

    asyncio.run(main())
