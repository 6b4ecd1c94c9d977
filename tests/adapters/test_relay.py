from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from adapters.connection import Timeouts
from adapters.dialects import openai_passing
from adapters.errors import (
    AdapterError,
    BrokeOff,
    InvalidRequest,
    RateLimited,
    Timeout,
    UpstreamInvalid,
    UpstreamRefused,
)
from adapters.relay import Frames, Relaying
from adapters.types import Caller, Inbound, Relayed, Served, Started, Usage
from adapters.upstream import Upstream as Provider
from adapters.upstream import UpstreamSettings
from gateway.secret import Secret
from tests.adapters.upstream import Peer, Script, Upstream, answering, client, run, until, upstream

CALLER = Caller("r", "t")
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 3}}
PATIENT = Timeouts(connect_s=20, first_byte_s=20, idle_s=20, total_s=20)
IMPATIENT = Timeouts(connect_s=20, first_byte_s=0.4, idle_s=0.4, total_s=20)


def chunk(text: str | None = None, **more: object) -> bytes:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return json.dumps(
        {"id": "c", "object": "chat.completion.chunk", "x": {"y": 1}, "choices": choices, **more}
    ).encode()


FINISH = json.dumps({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).encode()
CHUNKS = (chunk(""), chunk("Hello"), chunk("\n\ndata: [DONE]\n\n"), FINISH)


def sse(*payloads: bytes, end: bytes = b"data: [DONE]\n\n") -> bytes:
    return b"".join(b"data: " + payload + b"\n\n" for payload in payloads) + end


def streaming(body: bytes, *, kind: bytes = b"text/event-stream", size: int = 0) -> Script:
    """An answer in chunks of `size` bytes, or in one."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)] if size else [body]

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
            for piece in pieces:
                await peer.send(b"%x\r\n%b\r\n" % (len(piece), piece))
                if size:
                    await asyncio.sleep(0)
            await peer.send(b"0\r\n\r\n")

    return script


def whole(body: bytes, status: bytes = b"200 OK", headers: bytes = b"Content-Type: application/json\r\n") -> Script:
    return answering(b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body))


class Shown:
    """A sink that keeps what the client would see."""

    def __init__(self, *, slow: bool = False) -> None:
        self.begun: str | None = None
        self.data = b""
        self.outputs = 0
        self.pauses = 0
        self._slow = slow
        self.served: list[Served] = []

    def serving(self, served: Served) -> None:
        self.served.append(served)

    def started(self, started: Started) -> None:
        raise AssertionError("nobody looks into what is passed on")

    def begin(self, content_type: str) -> None:
        assert self.begun is None
        self.begun = content_type

    def write(self, data: bytes, outputs: int) -> bool:
        assert self.begun
        self.data += data
        self.outputs += outputs
        return not self._slow

    def when_drained(self, then: Callable[[], None]) -> None:
        self.pauses += 1
        asyncio.get_running_loop().call_later(0.01, then)


def inbound(body: object, **more: object) -> Inbound:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Inbound("openai_chat", text, openai_passing.read_chat(text), **more)  # type: ignore[arg-type]


def asked(**fields: object) -> Inbound:
    return inbound({"model": "public", "messages": [{"role": "user", "content": "hi"}], **fields})


def relaying(up: Upstream, timeouts: Timeouts = PATIENT) -> Relaying:
    settings = UpstreamSettings(
        name="p",
        kind="openai-compatible",
        base_url=f"http://127.0.0.1:{up.port}/v1",
        api_key=Secret("upstream-key"),
        headers={"x-more": "1"},
    )
    return Relaying("their-model", Provider(settings, client=client(timeouts=timeouts)))


def relayed(script: Script, request: Inbound, sink: Shown | None = None) -> tuple[Relayed, Shown]:
    shown = sink or Shown()

    async def main() -> Relayed:
        async with upstream(script) as up:
            return await relaying(up).relay(request, CALLER, shown)

    return run(main()), shown


def failing(script: Script, request: Inbound, timeouts: Timeouts = PATIENT) -> tuple[AdapterError, Shown]:
    shown = Shown()

    async def main() -> AdapterError:
        async with upstream(script) as up:
            with pytest.raises(AdapterError) as failure:
                await relaying(up, timeouts).relay(request, CALLER, shown)
            for secret in ("upstream-key", "127.0.0.1", str(up.port), "their-model"):
                assert secret not in failure.value.message
            return failure.value

    return run(main()), shown


def test_a_request_arrives_with_the_model_and_the_key_replaced() -> None:
    async def main() -> None:
        seen = []

        async def script(peer: Peer) -> None:
            while True:
                seen.append(await peer.request())
                body = json.dumps({"choices": [], "usage": USAGE}).encode()
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        async with upstream(script) as up:
            body = (
                b'{ "messages" :[{"role":"user","content":"h\xc3\xbc"}],\n"model":  "public", "zz":{"a":[1.0,1e5]} }\n'
            )
            await relaying(up).relay(inbound(body), CALLER, Shown())
            head, sent = seen[0]
            assert sent == body.replace(b'"public"', b'"their-model"')
            assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % up.port)
            assert b"\r\nauthorization: Bearer upstream-key\r\n" in head
            assert b"\r\nx-more: 1\r\n" in head

    run(main())


def test_a_unary_answer_is_handed_back_as_it_came() -> None:
    body = (
        b'{"id" : "x","choices":[{"message":{"content":"\\u00fc"}}],"new":[1e2],"usage":%b}\n'
        % json.dumps(USAGE).encode()
    )
    done, shown = relayed(whole(body), asked())
    assert (done.rest, done.content_type, shown.begun) == (body, "application/json", None)
    assert done.finished.usage == Usage(7, 2, 3)


@pytest.mark.parametrize("size", [0, 1, 7, 100])
def test_a_stream_is_passed_on_whatever_its_pieces(size: int) -> None:
    body = sse(*CHUNKS, chunk(None, usage=USAGE))
    done, shown = relayed(streaming(body, size=size), asked(stream=True))
    assert shown.data == sse(*CHUNKS, end=b"")
    assert shown.begun == "text/event-stream; charset=utf-8"
    assert (done.rest, done.finished.usage) == (b"data: [DONE]\n\n", Usage(7, 2, 3))
    assert shown.outputs == 1


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize("end", [b"\r\n", b"\r", b"\n"])
def test_lines_comments_and_split_data_are_framed_anew(size: int, end: bytes) -> None:
    lines = [b"\xef\xbb\xbf: welcome", b"", b"id: 1", b"retry: 5", b"data:" + CHUNKS[0], b""]
    head, tail = CHUNKS[1].split(b", ", 1)
    lines += [
        b"data: " + head + b",",
        b"data: " + tail,
        b"",
        b": still here",
        b"",
        b"",
        b"event: x",
        b"data: " + FINISH,
        b"",
    ]
    lines += [b"data: [DONE]", b"", b""]
    done, shown = relayed(streaming(end.join(lines), size=size), asked(stream=True))
    assert shown.data == sse(CHUNKS[0], CHUNKS[1], end=b"event: x\n" + sse(FINISH, end=b""))
    assert done.rest == b"data: [DONE]\n\n"


def test_who_asked_for_the_usage_sees_it() -> None:
    body = sse(*CHUNKS, chunk(None, usage=USAGE))
    done, shown = relayed(streaming(body), asked(stream=True, stream_options={"include_usage": True}))
    assert shown.data + done.rest == body
    assert done.finished.usage == Usage(7, 2, 3)


def test_usage_beside_a_choice_stays() -> None:
    last = json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": USAGE}).encode()
    body = sse(chunk("Hello", usage=None), last)
    done, shown = relayed(streaming(body), asked(stream=True))
    assert (shown.data + done.rest, done.finished.usage) == (body, Usage(7, 2, 3))


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": -5, "completion_tokens": -1}, {"prompt_tokens": "x"}, [1]]
)
def test_a_usage_that_is_none(usage: object) -> None:
    done, _ = relayed(whole(json.dumps({"choices": [], "usage": usage}).encode()), asked())
    assert done.finished.usage == Usage()
    done, shown = relayed(streaming(sse(*CHUNKS, chunk("x", usage=usage))), asked(stream=True))
    assert (done.finished.usage, shown.outputs) == (Usage(), 2)


def test_the_end_of_a_stream_that_says_it_twice_or_not_at_all() -> None:
    for end in (b"data: [DONE]\n\ndata: [DONE]\n\ndata: {}\n\n", b"", b"data: [DONE]"):
        done, shown = relayed(streaming(sse(*CHUNKS, end=end)), asked(stream=True))
        assert shown.data + done.rest == sse(*CHUNKS)


def test_a_text_about_streams_hides_no_end() -> None:
    body = sse(chunk("data: {"), FINISH)
    done, shown = relayed(streaming(body), asked(stream=True))
    assert (shown.data, done.rest) == (body.removesuffix(b"data: [DONE]\n\n"), b"data: [DONE]\n\n")


def test_a_usage_that_comes_in_two_parts() -> None:
    first, second, nothing = (chunk("x", usage=one) for one in ({"prompt_tokens": 7}, {"completion_tokens": 2}, {}))
    done, _ = relayed(streaming(sse(first, second, nothing, FINISH)), asked(stream=True))
    assert done.finished.usage == Usage(7, 2)


def test_a_connection_that_stays_open_behind_the_end() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + sse(*CHUNKS))
        await peer.gone()

    done, shown = relayed(script, asked(stream=True))
    assert shown.data + done.rest == sse(*CHUNKS)


def test_a_slow_client_holds_up_the_upstream() -> None:
    body = sse(*[chunk("x" * 1000)] * 50, FINISH)
    done, shown = relayed(streaming(body, size=5000), asked(stream=True), Shown(slow=True))
    assert shown.data + done.rest == body
    assert shown.pauses


@pytest.mark.parametrize(
    ("script", "kind", "begun"),
    [
        (streaming(sse(*CHUNKS[:2], end=b"")), BrokeOff, True),
        (streaming(b"<html>upstream-key</html>", kind=b"text/html"), UpstreamInvalid, False),
        (streaming(b"<html>upstream-key</html>"), BrokeOff, False),
        (streaming(sse(b"<html>")), UpstreamInvalid, False),
        (streaming(sse(CHUNKS[0], b"{")), UpstreamInvalid, False),
        (streaming(b"data: " + b"x" * (17 << 20)), UpstreamInvalid, False),
        (
            streaming(sse(chunk("a"), b'{"error":{"message":"key sk-abcdefghijkl is bad","code":500}}')),
            AdapterError,
            None,
        ),
        (streaming(sse(b'{"error":{"type":"rate_limit_error","message":"slow down"}}')), RateLimited, False),
        (whole(b"{}"), UpstreamInvalid, False),
        (whole(b"", b"302 Found", b"Location: http://127.0.0.1/\r\n"), UpstreamInvalid, False),
        (whole(b'{"error":{"message":"at https://x.test:1"}}', b"500 Oops"), UpstreamRefused, False),
        (whole(b"x", b"429 Slow", b"Retry-After: 7\r\n"), RateLimited, False),
        (whole(b'{"error":{"message":"bad temperature","param":"temperature"}}', b"400 No"), InvalidRequest, False),
        (
            whole(b"x", b"200 OK", b"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n"),
            UpstreamInvalid,
            False,
        ),
        (
            answering(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + sse(chunk("a"), end=b""), close=True
            ),
            None,
            True,
        ),
    ],
)
def test_streams_that_fail(script: Script, kind: type[AdapterError] | None, begun: bool | None) -> None:
    failure, shown = failing(script, asked(stream=True))
    assert isinstance(failure, kind or BrokeOff)
    assert begun is None or bool(shown.begun) == begun
    assert b"sk-" not in shown.data


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (whole(b"<html>upstream-key</html>", headers=b"Content-Type: text/html\r\n"), UpstreamInvalid),
        (whole(b"[]"), UpstreamInvalid),
        (whole(b"{}"), UpstreamInvalid),
        (whole(b'{"detail":"not found","usage":{}}'), UpstreamInvalid),
        (whole(b'{"choices":[]} {}'), UpstreamInvalid),
        (whole(b"\xff"), UpstreamInvalid),
        (whole(b'{"error":{"message":"overloaded","type":"overloaded_error"}}'), AdapterError),
        (whole(b'{"error":"invalid key upstream-key"}', b"401 No"), UpstreamRefused),
        (whole(b"nope", b"503 Busy", b"Retry-After: 3\r\n"), UpstreamRefused),
        (whole(b"{}", headers=b"Content-Encoding: gzip\r\n"), UpstreamInvalid),
    ],
)
def test_unary_answers_that_fail(script: Script, kind: type[AdapterError]) -> None:
    assert isinstance(failing(script, asked())[0], kind)


def test_an_answer_that_does_not_say_what_it_used_is_counted_by_its_words() -> None:
    choice = {"message": {"role": "assistant", "content": "a few words of text"}, "finish_reason": "stop"}
    done, _ = relayed(whole(json.dumps({"id": "c" * 99, "choices": [choice]}).encode()), asked())
    assert (done.finished.usage, done.outputs) == (Usage(), 5)


def test_what_came_at_once_with_a_failure_is_shown_once_something_was() -> None:
    shown = Shown()
    failed = sse(chunk("b"), b'{"error":{"message":"overloaded","type":"overloaded_error"}}', chunk("c"))

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + sse(chunk("a"), end=b""))
        await until(lambda: bool(shown.begun))
        await peer.send(failed)

    with pytest.raises(AdapterError):
        relayed(script, asked(stream=True), shown)
    assert shown.data == sse(chunk("a"), chunk("b"), end=b"")


def test_how_long_to_wait_is_kept() -> None:
    assert failing(whole(b"x", b"429 Slow", b"Retry-After: 7\r\n"), asked())[0].retry_after_s == 7


@pytest.mark.slow
def test_a_stream_cut_or_stalled_at_any_event() -> None:
    body = sse(*CHUNKS)
    for reset in (True, False):
        for end in range(0, len(body), 1 if reset else 150):

            async def script(peer: Peer, end: int = end, reset: bool = reset) -> None:
                await peer.request()
                length = b"Content-Length: %d\r\n" % len(body)
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%b\r\n" % length + body[:end])
                if reset:
                    peer.reset()
                else:
                    await peer.gone()

            failure, shown = failing(script, asked(stream=True), PATIENT if reset else IMPATIENT)
            assert isinstance(failure, BrokeOff if reset else Timeout)
            assert sse(*CHUNKS, end=b"").startswith(shown.data)


def test_who_gives_up_drops_the_upstream_at_once() -> None:
    async def main() -> None:
        gone = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + sse(chunk("a"), end=b""))
            await peer.gone()
            gone.set()

        shown = Shown()
        async with upstream(script) as up:
            task = asyncio.create_task(relaying(up).relay(asked(stream=True), CALLER, shown))
            await until(lambda: bool(shown.data))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await gone.wait()

    run(main())


def test_frames_that_are_whole_are_not_taken_apart() -> None:
    frames = Frames()
    body = sse(*CHUNKS)
    assert frames.feed(body) == (body, 5)
    assert frames.feed(body[:10]) == (b"", 0)
    assert frames.feed(body[10:]) == (body, 5)
    assert frames.feed(b"data: a\ndata: b\n\n") == (b"data: a b\n\n", 1)
    named = b"event: a\ndata: {}\n\nevent: b\ndata: {}\n\n"
    assert frames.feed(named) == (named, 2)
    assert frames.feed(named + b"data: c\n\n") == (named + b"data: c\n\n", 3)
    assert frames.feed(b"data: a\n\nevent: b\n\n") == (b"data: a\n\n", 1)
    assert frames.end() == (b"", 0)
