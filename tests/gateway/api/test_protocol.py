from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator

import pytest
from starlette.requests import Request

from gateway.api.http import Endpoint, EventStreamResponse, Response, json_response, read_json_body
from gateway.api.protocol import LINGER_S, PIPELINE_MAX
from gateway.config import ServerConfig
from tests.gateway.api.wire import Client, run, serve, until

HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
LIMITS = ServerConfig(header_timeout_s=0.2, body_timeout_s=0.2, write_stall_timeout_s=0.2, keep_alive_timeout_s=0.4)


def get(path: bytes = b"/hello", headers: bytes = HOST) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + headers + b"\r\n"


def post(body: bytes, headers: bytes = HOST + JSON) -> bytes:
    return b"POST /echo HTTP/1.1\r\n" + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def hello(request: Request) -> Response:
    return json_response(b'"hello"')


async def echo(request: Request) -> Response:
    return json_response(await read_json_body(request, 100_000))


async def slow(request: Request) -> Response:
    await asyncio.sleep(0.05)
    return json_response(b'"slow"')


async def show_headers(request: Request) -> Response:
    await read_json_body(request, 100_000)
    return json_response(b'"%d"' % len(request.headers.getlist("authorization")))


class Flood:
    """A handler whose stream never ends by itself, and a note of when it did."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def __call__(self, request: Request) -> Response:
        return EventStreamResponse(self.events())

    async def events(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: " + b"x" * 65536 + b"\n\n"
        finally:
            self.ended.set()


ENDPOINTS = (
    Endpoint("/hello", "GET", hello, "public"),
    Endpoint("/echo", "POST", echo, "public"),
    Endpoint("/slow", "GET", slow, "public"),
    Endpoint("/trailers", "POST", show_headers, "public"),
)


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (get(headers=HOST + b"A: " + b"x" * 33_000 + b"\r\n"), 431, "headers_too_large"),
        (get(headers=HOST + b"".join(b"h%d: %s\r\n" % (i, b"x" * 1000) for i in range(40))), 431, "headers_too_large"),
        (get(headers=HOST + b"A: b\r\n" * 100), 431, "headers_too_large"),
        (get(b"/" + b"x" * 8192), 414, "url_too_long"),
        (b"GET /" + b"x" * 200_000, 414, "url_too_long"),
        (get(headers=b""), 400, "bad_request"),
        (get(headers=HOST + HOST), 400, "bad_request"),
        (get(headers=b"Host: \r\n"), 400, "bad_request"),
        (get(headers=b"Host: a b\r\n"), 400, "bad_request"),
        (get(headers=b"Host: a/b\r\n"), 400, "bad_request"),
        (get(headers=b"Host: user@host\r\n"), 400, "bad_request"),
        (get(headers=b"Host: [::1\r\n"), 400, "bad_request"),
        (get(headers=b"Host: a:port\r\n"), 400, "bad_request"),
        (b"NONSENSE\r\n\r\n", 400, "bad_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_request"),
        (b"GET /hello HTTP/3.7\r\n" + HOST + b"\r\n", 400, "bad_request"),
        (get(b"/hel\xfflo"), 400, "bad_request"),
        (get(b"/hel\x00lo"), 400, "bad_request"),
        (b"CONNECT example.com:443 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad_request"),
        (get(headers=HOST + b"A: b\x00c\r\n"), 400, "bad_request"),
        (get(headers=HOST + b"A : b\r\n"), 400, "bad_request"),
        (get(headers=HOST + b"A: b\r\n c\r\n"), 400, "bad_request"),
        (get(headers=HOST + b"A: b\nC: d\r\n"), 400, "bad_request"),
        (post(b"{}", HOST + JSON + b"Content-Length: 1\r\n"), 400, "bad_request"),
        (post(b"{}", HOST + JSON + b"Transfer-Encoding: chunked\r\n"), 400, "bad_request"),
        (post(b"{}", HOST + JSON + b"Transfer-Encoding: gzip\r\n"), 400, "bad_request"),
        (b"POST /echo HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: -1\r\n\r\n", 400, "bad_request"),
        (b"POST /echo HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 1e3\r\n\r\n", 400, "bad_request"),
        (b"POST /echo HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", 400, "bad_request"),
        (b"POST /echo HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: gzip\r\n\r\n{}", 400, "bad_request"),
        (b"POST /echo HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "bad_request"),
        (post(b"{}", HOST + JSON + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"), 400, "bad_request"),
    ],
)
def test_refused_with_a_complete_answer_and_closed(data: bytes, status: int, code: str) -> None:
    async def main() -> None:
        async with serve(ENDPOINTS) as served, served.client() as client:
            reply = await client.ask(data)
            assert (reply.status, reply.error["code"]) == (status, code)
            assert reply.headers["connection"] == "close"
            assert await client.closed()
            assert (await served.ask(get())).status == 200

    run(main())


@pytest.mark.parametrize(
    "data",
    [
        get(),
        get(headers=b"host: [::1]:8000\r\n"),
        get(headers=b"Host: example.com:80\r\nA: " + b"x" * 30_000 + b"\r\n"),
        get(headers=HOST + b"A: b\r\n" * 99),
        get(b"/hello?" + b"q" * 8000),
        get(b"http://other.example/hello"),
        get(headers=HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        b"GET /hello HTTP/1.0\r\n\r\n",
        b"\r\n" + get(),
    ],
)
def test_served_up_to_the_limits(data: bytes) -> None:
    async def main() -> None:
        async with serve(ENDPOINTS) as served:
            reply = await served.ask(data)
            assert (reply.status, reply.body) == (200, b'"hello"')

    run(main())


@pytest.mark.parametrize("start", [b"GET /hello HTTP/1.1\r\nA: ", b"GET /hello HTTP/1.1\r\n" + HOST + b"A"])
def test_an_endless_head_is_cut_below_64_kib(start: bytes) -> None:
    async def main() -> None:
        async with serve(ENDPOINTS) as served, served.client() as client:
            await client.send(start)
            sent = 0
            while not served.refusals:
                await client.send(b"y" * 4096)
                await asyncio.sleep(0.001)
                sent += 4096
                assert sent < 64 * 1024
            assert (await client.reply()).error["code"] == "headers_too_large"

    run(main())


def test_a_head_byte_by_byte_and_pipelined_requests_are_served() -> None:
    async def main() -> None:
        async with serve(ENDPOINTS) as served, served.client() as client:
            for byte in post(b"[1]"):
                await client.send(bytes([byte]))
            assert (await client.reply()).body == b"[1]"
            await client.send(get(b"/slow") + post(b"[2]") + get())
            assert [(await client.reply()).body for _ in range(3)] == [b'"slow"', b"[2]", b'"hello"']

    run(main())


def test_too_many_pipelined_requests_get_no_more_answers_than_allowed() -> None:
    async def main() -> None:
        async with serve(ENDPOINTS) as served, served.client() as client:
            await client.send(get(b"/slow") + get() * (PIPELINE_MAX + 5))
            for _ in range(PIPELINE_MAX + 1):
                assert (await client.reply()).status == 200
            assert await client.closed()

    run(main())


def test_chunked_bodies_are_joined_and_trailers_dropped() -> None:
    async def main() -> None:
        head = b"POST %b HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
        async with serve(ENDPOINTS) as served, served.client() as client:
            await client.send(head % b"/echo" + b"2\r\n[1\r\n")
            await client.send(b"1;extension=x\r\n]\r\n0\r\n\r\n")
            assert (await client.reply()).body == b"[1]"
            reply = await client.ask(head % b"/trailers" + b"2\r\n[]\r\n0\r\nAuthorization: Bearer smuggled\r\n\r\n")
            assert reply.body == b'"0"'

    run(main())


def test_endless_trailers_and_chunk_extensions_are_cut() -> None:
    async def main() -> None:
        head = b"POST /echo HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
        async with serve(ENDPOINTS) as served:
            for start in (b"0\r\nA: ", b"2;"):
                reply = await served.ask(head + start + b"x" * 100_000)
                assert reply.error["code"] == "headers_too_large"

    run(main())


def test_expect_100_continue() -> None:
    async def main() -> None:
        head = b"POST /echo HTTP/1.1\r\n" + HOST + JSON + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        async with serve(ENDPOINTS) as served, served.client() as client:
            assert (await client.ask(head % 2)).status == 100
            assert (await client.ask(b"{}")).body == b"{}"
            reply = await client.ask(head % 1_000_000)
            assert (reply.status, reply.error["code"]) == (413, "request_too_large")

    run(main())


def test_a_slow_head_is_closed_also_when_it_drips() -> None:
    async def main() -> None:
        async with serve(ENDPOINTS, LIMITS) as served:
            for start, more in ((b"", b""), (b"GET /hello HTTP/1.1\r\nA: b", b"b"), (b"\r\n", b"\r\n")):
                async with served.client() as client:
                    began = time.monotonic()
                    await client.send(start)
                    drip = asyncio.create_task(dripping(client, more))
                    assert await client.closed()
                    assert 0.15 < time.monotonic() - began < 2
                    drip.cancel()

    run(main())


async def dripping(client: Client, data: bytes) -> None:
    while data:
        await asyncio.sleep(0.05)
        await client.send(data)


def test_an_idle_connection_is_closed_after_the_keep_alive_time() -> None:
    async def main() -> None:
        async with serve(ENDPOINTS, LIMITS) as served, served.client() as client:
            await client.ask(get())
            await asyncio.sleep(0.25)
            assert (await client.ask(get())).status == 200
            began = time.monotonic()
            assert await client.closed()
            assert 0.35 < time.monotonic() - began < 2

    run(main())


def test_a_stalled_body_is_408_and_a_slow_one_is_not() -> None:
    async def main() -> None:
        async with serve(ENDPOINTS, LIMITS) as served:
            async with served.client() as client:
                await client.send(post(b"[1,2,3]")[:-7])
                for byte in b"[1,2,3]":
                    await asyncio.sleep(0.05)
                    await client.send(bytes([byte]))
                assert (await client.reply()).body == b"[1,2,3]"
            async with served.client() as client:
                began = time.monotonic()
                await client.send(post(b"[1,2,3]")[:-3])
                reply = await client.reply()
                assert (reply.status, reply.error["code"]) == (408, "request_timeout")
                assert 0.15 < time.monotonic() - began < 2
                assert await client.closed()
            await until(lambda: "status=408" in served.log.getvalue())

    run(main())


def test_a_body_broken_in_the_middle_is_answered_by_its_request() -> None:
    async def main() -> None:
        head = b"POST /echo HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[1\r\n"
        async with serve(ENDPOINTS) as served, served.client() as client:
            await client.send(head)
            await asyncio.sleep(0.02)
            reply = await client.ask(b"not a chunk\r\n")
            assert (reply.status, reply.error["code"]) == (400, "bad_request")
            assert await client.closed()

    run(main())


def test_garbage_behind_a_request_does_not_spoil_its_answer() -> None:
    async def main() -> None:
        async with serve(ENDPOINTS) as served, served.client() as client:
            reply = await client.ask(get(b"/slow") + b"garbage\r\n\r\n")
            assert (reply.status, reply.body) == (200, b'"slow"')
            assert await client.closed()

    run(main())


def test_a_client_still_sending_gets_to_read_why_it_was_refused() -> None:
    async def main() -> None:
        async with serve(ENDPOINTS) as served, served.client() as client:
            body = b"x" * 3_000_000
            client.writer.write(post(body))
            reply = await client.reply()
            assert (reply.status, reply.error["code"]) == (413, "request_too_large")
            await client.writer.drain()
            began = time.monotonic()
            assert await client.closed()
            assert time.monotonic() - began < LINGER_S + 1.5

    run(main())


def test_a_chunked_body_over_the_limit_is_cut() -> None:
    async def main() -> None:
        head = b"POST /echo HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
        async with serve(ENDPOINTS) as served, served.client() as client:
            await client.send(head)
            for _ in range(11):
                await client.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            reply = await client.reply()
            assert (reply.status, reply.error["code"]) == (413, "request_too_large")
            assert await client.closed()

    run(main())


def test_a_reader_that_stops_is_cut_and_its_stream_closed() -> None:
    async def main() -> None:
        flood = Flood()
        async with serve([Endpoint("/flood", "GET", flood, "public")], LIMITS) as served:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", served.port))
            await asyncio.get_running_loop().sock_sendall(sock, get(b"/flood"))
            began = time.monotonic()
            await flood.ended.wait()
            assert 0.15 < time.monotonic() - began < 2
            sock.close()
            await until(lambda: not served.wheel.connections)

    run(main())


def test_connections_over_the_limit_are_turned_away() -> None:
    async def main() -> None:
        async with serve(ENDPOINTS, ServerConfig(connections_max=2)) as served:
            async with served.client() as first, served.client() as second:
                await first.ask(get())
                await second.ask(get())
                reply = await served.ask(get())
                assert (reply.status, reply.error["code"]) == (503, "overloaded")
                assert reply.headers["retry-after"] == "1"
                assert (await first.ask(get())).status == 200
            await until(lambda: not served.wheel.connections)
            assert (await served.ask(get())).status == 200

    run(main())
