"""Models that are asked over a socket answer as they do without one."""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from adapters import errors
from adapters.errors import AdapterError, EngineFailed, InvalidRequest, ModelLoading, QueueFull
from adapters.llama_cpp import Status, messages
from adapters.llama_cpp.messages import SessionCounters
from adapters.llama_cpp.part import Counters
from adapters.llama_cpp.pool import Verb
from adapters.llama_cpp.resident import Placement
from adapters.shared import messages as say
from adapters.shared.guest import Link, Shared, SharedPool
from adapters.shared.host import Host
from adapters.types import (
    Caller,
    ChatRequest,
    ChoiceFinished,
    CompletionRequest,
    EmbeddingRequest,
    Event,
    Finished,
    ImagePart,
    Message,
    ReasoningDelta,
    RefusalDelta,
    RerankRequest,
    Started,
    TextDelta,
    TextPart,
    TokenLogprob,
    Tool,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from tests.fakes import DIAGNOSIS, HELLO, Scripted, Step, session

CALLER = Caller("r", "t", "key", 2.0, 3)
CHAT = ChatRequest(
    "m",
    (Message("user", (TextPart("hi", "5m"), ImagePart(b"\x00\xff", "image/png"))), Message("assistant", None)),
    tools=(Tool("f", "does", b'{"type":"object"}'),),
    template_arguments={"a": True, "b": 1, "c": "x"},
)
EVERYTHING: tuple[Event, ...] = (
    Started(7, 3, cache=DIAGNOSIS),
    ReasoningDelta(0, "so", signature="s"),
    TextDelta(0, "Grüße", (TokenLogprob(1, None, b"\xc3", (TopLogprob(2, -0.5, b"x"),)),)),
    RefusalDelta(1, "no"),
    ToolCallDelta(0, 0, '{"a":1}', id="c", name="f"),
    ChoiceFinished(0, "tool_calls"),
    ChoiceFinished(1, "content_filter", detail="why"),
    Finished(Usage(7, 5, 3), estimated=True),
)


class Local(Scripted):
    """A model as an engine process has one."""

    def __init__(self, script: Sequence[Step] = HELLO, name: str = "m") -> None:
        super().__init__(script)
        self.name = name
        self.counters = Counters(restarts=2)
        self.session_counters = SessionCounters(sessions=5)
        self.state: str = "ready"
        self.eta = 1.5

    def status(self) -> Status:
        return Status(
            name=self.name,
            state=self.state,  # type: ignore[arg-type]
            progress=1.0,
            reason=None,
            info=None,
            pid=42,
            queue_depth=1,
            running=2,
            busyness=None,
        )

    def eta_s(self) -> float:
        return self.eta


class Pool:
    """A pool that remembers what it was told."""

    memory_bytes_max = 30
    taken_bytes = 10

    def __init__(self) -> None:
        self.told: list[tuple[str, str, bool]] = []

    def placements(self) -> dict[str, Placement]:
        return {"m": placement(pinned=("pin", "m", False) in self.told)}

    async def do(self, verb: Verb, name: str, *, force: bool = False) -> bool:
        self.told.append((verb, name, force))
        return verb != "sleep"


def placement(*, pinned: bool) -> Placement:
    return Placement(
        inside=True,
        memory_bytes=10,
        waiting=1,
        pinned=pinned,
        lazy=False,
        priority=2,
        ttl_s=60.0,
        held=False,
        loads=3,
        load_s=1.5,
        used_s=1000.0,
    )


async def turned(body: bytes) -> bytes:
    if body == b"bad":
        raise ValueError("a bug")
    return body[::-1]


@contextlib.asynccontextmanager
async def linked(*models: Local) -> AsyncIterator[tuple[Host, Link, list[Shared]]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engine.sock"
        host, link = Host(models, path, Pool(), {"turner": turned}), Link(path)
        await host.start()
        await link.start(30)
        try:
            yield host, link, [Shared(model.name, link) for model in models]
        finally:
            await link.close()
            await host.close()
            # The ends of connections are told in a later turn.
            await asyncio.sleep(0)
            await asyncio.sleep(0)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def drained(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


def test_streams_and_values_are_the_same() -> None:
    async def scenario() -> None:
        model, direct = Local(EVERYTHING), Scripted(EVERYTHING)
        async with linked(model) as (_, _, (shared,)):
            completion = CompletionRequest("m", ("a", (1, 2)), "end", True)
            assert await drained(shared.chat(CHAT, CALLER)) == list(EVERYTHING)
            assert await drained(shared.complete(completion, CALLER)) == list(EVERYTHING)
            embedding = EmbeddingRequest("m", ("a", (1, 2)), 2)
            assert await shared.embed(embedding, CALLER) == await direct.embed(embedding, CALLER)
            ranking = RerankRequest("m", "q", ("a", "bb"))
            assert await shared.rerank(ranking, CALLER) == await direct.rerank(ranking, CALLER)
            assert model.requests == [CHAT, completion, embedding, ranking]
            assert model.callers == [CALLER] * 4
            assert await shared.tokenize("hé", special=True) == await direct.tokenize("hé", special=True)
            assert await shared.detokenize([104, 105]) == "hi"
            assert await shared.apply_template(CHAT) == await direct.apply_template(CHAT)
            assert await shared.count_tokens(CHAT) == await direct.count_tokens(CHAT)

    run(scenario)


def test_sessions() -> None:
    async def scenario() -> None:
        model = Local()
        kept = session("s1", "key")
        model.sessions[kept.id] = kept
        async with linked(model) as (_, _, (shared,)):
            assert await shared.list_sessions(None) == [kept]
            assert await shared.list_sessions("other") == []
            pinned = await shared.change_session("local", "key", "pin")
            assert pinned is not None
            assert pinned.pinned
            assert await shared.change_session("local", "nothing", "pin") is None

    run(scenario)


def test_the_pool_is_the_same() -> None:
    async def scenario() -> None:
        async with linked(Local()) as (host, link, _):
            pool = SharedPool(link)
            assert (pool.taken_bytes, pool.memory_bytes_max) == (10, 30)
            assert pool.placements() == {"m": placement(pinned=False)}
            assert await pool.do("pin", "m")
            # Whoever changed something sees it at once.
            assert pool.placements() == {"m": placement(pinned=True)}
            assert not await pool.do("sleep", "m")
            assert await pool.do("unload", "m", force=True)
            assert isinstance(host.pool, Pool)
            assert host.pool.told == [("pin", "m", False), ("sleep", "m", False), ("unload", "m", True)]

    run(scenario)


def test_other_parts_are_called() -> None:
    async def scenario() -> None:
        async with linked() as (_, link, _):
            assert await link.call("turner", b"abc") == b"cba"
            for part, body in (("turner", b"bad"), ("nobody", b"")):
                with pytest.raises(EngineFailed):
                    await link.call(part, body)

    run(scenario)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("bad", param="messages", code="context_length_exceeded"),
        QueueFull("full", retry_after_s=3.5),
        ModelLoading("loading", retry_after_s=1.0),
        errors.Timeout("late"),
    ],
)
def test_errors_are_the_same(error: AdapterError) -> None:
    async def scenario() -> None:
        for script in ((error,), (Started(1), TextDelta(0, "a"), error)):
            async with linked(Local(script)) as (_, _, (shared,)):
                with pytest.raises(type(error)) as caught:
                    await drained(shared.chat(CHAT, CALLER))
                found = caught.value
                assert (found.message, found.code, found.param) == (error.message, error.code, error.param)
                assert found.retry_after_s == error.retry_after_s
                with pytest.raises(type(error)):
                    await shared.embed(EmbeddingRequest("m", ("a",)), CALLER)

    run(scenario)


def test_every_error_has_a_way_back() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, AdapterError):
            made = kind("x", 500) if kind is errors.UpstreamRefused else kind("x")
            back = say.error_of(say.failed(1, made))
            assert type(back) is (EngineFailed if kind is errors.UpstreamRefused else kind)
    assert type(say.error_of(say.Failed(1, "os", "x", "c", None, None))) is EngineFailed


def test_a_bug_is_an_answer_too() -> None:
    async def scenario() -> None:
        async with linked(Local((ValueError("a bug"),))) as (_, _, (shared,)):
            with pytest.raises(EngineFailed) as caught:
                await drained(shared.chat(CHAT, CALLER))
            assert "bug" not in caught.value.message

    run(scenario)


def test_whoever_leaves_stops_the_work() -> None:
    async def scenario() -> None:
        model = Local((Started(1), TextDelta(0, "a"), asyncio.Event()))
        async with linked(model) as (_, _, (shared,)):
            events = shared.chat(CHAT, CALLER)
            assert [await anext(events), await anext(events)] == [Started(1), TextDelta(0, "a")]
            await events.aclose()  # type: ignore[attr-defined]
            await until(lambda: model.closed == 1)
            model.script = (asyncio.Event(),)
            asking = asyncio.create_task(shared.embed(EmbeddingRequest("m", ("a",)), CALLER))
            await until(lambda: len(model.requests) == 2)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    run(scenario)


def test_what_nobody_takes_is_not_sent() -> None:
    async def scenario() -> None:
        class Counting(Local):
            made = 0

            async def _play(self, request: ChatRequest | CompletionRequest, caller: Caller) -> AsyncIterator[Event]:
                yield Started(1)
                for i in range(4 * say.WINDOW):
                    self.made = i + 1
                    yield TextDelta(0, str(i))
                yield ChoiceFinished(0, "length")
                yield Finished(Usage())

        model = Counting()
        async with linked(model) as (_, _, (shared,)):
            events = shared.chat(CHAT, CALLER)
            await anext(events)
            await until(lambda: model.made >= say.WINDOW)
            await shared.tokenize("others go on", special=False)
            assert model.made <= say.WINDOW + 1
            said = [event.text async for event in events if isinstance(event, TextDelta)]
            assert said == [str(i) for i in range(4 * say.WINDOW)]

    run(scenario)


def test_how_a_model_is() -> None:
    async def scenario() -> None:
        model = Local()
        async with linked(model) as (_, _, (shared,)):
            assert (shared.status(), shared.card, shared.eta_s()) == (model.status(), model.card, 1.5)
            assert (shared.counters.restarts, shared.session_counters.sessions) == (2, 5)
            model.state, model.eta = "failed", math.inf
            await until(lambda: shared.status().state == "failed")
            assert shared.eta_s() == math.inf
            missing = Shared("other", shared._link)
            assert (missing.status().state, missing.eta_s()) == ("loading", math.inf)
            with pytest.raises(errors.ModelUnavailable):
                await missing.tokenize("x", special=False)

    run(scenario)


def test_the_end_of_the_engines_fails_what_runs_and_they_are_found_again() -> None:
    async def scenario() -> None:
        model = Local((Started(1), asyncio.Event()))
        async with linked(model) as (host, _, (shared,)):
            events = shared.chat(CHAT, CALLER)
            await anext(events)
            asking = asyncio.create_task(shared.embed(EmbeddingRequest("m", ("a",)), CALLER))
            await until(lambda: len(model.requests) == 2)
            await host.close()
            for work in (anext(events), asking):
                with pytest.raises(EngineFailed):
                    await work
            assert (shared.status().state, shared.eta_s()) == ("restarting", math.inf)
            with pytest.raises(ModelLoading) as caught:
                await shared.tokenize("x", special=False)
            assert caught.value.retry_after_s == 1.0
            model.script = HELLO
            again = Host([model], host._path)
            await again.start()
            await until(lambda: shared.status().state == "ready")
            assert await drained(shared.chat(CHAT, CALLER)) == list(HELLO)
            await again.close()

    run(scenario)


def test_processes_know_what_the_others_count() -> None:
    async def scenario() -> None:
        async with linked(Local()) as (host, link, _):
            other = Link(host._path)
            await other.start(30)
            link.share_metrics(0, lambda: b"zero", 0.001)
            other.share_metrics(1, lambda: b"one", 0.001)
            await until(lambda: link.metrics == {1: b"one"} and other.metrics == {0: b"zero"})
            await other.close()
            await until(lambda: link.metrics == {})

    run(scenario)


@pytest.mark.parametrize("text", ["x" * 5000, "\xff" * 1500])
def test_what_is_too_large_for_a_frame_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A question, or only its answer."""
    monkeypatch.setattr(messages, "FRAME_BYTES_MAX", 4096)

    async def scenario() -> None:
        async with linked(Local()) as (_, _, (shared,)):
            with pytest.raises(InvalidRequest) as caught:
                await shared.tokenize(text, special=False)
            assert caught.value.code == "request_too_large"
            assert await shared.detokenize([104]) == "h"

    run(scenario)


def test_answers_that_are_too_large_together_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "FRAME_BYTES_MAX", 4096)

    async def scenario() -> None:
        async with linked(Local()) as (_, _, (shared,)):
            asked = [shared.tokenize("\xff" * 800, special=False) for _ in range(5)]
            assert {len(answer) for answer in await asyncio.gather(*asked)} == {1600}

    run(scenario)
