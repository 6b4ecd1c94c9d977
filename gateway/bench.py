"""Load generator behind `gateway bench`: measures any OpenAI-compatible endpoint with streamed requests.

Closed loop keeps a number of requests running; open loop starts them at given times whatever happens, as real users
do. A run is bounded by a count, a time to start requests in, and a time per request. Two endpoints are compared by runs
that alternate, so that a noisy machine disturbs both alike, and by the medians of their ratios. Times are in seconds.
"""

import asyncio
import contextlib
import itertools
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec

_WORDS = (
    "the of and to in is that it was for on are as with his they be at one have this from or had by not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so these "
    "would other into has more her two like him see time could no make than first been its who now people my made over"
)


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


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Times are readings of `time.perf_counter`; counts are the endpoint's own, where it gave any.

    The status is `ok`, an HTTP status, `timeout`, `stream error`, `invalid stream`, `cut` when the end of the answer
    was missing, or the name of a transport error.
    """

    status: str
    started_s: float
    ended_s: float
    text_s: tuple[float, ...] = ()  # when each piece with text arrived
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    retry_after_s: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the answer was complete."""
        return self.status == "ok"

    @property
    def tokens(self) -> int:
        """Output tokens by the endpoint's usage, else the number of pieces."""
        return len(self.text_s) if self.output_tokens is None else self.output_tokens

    @property
    def first_token_s(self) -> float | None:
        """Time from the start of the request to its first text."""
        return self.text_s[0] - self.started_s if self.text_s else None

    @property
    def gaps_s(self) -> list[float]:
        """Times between pieces of text."""
        return [later - earlier for earlier, later in itertools.pairwise(self.text_s)]

    @property
    def total_s(self) -> float:
        """Time from the start of the request to the end of the answer."""
        return self.ended_s - self.started_s


class Distribution(msgspec.Struct, frozen=True):
    """A summary of a set of times in seconds."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of one run; distributions are of complete answers and None when there was none."""

    url: str
    model: str
    requests: int
    succeeded: int
    errors: dict[str, int]  # failed requests by status
    wall_s: float  # from the first start to the last end
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    tokens_reported: bool  # whether every answer came with the endpoint's own count, instead of counting pieces
    requests_per_s: float
    output_tokens_per_s: float
    first_token: Distribution | None
    gap: Distribution | None
    total: Distribution | None


class Ratio(msgspec.Struct, frozen=True):
    """One metric of a comparison: medians of each side, and of the ratios first/second with their range."""

    metric: str
    first: float
    second: float
    ratio: float
    lowest: float
    highest: float


class BenchComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Reports of alternating runs of two endpoints, and the ratio of every metric that both have."""

    first: tuple[BenchReport, ...]
    second: tuple[BenchReport, ...]
    ratios: tuple[Ratio, ...]


_OnText = Callable[[], None] | None
_Send = Callable[[bytes], Awaitable[Outcome]]


async def run(options: BenchOptions, transport: httpx.AsyncBaseTransport | None = None) -> BenchReport:
    """Measure one endpoint; requests that fail are counted by status and never raise."""
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
    return summarise(options.endpoint, outcomes)


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


class _Answer:
    """What has been read of an answer so far."""

    def __init__(self, on_text: _OnText) -> None:
        self.status = "cut"
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
            return
        splitter = EventSplitter()
        async for data in response.aiter_raw():
            now = time.perf_counter()
            for payload in splitter.feed(data):
                if payload != b"[DONE]":
                    self._take(self._decode(payload), now)

    def _take(self, piece: _Piece, now: float) -> None:
        if piece.error:
            self.status = "stream error"
        if piece.usage:
            self.usage = piece.usage
        for choice in piece.choices or ():
            if choice.has_text():
                self.text_s.append(now)
                if self._on_text:
                    self._on_text()
            if choice.finish_reason and self.status == "cut":
                self.status = "ok"


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
    lines = [line for line in options.prompt_file.read_text("utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{options.prompt_file} holds no prompt")
    return itertools.cycle(lines)


def words(count: int, seed: str) -> list[str]:
    """`count` random common English words."""
    return random.Random(seed).choices(_WORDS.split(), k=count)


def summarise(endpoint: Endpoint, outcomes: Sequence[Outcome]) -> BenchReport:
    """The report of a set of requests that belong together."""
    complete = [outcome for outcome in outcomes if outcome.ok]
    started = min((outcome.started_s for outcome in outcomes), default=0.0)
    wall = max((outcome.ended_s for outcome in outcomes), default=0.0) - started
    output = sum(outcome.tokens for outcome in complete)
    return BenchReport(
        url=endpoint.url,
        model=endpoint.model,
        requests=len(outcomes),
        succeeded=len(complete),
        errors=dict(Counter(outcome.status for outcome in outcomes if not outcome.ok)),
        wall_s=wall,
        input_tokens=sum(outcome.input_tokens or 0 for outcome in complete),
        cached_tokens=sum(outcome.cached_tokens or 0 for outcome in complete),
        output_tokens=output,
        tokens_reported=all(outcome.output_tokens is not None for outcome in complete),
        requests_per_s=len(complete) / wall if wall else 0.0,
        output_tokens_per_s=output / wall if wall else 0.0,
        first_token=distribution(outcome.first_token_s for outcome in complete),
        gap=distribution(gap for outcome in complete for gap in outcome.gaps_s),
        total=distribution(outcome.total_s for outcome in complete),
    )


def distribution(values: Iterable[float | None]) -> Distribution | None:
    """The summary of the values that are not None; None for none."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None
    p50, p95, p99 = (percentile(ordered, percent) for percent in (50, 95, 99))
    return Distribution(len(ordered), statistics.fmean(ordered), p50, p95, p99, ordered[-1])


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of ascending values, linear between neighbours."""
    position = (len(ordered) - 1) * percent / 100
    below, above = ordered[math.floor(position)], ordered[math.ceil(position)]
    return below + (above - below) * (position % 1)


def metrics(report: BenchReport) -> dict[str, float]:
    """The numbers of a report by name with unit, in the order they are shown in."""
    numbers = {"requests/s": report.requests_per_s, "output tokens/s": report.output_tokens_per_s}
    for name, times_ms in _times_ms(report).items():
        numbers |= {f"{name} {field} ms": time_ms for field, time_ms in times_ms.items()}
    return numbers


def _times_ms(report: BenchReport) -> dict[str, dict[str, float]]:
    parts = {"first token": report.first_token, "gap": report.gap, "total": report.total}
    fields = ("mean", "p50", "p95", "p99", "max")
    return {name: {field: getattr(part, field) * 1000 for field in fields} for name, part in parts.items() if part}


def compare_metrics(first: Sequence[dict[str, float]], second: Sequence[dict[str, float]]) -> tuple[Ratio, ...]:
    """Medians over repetitions of the metrics that every one of them has; the ratio is first/second of each pair."""
    rows = []
    for name in (name for name in first[0] if all(name in numbers for numbers in (*first, *second))):
        ones, twos = [numbers[name] for numbers in first], [numbers[name] for numbers in second]
        ratios = [one / two if two else math.nan for one, two in zip(ones, twos, strict=True)]
        one, two, ratio = (statistics.median(numbers) for numbers in (ones, twos, ratios))
        rows.append(Ratio(name, one, two, ratio, lowest=min(ratios), highest=max(ratios)))
    return tuple(rows)


def render(result: BenchReport | BenchComparison) -> str:
    """The result as text for a terminal."""
    return _render_report(result) if isinstance(result, BenchReport) else _render_comparison(result)


def _render_report(report: BenchReport) -> str:
    counted = "reported" if report.tokens_reported else "counted by pieces of text"
    lines = [
        f"{report.url} ({report.model})",
        f"{report.succeeded} of {report.requests} requests in {report.wall_s:.2f} s: "
        f"{report.requests_per_s:.2f} requests/s, {report.output_tokens_per_s:.1f} output tokens/s ({counted})",
        f"tokens: {report.input_tokens} in, {report.cached_tokens} of them cached, {report.output_tokens} out",
        f"\n{'ms':<14}{'mean':>10}{'p50':>10}{'p95':>10}{'p99':>10}{'max':>10}",
    ]
    for name, times_ms in _times_ms(report).items():
        lines.append(f"{name:<14}" + "".join(f"{time_ms:>10.1f}" for time_ms in times_ms.values()))
    return "\n".join([*lines, *_render_errors("errors", [report])])


def _render_comparison(comparison: BenchComparison) -> str:
    first, second = comparison.first, comparison.second
    lines = [
        f"first   {first[0].url} ({first[0].model})",
        f"second  {second[0].url} ({second[0].model})",
        f"{len(first)} repetitions each; medians, and the median ratio first/second with its range",
        f"\n{'metric':<22}{'first':>12}{'second':>12}{'ratio':>9}{'lowest':>9}{'highest':>9}",
    ]
    for row in comparison.ratios:
        numbers = f"{row.first:>12.1f}{row.second:>12.1f}{row.ratio:>9.3f}{row.lowest:>9.3f}{row.highest:>9.3f}"
        lines.append(f"{row.metric:<22}{numbers}")
    lines += _render_errors("errors of the first", first) + _render_errors("errors of the second", second)
    return "\n".join(lines)


def _render_errors(title: str, reports: Iterable[BenchReport]) -> list[str]:
    errors = sum((Counter(report.errors) for report in reports), Counter[str]())
    counts = ", ".join(f"{count} x {status}" for status, count in sorted(errors.items()))
    return [f"{title}: {counts}"] if errors else []
