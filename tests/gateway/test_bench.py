"""The load generator: schedule, reading of streams, and whole runs against scripted endpoints."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import msgspec
import pytest

from gateway import bench, bench_report

CHUNK = {"choices": [{"index": 0, "text": "x", "finish_reason": None}]}
LAST = {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}},
}


def options(**changes: object) -> bench.BenchOptions:
    endpoint = bench.Endpoint(url="http://test", model="m")
    return msgspec.structs.replace(bench.BenchOptions(endpoint=endpoint, requests=6, prompt_words=3), **changes)


def events(*pieces: object) -> bytes:
    return b"".join(b"data: " + json.dumps(piece).encode() + b"\n\n" for piece in pieces) + b"data: [DONE]\n\n"


def reply(content: bytes, status: int = 200, **headers: str) -> httpx.Response:
    return httpx.Response(status, stream=httpx.ByteStream(content), headers=headers)


def answering(content: bytes, status: int = 200, **headers: str) -> httpx.MockTransport:
    return httpx.MockTransport(lambda request: reply(content, status, **headers))


async def exchange(transport: httpx.AsyncBaseTransport, timeout_s: float = 5) -> bench_report.Outcome:
    endpoint = bench.Endpoint(url="http://test", model="m")
    async with bench.open_client(transport) as client:
        return await bench.exchange(client, endpoint, "/completions", b"{}", timeout_s=timeout_s)


def test_fixed_schedule_ends_at_the_count_or_the_time() -> None:
    fixed = options(rate_per_s=2.0, arrivals="fixed")
    assert bench.schedule(fixed) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert bench.schedule(msgspec.structs.replace(fixed, duration_s=1.2)) == [0.0, 0.5, 1.0]


def test_poisson_schedule_has_the_asked_rate_and_follows_the_seed() -> None:
    random = options(rate_per_s=50.0, requests=5000, duration_s=1e9)
    offsets = bench.schedule(random)
    assert offsets == bench.schedule(random) == sorted(offsets)
    assert offsets != bench.schedule(msgspec.structs.replace(random, seed=2))
    assert len(offsets) / offsets[-1] == pytest.approx(50, rel=0.1)
    gaps = [later - earlier for earlier, later in itertools.pairwise(offsets)]
    assert sum(gap > 0.02 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_survive_any_cut(size: int) -> None:
    stream = b': ping\n\ndata: {"a":1}\r\n\r\nevent: x\ndata:{"b":2}\n\ndata: [DONE]\n\n'
    splitter = bench.EventSplitter()
    payloads = [payload for start in range(0, len(stream), size) for payload in splitter.feed(stream[start:][:size])]
    assert payloads == [b'{"a":1}', b'{"b":2}', b"[DONE]"]


def test_addresses() -> None:
    for url, address in {
        "http://h:1": "http://h:1/v1/completions",
        "http://h:1/": "http://h:1/v1/completions",
        "https://h/v1": "https://h/v1/completions",
        "https://h/api/v3/": "https://h/api/v3/completions",
    }.items():
        assert bench.Endpoint(url=url, model="m").address("/completions") == address


def test_bodies_share_a_prefix_and_differ_after_it() -> None:
    bodies = [json.loads(body) for body in bench.request_bodies(options(shared_prefix_tokens=20), 3)]
    assert len({body["messages"][0]["content"] for body in bodies}) == 1
    assert len({body["messages"][1]["content"] for body in bodies}) == 3
    assert bodies[0]["stream_options"] == {"include_usage": True}
    legacy = [json.loads(body)["prompt"] for body in bench.request_bodies(options(api="completions"), 2)]
    assert [len(prompt.split()) for prompt in legacy] == [3, 3] and legacy[0] != legacy[1]


def test_prompts_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one two\n\nthree\n")
    bodies = bench.request_bodies(options(api="completions", prompt_file=path), 3)
    assert [json.loads(body)["prompt"] for body in bodies] == ["one two", "three", "one two"]
    path.write_text("\n")
    with pytest.raises(ValueError, match="no prompt"):
        list(bench.request_bodies(options(prompt_file=path), 1))
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"prompts\.txt: cannot be read: not UTF-8 text$"):
        list(bench.request_bodies(options(prompt_file=path), 1))
    path.unlink()
    with pytest.raises(ValueError, match=r"prompts\.txt: cannot be read: No such file or directory$"):
        list(bench.request_bodies(options(prompt_file=path), 1))


def test_an_answer_is_counted_by_its_usage() -> None:
    outcome = asyncio.run(exchange(answering(events(CHUNK, CHUNK, LAST, USAGE))))
    assert (outcome.status, outcome.tokens, outcome.input_tokens, outcome.cached_tokens) == ("ok", 5, 9, 4)
    assert len(outcome.text_s) == 2 and len(outcome.gaps_s) == 1
    assert 0 <= (outcome.first_token_s or -1) <= outcome.total_s


def test_an_answer_without_usage_is_counted_by_its_pieces() -> None:
    delta = {"choices": [{"delta": {"content": "hi"}}]}
    role = {"choices": [{"delta": {"role": "assistant", "content": None, "tool_calls": None}}], "error": None}
    end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    outcome = asyncio.run(exchange(answering(events(role, delta, delta, delta, end))))
    assert (outcome.status, outcome.tokens, outcome.output_tokens) == ("ok", 3, None)


@pytest.mark.parametrize(
    ("transport", "failure"),
    [
        (answering(b"busy", 429), "429"),
        (answering(events(CHUNK)), "cut"),
        (answering(events(CHUNK, {"error": {"message": "no"}})), "stream error"),
        (answering(events(CHUNK, {"error": {"code": "model_unavailable"}})), "stream error model_unavailable"),
        (answering(b"data: {\n\n"), "invalid stream"),
        (answering(b'data: {"choices":7}\n\n'), "invalid stream"),
        (
            answering(b'{"error":{"message":"slow down","type":"rate_limit_error","code":"queue_full"}}', 429),
            "429 queue_full",
        ),
        (answering(b'{"type":"error","error":{"type":"overloaded_error"}}', 529), "529 overloaded_error"),
        (answering(b'{"error":{"type":"invalid_request_error","code":400}}', 400), "400 invalid_request_error"),
        (answering(b'{"error":{"code":"\\u001b[2J"}}', 500), "500"),
        (answering(b'{"error":"model not found"}', 404), "404"),
        (answering(b'["error"]', 404), "404"),
        (answering(b'{"error":{"code":"queue_full"}}' + b" " * 65536, 429), "429"),
    ],
)
def test_failures_become_a_status_and_the_code_of_the_error(transport: httpx.MockTransport, failure: str) -> None:
    outcome = asyncio.run(exchange(transport))
    assert outcome.failure == failure and not outcome.ok


def test_a_refusal_that_breaks_off_is_still_one() -> None:
    class Broken(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b'{"error":{"code":"queue_full"'
            raise httpx.ReadError("reset")

    transport = httpx.MockTransport(lambda request: httpx.Response(429, stream=Broken()))
    assert asyncio.run(exchange(transport)).failure == "429"


def test_retry_after_is_kept() -> None:
    assert asyncio.run(exchange(answering(b"", 429, **{"retry-after": "7"}))).retry_after_s == 7
    assert asyncio.run(exchange(answering(b"", 503, **{"retry-after": "Fri, 31 Dec 1999"}))).retry_after_s is None


def test_transport_errors_and_time_outs_become_a_status() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async def stall(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError

    assert asyncio.run(exchange(httpx.MockTransport(refuse))).status == "ConnectError"
    assert asyncio.run(exchange(httpx.MockTransport(stall), timeout_s=0.01)).status == "timeout"


def test_a_kept_connection_that_was_just_closed_is_replaced_once() -> None:
    answers = iter([None, reply(events(CHUNK, LAST)), None, None])

    def answer(request: httpx.Request) -> httpx.Response:
        if (response := next(answers)) is None:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        return response

    assert asyncio.run(exchange(httpx.MockTransport(answer))).status == "ok"
    assert asyncio.run(exchange(httpx.MockTransport(answer))).status == "RemoteProtocolError"


class Crowd:
    """An endpoint that answers every request after a turn of the loop and counts those inside."""

    def __init__(self) -> None:
        self.inside = self.most = self.served = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await asyncio.sleep(0)
        self.inside -= 1
        self.served += 1
        return reply(events(CHUNK, CHUNK, LAST, USAGE))


def test_closed_loop_keeps_its_concurrency() -> None:
    crowd = Crowd()
    report = asyncio.run(bench.run(options(concurrency=3, requests=20), httpx.MockTransport(crowd)))
    assert (crowd.most, crowd.served) == (3, 21)
    assert (report.requests, report.succeeded, report.errors) == (20, 20, {})
    assert (report.input_tokens, report.cached_tokens, report.output_tokens) == (180, 80, 100)
    assert report.tokens_reported and report.gap and report.gap.count == 20


def test_closed_loop_stops_starting_when_the_time_is_up() -> None:
    crowd = Crowd()
    report = asyncio.run(bench.run(options(duration_s=0.0, warmup_requests=0), httpx.MockTransport(crowd)))
    assert (crowd.served, report.requests, report.wall_s, report.first_token) == (0, 0, 0.0, None)


def test_open_loop_does_not_wait_for_answers() -> None:
    crowd = Crowd()
    fast = options(rate_per_s=1e6, arrivals="fixed", requests=8, warmup_requests=0)
    report = asyncio.run(bench.run(fast, httpx.MockTransport(crowd)))
    assert report.succeeded == 8 and crowd.most > 4


def test_comparison_alternates_with_equal_prompts() -> None:
    seen: list[tuple[str, bytes]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, request.content))
        return reply(events(CHUNK, CHUNK, LAST))

    plan = options(requests=1, warmup_requests=0, repetitions=2)
    other = bench.Endpoint(url="http://other", model="m")
    comparison = asyncio.run(bench.compare(plan, other, httpx.MockTransport(answer)))
    assert [host for host, _ in seen] == ["test", "other", "other", "test"]
    assert seen[0][1] == seen[1][1] != seen[2][1] == seen[3][1]
    assert [len(reports) for reports in (comparison.first, comparison.second)] == [2, 2]
    assert "output tokens/s" in [row.metric for row in comparison.ratios]


@contextlib.asynccontextmanager
async def loopback(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def test_cancelling_closes_the_connection() -> None:
    async def scenario() -> None:
        closed = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"{}")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + events(CHUNK)[:-14])
            assert await reader.read() == b""
            closed.set()
            writer.close()

        async with loopback(serve) as url, bench.open_client() as client:
            begun = asyncio.Event()
            endpoint = bench.Endpoint(url=url, model="m")
            call = bench.exchange(client, endpoint, "/completions", b"{}", timeout_s=5, on_text=begun.set)
            task = asyncio.create_task(call)
            await begun.wait()
            task.cancel()
            await asyncio.wait_for(closed.wait(), 5)

    asyncio.run(scenario())
