"""Load generator behind `gateway bench`: measures any OpenAI-compatible endpoint with streamed requests.

Closed loop keeps a number of requests running; open loop starts them at given times whatever happens, as real users
do. A run is bounded by a count, a time to start requests in, and a time per request. Two endpoints are compared by runs
that alternate, so that a noisy machine disturbs both alike. What came of it is said in `bench_report.py`. Times are in
seconds.
"""

import asyncio
import contextlib
import itertools
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec

from gateway.bench_report import BenchComparison, BenchReport, Outcome, compare_metrics, metrics, summarise

_WORDS = (
    "the of and to in is that it was for on are as with his they be at one have this from or had by not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so these "
    "would other into has more her two like him see time could no make than first been its who now people my made over"
)

_REFUSAL_BYTES_MAX = 65536
_CODE = re.compile(r"[\w.:-]{1,64}", re.ASCII)  # it ends up in a terminal


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests go. `url` is what an OpenAI client takes as base URL; `/v1` is added to one without a path."""

    url: str
    model: str
    api_key: str | None = None

    def address(self, path: str) -> str:
        """The full URL of an API path such as `/chat/completions`."""
        base = httpx.URL(self.url)
        prefix = base.path.rstrip("/") or "/v1"
        return str(base.copy_with(path=prefix + path))

    def headers(self) -> dict[str, str]:
        """Headers of every request; the answer must not be compressed, as that would be measured too."""
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        return headers | {"authorization": f"Bearer {self.api_key}"} if self.api_key else headers


class BenchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to send and how fast. Open loop is chosen by a rate; `seed` decides prompts and random arrivals."""

    endpoint: Endpoint
    api: Literal["chat", "completions"] = "chat"
    requests: int = 32  # at most
    duration_s: float = 120.0  # no request starts later; the last ones may end `timeout_s` after it
    timeout_s: float = 300.0  # for one request
    concurrency: int = 4  # requests running at once in closed loop
    rate_per_s: float | None = None  # requests started per second in open loop
    arrivals: Literal["poisson", "fixed"] = "poisson"  # random intervals as of independent users, or equal ones
    warmup_requests: int = 1  # sent one by one before measuring
    prompt_words: int = 128  # distinct ones in each prompt; a common English word is about one token
    shared_prefix_tokens: int = 0  # words that begin every prompt of a run alike; a chat's system message
    prompt_file: Path | None = None  # one prompt per line, used in order and again from the start
    max_tokens: int = 64
    temperature: float = 0.0
    seed: int = 1
    repetitions: int = 5  # runs per endpoint in a comparison


_OnText = Callable[[], None] | None
_Send = Callable[[bytes], Awaitable[Outcome]]


async def run(options: BenchOptions, transport: httpx.AsyncBaseTransport | None = None) -> BenchReport:
    """Measure one endpoint; requests that fail are counted by status and code and never raise."""
    bodies = list(request_bodies(options, options.requests + options.warmup_requests))
    warmup, measured = bodies[: options.warmup_requests], bodies[options.warmup_requests :]
    path = "/chat/completions" if options.api == "chat" else "/completions"

    async def send(body: bytes) -> Outcome:
        return await exchange(client, options.endpoint, path, body, timeout_s=options.timeout_s)

    async with open_client(transport) as client:
        for body in warmup:
            await send(body)
        loop = _closed_loop if options.rate_per_s is None else _open_loop
        outcomes = await loop(options, measured, send)
    return summarise(options.endpoint.url, options.endpoint.model, outcomes)


async def compare(
    options: BenchOptions, other: Endpoint, transport: httpx.AsyncBaseTransport | None = None
) -> BenchComparison:
    """Measure the endpoint of `options` and another one with the same prompts, in turns that change their order."""
    first: list[BenchReport] = []
    second: list[BenchReport] = []
    for repetition in range(options.repetitions):
        turns = [(options.endpoint, first), (other, second)]
        for endpoint, reports in turns if repetition % 2 == 0 else reversed(turns):
            # New prompts in each repetition, or the second one would be answered from caches.
            turn = msgspec.structs.replace(options, endpoint=endpoint, seed=options.seed + repetition)
            reports.append(await run(turn, transport))
    ratios = compare_metrics([metrics(report) for report in first], [metrics(report) for report in second])
    return BenchComparison(first=tuple(first), second=tuple(second), ratios=ratios)


def open_client(transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """A client without limits of its own; `exchange` limits the time."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(transport=transport, limits=limits, timeout=None)


async def exchange(
    client: httpx.AsyncClient, endpoint: Endpoint, path: str, body: bytes, *, timeout_s: float, on_text: _OnText = None
) -> Outcome:
    """Send one streamed request and time its answer; `on_text` is called at each piece of text.

    Cancelling it closes the connection. Nothing that the endpoint does raises: it becomes a status.
    """
    answer = _Answer(on_text)
    started = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            request = client.build_request("POST", endpoint.address(path), content=body, headers=endpoint.headers())
            async with contextlib.aclosing(await _send(client, request)) as response:
                await answer.read(response)
    except TimeoutError:
        answer.status = "timeout"
    except httpx.TransportError as error:
        answer.status = type(error).__name__
    except msgspec.MsgspecError:
        answer.status = "invalid stream"
    usage = answer.usage
    return Outcome(
        status=answer.status,
        code=answer.code,
        started_s=started,
        ended_s=time.perf_counter(),
        text_s=tuple(answer.text_s),
        input_tokens=usage.prompt_tokens,
        cached_tokens=(usage.prompt_tokens_details or {}).get("cached_tokens"),
        output_tokens=usage.completion_tokens,
        retry_after_s=answer.retry_after_s,
    )


async def _send(client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    """Send again once when a kept connection was closed by the server just as it was used, as API clients do."""
    with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError):
        return await client.send(request, stream=True)
    return await client.send(request, stream=True)


class EventSplitter:
    """Cuts a byte stream into the payloads of its SSE `data:` lines, wherever the stream was cut on its way."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    def has_text(self) -> bool:
        return bool(self.text or ((d := self.delta) and (d.content or d.reasoning_content or d.tool_calls)))


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: dict[str, Any] | None = None


class _Piece(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


class _Refusal(msgspec.Struct):
    error: Any = None


class _Answer:
    """What has been read of an answer so far."""

    def __init__(self, on_text: _OnText) -> None:
        self.status = "cut"
        self.code: str | None = None
        self.text_s: list[float] = []
        self.usage = _Usage()
        self.retry_after_s: float | None = None
        self._on_text = on_text
        self._decode = msgspec.json.Decoder(_Piece).decode

    async def read(self, response: httpx.Response) -> None:
        with contextlib.suppress(ValueError):
            self.retry_after_s = float(response.headers.get("retry-after", ""))
        if response.status_code != httpx.codes.OK:
            self.status = str(response.status_code)
            self.code = await _code_of(response)
            return
        splitter = EventSplitter()
        async for data in response.aiter_raw():
            now = time.perf_counter()
            for payload in splitter.feed(data):
                if payload != b"[DONE]":
                    self._take(self._decode(payload), now)

    def _take(self, piece: _Piece, now: float) -> None:
        if piece.error:
            self.status, self.code = "stream error", _code(piece.error)
        if piece.usage:
            self.usage = piece.usage
        for choice in piece.choices or ():
            if choice.has_text():
                self.text_s.append(now)
                if self._on_text:
                    self._on_text()
            if choice.finish_reason and self.status == "cut":
                self.status = "ok"


async def _code_of(response: httpx.Response) -> str | None:
    """The code in the body of a refusal, if that is short and JSON."""
    body = b""
    with contextlib.suppress(httpx.RequestError, msgspec.MsgspecError):
        async for data in response.aiter_bytes():
            body += data
            if len(body) > _REFUSAL_BYTES_MAX:
                return None
        return _code(msgspec.json.decode(body, type=_Refusal).error)
    return None


def _code(error: Any) -> str | None:
    """What an error object calls itself. Some servers have a number as its code, which says no more than the status."""
    names = [error.get("code"), error.get("type")] if isinstance(error, dict) else []
    return next((name for name in names if isinstance(name, str) and _CODE.fullmatch(name)), None)


async def _closed_loop(options: BenchOptions, bodies: Sequence[bytes], send: _Send) -> list[Outcome]:
    outcomes: list[Outcome] = []
    waiting = iter(bodies)
    deadline = time.perf_counter() + options.duration_s

    async def user() -> None:
        for body in waiting:
            if time.perf_counter() >= deadline:
                return
            outcomes.append(await send(body))

    async with asyncio.TaskGroup() as users:
        for _ in range(options.concurrency):
            users.create_task(user())
    return outcomes


async def _open_loop(options: BenchOptions, bodies: Sequence[bytes], send: _Send) -> list[Outcome]:
    begin = time.perf_counter()

    async def later(offset_s: float, body: bytes) -> Outcome:
        await asyncio.sleep(begin + offset_s - time.perf_counter())
        return await send(body)

    async with asyncio.TaskGroup() as users:
        # The schedule ends first where the time is up before every body is sent.
        pairs = zip(schedule(options), bodies, strict=False)
        tasks = [users.create_task(later(offset_s, body)) for offset_s, body in pairs]
    return [task.result() for task in tasks]


def schedule(options: BenchOptions) -> list[float]:
    """Open loop: when each request starts, in seconds from the beginning; ends at the count or the time allowed."""
    rate = options.rate_per_s or 1.0
    draw = random.Random(options.seed)
    steps = (draw.expovariate(rate) if options.arrivals == "poisson" else 1 / rate for _ in range(options.requests))
    offsets = itertools.accumulate(itertools.chain((0.0,), steps))
    return [offset for offset in itertools.islice(offsets, options.requests) if offset < options.duration_s]


def request_bodies(options: BenchOptions, count: int) -> Iterator[bytes]:
    """`count` encoded requests; equal seeds give equal ones."""
    prefix = " ".join(words(options.shared_prefix_tokens, f"prefix {options.seed}"))
    common = {
        "model": options.endpoint.model,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for prompt in itertools.islice(_prompts(options), count):
        if options.api == "completions":
            content: dict[str, Any] = {"prompt": f"{prefix} {prompt}".strip()}
        else:
            system = [{"role": "system", "content": prefix}] if prefix else []
            content = {"messages": [*system, {"role": "user", "content": prompt}]}
        yield msgspec.json.encode(common | content)


def _prompts(options: BenchOptions) -> Iterator[str]:
    if options.prompt_file is None:
        seeds = (f"prompt {options.seed} {index}" for index in itertools.count())
        return (" ".join(words(options.prompt_words, seed)) for seed in seeds)
    try:
        text = options.prompt_file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(f"{options.prompt_file}: cannot be read: {reason}") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{options.prompt_file} holds no prompt")
    return itertools.cycle(lines)


def words(count: int, seed: str) -> list[str]:
    """`count` random common English words."""
    return random.Random(seed).choices(_WORDS.split(), k=count)
