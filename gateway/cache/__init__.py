"""The response cache: an answer is given again to the same request of the same tenant.

It stands where a request would be sent to a target, so that a hit is held and settled like any other request, and what
watches answers watches those given again. Only what came to its end is kept. Nothing that goes wrong here is an error:
then the target is asked.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple, TypeVar, cast

import msgspec
from msgspec.structs import replace

from adapters.closing import close
from adapters.sameness import identity, keepable
from adapters.types import (
    Caller,
    ChatRequest,
    ChoiceFinished,
    Embeddings,
    Event,
    Finished,
    Inbound,
    Ranking,
    Relay,
    Relayed,
    Served,
    Sink,
    Started,
    Usage,
)
from gateway import errors
from gateway.auth import Principal
from gateway.cache.answers import Answer, Begun, Item, Piece, Tape, read
from gateway.cache.control import Control, control_of
from gateway.catalog import Target
from gateway.config_cache import CacheConfig
from gateway.limits.limiter import wall_us
from gateway.metering import Request
from gateway.state.blobs import BlobCounts, Blobs
from gateway.streams import Record
from gateway.telemetry import Gauge, Telemetry

# Answers of another format are not found.
FORMAT = b"1"
# What takes longer to digest than others should wait is digested beside the event loop.
DIGESTED_INLINE_BYTES_MAX = 256 * 1024
SECOND_US = 1_000_000

Encoded = TypeVar("Encoded", Embeddings, Ranking)

_pack = msgspec.msgpack.Encoder(order="deterministic").encode


class Ask(NamedTuple):
    """A request that a target is about to be sent. `output_tokens_max` is the bound of its answer where its author has
    set none: an answer that got there may have been cut by it."""

    principal: Principal
    target: Target
    caller: Caller
    record: Record
    request: Request
    output_tokens_max: int | None = None


class Recording:
    """An answer on its way to be kept, unless it is too large, spoilt, or does not end. Whoever has one ends or drops
    it."""

    def __init__(self, cache: Cache, ask: Ask, key: str) -> None:
        self._cache = cache
        self._ask = ask
        self._key = key
        self._tape: Tape | None = Tape()

    def add(self, item: Item) -> None:
        """The next item of an answer."""
        if self._tape is not None:
            self._cache.recording_bytes += self._tape.add(item)
            if not self._cache.has_room(self._tape):
                self.drop()

    def event(self, event: Event) -> None:
        """The next event of a stream; the last one ends the recording."""
        if isinstance(event, Started) and event.served is not None:
            self.serving(event.served)
        elif isinstance(event, ChoiceFinished) and (event.reason == "content_filter" or event.malformed_call):
            self.drop()
        self.add(event)
        if isinstance(event, Finished):
            self.end(event.usage)

    def serving(self, served: Served) -> None:
        """Who gives the answer."""
        if self._tape is not None:
            self._tape.served = served

    def drop(self) -> None:
        """Keep nothing of it."""
        if self._tape is not None:
            self._cache.recording_bytes -= self._tape.size
        self._tape = None

    def end(self, usage: Usage) -> None:
        """The answer is there as a whole."""
        bound = self._ask.output_tokens_max
        if self._tape is not None and (bound is None or usage.completion_tokens < bound):
            self._tape.usage = usage
            self._cache.keep(self._ask, self._key, self._tape)
        self.drop()


class Cache:
    """Gives answers again. `now_us` is the wall clock, which replicas share."""

    def __init__(
        self, blobs: Blobs, config: CacheConfig, telemetry: Telemetry, *, now_us: Callable[[], int] = wall_us
    ) -> None:
        self._blobs = blobs
        self._config = config
        self._telemetry = telemetry
        self._now_us = now_us
        self._unread = 0
        # What the answers take that are on their way; together no more than a tenant may have.
        self.recording_bytes = 0

    async def events(self, ask: Ask, start: Callable[[], AsyncIterator[Event]]) -> AsyncIterator[Event]:
        """The events of a kept answer, or those that `start` begins."""
        found = await self.look(ask)
        if isinstance(found, Answer):
            async for event in found.events():
                yield event
            return
        events = start()
        try:
            async for event in events:
                if found is not None:
                    found.event(event)
                yield event
        finally:
            if found is not None:
                found.drop()
            await close(events)

    async def encoded(self, ask: Ask, work: Callable[[], Awaitable[Encoded]]) -> Encoded:
        """Kept vectors or scores, or those that `work` makes."""
        found = await self.look(ask)
        if isinstance(found, Answer):
            return cast(Encoded, replace(next(iter(found)), served=None))
        encoded = await work()
        if found is not None:
            if encoded.served is not None:
                found.serving(encoded.served)
            found.add(encoded)
            found.end(Usage(encoded.prompt_tokens))
        return encoded

    def relay(self, ask: Ask, relay: Relay) -> Relay:
        """The same for a request that is passed on to `relay` as it came."""
        return _CachedRelay(self, ask, relay)

    def gauges(self) -> list[Gauge]:
        """What a scrape reads."""
        counts = self.counts
        return [
            ("gateway_cache_bytes", (), counts.size_bytes),
            ("gateway_cache_evictions_total", (), counts.evicted),
            ("gateway_cache_failures_total", (), counts.failed),
        ]

    @property
    def counts(self) -> BlobCounts:
        """What is kept, and what became of the rest; what could not be read counts as failed."""
        counts = self._blobs.counts
        return counts._replace(failed=counts.failed + self._unread)

    async def clear(self, tenant: str | None) -> int | None:
        """Drop the answers of a tenant, or all; how many, None when that cannot be done now. What is on its way then
        may be kept afterwards."""
        return await self._blobs.clear(tenant)

    def has_room(self, tape: Tape) -> bool:
        """Whether a recording may go on."""
        config = self._config
        return tape.size <= config.entry_bytes_max and self.recording_bytes <= config.tenant_bytes_max

    def keep(self, ask: Ask, key: str, tape: Tape) -> None:
        assert ask.target.caching is not None
        self._blobs.put(key, ask.principal.tenant, tape.cut(self._now_us()), ask.target.caching.ttl_s)

    async def look(self, ask: Ask) -> Answer | Recording | None:
        """A kept answer, or else what to record one with; None where the cache has no part in the request.

        Raises `not_cached` when there is no answer and the request wants no other.
        """
        control, meter = control_of(ask.caller.cache_control), ask.record.meter
        caching, answer, recording = ask.target.caching, None, None
        meter.cache = "bypass"
        if caching is not None and not ask.caller.explain_cache and self._config.except_tag not in ask.principal.tags:
            key = await _key_of(ask, caching.version)
            if not control.no_cache:
                meter.cache = "miss"
                answer = await self._find(ask, key, control, caching.ttl_s)
            recording = None if control.no_store else Recording(self, ask, key)
        self._telemetry.cache(ask.target.name, meter.cache)
        if answer is None and control.only_if_cached:
            raise errors.error("not_cached", "There is no kept answer to this request, and it asked for no other.")
        return answer or recording

    async def _find(self, ask: Ask, key: str, control: Control, ttl_s: int) -> Answer | None:
        blob = await self._blobs.get(key)
        answer = None if blob is None else read(blob)
        if answer is None:
            self._unread += blob is not None
            return None
        age_s = max(0, self._now_us() - answer.at_us) / SECOND_US
        if not control.takes(age_s, ttl_s):
            return None
        ask.record.given_again()
        ask.record.meter.hit(answer.usage, answer.served, self._config.hit_price_percent, int(age_s))
        return answer


class _CachedRelay:
    """`Relay` over another one."""

    def __init__(self, cache: Cache, ask: Ask, relay: Relay) -> None:
        self._cache = cache
        self._ask = ask
        self._relay = relay

    def takes(self, inbound: Inbound) -> bool:
        return self._relay.takes(inbound)

    async def relay(self, inbound: Inbound, caller: Caller, sink: Sink) -> Relayed:
        found = await self._cache.look(self._ask)
        if isinstance(found, Answer):
            return await found.relay(sink)
        if found is None:
            return await self._relay.relay(inbound, caller, sink)
        try:
            relayed = await self._relay.relay(inbound, caller, _Recorded(sink, found, inbound))
            if keepable(inbound, relayed.rest):
                found.add(relayed)
                found.end(relayed.finished.usage)
        finally:
            found.drop()
        return relayed


class _Recorded:
    """A sink whose stream is recorded on its way."""

    def __init__(self, sink: Sink, recording: Recording, inbound: Inbound) -> None:
        self._sink = sink
        self._recording = recording
        self._inbound = inbound
        self.when_drained = sink.when_drained

    def begin(self, content_type: str) -> None:
        self._recording.add(Begun(content_type))
        self._sink.begin(content_type)

    def serving(self, served: Served) -> None:
        self._recording.serving(served)
        self._sink.serving(served)

    def started(self, started: Started) -> None:
        self._sink.started(started)

    def write(self, data: bytes, outputs: int) -> bool:
        if keepable(self._inbound, data):
            self._recording.add(Piece(data, outputs))
        else:
            self._recording.drop()
        return self._sink.write(data, outputs)


async def _key_of(ask: Ask, version: str) -> str:
    """What two requests have in common only if one's answer is the other's too."""
    request, target = ask.request, ask.target
    parts = [FORMAT, ask.principal.tenant.encode(), target.name.encode(), version.encode()]
    if isinstance(request, Inbound):
        parts += [request.dialect.encode(), _pack(request.headers), identity(request)]
    else:
        plain = replace(request, model="")
        if isinstance(plain, ChatRequest):
            plain = replace(plain, end_user=None)
        parts += [type(request).__name__.encode(), _pack(plain)]
    if sum(map(len, parts)) > DIGESTED_INLINE_BYTES_MAX:
        return await asyncio.to_thread(_digest, parts)
    return _digest(parts)


def _digest(parts: list[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=32)
    for part in parts:
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.hexdigest()
