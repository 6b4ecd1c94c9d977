"""Upstreams that misbehave, behind the real server: the right answer, nothing told, everything settled once."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server import ADMIN_KEY, Server

KEY = "sk-the-gateways-own-key-1234567890"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
LEAK = b'{"error":{"message":"Incorrect API key provided: %b. See http://10.0.0.7/x","type":"x"}}' % KEY.encode()


def event(payload: bytes) -> bytes:
    data = b"data: " + payload + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


HELLO = event(b'{"choices":[{"delta":{"content":"Hello"}}]}')
STOP = event(b'{"choices":[{"delta":{},"finish_reason":"stop"}]}')
USAGE = event(b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}')
DONE = event(b"[DONE]")
END = b"0\r\n\r\n"


def plain(status: int, body: bytes, kind: bytes = b"application/json", more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b" % (
        status,
        kind,
        len(body),
        more,
        body,
    )


async def hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def reset(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def trickle(writer: asyncio.StreamWriter) -> None:
    """What never is silent for long and never ends: the comments of a stream, or a head."""
    while True:
        writer.write(b"1\r\n:\r\n")
        await writer.drain()
        await asyncio.sleep(0.1)


async def endless(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"100000\r\n" + b"x" * 0x100000 + b"\r\n")
        await writer.drain()


# What breaks off after some output has cost the gateway something.
BROKEN_OFF = ("hang-in-stream", "reset-in-stream", "cut", "ended-early", "trickle-in-stream")
Then = Callable[[asyncio.StreamWriter], Awaitable[None]]
# name: what is sent, what happens then, the status of a unary request, the code
WAYS: dict[str, tuple[bytes, Then | None, int, str]] = {
    "fine": (CHUNKED + HELLO + STOP + USAGE + DONE + END, None, 200, ""),
    "done-twice": (CHUNKED + HELLO + STOP + DONE + DONE + END, None, 200, ""),
    "no-usage": (CHUNKED + HELLO + STOP + DONE + END, None, 200, ""),
    "negative-usage": (
        CHUNKED + HELLO + STOP + event(b'{"usage":{"prompt_tokens":-9,"completion_tokens":-9}}') + DONE + END,
        None,
        200,
        "",
    ),
    "lying-usage": (
        CHUNKED + HELLO + STOP + event(b'{"usage":{"prompt_tokens":3,"completion_tokens":999999999}}') + DONE + END,
        None,
        200,
        "",
    ),
    "hang-at-once": (b"", hang, 504, "upstream_timeout"),
    "hang-in-head": (HEAD, hang, 504, "upstream_timeout"),
    "hang-in-stream": (CHUNKED + HELLO, hang, 504, "upstream_timeout"),
    "reset": (b"", reset, 502, "upstream_error"),
    "reset-in-stream": (CHUNKED + HELLO, reset, 502, "upstream_error"),
    "cut": (CHUNKED + HELLO, None, 502, "upstream_error"),
    "ended-early": (CHUNKED + HELLO + END, None, 502, "upstream_invalid"),
    "endless": (CHUNKED, endless, 502, "upstream_invalid"),
    "endless-head": (b"HTTP/1.1 200 OK\r\nx: " + b"x" * 1_000_000, hang, 502, "upstream_invalid"),
    "redirect": (plain(302, b"", more=b"location: http://127.0.0.1:1/\r\n"), None, 502, "upstream_invalid"),
    "page": (plain(200, b"<html>Log in</html>", b"text/html"), None, 502, "upstream_invalid"),
    "redirect-home": (plain(307, b"", more=b"location: /v1/stolen\r\n"), None, 502, "upstream_invalid"),
    "trickle": (b"HTTP/1.1 200 OK\r\nx: ", trickle, 502, "upstream_invalid"),
    "trickle-in-stream": (CHUNKED + HELLO, trickle, 504, "upstream_timeout"),
    "no-http": (b"220 mail.example ESMTP\r\n", None, 502, "upstream_invalid"),
    "leak-401": (plain(401, LEAK), None, 502, "upstream_error"),
    "leak-400": (plain(400, LEAK), None, 400, "invalid_value"),
    "leak-500": (plain(500, LEAK), None, 502, "upstream_error"),
    "leak-in-stream": (CHUNKED + event(LEAK), None, 502, "upstream_error"),
    "limited": (plain(429, b"{}", more=b"retry-after: 3\r\n"), None, 429, "rate_limit_exceeded"),
    "framing": (
        CHUNKED + event(rb'{"choices":[{"delta":{"content":"\n\ndata: [DONE]\n\n"}}]}') + STOP + END,
        None,
        200,
        "",
    ),
}


STREAM = CHUNKED + HELLO + STOP + USAGE + DONE + END
WHOLE_AT = len(STREAM) - len(END)
# What happens at some byte of it.
HOWS: dict[str, Then | None] = {"stall": hang, "reset": reset, "cut": None}
STORMS = {"503": plain(503, b"{}"), "429": plain(429, b"{}")}


def at(byte: int, kind: str) -> str:
    """The route to a target that fails at a byte; those that fail often are left alone, so each kind has its own."""
    return f"at-{byte}-{kind}"


class Upstream:
    """Misbehaves as the model's name says, in a thread of its own. `asked` counts its requests by their models, `paths`
    by where they went."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        self.loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._ready.wait()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = server.sockets[0].getsockname()[1]
        self._ready.set()
        self.loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0.05))
        self.loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            sent, then = self._way(json.loads(await reader.readexactly(length)))
            self.paths[head.split(b" ")[1].decode()] += 1
            writer.write(sent)
            await writer.drain()
            if then is not None:
                await then(writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _way(self, asked: dict[str, Any]) -> tuple[bytes, Then | None]:
        model: str = asked["model"]
        self.asked[model] += 1
        match model.split("-"):
            case ["at", byte, _]:
                return STREAM[: int(byte)], HOWS[asked["messages"][0]["content"]]
            case ["storm", status, _]:
                return STORMS[status], None
        sent, then, *_ = WAYS[model.rstrip("+")]
        return sent, then

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    running = Upstream()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def server(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # Each way has two targets, because one that failed is left alone for a while.
    routes = [
        {"name": name, "groups": [[{"provider": "bad", "model": name, "price": {"input": "1", "output": "1"}}]]}
        for name in (
            *(name for way in WAYS for name in (way, f"{way}+")),
            *(at(byte, kind) for byte in range(len(STREAM)) for kind in ("passed", "translated")),
        )
    ]
    for status in STORMS:
        targets = [{"provider": "bad", "model": f"storm-{status}-{one}"} for one in "ab"]
        routes.append({"name": f"storm-{status}", "groups": [targets]})
    provider = {
        "name": "bad",
        "kind": "openai-compatible",
        "base_url": f"http://127.0.0.1:{upstream.port}/v1",
        "api_key": KEY,
        "first_byte_timeout_s": 1,
        "idle_timeout_s": 1,
        "total_timeout_s": 3,
    }
    folder: Path = tmp_path_factory.mktemp("front")
    with Server(folder, config=json.dumps({"providers": [provider], "routes": routes})) as running:
        yield running


def body(way: str, **more: Any) -> dict[str, Any]:
    return {"model": way, "messages": [{"role": "user", "content": "hi"}]} | more


def told(answer: httpx.Response) -> str:
    """What the client was told; nothing of it is anybody's business but ours."""
    for secret in (KEY, "10.0.0.7", "127.0.0.1", "Traceback", ADMIN_KEY):
        assert secret not in answer.text
    assert answer.headers["x-request-id"]
    return answer.text


def entries(client: httpx.Client, answer: httpx.Response) -> list[dict[str, Any]]:
    """The ledger's entries of a request; one that failed is written a moment later."""
    for _ in range(200):
        found: list[dict[str, Any]] = (
            client.get(f"/v1/requests/{answer.headers['x-request-id']}").json().get("data", [])
        )
        if found:
            return list(found)
        time.sleep(0.02)
    raise AssertionError("there is no entry")


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_is_translated(server: Server, way: str) -> None:
    *_, status, _ = WAYS[way]
    with server.client() as client:
        answer = client.post("/v1/messages", json=body(way, max_tokens=100))
        told(answer)
        assert answer.status_code == status
        (entry,) = entries(client, answer)
        if status == 200:
            assert answer.json()["content"][0]["text"]
            assert entry["status"] == "posted" and entry["usage"]["completion_tokens"] > 0
            assert entry["usage"]["estimated"] == (way not in ("fine", "lying-usage"))
        else:
            assert answer.json()["type"] == "error"
            assert float(entry["charged_usd"]) == 0 or way in BROKEN_OFF
        if way == "limited":
            assert answer.headers["retry-after"] == "3"
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_that_is_passed_on(server: Server, way: str) -> None:
    *_, status, code = WAYS[way]
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=body(f"{way}+", stream=True))
        text = told(answer)
        if status == 200:
            assert text.endswith("data: [DONE]\n\n") and text.count("data: [DONE]") == 1 + (way == "framing")
            payloads = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            assert payloads[-1]["choices"][0]["finish_reason"] == "stop"
        elif "Hello" in text:
            last = text.removesuffix("\n\n").rpartition("\n\n")[2]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] in (code, "upstream_error")
            assert "[DONE]" not in text
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert len(entries(client, answer)) == 1


def test_a_charge_is_never_above_what_was_held(server: Server) -> None:
    with server.client() as client:
        answer = client.post("/v1/messages", json=body("lying-usage", max_tokens=10))
        (entry,) = entries(client, answer)
        assert float(entry["charged_usd"]) <= 0.01


def test_memory_stays_bounded_beside_endless_answers(server: Server) -> None:
    with server.client() as client:
        for _ in range(3):
            client.post("/v1/messages", json=body("endless", max_tokens=10))
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    peak_kib = int(status.partition("VmHWM:")[2].split()[0])
    assert peak_kib < 600 * 1024


def fails_at(server: Server, byte: int, how: str, kind: str) -> None:
    """A stream that stalls, is reset or cut: it is whole, or it is said that it is not; and there is one entry."""
    with server.client() as client:
        request = body(at(byte, kind), stream=True, max_tokens=100)
        request["messages"] = [{"role": "user", "content": how}]
        answer = client.post("/v1/chat/completions" if kind == "passed" else "/v1/messages", json=request)
        text = told(answer)
        end = "data: [DONE]" if kind == "passed" else '"message_stop"'
        case = (byte, how, kind, text)
        if end in text:
            assert byte >= WHOLE_AT - 2 and "Hello" in text and '"error"' not in text, case
        elif answer.status_code == 200:
            assert '"error"' in text.removesuffix("\n\n").rpartition("\n\n")[2] and "Hello" in text, case
        else:
            assert answer.status_code in (502, 504) and "Hello" not in text, case
        (entry,) = entries(client, answer)
        assert (entry["status"] == "posted") == ("Hello" in text), (case, entry)


@pytest.mark.slow
def test_a_stream_that_is_passed_on_stalls_at_every_byte(server: Server) -> None:
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(lambda byte: fails_at(server, byte, "stall", "passed"), range(len(STREAM))))


@pytest.mark.slow
def test_streams_that_fail_in_other_ways_at_every_byte(server: Server) -> None:
    hows = list(HOWS)
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(lambda byte: fails_at(server, byte, hows[1 + byte % 2], "passed"), range(len(STREAM))))
        list(pool.map(lambda byte: fails_at(server, byte, hows[byte % 3], "translated"), range(len(STREAM))))


@pytest.mark.slow
@pytest.mark.parametrize("status", STORMS)
def test_storms_of_errors_are_not_made_worse(server: Server, upstream: Upstream, status: str) -> None:
    """Retries add a tenth at most, breakers open and try single requests, and everything is settled once."""
    count = 300

    def ask(_: int) -> int:
        with server.client() as client:
            answer = client.post("/v1/chat/completions", json=body(f"storm-{status}"))
            told(answer)
            assert len(entries(client, answer)) == 1
            return answer.status_code

    with ThreadPoolExecutor(16) as pool:
        statuses = Counter(pool.map(ask, range(count)))
    assert set(statuses) <= {429, 502, 503}
    assert statuses[int(status)] > count // 2, "a route at rest says why it rests"
    tries = sum(asked for model, asked in upstream.asked.items() if model.startswith(f"storm-{status}"))
    assert tries <= count * 1.1 + 10
    assert tries <= 60, "breakers open"
    with server.client() as client:
        shown = {
            one["id"]: one
            for one in client.get("/admin/v1/targets", params={"after": "bad/storm", "limit": 100}).json()["data"]
        }
    for one in "ab":
        assert shown[f"bad/storm-{status}-{one}"]["breaker"] != "closed"


def test_redirects_lead_nowhere(server: Server, upstream: Upstream) -> None:
    with server.client() as client:
        for path in ("/v1/chat/completions", "/v1/messages"):
            client.post(path, json=body("redirect-home", max_tokens=5))
    assert set(upstream.paths) == {"/v1/chat/completions"}
