"""What chat and legacy completions share over HTTP: one stream, sent as it comes or folded into one answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Generic, TypeVar

import msgspec
from starlette.requests import Request

from adapters.dialects.openai_wire import EventRenderer, Folded, Inbound, ResponseHead
from adapters.diverting import Take
from adapters.errors import InvalidRequest
from adapters.types import Caller, Event, Finished, Served, Timings, TokenCount
from gateway.api.http import EventStreamResponse, Response, json_response, run_until_disconnect
from gateway.auth import Principal
from gateway.ledger.export import usd
from gateway.limits.told import rate_headers
from gateway.metering import Meter
from gateway.streams import Stream

RequestT = TypeVar("RequestT")
# As `http.Connection.taker`: given how events are written and what is told of them, what takes them.
Taker = Callable[[Callable[[Event], bytes], Callable[[Event], None]], Take]

OPENAI_VERSION = "2020-10-01"
SESSION_KEY_CHARS_MAX = 512


class Rendering(msgspec.Struct, Generic[RequestT], frozen=True):
    """How a dialect writes its answers: the prefix of their ids, the frames of a stream, the folded whole, and headers
    of its own, given the stream and the milliseconds it took."""

    id_prefix: str
    frames: Callable[[ResponseHead, Inbound[RequestT]], EventRenderer]
    whole: Callable[[ResponseHead, RequestT, Folded], bytes]
    headers: Callable[[Stream, int], dict[str, str]]


def openai_headers(stream: Stream, took_ms: int) -> dict[str, str]:
    """What OpenAI's SDKs look for."""
    return {"openai-version": OPENAI_VERSION, "openai-processing-ms": str(took_ms)}


def caller_of(request: Request, session_key: str | None = None) -> Caller:
    """On whose behalf the request runs.

    `session_key` is how the dialect names the conversation in its own way; it wins over the header, which is for
    clients whose library has no field for it.
    """
    return caller_with(request.state.principal, request.state.request_id, request.headers, session_key)


def caller_with(
    principal: Principal, request_id: str, headers: Mapping[str, str], session_key: str | None = None
) -> Caller:
    """The same for a principal and headers by their names in lower case."""
    return Caller(
        request_id,
        principal.tenant,
        session_key or (_session_header(headers) if headers else None),
        principal.weight,
        principal.priority,
        explain_cache=bool(headers) and _explains(headers),
        cache_control=headers.get("cache-control", ""),
    )


def _session_header(headers: Mapping[str, str]) -> str | None:
    key = headers.get("x-session-id", "").strip()
    if len(key) > SESSION_KEY_CHARS_MAX or not (key.isascii() and key.isprintable()):
        message = f"The header X-Session-Id takes at most {SESSION_KEY_CHARS_MAX} printable ASCII characters."
        raise InvalidRequest(message, param="X-Session-Id")
    return key or None


def _explains(headers: Mapping[str, str]) -> bool:
    asked = headers.get("x-gateway-explain")
    if asked not in (None, "cache"):
        raise InvalidRequest("The header X-Gateway-Explain takes the value 'cache'.", param="X-Gateway-Explain")
    return asked is not None


async def answer(
    request: Request,
    inbound: Inbound[RequestT],
    opening: Awaitable[Stream],
    choices: int,
    rendering: Rendering[RequestT],
) -> Response:
    """The answer to a parsed request. `opening` is awaited first, so what fails there has its own HTTP status."""
    arrived_s = time.perf_counter()
    if inbound.stream:
        stream = await run_until_disconnect(request, opening)
        renderer = rendering.frames(_head(request, stream, rendering.id_prefix), inbound)
        started = stream.started
        timings = Timings(queue_us=started.queue_us, prefill_us=started.prefill_us)
        headers = _headers(stream, timings) | rendering.headers(stream, _ms_since(arrived_s))
        return EventStreamResponse(Frames(stream, renderer, _log(request, stream)), headers)
    folded = Folded(choices)
    stream, finished = await run_until_disconnect(request, _fold(opening, folded))
    _log(request, stream)["completion_tokens"] = finished.usage.completion_tokens
    body = rendering.whole(_head(request, stream, rendering.id_prefix), inbound.request, folded)
    headers = _headers(stream, finished.timings) | rendering.headers(stream, _ms_since(arrived_s))
    return json_response(body, headers=headers)


def _ms_since(started_s: float) -> int:
    return round((time.perf_counter() - started_s) * 1000)


async def _fold(opening: Awaitable[Stream], folded: Folded) -> tuple[Stream, Finished]:
    """Read a whole stream; it and its last event."""
    stream = await opening
    try:
        async for event in stream:
            folded.add(event)
    except BaseException:
        await asyncio.shield(stream.aclose())
        raise
    assert isinstance(event, Finished)
    return stream, event


def _log(request: Request, stream: Stream) -> dict[str, str | int | float]:
    """The request's line in the access log, with what is known from the start."""
    log: dict[str, str | int | float] = request.state.log
    log |= {"model": stream.target.name, "prompt_tokens": stream.started.prompt_tokens}
    log |= served_fields(stream.meter.served)
    return log


class Frames:
    """The events of a stream as ready server-sent events."""

    def __init__(self, stream: Stream, renderer: EventRenderer, log: dict[str, str | int | float]) -> None:
        self._stream = stream
        self._render = renderer.render
        self._log = log

    def __aiter__(self) -> Frames:
        return self

    async def __anext__(self) -> bytes:
        frame = b""
        while not frame:
            event: Event = await self._stream.__anext__()
            if type(event) is Finished:
                self._log["completion_tokens"] = event.usage.completion_tokens
            frame = self._render(event)
        return frame

    def divert(self, taker: Taker) -> None:
        """Have what comes written in the call in which it comes, while nothing has to wait."""
        self._stream.divert(partial(taker, self._render))

    async def aclose(self) -> None:
        await self._stream.aclose()


def _head(request: Request, stream: Stream, id_prefix: str) -> ResponseHead:
    target = stream.target
    return ResponseHead(id_prefix + request.state.request_id, int(time.time()), target.name, target.fingerprint)


def _headers(stream: Stream, timings: Timings) -> dict[str, str]:
    headers = {"x-gateway-model": stream.target.name} | timing_headers(timings, stream.started.cached_tokens)
    return headers | meter_headers(stream.meter)


def timing_headers(timings: Timings, cached_tokens: int) -> dict[str, str]:
    """Where the time of an answer went, as far as that is known, and what of its prompt was not computed again."""
    phases = {"queue": timings.queue_us, "prefill": timings.prefill_us, "decode": timings.decode_us}
    headers = {
        "x-gateway-queue-ms": f"{timings.queue_us / 1000:.1f}",
        "x-gateway-cached-tokens": str(cached_tokens),
    }
    if any(phases.values()):
        headers["server-timing"] = ", ".join(f"{name};dur={us / 1000:.1f}" for name, us in phases.items() if us)
    return headers


def meter_headers(meter: Meter) -> dict[str, str]:
    """How the caller's limits stand, who served the request, what the cache had to do with it, and what it cost once
    that is known."""
    return rate_headers(*meter.rooms) | served_headers(meter.served) | cost_headers(meter)


def served_headers(served: Served | None) -> dict[str, str]:
    """Which target of a route answered."""
    if served is None:
        return {}
    return {"x-gateway-target": served.target, "x-gateway-attempts": str(served.attempts)}


def served_fields(served: Served | None) -> dict[str, str | int | float]:
    """The same for the access log, which says nothing of tries where one was enough."""
    if served is None:
        return {}
    target: dict[str, str | int | float] = {"target": served.target}
    return target if served.attempts == 1 else target | {"attempts": served.attempts}


def cost_headers(meter: Meter) -> dict[str, str]:
    """What a request cost, once that is known, and what the cache had to do with it."""
    headers = {}
    if meter.cost_nano is not None:
        headers["x-gateway-cost-usd"] = usd(meter.cost_nano)
    if meter.cache is not None:
        headers["x-gateway-cache"] = meter.cache
        if meter.cache == "hit":
            headers["age"] = str(meter.age_s)
    return headers


def count_headers(count: TokenCount) -> dict[str, str]:
    """Whether a number of tokens can be relied on."""
    return {"x-gateway-token-count": "exact" if count.exact else "estimate"}


def room_headers(meter: Meter) -> dict[str, str]:
    """How the caller's limits stand, as Anthropic names it."""
    headers: dict[str, str] = {}
    for unit, room in zip(("requests", "tokens"), meter.rooms, strict=True):
        if room is not None:
            reset = datetime.fromtimestamp(time.time() + room.reset_us / 1e6, UTC)
            name = f"anthropic-ratelimit-{unit}"
            headers |= {f"{name}-limit": str(room.limit), f"{name}-remaining": str(room.remaining)}
            headers[f"{name}-reset"] = reset.strftime("%Y-%m-%dT%H:%M:%SZ")
    return headers
