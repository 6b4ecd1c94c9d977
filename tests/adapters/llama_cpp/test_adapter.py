"""The adapter over a fake worker: streams, refusals, leaving, death, tools, embeddings, the tokeniser."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from adapters.errors import (
    AdapterError,
    EngineFailed,
    InvalidRequest,
    ModelLoading,
    ModelUnavailable,
    QueueFull,
)
from adapters.llama_cpp import LlamaCpp, cut, messages
from adapters.llama_cpp.generation import merged
from adapters.llama_cpp.messages import Delta, EngineSettings
from adapters.llama_cpp.process import Timing
from adapters.types import (
    CacheDiagnosis,
    Caller,
    ChatRequest,
    ChoiceFinished,
    CompletionRequest,
    Divergence,
    DocumentPart,
    EmbeddingRequest,
    Event,
    Finished,
    Generation,
    Message,
    NativePart,
    Started,
    TextDelta,
    TextPart,
    TokenLogprob,
    Tool,
    ToolCallDelta,
    ToolChoice,
    Usage,
)
from tests.adapters.llama_cpp.fake_worker import PARALLEL, session
from tests.adapters.llama_cpp.test_process import argv, run


def caller(tenant: str = "a") -> Caller:
    return Caller(request_id="r", tenant=tenant)


def chat(text: str, **more: object) -> ChatRequest:
    return ChatRequest("m", (Message("user", text),), **more)  # type: ignore[arg-type]


def with_adapter(
    test: Callable[[LlamaCpp], Awaitable[None]], scenario: str = "plain", queue_depth_max: int = 64
) -> None:
    async def body() -> None:
        adapter = LlamaCpp(
            "m", "m.gguf", EngineSettings(), queue_depth_max=queue_depth_max, argv=argv(scenario), timing=Timing()
        )
        await adapter.start()
        try:
            await test(adapter)
        finally:
            await adapter.close()
        for line in (adapter._places, adapter._preparing, adapter._embedding):
            assert (line.queue.waiting, line.queue.running, line.queue.slots_taken) == (0, 0, 0)
        assert adapter._worker.sinks == 0

    run(body)


async def collect(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


async def first_delta(events: AsyncIterator[Event]) -> None:
    async for event in events:
        if isinstance(event, TextDelta):
            return


async def until(condition: Callable[[], bool]) -> None:
    """Look until it is so: what is looked at here has no event of its own. `run` bounds the time."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.002)


def text_of(events: list[Event], choice: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta) and event.choice == choice)


def test_a_stream_from_start_to_end() -> None:
    async def test(adapter: LlamaCpp) -> None:
        events = await collect(adapter.chat(chat("say 3 hi"), caller()))
        started, *_, choice, finished = events
        assert isinstance(started, Started)
        assert (started.prompt_tokens, started.cached_tokens, started.prefill_us) == (3, 1, 500)
        assert text_of(events) == " hi hi hi"
        assert choice == ChoiceFinished(0, "stop")
        assert isinstance(finished, Finished)
        assert finished.usage == Usage(prompt_tokens=3, completion_tokens=3, cached_tokens=1)
        assert (finished.timings.prefill_us, finished.timings.decode_us) == (500, 900)
        counters = adapter.counters
        assert (counters.requests, counters.prompt_tokens, counters.completion_tokens) == (1, 3, 3)
        assert (counters.cached_tokens, counters.cancelled) == (1, 0)
        assert adapter.card.kinds == ("chat", "completion")

    with_adapter(test)


def test_choices_of_one_request() -> None:
    async def test(adapter: LlamaCpp) -> None:
        events = await collect(adapter.chat(chat("say 2 hi", generation=Generation(n=6)), caller()))
        assert [text_of(events, choice) for choice in range(6)] == [" hi hi"] * 6
        assert sum(isinstance(event, ChoiceFinished) for event in events) == 6
        assert isinstance(events[-1], Finished)
        assert events[-1].usage == Usage(prompt_tokens=3, completion_tokens=12, cached_tokens=1)

    with_adapter(test)


def test_several_prompts_use_one_waiting_place() -> None:
    async def test(adapter: LlamaCpp) -> None:
        prompts: tuple[str | tuple[int, ...], ...] = (*[f"say 5 p{index}" for index in range(9)], (1, 2))
        request = CompletionRequest("m", prompts, generation=Generation(n=2))
        events = []
        async for event in adapter.complete(request, caller()):
            assert adapter.status().queue_depth <= 1
            events.append(event)
        for index in range(9):
            assert text_of(events, 2 * index) == text_of(events, 2 * index + 1) == f" p{index}" * 5
        assert text_of(events, 19) == " token token"
        assert sum(isinstance(event, Started) for event in events) == 1
        assert isinstance(events[0], Started)
        assert events[0].prompt_tokens == 30
        assert isinstance(events[-1], Finished)
        assert events[-1].usage == Usage(prompt_tokens=30, completion_tokens=94, cached_tokens=10)

    with_adapter(test, queue_depth_max=1)


def test_refusals_come_before_the_first_event() -> None:
    async def test(adapter: LlamaCpp) -> None:
        with pytest.raises(InvalidRequest) as refusal:
            await collect(adapter.chat(chat("refuse"), caller()))
        assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "messages")
        with pytest.raises(InvalidRequest):
            await collect(adapter.complete(CompletionRequest("m", ("say 3 x", "refuse")), caller()))
        with pytest.raises(ModelUnavailable):
            await collect(adapter.chat(chat("unstartable"), caller()))
        with pytest.raises(InvalidRequest) as wrong_kind:
            await adapter.embed(EmbeddingRequest("m", ("x",)), caller())
        assert wrong_kind.value.param == "model"
        with pytest.raises(InvalidRequest):
            await collect(adapter.complete(CompletionRequest("m", ()), caller()))
        await until(lambda: adapter._worker.sinks == 0)

    with_adapter(test)


def test_a_full_queue_refuses_the_surplus_at_once() -> None:
    async def test(adapter: LlamaCpp) -> None:
        tasks = [asyncio.create_task(collect(adapter.chat(chat("forever"), caller()))) for _ in range(30)]
        await until(lambda: sum(task.done() for task in tasks) == 30 - PARALLEL - 10)
        assert adapter.status().queue_depth == 10
        assert adapter.status().running == PARALLEL
        refusals = [task.exception() for task in tasks if task.done()]
        waits = [refusal.retry_after_s for refusal in refusals if isinstance(refusal, QueueFull)]
        assert len(waits) == len(refusals) == adapter.counters.rejected
        assert all(wait is not None and wait > 0 for wait in waits)
        assert len(set(waits)) > 1, "a herd is spread"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert adapter.status().queue_depth == 0
        await until(lambda: adapter.status().running == 0)

    with_adapter(test, queue_depth_max=10)


def produced(adapter: LlamaCpp) -> int:
    """The tokens of the answers under way."""
    return sum(entry.produced for entry in adapter._places.queue._running.values())


def test_a_newcomer_takes_the_place_of_a_flood() -> None:
    async def test(adapter: LlamaCpp) -> None:
        flood = [asyncio.create_task(collect(adapter.chat(chat("forever"), caller("flood")))) for _ in range(8)]
        await until(lambda: adapter.status().queue_depth == 4)
        newcomer = asyncio.create_task(collect(adapter.chat(chat("say 1 x"), caller("small"))))
        await until(lambda: any(task.done() for task in flood))
        assert [task for task in flood if task.done()] == [flood[-1]]
        with pytest.raises(QueueFull):
            await flood[-1]
        served = produced(adapter)
        await until(lambda: produced(adapter) > served)
        flood[0].cancel()
        assert text_of(await newcomer) == " x", "the tenant served least goes next"
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        await until(lambda: adapter.status().running == 0)

    with_adapter(test, queue_depth_max=4)


@pytest.mark.parametrize("prompt", ["hang", "forever"])
def test_leaving_by_cancellation(prompt: str) -> None:
    async def test(adapter: LlamaCpp) -> None:
        task = asyncio.create_task(collect(adapter.chat(chat(prompt), caller())))
        await until(lambda: adapter._preparing.queue.running + adapter._places.queue.running > 0)
        if prompt == "forever":
            await until(lambda: produced(adapter) > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: adapter._worker.sinks == 0)
        assert adapter.counters.cancelled == 1

    with_adapter(test)


def test_leaving_by_closing_the_stream() -> None:
    async def test(adapter: LlamaCpp) -> None:
        events = adapter.chat(chat("forever"), caller())
        await first_delta(events)
        assert adapter.status().running == 1
        await events.aclose()  # type: ignore[attr-defined]
        assert adapter.status().running == 1, "the slot is free when the worker says so"
        await until(lambda: adapter.status().running == 0)

    with_adapter(test)


def test_leaving_the_queue_frees_the_place_at_once() -> None:
    async def test(adapter: LlamaCpp) -> None:
        tasks = [asyncio.create_task(collect(adapter.chat(chat("forever"), caller()))) for _ in range(PARALLEL + 1)]
        await until(lambda: adapter.status().queue_depth == 1)
        tasks[-1].cancel()
        await asyncio.gather(tasks[-1], return_exceptions=True)
        assert adapter.status().queue_depth == 0
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: adapter._worker.sinks == 0)

    with_adapter(test)


def test_death_of_the_worker() -> None:
    """Streams end with EngineFailed; those who wait or prepare may try again; the next life serves."""

    async def test(adapter: LlamaCpp) -> None:
        streams = [adapter.chat(chat("forever"), caller()) for _ in range(PARALLEL - 1)]
        for stream in streams:
            await first_delta(stream)
        crash = asyncio.create_task(collect(adapter.chat(chat("say 1000 x"), caller())))
        await until(lambda: adapter.status().running == PARALLEL)
        queued = asyncio.create_task(collect(adapter.chat(chat("forever"), caller())))
        preparing = asyncio.create_task(collect(adapter.chat(chat("hang"), caller())))
        await until(lambda: adapter.status().queue_depth == 1 and adapter._preparing.queue.running == 1)
        pid = adapter.status().pid
        with pytest.raises(ModelLoading):
            await adapter.tokenize("crash", special=True)
        for stream in streams:
            with pytest.raises(EngineFailed):
                await collect(stream)
        with pytest.raises(EngineFailed):
            await crash
        for task in (queued, preparing):
            with pytest.raises(ModelLoading):
                await task
        with pytest.raises(ModelLoading) as loading:
            await collect(adapter.chat(chat("say 1 x"), caller()))
        assert loading.value.retry_after_s is not None
        await until(lambda: adapter.status().state == "ready")
        assert adapter.status().pid != pid
        assert text_of(await collect(adapter.chat(chat("say 1 x"), caller()))) == " x"
        assert adapter.counters.restarts == 1

    with_adapter(test)


def test_a_lagging_consumer_loses_nothing_and_holds_little() -> None:
    async def test(adapter: LlamaCpp) -> None:
        events = adapter.chat(chat("burst 50000 ab"), caller())
        assert isinstance(await anext(events), Started)
        rest = await collect(events)
        assert text_of(rest) == " ab" * 50_000
        assert len(rest) < 200
        assert isinstance(rest[-1], Finished)
        assert rest[-1].usage.completion_tokens == 50_000

    with_adapter(test)


def test_what_is_too_large_for_the_worker_is_refused_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "FRAME_BYTES_MAX", 4096)

    async def test(adapter: LlamaCpp) -> None:
        long = "x " * 4096
        asked = (
            collect(adapter.chat(chat(long), caller())),
            collect(adapter.complete(CompletionRequest("m", ("say 1 x", long)), caller())),
            adapter.tokenize(long, special=True),
        )
        for refused in asked:
            with pytest.raises(InvalidRequest) as caught:
                await refused
            assert caught.value.code == "request_too_large"
        await until(lambda: not adapter.busy)
        assert text_of(await collect(adapter.chat(chat("say 1 x"), caller()))) == " x"
        assert adapter.counters.restarts == adapter._questions == 0

    with_adapter(test)


def test_merging_keeps_each_choice_in_order() -> None:
    logprob = TokenLogprob(1, -0.5, b"a")
    deltas = [
        Delta(1, 0, "a", 1, None, (logprob,), cached_tokens=3, prefill_us=4),
        Delta(1, 1, "x", 1),
        Delta(1, 0, "b", 2, "stop", (logprob, logprob), decode_us=9),
        Delta(2, 0, "z", 1),
    ]
    assert [(one.id, one.choice, one.text, one.finish, len(one.logprobs)) for one in merged(deltas)] == [
        (1, 0, "ab", "stop", 3),
        (1, 1, "x", None, 0),
        (2, 0, "z", None, 0),
    ]


def test_held_back_text_still_starts_the_stream() -> None:
    async def test(adapter: LlamaCpp) -> None:
        events = await collect(adapter.chat(chat("held"), caller()))
        assert [type(event) for event in events] == [Started, TextDelta, ChoiceFinished, Finished]
        assert isinstance(events[-1], Finished)
        assert events[-1].usage.completion_tokens == 3

    with_adapter(test)


def test_tool_calls_are_parsed_out_of_the_text() -> None:
    async def test(adapter: LlamaCpp) -> None:
        request = chat("call", tools=(Tool("weather"),))
        events = await collect(adapter.chat(request, caller()))
        assert text_of(events).strip() == "Let me see."
        calls = [event for event in events if isinstance(event, ToolCallDelta)]
        assert (calls[0].name, "".join(call.arguments for call in calls)) == ("weather", '{"city": "Rome"}')
        assert (calls[0].id or "").startswith("call_")
        assert ChoiceFinished(0, "tool_calls") in events
        request = chat("call", tools=(Tool("weather"),), tool_choice=ToolChoice("none"))
        events = await collect(adapter.chat(request, caller()))
        assert "<tool_call>" in text_of(events)
        assert ChoiceFinished(0, "stop") in events

    with_adapter(test)


def test_embeddings() -> None:
    async def test(adapter: LlamaCpp) -> None:
        whole = await adapter.embed(EmbeddingRequest("m", ("x", (1, 2))), caller())
        assert (len(whole.vectors), whole.dimensions, whole.prompt_tokens) == (2, 4, 2)
        short = await adapter.embed(EmbeddingRequest("m", ("x",), dimensions=2), caller())
        assert struct.unpack("<2f", short.vectors[0]) == pytest.approx((0.5**0.5, 0.5**0.5))
        for dimensions in (0, 5):
            with pytest.raises(InvalidRequest) as refusal:
                await adapter.embed(EmbeddingRequest("m", ("x",), dimensions=dimensions), caller())
            assert refusal.value.param == "dimensions"
        with pytest.raises(InvalidRequest) as wrong_kind:
            await collect(adapter.chat(chat("say 1 x"), caller()))
        assert wrong_kind.value.param == "model"
        assert adapter.card.kinds == ("embedding",)
        assert cut(struct.pack("<2f", 0, 0), 1) == struct.pack("<f", 0)
        hanging = asyncio.create_task(adapter.embed(EmbeddingRequest("m", ("hang",)), caller()))
        await until(lambda: adapter.status().running == 1)
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
        await until(lambda: adapter.status().running == 0)

    with_adapter(test, scenario="embedder")


def test_the_tokeniser() -> None:
    async def test(adapter: LlamaCpp) -> None:
        assert await adapter.tokenize("a b c", special=False) == [0, 1, 2]
        assert await adapter.detokenize([104, 105]) == "hi"
        assert await adapter.apply_template(chat("one two")) == ("one two", 2)
        assert adapter._questions == 0

    with_adapter(test)


def test_a_model_that_failed_to_load_says_so() -> None:
    async def test(adapter: LlamaCpp) -> None:
        await until(lambda: adapter.status().state == "failed")
        calls: list[Awaitable[object]] = [
            collect(adapter.chat(chat("say 1 x"), caller())),
            adapter.embed(EmbeddingRequest("m", ("x",)), caller()),
            adapter.tokenize("x", special=True),
        ]
        for call in calls:
            with pytest.raises(AdapterError) as failure:
                await call
            assert failure.value.code == "model_invalid"

    with_adapter(test, scenario="invalid")


def test_sessions_are_listed_and_changed_by_tenant() -> None:
    async def body(adapter: LlamaCpp) -> None:
        for tenant in ("a", "b"):
            await collect(adapter.chat(chat("say 2 x"), Caller("r", tenant, "talk")))
        mine = session("a", "talk")
        assert await adapter.list_sessions("a") == [mine]
        assert await adapter.list_sessions(None) == [mine, session("b", "talk")]
        assert await adapter.change_session("a", "talk", "pin") == mine
        assert await adapter.change_session("a", "talk", "fork", "copy") == session("a", "copy")
        assert await adapter.change_session("a", "sess_copy", "delete") == session("a", "copy")
        assert await adapter.change_session("a", "copy", "delete") is None
        assert await adapter.list_sessions("a") == [mine]

    with_adapter(body)


def test_an_embedding_model_has_no_sessions() -> None:
    async def body(adapter: LlamaCpp) -> None:
        assert await adapter.list_sessions(None) == []
        assert await adapter.change_session("a", "talk", "pin") is None

    with_adapter(body, "embedder")


def test_a_diagnosis_comes_with_the_first_event_when_it_is_asked_for() -> None:
    async def body(adapter: LlamaCpp) -> None:
        events = await collect(adapter.chat(chat("say 2 x"), Caller("r", "a", "talk", explain_cache=True)))
        assert isinstance(events[0], Started)
        assert events[0].cache == CacheDiagnosis(
            cached_tokens=1,
            session_tokens=2,
            recomputed_tokens=3,
            recompute_us=400,
            restore_us=100,
            tier="ram",
            divergence=Divergence(1, 0, "user", "b", "c"),
        )
        assert (await collect(adapter.chat(chat("say 2 x"), caller())))[0].cache is None  # type: ignore[union-attr]

    with_adapter(body)


def test_what_only_a_provider_can_read_is_refused_by_its_part() -> None:
    document = Message("user", (TextPart("a"), DocumentPart(b"%PDF", "application/pdf")))
    native = Message("user", (NativePart("anthropic_messages", b'{"type":"container_upload"}'),))
    search = NativePart("anthropic_messages", b'{"type":"web_search_20250305"}')

    async def test(adapter: LlamaCpp) -> None:
        for message, words in ((document, "documents that are text"), (native, "parts of this type")):
            for work in (_drained(adapter, ChatRequest("m", (message,))), _rendered(adapter, message)):
                with pytest.raises(InvalidRequest, match=words) as caught:
                    await work
                assert (caught.value.param or "").startswith("messages[0].content[")
        with pytest.raises(InvalidRequest, match="only takes functions"):
            await _drained(adapter, chat("plain", native_tools=(search,)))

    with_adapter(test)


async def _drained(adapter: LlamaCpp, request: ChatRequest) -> None:
    async for _ in adapter.chat(request, caller()):
        pass


async def _rendered(adapter: LlamaCpp, message: Message) -> None:
    await adapter.apply_template(ChatRequest("m", (message,)))
