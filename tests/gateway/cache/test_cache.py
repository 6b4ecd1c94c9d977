"""The cache behind the one path, in front of scripted models."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from adapters.errors import EngineFailed
from adapters.types import (
    Caller,
    ChatRequest,
    ChoiceFinished,
    CompletionRequest,
    EmbeddingRequest,
    Event,
    Finished,
    Generation,
    Message,
    RerankRequest,
    Sampling,
    Served,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from gateway.auth import Principal
from gateway.cache import Cache
from gateway.catalog import Caching, Catalog, Price, Target
from gateway.config_cache import CacheConfig
from gateway.config_limits import BudgetConfig, LimitsConfig, ScopeLimits
from gateway.errors import GatewayError
from gateway.inference import Inference
from gateway.ledger import Entry
from gateway.limits.limiter import Limiter, LocalCounters
from gateway.metering import Metering
from gateway.state.blobs import MemoryBlobs
from gateway.streams import Stream
from gateway.telemetry import Telemetry
from tests.fakes import HELLO, Scripted, Step, no_balances
from tests.gateway.test_metering import Kept

PRINCIPAL = Principal(tenant="t", key_id="k", name="n")
REQUEST = ChatRequest("m", (Message("user", "hi"),))
PRICE = Price(1_000_000, 500_000, 2_000_000)
REPLAYED = (Started(7, 3), *HELLO[1:])


class Bench:
    """Inference with a cache over one priced model, whose answers are kept for 100 seconds."""

    def __init__(self, script: Sequence[Step] = HELLO, *, version: str = "1", **settings: Any) -> None:
        self.adapter = Scripted(script)
        self.now_us = 1_000_000_000
        self.telemetry = Telemetry("0")
        self.ledger = Kept()
        self.counters = LocalCounters()
        limiter = Limiter(LimitsConfig(), self.counters, no_balances, now_us=lambda: 0, steady_us=lambda: 0)
        metering = Metering(limiter, self.ledger, self.telemetry, now_us=lambda: 7, steady_us=lambda: 0)
        config = CacheConfig(enabled=True, **settings)
        self.blobs = MemoryBlobs(config.bytes_max, config.tenant_bytes_max, clock=lambda: self.now_us / 1e6)
        self.cache = Cache(self.blobs, config, self.telemetry, now_us=lambda: self.now_us)
        kept = {"price": PRICE, "caching": Caching(100, version)}
        targets = [Target("model", self.adapter, aliases=("m",), **kept), Target("fresh", self.adapter)]  # type: ignore[arg-type]
        self.inference = Inference(Catalog(targets), self.telemetry, metering, self.cache)

    async def open(
        self, request: ChatRequest = REQUEST, principal: Principal = PRINCIPAL, control: str = "", **caller: Any
    ) -> Stream:
        behalf = Caller("r", principal.tenant, cache_control=control, **caller)
        return await self.inference.chat(principal, request, behalf)

    async def ask(self, *args: Any, **named: Any) -> str | None:
        """What the cache had to do with an answer that was read to its end."""
        stream = await self.open(*args, **named)
        async for _ in stream:
            pass
        return stream.meter.cache

    @property
    def asked(self) -> int:
        """How often the model was asked."""
        return len(self.adapter.requests)

    @property
    def entry(self) -> Entry:
        return self.ledger.kept[-1]


def test_an_answer_is_given_again_event_for_event() -> None:
    script = (
        *HELLO[:1],
        TextDelta(0, "H\u00e9", (TokenLogprob(5, -0.5, b"\xc3"), TokenLogprob(6, None, b"\xa9"))),
        ToolCallDelta(0, 0, "{}", "call_1", "f"),
        *HELLO[2:],
    )

    async def scenario() -> None:
        bench = Bench(script)
        first = [event async for event in await bench.open()]
        bench.now_us += 12_900_000
        stream = await bench.open()
        again = [event async for event in stream]
        assert first == list(script)
        assert again == [Started(7, 3), *script[1:]]
        assert (stream.meter.cache, stream.meter.age_s, bench.asked) == ("hit", 12, 1)

    asyncio.run(scenario())


def test_a_hit_is_a_request_that_uses_no_tokens_and_costs_nothing() -> None:
    async def scenario() -> None:
        bench = Bench()
        limits = ScopeLimits(budgets=(BudgetConfig(usd="0.001", period="total"),), tokens_per_minute=100_000)
        rich = replace(PRINCIPAL, limits=limits)
        await bench.ask(principal=rich)
        paid = bench.entry
        spent = bench.counters.book.standing("key:k:total")
        stream = await bench.open(principal=rich)
        assert [event async for event in stream][-1] == HELLO[-1]
        free = bench.entry
        assert (paid.cache, paid.cost_nano, paid.charged_nano) == ("none", 10, 10)
        assert (free.cache, free.status, free.cost_nano, free.charged_nano) == ("hit", "posted", 0, 0)
        assert (free.usage, free.provider, free.attempts) == (Usage(), "cache", 0)
        assert stream.meter.cost_nano == 0
        assert bench.counters.book.standing("key:k:total") == spent == (10, 0)
        text = bench.telemetry.render().decode()
        assert 'gateway_prompt_tokens_total{model="model"} 7' in text
        assert 'gateway_time_to_first_token_seconds_count{model="model"} 1' in text
        assert 'gateway_inference_requests_total{model="model",outcome="ok"} 2' in text
        assert 'gateway_cache_requests_total{model="model",outcome="hit"} 1' in text

    asyncio.run(scenario())


@pytest.mark.parametrize(("percent", "cost"), [(0, 0), (10, 1), (15, 2), (100, 10)])
def test_a_hit_costs_its_share_of_the_price_rounded_up_even_if_it_is_cut(percent: int, cost: int) -> None:
    async def scenario() -> None:
        bench = Bench(hit_price_percent=percent)
        await bench.ask()
        await bench.ask()
        assert (bench.entry.cost_nano, bench.entry.usage) == (cost, Usage())
        stream = await bench.open()
        await stream.__anext__()
        await stream.aclose()
        assert (bench.entry.outcome, bench.entry.cost_nano) == ("cancelled", cost)

    asyncio.run(scenario())


def test_what_a_route_served_is_priced_as_there() -> None:
    async def scenario() -> None:
        served = Served("far/dear", "far", "dear", 2)
        bench = Bench((replace(HELLO[0], served=served), *HELLO[1:]), hit_price_percent=50)
        bench.inference._catalog.resolve(PRINCIPAL, "m")._prices = {"far/dear": Price(0, 0, 100_000_000)}
        await bench.ask()
        stream = await bench.open()
        assert [event async for event in stream] == list(REPLAYED)
        assert (stream.meter.served, bench.entry.cost_nano) == (None, 100)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, messages=(Message("user", "ho"),)),
        replace(REQUEST, messages=(Message("system", "hi"),)),
        replace(REQUEST, generation=Generation(max_tokens=5)),
        replace(REQUEST, generation=Generation(n=2)),
        replace(REQUEST, generation=Generation(sampling=Sampling(temperature=0.0))),
        replace(REQUEST, generation=Generation(sampling=Sampling(seed=1))),
        replace(REQUEST, template_arguments={"enable_thinking": True}),
    ],
)
def test_other_requests_are_other_requests(other: ChatRequest) -> None:
    async def scenario() -> None:
        bench = Bench()
        assert [await bench.ask(), await bench.ask(other), await bench.ask(other)] == ["miss", "miss", "hit"]

    asyncio.run(scenario())


def test_names_of_models_users_and_sessions_make_no_difference() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.ask()
        other = replace(REQUEST, model="model", end_user="somebody")
        assert await bench.ask(other, session_key="s") == "hit"

    asyncio.run(scenario())


def test_another_tenant_never_gets_it() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.ask()
        assert await bench.ask(principal=replace(PRINCIPAL, tenant="other")) == "miss"
        assert await bench.ask(principal=replace(PRINCIPAL, key_id="another of the same")) == "hit"

    asyncio.run(scenario())


def test_another_version_of_the_model_does_not_answer_for_it() -> None:
    async def scenario() -> None:
        bench, later = Bench(), Bench(version="2")
        later.cache._blobs = bench.blobs
        await bench.ask()
        assert await later.ask() == "miss"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "named",
    [
        {"request": replace(REQUEST, model="fresh")},
        {"principal": replace(PRINCIPAL, tags=("a", "no-cache"))},
        {"explain_cache": True},
    ],
)
def test_who_has_no_part_in_it(named: dict[str, Any]) -> None:
    async def scenario() -> None:
        bench = Bench()
        assert [await bench.ask(**named), await bench.ask(**named)] == ["bypass", "bypass"]
        assert bench.blobs.counts.size_bytes == 0
        with pytest.raises(GatewayError) as caught:
            await bench.ask(control="only-if-cached", **named)
        assert (caught.value.status, caught.value.code) == (504, "not_cached")

    asyncio.run(scenario())


def test_what_requests_say_about_kept_answers() -> None:
    async def scenario() -> None:
        bench = Bench()
        with pytest.raises(GatewayError):
            await bench.ask(control="only-if-cached")
        assert (bench.entry.status, bench.entry.outcome, bench.asked) == ("voided", "not_cached", 0)
        assert await bench.ask(control="no-store") == "miss"
        assert await bench.ask() == "miss"
        bench.now_us += 50_000_000
        assert await bench.ask(control="only-if-cached") == "hit"
        assert await bench.ask(control="no-store") == "hit"
        assert await bench.ask(control="max-age=49, no-store") == "miss"
        assert await bench.ask(control="max-age=50") == "hit"
        assert await bench.ask(control="min-fresh=51, no-store") == "miss"
        assert await bench.ask(control="no-cache") == "bypass"
        assert await bench.ask(control="max-age=1") == "hit"  # That one was kept anew.
        bench.now_us += 100_000_000
        assert await bench.ask() == "miss"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "script",
    [
        [*HELLO[:3], EngineFailed("died")],
        HELLO[:3],
        [*HELLO[:3], ChoiceFinished(0, "content_filter"), HELLO[4]],
        [*HELLO[:3], ChoiceFinished(0, "stop", malformed_call=True), HELLO[4]],
        [HELLO[0], TextDelta(0, "x" * 3000), *HELLO[3:]],
    ],
    ids=["failed", "cut", "filtered", "malformed", "too large"],
)
def test_what_is_not_kept(script: Sequence[Step]) -> None:
    async def scenario() -> None:
        bench = Bench(script, entry_bytes_max=2048)
        for _ in range(2):
            stream = await bench.open()
            try:
                async for _event in stream:
                    pass
            except EngineFailed:
                pass
            assert stream.meter.cache == "miss"
        assert (bench.blobs.counts.size_bytes, bench.cache.recording_bytes) == (0, 0)

    asyncio.run(scenario())


def test_an_answer_that_its_reader_left_is_not_kept() -> None:
    async def scenario() -> None:
        bench = Bench()
        stream = await bench.open()
        await stream.__anext__()
        await stream.__anext__()
        assert bench.cache.recording_bytes > 0
        await stream.aclose()
        assert (bench.adapter.closed, bench.cache.recording_bytes) == (1, 0)
        assert await bench.ask() == "miss"

    asyncio.run(scenario())


def test_an_answer_that_a_budget_may_have_cut_is_not_kept() -> None:
    async def scenario() -> None:
        script = (*HELLO[:4], Finished(Usage(7, 16)))
        bench = Bench(script)
        poor = ScopeLimits(budgets=(BudgetConfig(usd="0.000000040", period="total"),))
        stream = await bench.open(principal=replace(PRINCIPAL, limits=poor))
        assert stream.meter.grant is not None and stream.meter.grant.output_tokens == 16
        assert [event async for event in stream] == list(script)
        assert await bench.ask() == "miss"
        assert await bench.ask() == "hit"

    asyncio.run(scenario())


def test_recordings_are_bounded_together() -> None:
    async def scenario() -> None:
        long = TextDelta(0, "x" * 700)
        bench = Bench((HELLO[0], long, *HELLO[3:]), tenant_bytes_max=1500)
        streams = [await bench.open(replace(REQUEST, end_user=None, model="m")) for _ in range(3)]
        for stream in streams:
            await stream.__anext__()
            await stream.__anext__()
        assert bench.cache.recording_bytes <= 1500
        for stream in streams:
            await stream.aclose()
        assert bench.cache.recording_bytes == 0

    asyncio.run(scenario())


def test_completions_vectors_and_scores_too() -> None:
    async def scenario() -> None:
        bench = Bench()
        caller = Caller("r", "t")
        for _ in range(2):
            stream = await bench.inference.complete(PRINCIPAL, CompletionRequest("m", ("hi",)), caller)
            assert [event async for event in stream][1:] == list(HELLO[1:])
        assert (stream.meter.cache, bench.asked) == ("hit", 1)
        vectors = [await bench.inference.embed(PRINCIPAL, EmbeddingRequest("m", ("abc",)), caller) for _ in range(2)]
        assert vectors[0][0] == vectors[1][0]
        assert [meter.cache for _, meter in vectors] == ["miss", "hit"]
        scores = [await bench.inference.rerank(PRINCIPAL, RerankRequest("m", "q", ("a",)), caller) for _ in range(2)]
        assert scores[0][0] == scores[1][0]
        assert [meter.cache for _, meter in scores] == ["miss", "hit"]
        assert bench.asked == 3

    asyncio.run(scenario())


@pytest.mark.parametrize("damage", [lambda blob: blob[:-1], lambda blob: b"\xc1", lambda blob: blob[:12] + b"\xff"])
def test_a_blob_that_cannot_be_read_is_a_miss(damage: Any) -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.ask()
        ((key, entry),) = bench.blobs._entries.items()
        bench.blobs.put(key, "t", damage(entry.blob), 100)
        assert await bench.ask() == "miss"
        assert await bench.ask() == "hit"
        assert ("gateway_cache_failures_total", (), 1) in bench.cache.gauges()

    asyncio.run(scenario())


def test_a_long_answer_lets_others_have_their_turn() -> None:
    async def scenario() -> None:
        script: list[Event] = [HELLO[0], *(TextDelta(0, "x") for _ in range(1000)), *HELLO[3:4], Finished(Usage(7, 9))]
        bench = Bench(script)
        await bench.ask()
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        assert await bench.ask() == "hit"
        task.cancel()
        assert turns > 10

    asyncio.run(scenario())
