from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from adapters.answers import fetch, streamed
from adapters.connection import Bounds, Headers, Timeouts
from adapters.errors import AdapterError, BrokeOff, InvalidRequest, Overloaded, Timeout, UpstreamInvalid
from adapters.http1 import Client, Keeping
from tests.adapters.upstream import (
    OK,
    Kept,
    Peer,
    Script,
    Upstream,
    answering,
    both_loops,
    client,
    head_of,
    run,
    upstream,
)

Loop = Callable[[], asyncio.AbstractEventLoop]

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;name=value\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: value\r\n\r\n"
)
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nhello"
QUICK = Timeouts(connect_s=20, first_byte_s=0.3, idle_s=0.3, total_s=30)


async def ask(door: Client, up: Upstream, body: bytes = b"{}", timeouts: Timeouts | None = None) -> Kept:
    kept = Kept()
    await door.wire(up.origin).send(head_of(up), body, kept, timeouts)
    return kept


def outcome(script: Script, *, bounds: Bounds | None = None, timeouts: Timeouts | None = None) -> Kept | AdapterError:
    """What becomes of one request, and that the connection is not used for the next one when it failed."""

    async def main() -> Kept | AdapterError:
        door = client(bounds=bounds)
        async with upstream(script) as up:
            try:
                return await ask(door, up, timeouts=timeouts)
            except AdapterError as exc:
                assert door.wire(up.origin).connections == 0
                return exc
            finally:
                await door.close()

    return run(main())


@both_loops
@pytest.mark.parametrize(("answer", "kept"), [(OK, True), (CHUNKED, True), (UNTIL_CLOSE, False)])
def test_bodies_of_every_framing_and_connections_that_are_kept(answer: bytes, kept: bool, factory: Loop) -> None:
    async def main() -> None:
        door = client()
        async with upstream(answering(answer, close=not kept)) as up:
            for _ in range(3):
                got = await ask(door, up)
                assert (got.status, got.data) == (200, b"hello")
            assert up.accepted == (1 if kept else 3)
        await door.close()

    run(main(), factory)


@both_loops
def test_a_request_arrives_as_it_was_rendered(factory: Loop) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def script(peer: Peer) -> None:
        while True:
            seen.append(await peer.request())
            await peer.send(OK)

    async def main() -> None:
        door = client()
        async with upstream(script) as up:
            large = bytes(300_000)
            await ask(door, up, b'{"a":1}')
            await ask(door, up, large)
            head = b"POST /v1/x HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept-encoding: identity\r\n" % up.port
            head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
            assert seen == [(head % 7, b'{"a":1}'), (head % 300_000, large)]
        await door.close()

    run(main(), factory)


@pytest.mark.parametrize("answer", [OK, CHUNKED])
def test_an_answer_byte_by_byte(answer: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        for byte in answer:
            await peer.send(bytes([byte]))
            await asyncio.sleep(0)

    got = outcome(script)
    assert isinstance(got, Kept)
    assert got.data == b"hello"


@both_loops
@pytest.mark.parametrize("answer", [OK, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_cut_at_every_byte(answer: bytes, how: str, factory: Loop) -> None:
    """The connection is a new one, so nothing is sent twice, and nothing hangs."""

    async def main() -> None:
        door = client()
        for end in range(len(answer)):

            async def script(peer: Peer, end: int = end) -> None:
                await peer.request()
                await peer.send(answer[:end])
                if how == "reset":
                    peer.reset()

            async with upstream(script) as up:
                with pytest.raises(BrokeOff):
                    await ask(door, up)
                assert up.accepted == 1
        await door.close()

    run(main(), factory)


@pytest.mark.parametrize("end", [0, 10, 60, len(CHUNKED) - 20, len(CHUNKED) - 1])
def test_stalled_at_some_byte(end: int) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED[:end])
        await peer.gone()

    assert isinstance(outcome(script, timeouts=QUICK), Timeout)


def test_a_trickle_ends_with_the_total_time() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await peer.send(b"x")
            await asyncio.sleep(0.05)

    slow = Timeouts(first_byte_s=0.3, idle_s=0.3, total_s=0.7)
    assert isinstance(outcome(script, timeouts=slow), Timeout)


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nA: ",
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 200 OK\r\n" + b"A",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: ",
    ],
)
def test_endless_lines_are_cut(start: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(start)
        while True:
            await peer.send(b"x" * 4096)

    assert isinstance(outcome(script, bounds=Bounds(header_bytes_max=32_000)), UpstreamInvalid)


def test_endless_interim_answers_and_headers_are_cut() -> None:
    async def interim(peer: Peer) -> None:
        await peer.request()
        while True:
            await peer.send(b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n")

    async def headers(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + b"".join(b"A%d: b\r\n" % number for number in range(500)))
        await peer.gone()

    assert isinstance(outcome(interim), UpstreamInvalid)
    assert isinstance(outcome(headers), UpstreamInvalid)


def test_an_endless_body_is_cut_where_it_is_read() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await peer.send(bytes(65536))

    async def main() -> None:
        door = client()
        async with upstream(script) as up:
            with pytest.raises(UpstreamInvalid, match="too large"):
                await fetch(door.wire(up.origin), head_of(up), b"", bytes_max=200_000)
        await door.close()

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 99999 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nA b\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
    ],
)
def test_what_is_not_http(answer: bytes) -> None:
    assert isinstance(outcome(answering(answer)), UpstreamInvalid)


def test_interim_answers_are_skipped_and_empty_ones_end_at_once() -> None:
    async def main() -> None:
        door = client()
        interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        async with upstream(answering(interim + OK, b"HTTP/1.1 204 No Content\r\n\r\n")) as up:
            got = await ask(door, up)
            assert (got.status, got.data) == (200, b"hello")
            assert b"link" not in got.headers
            assert (await ask(door, up)).status == 204
            assert up.accepted == 1
        await door.close()

    run(main())


@both_loops
@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"x"])
def test_what_comes_behind_an_answer_is_not_the_next_ones(extra: bytes, factory: Loop) -> None:
    async def main() -> None:
        door = client()
        late = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(OK + extra)
            await peer.gone()

        async def later(peer: Peer) -> None:
            await peer.request()
            await peer.send(OK)
            await asyncio.sleep(0.05)
            await peer.send(extra)
            late.set()
            await peer.gone()

        for one in (script, later):
            async with upstream(one) as up:
                assert (await ask(door, up)).data == b"hello"
                if one is later:
                    await late.wait()
                await asyncio.sleep(0.05)
                assert (await ask(door, up)).data == b"hello"
                assert up.accepted == 2
        await door.close()

    run(main(), factory)


@both_loops
def test_a_kept_connection_that_died_is_replaced_once(factory: Loop) -> None:
    requests = 0

    async def script(peer: Peer) -> None:
        nonlocal requests
        await peer.request()
        await peer.send(OK)
        await peer.request()
        requests += 1
        peer.reset()

    async def main() -> None:
        door = client()
        async with upstream(script) as up:
            await ask(door, up)
            assert (await ask(door, up)).data == b"hello"
            assert (requests, up.accepted) == (1, 2)
        await door.close()

    run(main(), factory)


def test_a_kept_connection_that_dies_within_its_answer_is_not() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(OK[:20])
        peer.reset()

    async def main() -> None:
        door = client()
        async with upstream(script) as up:
            await ask(door, up)
            with pytest.raises(BrokeOff):
                await ask(door, up)
            assert up.accepted == 1
        await door.close()

    run(main())


def test_an_answer_before_the_whole_request_ends_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(0.2)

    async def main() -> None:
        door = client()
        async with upstream(script) as up:
            for _ in range(2):
                assert (await ask(door, up, bytes(20_000_000))).status == 413
            assert up.accepted == 2
        await door.close()

    run(main())


@both_loops
def test_back_pressure_reaches_the_upstream(factory: Loop) -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 30000000\r\n\r\n")
        for _ in range(300):
            await peer.send(bytes(100_000))
            sent += 1

    async def main() -> None:
        door = client()
        async with upstream(script) as up:
            async with streamed(door.wire(up.origin), head_of(up), b"") as reading:
                await asyncio.sleep(0.3)
                assert sent < 299
                assert sum([len(piece) async for piece in reading]) == 30_000_000
            assert sent == 300
        await door.close()

    run(main(), factory)


def test_a_paused_reader_does_not_time_out_and_goes_on_after_it() -> None:
    async def main() -> None:
        door = client()
        kept = Kept(pausing=True)
        async with upstream(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + bytes(2_000_000))) as up:
            sending = asyncio.create_task(door.wire(up.origin).send(head_of(up), b"", kept, QUICK))
            await asyncio.sleep(0.9)
            assert not sending.done()
            kept.pausing = False
            assert kept.flow is not None
            kept.flow.resume()
            await sending
            assert len(kept.data) == 2_000_000
        await door.close()

    run(main())


@both_loops
def test_who_gives_up_drops_the_connection(factory: Loop) -> None:
    async def main() -> None:
        door = client()
        begun, gone = asyncio.Event(), asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(OK[:-2])
            begun.set()
            await peer.gone()
            gone.set()

        async with upstream(script) as up:
            sending = asyncio.create_task(ask(door, up))
            await begun.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await gone.wait()
        await door.close()

    run(main(), factory)


def test_an_error_of_the_receiver_ends_the_answer() -> None:
    class Picky(Kept):
        def on_data(self, data: bytes) -> None:
            raise InvalidRequest("no")

    async def main() -> None:
        door = client()
        async with upstream(answering(OK)) as up:
            with pytest.raises(InvalidRequest):
                await door.wire(up.origin).send(head_of(up), b"", Picky())
        await door.close()

    run(main())


def test_redirects_are_not_followed() -> None:
    got = outcome(answering(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"))
    assert isinstance(got, Kept)
    assert got.status == 302


def test_connections_are_bounded() -> None:
    async def script(peer: Peer) -> None:
        await peer.gone()

    async def main() -> None:
        door = client(keeping=Keeping(connections_max=2))
        async with upstream(script) as up:
            running = [asyncio.create_task(ask(door, up)) for _ in range(2)]
            await asyncio.sleep(0.05)
            with pytest.raises(Overloaded):
                await ask(door, up)
            for task in running:
                task.cancel()
            await asyncio.wait(running)
        await door.close()

    run(main())


def test_kept_connections_end_with_their_time_and_number() -> None:
    async def main() -> None:
        door = client(keeping=Keeping(idle_max=2, idle_s=0.2))
        async with upstream(answering(OK)) as up:
            await asyncio.gather(*(ask(door, up) for _ in range(5)))
            wire = door.wire(up.origin)
            assert wire.connections == 2
            await asyncio.sleep(0.8)
            assert wire.connections == 0
        await door.close()

    run(main())


def test_a_reader_sees_the_head_then_pieces_then_what_went_wrong() -> None:
    async def main() -> None:
        door = client()
        async with upstream(answering(OK)) as up:
            async with streamed(door.wire(up.origin), head_of(up), b"") as reading:
                assert (reading.status, reading.headers.get(b"content-type")) == (200, b"text/plain")
                assert b"".join([piece async for piece in reading]) == b"hello"
            answer = await fetch(door.wire(up.origin), head_of(up), b"", bytes_max=5)
            assert (answer.status, answer.body, answer.headers.get(b"x")) == (200, b"hello", None)

        async def cut(peer: Peer) -> None:
            await peer.request()
            await peer.send(OK[:-1])
            peer.reset()

        async with upstream(cut) as up:
            with pytest.raises(BrokeOff):
                async with streamed(door.wire(up.origin), head_of(up), b"") as reading:
                    async for _ in reading:
                        pass
                    raise AssertionError("what the body makes of a cut answer does not matter")
        await door.close()

    run(main())


def test_headers_are_what_receivers_expect() -> None:
    got = outcome(answering(OK))
    assert isinstance(got, Kept)
    expected: Headers = {b"content-type": b"text/plain", b"content-length": b"5"}
    assert got.headers == expected
