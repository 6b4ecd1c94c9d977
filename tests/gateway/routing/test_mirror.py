"""Copies for a shadow target: which requests, how many at once, and that nobody notices."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Literal, get_args

import pytest
from msgspec.structs import replace

from adapters.errors import AdapterError
from adapters.scripted import Answer, Script, Scripted
from adapters.types import (
    Caller,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Event,
    Head,
    Inbound,
    Kind,
    NativePart,
    RerankRequest,
)
from gateway.config_providers import MirrorConfig
from gateway.routing.backoff import RetryBudget
from gateway.routing.balance import RouteSettings
from gateway.routing.breaker import Breaker
from gateway.routing.mirror import Mirror
from gateway.routing.router import Router
from gateway.routing.standing import Standing
from gateway.routing.trip import Target
from tests.adapters.upstream import until
from tests.gateway.routing.scenes import GONE, REQUEST, Passing, Shown, run

BODY = b'{"model":"route","messages":[{"role":"user","content":"hi"}],"stream":true}'
COMING = Inbound("openai_chat", BODY, Head("route", stream=True), headers=(("anthropic-beta", "x"),))
CALLER = Caller("r", "t", session_key="talk")


class Shadow(Scripted):
    """Remembers what it was asked; answers when it is let go."""

    def __init__(self, failure: AdapterError | None = None) -> None:
        super().__init__("shadow", Script(answers=(Answer(text="I am a shadow"),), kinds=get_args(Kind)))
        self.asked: list[tuple[ChatRequest, Caller]] = []
        self.failure = failure
        self.go = asyncio.Event()

    def chat(self, request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
        return self._late(super().chat(request, caller), request, caller)

    async def _late(self, events: AsyncIterator[Event], request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
        self.asked.append((request, caller))
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        async for event in events:
            yield event


class Scene:
    """A mirror, and what was told of it."""

    def __init__(self, shadow: Scripted, **settings: float) -> None:
        self.outcomes: Counter[str] = Counter()
        self.times: list[str] = []
        self.mirror = Mirror(
            "route",
            [shadow],
            MirrorConfig(provider="p", model="shadow", **settings),  # type: ignore[arg-type]
            told=self._told,
            timed=self._timed,
            draw=random.Random(5).random,
        )

    def _told(self, outcome: str) -> None:
        self.outcomes[outcome] += 1

    def _timed(self, side: Literal["real", "shadow"], seconds: float) -> None:
        self.times.append(side)


@pytest.mark.parametrize(
    "request_",
    [REQUEST, CompletionRequest("route", ("x",)), EmbeddingRequest("route", ("x",)),
     RerankRequest("route", "x", ("x",)), COMING,
     replace(COMING, head=Head("route"), body=BODY.replace(b"true", b"false"))],
    ids=["chat", "completion", "embedding", "rerank", "passed on", "passed on at once"],
)  # fmt: skip
def test_any_kind_of_request_is_copied(request_: ChatRequest) -> None:
    async def test() -> None:
        shadow = Shadow()
        shadow.go.set()
        scene = Scene(shadow)
        assert scene.mirror.offer(request_, CALLER)
        await until(lambda: scene.outcomes == {"ok": 1})
        assert scene.times == ["shadow"]

    run(test())


def test_a_copy_waits_behind_everything_else_and_has_none_of_the_clients_headers() -> None:
    async def test() -> None:
        seen: list[Inbound] = []

        class Speaker(Passing):
            def takes(self, inbound: Inbound) -> bool:
                seen.append(inbound)
                return True

        scene = Scene(Speaker("shadow"))
        scene.mirror.offer(COMING, CALLER)
        await until(lambda: scene.outcomes == {"ok": 1})
        assert seen[0] == replace(COMING, headers=())
        shadow = Shadow()
        Scene(shadow).mirror.offer(REQUEST, CALLER)
        await until(lambda: bool(shadow.asked))
        ((_, behalf),) = shadow.asked
        assert (behalf.request_id, behalf.tenant, behalf.session_key) == ("r-mirror", "t/mirror", "talk")
        assert behalf.priority < CALLER.priority and behalf.weight < CALLER.weight

    run(test())


def test_a_share_of_the_requests_is_copied() -> None:
    async def test() -> None:
        scene = Scene(Shadow(), share=0.2, running_max=1, waiting_max=10_000)
        copies = sum(scene.mirror.offer(REQUEST, CALLER) for _ in range(5000))
        assert copies / 5000 == pytest.approx(0.2, abs=0.03)
        scene.mirror.close()

    run(test())


def test_what_runs_and_waits_is_bounded_and_the_rest_is_dropped() -> None:
    async def test() -> None:
        shadow = Shadow()
        scene = Scene(shadow, running_max=2, waiting_max=3)
        for _ in range(9):
            scene.mirror.offer(REQUEST, CALLER)
        await until(lambda: len(shadow.asked) == 2)
        assert scene.outcomes == {"dropped": 4}
        shadow.go.set()
        await until(lambda: scene.outcomes == {"dropped": 4, "ok": 5})

    run(test())


@pytest.mark.parametrize("failing", ["failure", "time-out", "bug"])
def test_a_copy_that_fails_is_counted_and_nothing_else(failing: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        shadow = Shadow(GONE if failing == "failure" else None)
        scene = Scene(shadow, timeout_s=0.01 if failing == "time-out" else 60)
        if failing == "bug":
            shadow.chat = None  # type: ignore[method-assign, assignment]
        if failing == "failure":
            shadow.go.set()
        assert scene.mirror.offer(REQUEST, CALLER)
        await until(lambda: scene.outcomes == {"failed": 1})
        assert scene.times == []

    run(test())
    assert ("unexpectedly" in caplog.text) == (failing == "bug")


def test_what_a_provider_does_more_for_than_answer_is_not_copied() -> None:
    async def test() -> None:
        scene = Scene(Shadow())
        credentials = BODY.replace(b"}]", b'}],"mcp_servers":[{"authorization_token":"secret"}]')
        assert not scene.mirror.offer(replace(COMING, body=credentials), CALLER)
        tool = NativePart("openai_responses", b'{"type":"mcp","headers":{"authorization":"secret"}}')
        assert not scene.mirror.offer(replace(REQUEST, native_tools=(tool,)), CALLER)
        assert not scene.outcomes

    run(test())


@pytest.mark.parametrize("failure", [None, GONE])
def test_the_client_does_not_notice(failure: AdapterError | None) -> None:
    async def asked(mirror: Mirror | None) -> tuple[list[object], bytes, list[Event]]:
        target = Target(identity="a", provider="p", model="a", adapter=Passing("a"))
        router = Router("route", [[target]], RouteSettings(), {"a": Standing(Breaker())}, RetryBudget(), mirror=mirror)
        sink = Shown()
        relayed = await router.relay(COMING, CALLER, sink)
        events = [event async for event in router.chat(REQUEST, CALLER)]
        return sink.told, relayed.rest, events

    async def test() -> None:
        shadow = Shadow(failure)
        shadow.go.set()
        scene = Scene(shadow)
        assert await asked(scene.mirror) == await asked(None)
        await until(lambda: scene.outcomes.total() == 2)
        assert scene.times.count("real") == 2

    run(test())
