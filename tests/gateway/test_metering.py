from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest

from adapters.errors import EngineFailed, InvalidRequest
from adapters.relay import PASSING
from adapters.types import (
    Caller,
    ChatRequest,
    CompletionRequest,
    DialectName,
    DocumentPart,
    EmbeddingRequest,
    Event,
    Finished,
    Generation,
    Head,
    ImagePart,
    ImageUrl,
    Inbound,
    Message,
    NativePart,
    Part,
    ReasoningDelta,
    Relayed,
    RerankRequest,
    Sink,
    Started,
    TextDelta,
    TextPart,
    Tool,
    Usage,
)
from gateway.auth import Principal
from gateway.catalog import Catalog, Price, Target
from gateway.config_limits import BudgetConfig, LimitsConfig, ScopeLimits
from gateway.errors import GatewayError
from gateway.inference import Inference
from gateway.ledger import Durable, Entry
from gateway.ledger.store import Ledger
from gateway.ledger.writer import PENDING_MAX
from gateway.limits.limiter import Limiter, LocalCounters, Need
from gateway.metering import Metering, inbound_tokens, need_of
from gateway.streams import Stream
from gateway.telemetry import Telemetry
from tests.fakes import HELLO, Scripted, Step, no_balances

PRICE = Price(1_000_000, 500_000, 2_000_000)
CALLER = Caller("req", "t")


class Kept(Ledger):
    """A ledger that keeps entries in a list; they are durable when the test says so."""

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.kept: list[Entry] = []
        self.shown: list[str] = []
        self.durable = asyncio.Event()
        self.durable.set()
        self.waiting = 0

    @property
    def full(self) -> bool:
        return self.waiting >= PENDING_MAX

    def show(self, id: str) -> None:
        self.shown.append(id)

    def add(self, entry: Entry) -> Durable:
        self.kept.append(entry)
        durable = Durable()
        self._reaching = asyncio.ensure_future(self._reach(durable))
        return durable

    async def _reach(self, durable: Durable) -> None:
        await self.durable.wait()
        durable.reach()


class Bench:
    """Inference over one priced, scripted model with a key that has a budget in nano-USD."""

    def __init__(self, script: Sequence[Step] = HELLO, budget: str = "0.000100000") -> None:
        self.adapter = Scripted(script)
        self.ledger = Kept()
        self.counters = LocalCounters()
        limiter = Limiter(LimitsConfig(), self.counters, no_balances, now_us=lambda: 0, steady_us=lambda: 0)
        telemetry = Telemetry("0")
        metering = Metering(limiter, self.ledger, telemetry, now_us=lambda: 7, steady_us=lambda: 0)
        catalog = Catalog([Target("m", self.adapter, price=PRICE)])
        self.inference = Inference(catalog, telemetry, metering)
        limits = ScopeLimits(budgets=(BudgetConfig(usd=budget, period="total"),), tokens_per_minute=100_000)
        self.principal = Principal(tenant="t", key_id="k", name="n", limits=limits)

    async def open(self, max_tokens: int | None = 10) -> Stream:
        request = ChatRequest("m", (Message("user", "hi"),), generation=Generation(max_tokens=max_tokens))
        return await self.inference.chat(self.principal, request, CALLER)

    @property
    def standing(self) -> tuple[int, int]:
        return self.counters.book.standing("key:k:total")

    @property
    def entry(self) -> Entry:
        (entry,) = self.ledger.kept
        return entry


def test_an_answer_is_charged_what_it_used_and_holds_nothing_after() -> None:
    async def scenario() -> None:
        bench = Bench()
        stream = await bench.open()
        assert stream.meter.grant is not None and bench.standing == (0, stream.meter.grant.nano)
        assert [event async for event in stream][-1] is HELLO[-1]
        cost = 4 + 2 + 2 * 2  # Four fresh tokens, three cached at half the price rounded up, two of output.
        assert (bench.standing, stream.meter.cost_nano) == ((cost, 0), cost)
        entry = bench.entry
        assert (entry.status, entry.cost_nano, entry.charged_nano, entry.estimated) == ("posted", cost, cost, False)
        assert (entry.request_id, entry.at_us, entry.accounts) == ("req", 7, ("key:k:total",))

    asyncio.run(scenario())


def test_a_request_is_known_before_its_first_output_is_seen() -> None:
    async def scenario() -> None:
        bench = Bench()
        stream = await bench.open()
        assert bench.ledger.shown == []
        seen = [len(bench.ledger.shown) async for event in stream if type(event) is TextDelta]
        assert seen[0] == 1 and set(seen) == {1}
        assert bench.ledger.shown == [bench.entry.id]

    asyncio.run(scenario())


def test_the_last_event_waits_until_the_entry_is_durable() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.ledger.durable.clear()
        stream = await bench.open()
        for _ in range(4):
            await stream.__anext__()
        last = asyncio.ensure_future(stream.__anext__())
        await asyncio.sleep(0.01)
        assert not last.done() and bench.standing[1] == 0, "it is settled, and not yet told"
        bench.ledger.durable.set()
        assert await last is HELLO[-1]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("script", "status", "cost"),
    [
        ([EngineFailed("before")], "voided", 0),
        ([InvalidRequest("too long")], "voided", 0),
        ([HELLO[0], EngineFailed("before the first output")], "voided", 0),
        ([HELLO[0], TextDelta(0, "a"), ReasoningDelta(0, "b"), EngineFailed("died")], "posted", 10),
    ],
)
def test_what_failed_is_charged_for_what_was_sent(script: Sequence[Step], status: str, cost: int) -> None:
    async def scenario() -> None:
        bench = Bench(script)
        with pytest.raises((EngineFailed, InvalidRequest)):
            async for _ in await bench.open():
                pass
        assert (bench.entry.status, bench.entry.cost_nano, bench.standing) == (status, cost, (cost, 0))
        assert bench.entry.estimated is (status == "posted")

    asyncio.run(scenario())


def test_a_client_that_leaves_after_the_prompt_was_read_pays_for_it() -> None:
    async def scenario() -> None:
        bench = Bench()
        stream = await bench.open()
        await stream.aclose()
        await stream.aclose()
        assert (bench.entry.outcome, bench.entry.cost_nano, bench.standing) == ("cancelled", 6, (6, 0))

    asyncio.run(scenario())


def test_a_cancelled_request_that_never_began_is_void() -> None:
    async def scenario() -> None:
        bench = Bench([asyncio.Event()])
        opening = asyncio.create_task(bench.open())
        await asyncio.sleep(0.01)
        assert bench.standing[1] > 0
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert (bench.entry.status, bench.standing) == ("voided", (0, 0))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("reported", "cost"),
    [(Usage(7, 0), 7 + 4), (Usage(-7, -1), 7 + 4), (Usage(10**9, 10**9), None)],
)
def test_a_report_is_believed_where_there_is_one_and_up_to_what_was_held(reported: Usage, cost: int | None) -> None:
    async def scenario() -> None:
        script: tuple[Event, ...] = (Started(7), TextDelta(0, "a"), TextDelta(0, "b"), Finished(reported))
        bench = Bench(script)
        stream = await bench.open()
        held = bench.standing[1]
        async for _ in stream:
            pass
        assert bench.standing == (held if cost is None else cost, 0)

    asyncio.run(scenario())


def test_an_unbounded_answer_is_bounded_by_the_budget_and_told_to_the_model() -> None:
    async def scenario() -> None:
        bench = Bench(budget="0.000003000")
        await (await bench.open(None)).aclose()
        (request,) = bench.adapter.requests
        assert isinstance(request, ChatRequest)
        assert request.generation.max_tokens is not None and 16 <= request.generation.max_tokens < 1000

    asyncio.run(scenario())


def test_where_the_quick_bound_does_not_fit_the_prompt_is_counted() -> None:
    async def scenario() -> None:
        bench = Bench(budget="0.000000040")
        stream = await bench.open(10)
        assert bench.standing[1] == len("<user>hi") + 20
        await stream.aclose()
        with pytest.raises(GatewayError) as refused:
            await bench.open(30)
        assert refused.value.code == "insufficient_quota"
        assert len(bench.ledger.kept) == 1, "what was not let in has no entry"

    asyncio.run(scenario())


def test_an_adapter_that_refuses_at_once_holds_nothing() -> None:
    async def scenario() -> None:
        bench = Bench()

        def refuse(request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
            raise InvalidRequest("no images")

        bench.adapter.chat = refuse  # type: ignore[method-assign]
        with pytest.raises(InvalidRequest):
            await bench.open()
        assert (bench.entry.status, bench.standing, bench.counters.holds) == ("voided", (0, 0), 0)

    asyncio.run(scenario())


def test_a_ledger_that_is_full_lets_nothing_in() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.ledger.waiting = PENDING_MAX
        with pytest.raises(GatewayError) as refused:
            await bench.open()
        assert (refused.value.status, refused.value.code) == (503, "overloaded")
        assert bench.adapter.requests == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("request_", "context", "expected"),
    [
        (CompletionRequest("m", ("äb", (1, 2, 3)), generation=Generation(n=2)), None, Need(22, 8192, 4, True)),
        (CompletionRequest("m", ("a" * 99,), generation=Generation(max_tokens=5000)), 50, Need(50, 50, 1, False)),
        (EmbeddingRequest("m", ("abc", (1, 2))), None, Need(21)),
        (EmbeddingRequest("m", ("a" * 99, "b" * 99)), 50, Need(100)),
        (RerankRequest("m", "query", ("one", "two")), None, Need(2 * (5 + 256 + 3))),
        (
            ChatRequest("m", (Message("user", "hi"),), generation=Generation(max_tokens=1)),
            None,
            Need(1090, 1),
        ),
    ],
)
def test_the_worst_case_of_a_request(request_: Any, context: int | None, expected: Need) -> None:
    assert need_of(request_, context) == expected


def test_everything_a_conversation_holds_is_in_its_worst_case() -> None:
    plain = ChatRequest("m", (Message("user", "hi"),))
    more = msgspec.structs.replace(plain, tools=(Tool("f", "does", b'{"type":"object"}'),))
    image = ChatRequest("m", (Message("user", (TextPart("hi"), ImagePart(b"x", "image/png"))),))
    thought = ChatRequest("m", (Message("user", "hi", reasoning="why"),))
    sizes = [need_of(one, None).input_tokens for one in (plain, more, image, thought)]
    assert sizes == [1090, 1090 + 64 + 34 + 5, 1090 + 4096, 1093]


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        (TextPart("hi", cache="1h"), 2),
        (ImageUrl("https://example.com/a.png"), 4096),
        (DocumentPart(b"x" * 2048, "application/pdf"), 3 * 8192),
        (DocumentPart(b"x" * 2048, "text/plain"), 64 + 2048),
        (DocumentPart(b"", "application/pdf", url="https://example.com/a.pdf"), 1 << 20),
        (NativePart("anthropic_messages", b'{"type":"x"}'), 12),
    ],
)
def test_each_part_is_in_the_worst_case(part: Part, tokens: int) -> None:
    empty = need_of(ChatRequest("m", (Message("user"),)), None).input_tokens
    assert need_of(ChatRequest("m", (Message("user", (part,)),)), None).input_tokens - empty == tokens


class Passing(Scripted):
    """A target that takes chats as they come, and does with the sink what its test says."""

    def __init__(self, play: Callable[[Sink], Awaitable[Relayed]]) -> None:
        super().__init__()
        self.play = play
        self.inbound: Inbound | None = None

    def takes(self, inbound: Inbound) -> bool:
        return True

    async def relay(self, inbound: Inbound, caller: Caller, sink: Sink) -> Relayed:
        self.inbound = inbound
        return await self.play(sink)


class Nowhere:
    """A sink that forgets."""

    def begin(self, content_type: str) -> None:
        pass

    def write(self, data: bytes, outputs: int) -> bool:
        return True

    def when_drained(self, then: Callable[[], None]) -> None:
        raise AssertionError("nobody pauses here")


BODY = b'{"model":"m","messages":[{"role":"user","content":"%b"}]}' % (b"hello there " * 20)


def passed(
    play: Callable[[Sink], Awaitable[Relayed]], *, max_tokens: int | None = 10, cancel: bool = False
) -> tuple[Bench, Passing]:
    """A bench after one request was passed on, however it ended."""
    bench, adapter = Bench(), Passing(play)

    async def scenario() -> None:
        bench.inference._catalog = Catalog([Target("m", adapter, price=PRICE)])
        inbound = Inbound("openai_chat", BODY, Head("m", max_tokens=max_tokens))
        passage = await bench.inference.passage(bench.principal, inbound, CALLER)
        assert passage is not None
        running = asyncio.ensure_future(passage.run(Nowhere()))
        await asyncio.sleep(0)
        if cancel:
            running.cancel()
        await asyncio.wait([running])
        assert bench.counters.holds == 0
        assert bench.standing[1] == 0
        if not running.cancelled():
            running.exception()

    asyncio.run(scenario())
    return bench, adapter


def answered(usage: Usage, outputs: int = 0) -> Callable[[Sink], Awaitable[Relayed]]:
    async def play(sink: Sink) -> Relayed:
        sink.begin("text/event-stream")
        for _ in range(outputs):
            sink.write(b"data: {}\n\n", 1)
        return Relayed(Finished(usage), b"data: [DONE]\n\n", "text/event-stream")

    return play


@pytest.mark.parametrize(
    ("reported", "outputs", "prompt", "completion", "estimated"),
    [
        (Usage(7, 2), 2, 7, 2, False),
        (Usage(7, 2), 4, 7, 2, False),
        (Usage(7, 2), 50, 7, 50, False),
        (Usage(7, 0), 5, 7, 5, False),
        (Usage(), 5, None, 5, True),
    ],
)
def test_what_was_passed_on_is_charged_as_far_as_it_can_be_believed(
    reported: Usage, outputs: int, prompt: int | None, completion: int, estimated: bool
) -> None:
    bench, _ = passed(answered(reported, outputs), max_tokens=100)
    entry = bench.entry
    guess = len(BODY) // 3
    assert (entry.prompt_tokens, entry.completion_tokens) == (guess if prompt is None else prompt, completion)
    assert (entry.status, entry.estimated, entry.outcome) == ("posted", estimated, "ok")


def test_a_request_that_failed_elsewhere_costs_nothing_and_a_cut_one_what_was_sent() -> None:
    async def failing(sink: Sink) -> Relayed:
        raise EngineFailed("away")

    async def breaking(sink: Sink) -> Relayed:
        sink.begin("text/event-stream")
        sink.write(b"data: {}\n\n", 3)
        raise EngineFailed("away")

    async def hanging(sink: Sink) -> Relayed:
        await asyncio.Event().wait()
        raise AssertionError

    assert passed(failing)[0].entry.status == "voided"
    entry = passed(breaking)[0].entry
    assert (entry.status, entry.completion_tokens, entry.estimated, entry.outcome) == (
        "posted",
        3,
        True,
        "engine_failed",
    )
    assert entry.prompt_tokens > 0
    entry = passed(hanging, cancel=True)[0].entry
    assert (entry.status, entry.completion_tokens, entry.outcome) == ("posted", 0, "cancelled")
    assert entry.prompt_tokens > 0


def test_an_answer_without_a_bound_gets_the_one_that_is_held() -> None:
    _, adapter = passed(answered(Usage(7, 2)), max_tokens=None)
    assert adapter.inbound is not None and adapter.inbound.output_tokens_max is not None
    assert 0 < adapter.inbound.output_tokens_max < 8192
    _, adapter = passed(answered(Usage(7, 2)), max_tokens=5)
    assert adapter.inbound is not None and adapter.inbound.output_tokens_max is None


def test_inline_images_count_as_images() -> None:
    picture = b'{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"data:;base64,%b"}}]}]}'
    small, large = (inbound_tokens(picture % (b"x" * size)) for size in (10, 1_000_000))
    assert small < 10_000
    assert abs(small - large) < 100 + 2 * 4096
    assert inbound_tokens(b"x" * 100_000) >= 100_000


@pytest.mark.parametrize("dialect", ["openai_chat", "anthropic_messages"])
def test_images_of_large_bodies_are_counted_like_those_of_small_ones(dialect: DialectName) -> None:
    data = "QUJD" * 20_000
    shown: dict[str, Any] = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    if dialect == "anthropic_messages":
        shown = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    said = {"type": "text", "text": 'a "word" ' * 10_000}
    fields = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": [said, shown, said, shown]}]}
    body = json.dumps(fields).encode()
    head = PASSING[dialect].read_head(body)
    assert head.members is not None and head.members.cuts
    assert inbound_tokens(body, head.members) == inbound_tokens(body) < len(body) - 2 * len(data) + 10_000
