"""What holds for requests that are passed on, in the fast lane and through ASGI alike."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from adapters.providers import ProviderKind
from gateway import errors
from gateway.api.passing import PATHS, Passer
from gateway.auth import Principal
from gateway.config import ServerConfig
from tests.adapters.test_relay import CHUNKS, USAGE, chunk, sse, streaming, whole
from tests.adapters.upstream import Peer
from tests.gateway.api.passing_door import BODY_BYTES_MAX, body_of, opened, post
from tests.gateway.api.wire import Reply, run, until

LIMITS = ServerConfig(header_timeout_s=0.3, body_timeout_s=0.3, write_stall_timeout_s=0.3, keep_alive_timeout_s=0.5)
ANSWER = b'{"id":"x", "choices":[{"message":{"content":"hi"}}],"zz":1e2,"usage":%b}' % json.dumps(USAGE).encode()
either = pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])


class Keyring:
    """Knows one key; counts how often it was asked."""

    asked = 0

    async def authenticate(self, authorization: str | None, address: str = "") -> Principal:
        self.asked += 1
        if authorization != "Bearer good":
            raise errors.error("invalid_api_key", "No.", headers={"WWW-Authenticate": "Bearer"})
        return Principal(tenant="t", key_id="k", name="n")


@either
def test_a_unary_answer(lane: bool) -> None:
    async def main() -> None:
        async with opened(whole(ANSWER), lane=lane) as door:
            reply = await door.served.ask(post(body_of(), b"X-Request-Id: mine\r\n"))
            assert (reply.status, reply.body) == (200, ANSWER)
            assert reply.headers["x-request-id"] == "mine"
            assert reply.headers["x-gateway-model"] == "far"
            assert reply.headers["content-type"] == "application/json"
            assert reply.headers["openai-version"]
            await until(lambda: "status=200" in door.served.log.getvalue())
            line = door.served.log.getvalue()
            for part in ("path=/v1/chat/completions", " key=local model=far", "prompt_tokens=7", "request_id=mine"):
                assert part in line
            assert door.outcomes() == {"ok": 1}
            counted = door.served.telemetry.render().decode()
            assert 'gateway_requests_total{route="/v1/chat/completions",method="POST",status="200"} 1' in counted

    run(main())


@either
def test_a_stream(lane: bool) -> None:
    async def main() -> None:
        body = sse(*CHUNKS, chunk(None, usage=USAGE))
        async with opened(streaming(body, size=40), lane=lane) as door:
            reply = await door.served.ask(post(body_of(stream=True)))
            assert (reply.status, reply.body) == (200, sse(*CHUNKS))
            assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert reply.headers["cache-control"] == "no-cache"
            assert reply.headers["x-request-id"]
            assert reply.headers["x-gateway-model"] == "far"
            await until(lambda: "completion_tokens=2" in door.served.log.getvalue())

    run(main())


@either
@pytest.mark.parametrize("stream", [False, True])
def test_a_local_model_beside_a_remote_one_says_where_its_time_went(lane: bool, stream: bool) -> None:
    async def main() -> None:
        async with opened(whole(ANSWER), lane=lane) as door:
            reply = await door.served.ask(post(body_of(model="both", stream=stream)))
            assert b"Hello" in reply.body and reply.headers["x-gateway-target"] == "0"
            assert reply.headers["x-gateway-queue-ms"] == "1.5"
            assert reply.headers["x-gateway-cached-tokens"] == "3"
            decoded = "" if stream else ", decode;dur=4.0"
            assert reply.headers["server-timing"] == f"queue;dur=1.5, prefill;dur=2.5{decoded}"
            far = await door.served.ask(post(body_of()))
            assert not {"x-gateway-queue-ms", "server-timing"} & set(far.headers)

    run(main())


@either
def test_other_models_and_other_routes_are_answered_as_ever(lane: bool) -> None:
    async def main() -> None:
        async with opened(whole(ANSWER), lane=lane) as door, door.served.client() as client:
            for _ in range(2):
                near = await client.ask(post(body_of(model="near")))
                assert json.loads(near.body)["choices"][0]["message"]["content"] == "Hello world"
                assert (await client.ask(post(body_of()))).body == ANSWER
                stream = await client.ask(post(body_of(model="near", stream=True)))
                assert stream.body.endswith(b"data: [DONE]\n\n")
                models = await client.ask(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b'"far"' in models.body
                assert (await client.ask(post(body_of(model="nobody")))).error["code"] == "model_not_found"

    run(main())


@either
def test_a_passage_is_looked_for_once(lane: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, look = [], Passer.open

    async def counted(self: Passer, path: str, *rest: Any) -> Any:
        looked.append(path)
        return await look(self, path, *rest)

    async def main() -> None:
        monkeypatch.setattr(Passer, "open", counted)
        async with opened(whole(ANSWER), lane=lane) as door:
            assert (await door.served.ask(post(body_of(model="near")))).status == 200
            assert looked == ["/v1/chat/completions"]

    run(main())


@either
@pytest.mark.parametrize("path", [b"/v1/completions", b"/v1/embeddings"])
def test_the_other_dialects(lane: bool, path: bytes) -> None:
    async def main() -> None:
        answer = b'{"data":[],"usage":{"prompt_tokens":3,"total_tokens":3}}'
        async with opened(whole(answer), lane=lane) as door:
            body = b'{"model":"far","prompt":["a","b"],"input":"a"}'
            assert (await door.served.ask(post(body, path=path))).body == answer

    run(main())


BROKEN_BODIES = [
    (b"", 400, "invalid_json"),
    (b"{", 400, "invalid_json"),
    (b"[]", 400, "invalid_value"),
    (body_of() + b" {}", 400, "invalid_json"),
    (b'{"model":"far","a":NaN}', 400, "invalid_json"),
    (b'{"model":"far","a":"\xff"}', 400, "invalid_json"),
    (b'{"model":"far","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "invalid_json"),
    (b'{"messages":[]}', 400, "invalid_value"),
    (body_of(model=5), 400, "invalid_value"),
    (body_of(model=""), 400, "invalid_value"),
    (body_of(max_tokens=0), 400, "invalid_value"),
    (body_of(n=-1), 400, "invalid_value"),
    (body_of(stream="yes"), 400, "invalid_value"),
    (body_of(stream_options={"include_usage": True}), 400, "invalid_value"),
    (body_of(api_key="sk-x"), 400, "unknown_parameter"),
    (body_of(base_url="http://evil.test"), 400, "unknown_parameter"),
    (body_of(api_base="http://evil.test"), 400, "unknown_parameter"),
    (body_of(extra_headers={"a": "b"}), 400, "unknown_parameter"),
    (b'{"model":"near","model":"far","messages":[]}', 400, "invalid_value"),
    (b'{"mod\\u0065l":"near","messages":[],"model":"far"}', 400, "invalid_value"),
    (body_of(model="nobody"), 404, "model_not_found"),
]


@either
@pytest.mark.parametrize(("body", "status", "code"), BROKEN_BODIES)
def test_broken_bodies_are_refused_and_never_passed_on(lane: bool, body: bytes, status: int, code: str) -> None:
    async def main() -> None:
        async with opened(whole(ANSWER), lane=lane) as door, door.served.client() as client:
            reply = await client.ask(post(body))
            assert (reply.status, reply.error["code"]) == (status, code)
            assert door.up.accepted == 0
            assert (await client.ask(post(body_of()))).body == ANSWER

    run(main())


@either
@pytest.mark.parametrize("field", ["api_base", "base_url", "api_key", "extra_headers"])
@pytest.mark.parametrize("path", PATHS)
def test_fields_that_would_redirect_are_refused_on_every_path(lane: bool, path: str, field: str) -> None:
    async def main() -> None:
        async with opened(whole(ANSWER), lane=lane, kind="vllm") as door:
            fields = {"prompt": "a", "input": "a", "max_tokens": 5, field: "http://evil.test"}
            reply = await door.served.ask(post(body_of(**fields), path=path.encode()))
            assert reply.status == 400
            assert field in json.loads(reply.body)["error"]["message"]
            assert door.up.accepted == 0

    run(main())


JSON = b"Host: localhost\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(body_of())
HEADS = [
    (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\n" + LENGTH, 400),
    (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a b\r\nContent-Type: application/json\r\n" + LENGTH, 400),
    (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n" + JSON + LENGTH, 400),
    (b"POST /v1/chat/completions HTTP/1.1\r\nA: " + b"x" * 33_000 + b"\r\n" + JSON + LENGTH, 431),
    (b"POST /v1/chat/completions HTTP/1.1\r\n" + b"A: b\r\n" * 100 + JSON + LENGTH, 431),
    (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n" + LENGTH, 415),
    (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n" + LENGTH, 415),
    (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Encoding: gzip\r\n" + JSON + LENGTH, 415),
    (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 1\r\n" + JSON + LENGTH, 400),
    (b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + JSON + LENGTH, 400),
    (b"POST /v1/chat/completions HTTP/1.1\r\n" + JSON + b"Content-Length: 10000000\r\n", 413),
    (b"POST /v1/chat/completions HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n" + JSON + LENGTH, 400),
    (b"POST /v1/chat/completions HTTP/1.1\r\nX-Session-Id: \xff\r\n" + JSON + LENGTH, 400),
    (b"POST /v1/chat/completions HTTP/1.1\r\nX-Gateway-Explain: all\r\n" + JSON + LENGTH, 400),
    (b"GET /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n", 405),
    (b"POST /v1/chat//completions HTTP/1.1\r\n" + JSON + LENGTH, 404),
    (b"POST /v1/chat/%63ompletions HTTP/1.1\r\n" + JSON + LENGTH, 404),
    (b"POST /v1/chat/completions?x=1 HTTP/1.1\r\n" + JSON + LENGTH, 200),
    (b"POST http://other.test/v1/chat/completions HTTP/1.1\r\n" + JSON + LENGTH, 200),
    (b"POST /v1/chat/completions HTTP/1.0\r\n" + JSON + LENGTH, 200),
    (b"POST /v1/chat/completions HTTP/1.1\r\nConnection: close\r\n" + JSON + LENGTH, 200),
]


@pytest.mark.parametrize(("head", "status"), HEADS)
def test_the_lane_answers_heads_as_asgi_does(head: bytes, status: int) -> None:
    """The same status, headers and body, and the connection closed or kept alike."""

    async def answered(lane: bool) -> tuple[int, dict[str, str], Any, bool]:
        async with opened(whole(ANSWER), lane=lane) as door, door.served.client() as client:
            reply = await client.ask(head + b"\r\n" + body_of())
            varying = ("date", "x-request-id", "openai-processing-ms", "transfer-encoding", "content-length")
            headers = {name: value for name, value in reply.headers.items() if name not in varying}
            kept = head.startswith(b"POST") and b"Connection" not in head and reply.status == 200 and b"1.0" not in head
            again = kept and (await client.ask(post(body_of()))).status == 200
            return reply.status, headers, json.loads(reply.body), again

    fast, slow = run(answered(True)), run(answered(False))
    assert fast == slow
    assert fast[0] == status


@either
def test_access_is_asked_for_before_the_body_is_read(lane: bool) -> None:
    async def main() -> None:
        keyring = Keyring()
        async with opened(whole(ANSWER), lane=lane, authenticator=keyring) as door:
            for headers in (b"", b"Authorization: Bearer bad\r\n", b"Authorization: Bearer good\r\n" * 2):
                async with door.served.client() as client:
                    reply = await client.ask(post(body_of(), headers)[:-10])
                    assert reply.status in (400, 401)
                    assert reply.error["code"] in ("invalid_api_key", "bad_request")
            assert (keyring.asked, door.up.accepted) == (2, 0)
            good = b"Authorization: Bearer good\r\n"
            assert (await door.served.ask(post(body_of(), good))).status == 200
            door.served.edge.draining = True
            assert (await door.served.ask(post(body_of(), good))).error["code"] == "shutting_down"

    run(main())


@either
def test_who_is_refused_before_he_was_told_to_go_on_does_not_keep_the_connection(lane: bool) -> None:
    async def main() -> None:
        async with (
            opened(whole(ANSWER), lane=lane, authenticator=Keyring(), limits=LIMITS) as door,
            door.served.client() as client,
        ):
            asked = post(body_of(), b"Expect: 100-continue\r\n")
            assert (await client.ask(asked[: asked.index(b"\r\n\r\n") + 4])).status == 401
            assert await client.closed()

    run(main())


@either
def test_without_keys_only_loopback_names_are_served(lane: bool) -> None:
    async def main() -> None:
        async with opened(whole(ANSWER), lane=lane, loopback_only=True) as door:
            for host, status in ((b"localhost:80", 200), (b"127.0.0.1", 200), (b"[::1]:9", 200), (b"evil.test", 403)):
                reply = await door.served.ask(post(body_of()).replace(b"Host: localhost", b"Host: " + host))
                assert reply.status == status, host

    run(main())


@either
def test_bodies_in_pieces_in_chunks_and_after_100_continue(lane: bool) -> None:
    async def main() -> None:
        large = body_of(zz="x" * 1_000_000)
        head = b"POST /v1/chat/completions HTTP/1.1\r\n" + JSON
        async with opened(whole(ANSWER), lane=lane) as door, door.served.client() as client:
            for byte in post(body_of()):
                await client.send(bytes([byte]))
            assert (await client.reply()).body == ANSWER
            assert (await client.ask(post(large))).body == ANSWER
            await client.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(large), 10_000):
                piece = large[at : at + 10_000]
                await client.send(b"%x;a=b\r\n%b\r\n" % (len(piece), piece))
            assert (await client.ask(b"0\r\nTrailer: x\r\n\r\n")).body == ANSWER
            assert (await client.ask(head + b"Expect: 100-continue\r\n" + LENGTH + b"\r\n")).status == 100
            assert (await client.ask(body_of())).body == ANSWER
            await client.send(post(body_of()) * 5)
            assert [(await client.reply()).body for _ in range(5)] == [ANSWER] * 5

    run(main())


@either
def test_a_body_over_the_limit_or_stalled(lane: bool) -> None:
    async def main() -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
        async with opened(whole(ANSWER), lane=lane, limits=LIMITS) as door:
            async with door.served.client() as client:
                client.writer.write(head + b"%x\r\n" % (2 * BODY_BYTES_MAX) + bytes(2 * BODY_BYTES_MAX))
                reply = await client.reply()
                assert (reply.status, reply.error["code"]) == (413, "request_too_large")
                assert reply.headers["connection"] == "close"
                assert await client.closed()
            async with door.served.client() as client:
                reply = await client.ask(post(body_of())[:-5])
                assert (reply.status, reply.error["code"]) == (408, "request_timeout")
                assert await client.closed()
            async with door.served.client() as client:
                await client.send(head + b"2\r\n{}\r\n")
                await asyncio.sleep(0.02)
                assert (await client.ask(b"no chunk\r\n")).error["code"] == "bad_request"

    run(main())


@either
@pytest.mark.parametrize("headers", [b"", b"Cookie: a=b\r\n"], ids=["usual", "unusual"])
@pytest.mark.parametrize("begun", [b"", b"2\r\n{}\r\n"])
def test_a_body_that_is_broken_in_the_piece_it_comes_with(lane: bool, headers: bytes, begun: bytes) -> None:
    async def main() -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\n" + JSON + b"Transfer-Encoding: chunked\r\n" + headers
        async with opened(whole(ANSWER), lane=lane) as door, door.served.client() as client:
            assert (await client.ask(head + b"\r\n" + begun + b"no chunk\r\n")).error["code"] == "bad_request"
            assert await client.closed()

    run(main())


@either
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_takes_its_upstream_with_it(lane: bool, stream: bool) -> None:
    async def main() -> None:
        gone = asyncio.Event()
        asked = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            asked.set()
            if stream:
                await peer.send(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + sse(chunk("a"), end=b"")
                )
            await peer.gone()
            gone.set()

        async with opened(script, lane=lane) as door:
            async with door.served.client() as client:
                await client.send(post(body_of(stream=stream)))
                await asked.wait()
                if stream:
                    assert (await client.head())[0] == 200
            await gone.wait()
            await until(lambda: "client_disconnected" in door.served.log.getvalue())
            assert "status=499" in door.served.log.getvalue()
            await until(lambda: door.outcomes() == {"cancelled": 1})

    run(main())


@either
def test_a_client_that_does_not_read_is_cut_and_settled(lane: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while True:
            await peer.send(sse(chunk("x" * 10_000), end=b""))

    async def main() -> None:
        async with opened(script, lane=lane, limits=LIMITS) as door, door.served.client() as client:
            await client.send(post(body_of(stream=True)))
            await until(lambda: door.outcomes() == {"cancelled": 1})

    run(main())


@either
def test_a_slow_client_gets_all_of_a_long_stream(lane: bool) -> None:
    body = sse(*[chunk("x" * 10_000)] * 2000, CHUNKS[-1])

    async def main() -> None:
        async with opened(streaming(body, size=100_000), lane=lane) as door, door.served.client() as client:
            await client.send(post(body_of(stream=True)))
            assert (await client.head())[0] == 200
            size = 0
            while part := await client.chunk():
                size += len(part)
                if size % 7 == 0:
                    await asyncio.sleep(0.001)
            assert size == len(body)

    run(main())


@either
def test_failures_before_and_within_a_stream(lane: bool) -> None:
    async def cut(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + sse(chunk("a"), end=b""))
        await asyncio.sleep(0.05)
        peer.reset()

    async def main() -> None:
        async with opened(whole(b"slow down", b"429 No", b"Retry-After: 9\r\n"), lane=lane) as door:
            reply = await door.served.ask(post(body_of(stream=True)))
            assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
            assert reply.headers["retry-after"] == "9"
        async with opened(cut, lane=lane) as door, door.served.client() as client:
            reply = await client.ask(post(body_of(stream=True)))
            first, error = reply.body.removeprefix(sse(chunk("a"), end=b"")), reply.body.split(b"\n\n")[-2]
            assert first.startswith(b'data: {"error":')
            assert json.loads(error[6:])["error"]["code"] == "upstream_error"
            assert b"[DONE]" not in reply.body
            await until(lambda: "error=upstream_error" in door.served.log.getvalue())
            assert door.outcomes() == {"upstream_error": 1}

    run(main())


@either
def test_the_end_of_the_server_is_told(lane: bool) -> None:
    async def hanging(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async def begun(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + sse(chunk("a"), end=b""))
        await peer.gone()

    async def told(script: Any, stream: bool) -> Reply:
        async with opened(script, lane=lane) as door, door.served.client() as client:
            await client.send(post(body_of(stream=stream)))
            await until(lambda: door.up.accepted == 1)
            await asyncio.sleep(0.05)
            for task in list(door.served.state.tasks):
                task.cancel()
            return await client.reply()

    reply = run(told(hanging, False))
    assert (reply.status, reply.error["code"]) == (503, "shutting_down")
    assert run(told(begun, True)).body.endswith(b'"code":"shutting_down"}}\n\n')


@either
def test_an_idempotency_key_and_sdk_clients(lane: bool) -> None:
    """The key's own tests are elsewhere; here it only must not be lost on the way."""

    async def main() -> None:
        async with (
            opened(whole(ANSWER), lane=lane) as door,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{door.served.port}") as http,
        ):
            for more in ({}, {"idempotency-key": "a"}):
                headers = {"content-type": "application/json", **more}
                reply = await http.post("/v1/chat/completions", content=body_of(), headers=headers)
                assert reply.content == ANSWER

    run(main())


IMAGE = "http://169.254.169.254/a.png"
INSIDE: dict[bytes, tuple[ProviderKind, dict[str, Any]]] = {
    b"/v1/chat/completions": ("openai", {"type": "image_url", "image_url": {"url": IMAGE}}),
    b"/v1/responses": ("openai", {"type": "input_image", "image_url": IMAGE}),
    b"/v1/messages": ("anthropic", {"type": "image", "source": {"type": "url", "url": IMAGE}}),
}


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("path", INSIDE)
def test_nobody_is_asked_to_fetch_from_inside(path: bytes, lane: bool, escaped: bool) -> None:
    async def main() -> None:
        kind, part = INSIDE[path]
        said = [{"role": "user", "content": [part]}]
        body = body_of(messages=said, input=said, max_tokens=5, store=False)
        body = body.replace(b'url"', b'\\u0075rl"') if escaped else body
        async with opened(unasked, lane=lane, kind=kind) as door:
            reply = await door.served.ask(post(body, path=path))
            assert reply.status == 400 and b"public internet" in reply.body
            assert door.up.accepted == 0
            elsewhere = body.replace(b"169.254.169.254", b"example.com")
            assert (await door.served.ask(post(elsewhere, path=path))).status == 502

    async def unasked(peer: Peer) -> None:
        await peer.request()

    run(main())
