from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from adapters.errors import AdapterError, EngineFailed, InvalidRequest, QueueFull, Timeout
from adapters.types import (
    Caller,
    ChatRequest,
    ChoiceFinished,
    CompletionRequest,
    EmbeddingRequest,
    Event,
    Finished,
    Message,
    ModelCard,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from gateway.auth import Principal
from gateway.catalog import Catalog, Target
from gateway.errors import GatewayError
from gateway.inference import Inference
from gateway.streams import Stream
from gateway.telemetry import Telemetry
from tests.fakes import HELLO, Scripted, Step
from tests.gateway.api.wire import run

PRINCIPAL = Principal(tenant="t", key_id="k", name="n")
CALLER = Caller("r", "t")
REQUEST = ChatRequest("m", (Message("user", "hi"),))


class Bench:
    """An inference over one scripted model, its clock, and what was counted."""

    def __init__(self, script: Sequence[Step] = HELLO, *, card: ModelCard | None = None, **timeouts: float) -> None:
        self.adapter = Scripted(script, card=card)
        self.telemetry = Telemetry("0")
        self.now_s = 0.0
        catalog = Catalog([Target("model", self.adapter, aliases=("m",))])
        self.inference = Inference(
            catalog, self.telemetry, None, None, guardrails=None, clock=lambda: self.now_s, **timeouts
        )

    async def open(self) -> Stream:
        return await self.inference.chat(PRINCIPAL, REQUEST, CALLER)

    def counted(self, name: str) -> list[str]:
        """The samples of a metric as they are scraped, without its name and zeros."""
        lines = self.telemetry.render().decode().splitlines()
        return [line.removeprefix(f"gateway_{name}") for line in lines if line.startswith(f"gateway_{name}{{")]

    def outcomes(self) -> list[str]:
        return [line.split('outcome="')[1].replace('"}', "") for line in self.counted("inference_requests_total")]


async def rest(stream: Stream) -> list[Event]:
    return [event async for event in stream]


def test_the_first_event_is_awaited_and_handed_out_once() -> None:
    async def scenario() -> None:
        bench = Bench()
        stream = await bench.open()
        assert stream.started is HELLO[0]
        assert stream.target.name == "model"
        assert bench.outcomes() == []
        assert await rest(stream) == list(HELLO)
        assert await rest(stream) == []
        await stream.aclose()
        assert bench.outcomes() == ["ok 1"]
        assert bench.counted("prompt_tokens_total") == ['{model="model"} 7']
        assert bench.counted("completion_tokens_total") == ['{model="model"} 2']
        assert bench.counted("cached_tokens_total") == ['{model="model"} 3']
        assert (bench.adapter.requests, bench.adapter.callers, bench.adapter.closed) == ([REQUEST], [CALLER], 0)

    run(scenario())


def test_times_are_counted_between_outputs() -> None:
    async def scenario() -> None:
        bench = Bench([HELLO[0], TextDelta(0, "a"), ToolCallDelta(0, 0), TextDelta(0, "b"), *HELLO[3:]])
        async for event in await bench.open():
            bench.now_s += 0.4 if isinstance(event, Started) else 2
        assert bench.counted("time_to_first_token_seconds_sum") == ['{model="model"} 0.4']
        assert bench.counted("inter_token_gap_seconds_count") == ['{model="model"} 2']
        assert bench.counted("inter_token_gap_seconds_sum") == ['{model="model"} 4']

    run(scenario())


class Diverting:
    """A stream that offers two outputs the short way while its reader waits."""

    def __init__(self) -> None:
        self._take: Callable[[Event], bool] | None = None
        self._events = iter(HELLO)

    def __aiter__(self) -> Diverting:
        return self

    async def __anext__(self) -> Event:
        event = next(self._events, None)
        if event is None:
            raise StopAsyncIteration
        if isinstance(event, ChoiceFinished) and self._take is not None:
            assert (self._take(TextDelta(0, "taken")), self._take(TextDelta(0, "declined"))) == (True, False)
        return event

    def divert(self, take: Callable[[Event], bool]) -> None:
        self._take = take


def test_what_goes_the_short_way_is_counted_when_it_was_taken() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.adapter.chat = lambda request, caller: Diverting()  # type: ignore[method-assign]
        stream = await bench.open()

        def taker(note: Callable[[Event], None]) -> Callable[[Event], bool]:
            def take(event: Event) -> bool:
                if event == TextDelta(0, "taken"):
                    note(event)
                return event == TextDelta(0, "taken")

            return take

        stream.divert(taker)
        assert await rest(stream) == list(HELLO)
        assert sum(isinstance(event, TextDelta) for event in HELLO) == 2
        assert bench.counted("inter_token_gap_seconds_count") == ['{model="model"} 2']

    run(scenario())


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [(QueueFull("full", retry_after_s=3), "queue_full"), (ZeroDivisionError(), "internal_error")],
)
def test_a_failure_before_the_first_event_is_raised_by_the_call(failure: Exception, outcome: str) -> None:
    async def scenario() -> None:
        bench = Bench([failure])
        with pytest.raises(type(failure)) as caught:
            await bench.open()
        assert caught.value is failure
        assert bench.outcomes() == [f"{outcome} 1"]
        assert bench.counted("prompt_tokens_total") == ['{model="model"} 0']

    run(scenario())


def test_a_failure_in_the_stream_counts_what_was_sent() -> None:
    async def scenario() -> None:
        bench = Bench([*HELLO[:3], EngineFailed("died")])
        stream = await bench.open()
        with pytest.raises(EngineFailed):
            await rest(stream)
        await stream.aclose()
        assert bench.outcomes() == ["engine_failed 1"]
        assert bench.counted("prompt_tokens_total") == ['{model="model"} 7']
        assert bench.counted("completion_tokens_total") == ['{model="model"} 2']

    run(scenario())


@pytest.mark.parametrize("script", [[], HELLO[1:], HELLO[:4]])
def test_an_answer_without_beginning_or_end_is_a_failure(script: Sequence[Step]) -> None:
    async def scenario() -> None:
        bench = Bench(script)
        with pytest.raises(EngineFailed):
            await rest(await bench.open())
        assert bench.outcomes() == ["engine_failed 1"]

    run(scenario())


def test_closing_is_the_clients_cancellation() -> None:
    async def scenario() -> None:
        bench = Bench()
        stream = await bench.open()
        await stream.__anext__()
        await stream.__anext__()
        await stream.aclose()
        await stream.aclose()
        assert bench.adapter.closed == 1
        assert bench.outcomes() == ["cancelled 1"]
        assert bench.counted("completion_tokens_total") == ['{model="model"} 1']

    run(scenario())


@pytest.mark.parametrize("blocked_at", [0, 2])
def test_cancelling_the_reader_stops_the_adapter(blocked_at: int) -> None:
    async def scenario() -> None:
        never = asyncio.Event()
        bench = Bench([*HELLO[:blocked_at], never])

        async def read() -> None:
            await rest(await bench.open())

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bench.adapter.closed == 1
        assert bench.outcomes() == ["cancelled 1"]

    run(scenario())


@pytest.mark.parametrize(("sent", "timeouts"), [(0, {"first_event_timeout_s": 0.01}), (2, {"total_timeout_s": 0.01})])
def test_time_outs(sent: int, timeouts: Any) -> None:
    async def scenario() -> None:
        bench = Bench([*HELLO[:sent], asyncio.Event()], **timeouts)
        with pytest.raises(Timeout):
            await rest(await bench.open())
        assert bench.adapter.closed == 1
        assert bench.outcomes() == ["upstream_timeout 1"]
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0

    run(scenario())


def test_a_time_out_while_nobody_reads_waits_for_the_reader() -> None:
    async def scenario() -> None:
        bench = Bench(total_timeout_s=0)
        stream = await bench.open()
        await asyncio.sleep(0.001)
        assert await stream.__anext__() is HELLO[0]
        with pytest.raises(Timeout):
            await stream.__anext__()
        await stream.aclose()
        assert bench.adapter.closed == 1
        assert bench.outcomes() == ["upstream_timeout 1"]

    run(scenario())


def test_a_client_that_leaves_as_the_time_runs_out_is_still_cancelled() -> None:
    async def scenario() -> None:
        bench = Bench([HELLO[0], asyncio.Event()])
        stream = await bench.open()
        task = asyncio.create_task(rest(stream))
        await asyncio.sleep(0)
        stream._expire()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario())


def test_kinds_must_fit() -> None:
    async def scenario() -> None:
        bench = Bench(card=ModelCard(kinds=("embedding",)))
        for work in (
            bench.inference.chat(PRINCIPAL, REQUEST, CALLER),
            bench.inference.complete(PRINCIPAL, CompletionRequest("m", ("x",)), CALLER),
        ):
            with pytest.raises(InvalidRequest) as caught:
                await work
            assert caught.value.param == "model"
        with pytest.raises(InvalidRequest):
            await Bench(card=ModelCard()).inference.embed(PRINCIPAL, EmbeddingRequest("m", ("x",)), CALLER)
        assert bench.adapter.requests == []
        assert bench.outcomes() == []

    run(scenario())


def test_unknown_models() -> None:
    async def scenario() -> None:
        with pytest.raises(GatewayError) as caught:
            await Bench().inference.chat(PRINCIPAL, ChatRequest("x", ()), CALLER)
        assert caught.value.code == "model_not_found"

    run(scenario())


def test_embedding() -> None:
    async def scenario() -> None:
        bench = Bench([])
        embeddings, meter = await bench.inference.embed(PRINCIPAL, EmbeddingRequest("m", ("abc", (1, 2))), CALLER)
        assert meter.rooms == (None, None)
        assert embeddings.prompt_tokens == 5
        assert bench.outcomes() == ["ok 1"]
        assert bench.counted("prompt_tokens_total") == ['{model="model"} 5']

    run(scenario())


@pytest.mark.parametrize(
    ("step", "raised", "outcome"),
    [(QueueFull("full"), QueueFull, "queue_full"), (None, Timeout, "upstream_timeout")],
)
def test_embedding_that_fails(step: Step | None, raised: type[AdapterError], outcome: str) -> None:
    async def scenario() -> None:
        bench = Bench([step or asyncio.Event()], first_event_timeout_s=0.01)
        with pytest.raises(raised):
            await bench.inference.embed(PRINCIPAL, EmbeddingRequest("m", ("abc",)), CALLER)
        assert bench.outcomes() == [f"{outcome} 1"]

    run(scenario())


def test_the_only_model_need_not_be_named() -> None:
    async def scenario() -> None:
        inference = Bench().inference
        assert await inference.tokenize(PRINCIPAL, None, "a", special=True) == [1, 97]
        assert await inference.detokenize(PRINCIPAL, "m", [97]) == "a"
        assert await inference.apply_template(PRINCIPAL, ChatRequest("", REQUEST.messages)) == ("<user>hi", 8)

    run(scenario())


class Bare:
    """An iterator without `aclose`, as the protocol allows."""

    def __init__(self) -> None:
        self._events = iter([HELLO[0], Finished(Usage())])

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        return next(self._events)


def test_plain_iterators_serve_too() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.adapter.chat = lambda request, caller: Bare()  # type: ignore[method-assign]
        stream = await bench.open()
        await stream.aclose()
        assert bench.outcomes() == ["cancelled 1"]

    run(scenario())


def test_whether_addresses_of_images_may_stay() -> None:
    for card in (ModelCard(), ModelCard(image_urls=True)):
        assert Bench(card=card).inference.takes_image_urls(PRINCIPAL, REQUEST) == card.image_urls
