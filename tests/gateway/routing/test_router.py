"""Routers over scripted targets: where requests go, what is tried again, what is not."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from adapters import errors
from adapters.diverting import Take, divert
from adapters.errors import AdapterError, InvalidRequest, RateLimited, Unreachable, UpstreamRefused
from adapters.scripted import Answer, Script, Scripted
from adapters.types import (
    Caller,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Event,
    Finished,
    RerankRequest,
    Started,
)
from gateway.routing.backoff import RetryBudget
from gateway.routing.balance import RouteSettings
from gateway.routing.breaker import Breaker
from gateway.routing.policies import Policy
from gateway.routing.router import Router
from gateway.routing.standing import Standing
from gateway.routing.trip import Target
from tests.gateway.routing.scenes import GONE, REQUEST, Moody, Scene, run


def test_the_first_that_answers_is_told_with_its_tries() -> None:
    async def test() -> None:
        scene = Scene([Moody("a", [GONE]), Moody("b")])
        assert await scene.ask() == "b"
        assert scene.outcomes() == [("a", "upstream_error"), ("b", "ok")]
        assert scene.pauses == []

    run(test())


def test_groups_are_tried_in_order() -> None:
    async def test() -> None:
        scene = Scene([Moody("a", [GONE])], [Moody("b", [GONE])], [Moody("c")])
        assert await scene.ask() == "c"

    run(test())


@pytest.mark.parametrize(
    "error",
    [
        errors.Overloaded("full"),
        errors.QueueFull("full"),
        errors.ModelLoading("loading"),
        errors.ModelUnavailable("broken"),
        errors.EngineFailed("died"),
        errors.Timeout("slow"),
        RateLimited("slow down", retry_after_s=3600),
        errors.BrokeOff("cut"),
        errors.UpstreamInvalid("html"),
        UpstreamRefused("no", 500),
        UpstreamRefused("bad key", 401),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_another_target_may_do_better(error: AdapterError) -> None:
    async def test() -> None:
        assert await Scene([Moody("a", [error]), Moody("b")]).ask() == "b"

    run(test())


def test_a_wrong_request_fails_at_once() -> None:
    async def test() -> None:
        other = Moody("b")
        scene = Scene([Moody("a", [InvalidRequest("wrong")]), other], [Moody("c")])
        with pytest.raises(InvalidRequest):
            await scene.ask()
        assert other.asked == 0
        assert scene.standings["a"].failures == 0

    run(test())


def test_a_prompt_that_is_too_long_goes_to_the_next_group() -> None:
    async def test() -> None:
        long = InvalidRequest("long", code="context_length_exceeded")
        beside = Moody("b")
        assert await Scene([Moody("a", [long]), beside], [Moody("c")]).ask() == "c"
        assert beside.asked == 0
        with pytest.raises(InvalidRequest, match="long"):
            await Scene([Moody("a", [long])]).ask()
        filtered = InvalidRequest("no", code="content_filter")
        with pytest.raises(InvalidRequest):
            await Scene([Moody("a", [filtered])], [Moody("c")]).ask()
        either = frozenset({"context_length_exceeded", "content_filter"})
        assert await Scene([Moody("a", [filtered])], [Moody("c")], falls_through=either).ask() == "c"

    run(test())


def test_the_only_target_is_asked_again_after_a_pause() -> None:
    async def test() -> None:
        scene = Scene([Moody("a", [GONE, RateLimited("later", retry_after_s=2)])])
        assert await scene.ask() == "a"
        assert scene.outcomes() == [("a", "upstream_error"), ("a", "rate_limit_exceeded"), ("a", "ok")]
        assert scene.pauses[0] < 1
        assert scene.pauses[1] >= 2

    run(test())


@pytest.mark.parametrize(
    "error",
    [RateLimited("tomorrow", retry_after_s=3600), UpstreamRefused("bad key", 401), errors.Timeout("slow"),
     errors.ModelLoading("soon", retry_after_s=1)],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_the_same_target_will_not_do_better(error: AdapterError) -> None:
    async def test() -> None:
        only = Moody("a", [error])
        with pytest.raises(type(error)):
            await Scene([only]).ask()
        assert only.asked == 1

    run(test())


def test_tries_are_bounded() -> None:
    async def test() -> None:
        targets = [Moody(name, [GONE] * 9) for name in "abcdef"]
        with pytest.raises(Unreachable) as caught:
            await Scene(targets, attempts_max=4).ask()
        assert sum(one.asked for one in targets) == caught.value.attempts == 4

    run(test())


def test_retries_are_a_tenth_of_the_load_when_everything_fails() -> None:
    async def test() -> None:
        first, second = Moody("a", [GONE] * 10_000), Moody("b", [GONE] * 10_000)
        scene = Scene([first, second])
        # Breakers would do their part; this is what the budget does alone.
        for standing in scene.standings.values():
            standing.breaker = _Never()
        for _ in range(1000):
            with pytest.raises(Unreachable):
                await scene.ask()
        assert 1000 + 100 <= first.asked + second.asked <= 1000 + 100 + 10

    run(test())


class _Never(Breaker):
    def failed(self, now_s: float, retry_after_s: float | None = None) -> None:
        """Stays closed."""


def test_a_target_that_keeps_failing_rests() -> None:
    async def test() -> None:
        ill = Moody("a", [GONE] * 5)
        scene = Scene([ill, Moody("b")])
        for _ in range(20):
            assert await scene.ask() == "b"
        assert ill.asked == 5
        assert "breaker is open" in scene.decisions[-1].passed_over["a"]
        scene.now_s += 10
        assert await scene.ask() == "a"

    run(test())


def test_when_all_rest_the_answer_says_for_how_long() -> None:
    async def test() -> None:
        scene = Scene([Moody("a", [GONE] * 9)], attempts_max=1)
        for _ in range(5):
            with pytest.raises(Unreachable):
                await scene.ask()
        with pytest.raises(errors.ModelUnavailable) as caught:
            await scene.ask()
        assert caught.value.retry_after_s == 5

    run(test())


def test_while_the_only_target_is_on_trial_others_are_asked_to_come_back() -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    class Slow(Moody):
        async def _moody(self, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
            if not self.failures:
                asked.set()
                await go.wait()
            async for event in super()._moody(events):
                yield event

    async def test() -> None:
        scene = Scene([Slow("a", [GONE] * 5)], attempts_max=1)
        for _ in range(5):
            with pytest.raises(Unreachable):
                await scene.ask()
        scene.now_s += 5
        trial = scene.router.chat(REQUEST, Caller("r", "t"))
        begins = asyncio.ensure_future(anext(trial))
        await asked.wait()
        with pytest.raises(errors.ModelUnavailable) as caught:
            await scene.ask()
        assert caught.value.retry_after_s == 1
        go.set()
        await begins
        assert await scene.ask() == "a"  # However long the answer of the trial may be.
        assert [event async for event in trial]

    run(test())


LATER = RateLimited("later", retry_after_s=40)
LONG = InvalidRequest("long", code="context_length_exceeded")


def test_a_limit_stays_one_while_it_lasts() -> None:
    async def test() -> None:
        scene = Scene([Moody("a", [LATER])])
        for waited_s, left_s in ((0, 40), (30, 10), (9.5, 1)):
            scene.now_s += waited_s
            with pytest.raises(RateLimited) as limited:
                await scene.ask()
            assert limited.value.retry_after_s == left_s
        scene.now_s += 0.5
        assert await scene.ask() == "a"

    run(test())


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ([[[LATER], [GONE]]], LATER),
        ([[[GONE], [LATER]]], LATER),
        ([[[GONE], [errors.Timeout("slow")]]], errors.Timeout),
        ([[[errors.ModelLoading("loading")], [GONE]]], errors.ModelLoading),
        ([[[LATER], [errors.Overloaded("full", retry_after_s=3)]]], errors.Overloaded),
        ([[[LATER], [InvalidRequest("wrong")]]], InvalidRequest),
        ([[[LONG]], [[LATER]]], LATER),
        ([[[LATER]], [[LONG]]], LATER),
        ([[[LONG]], [[InvalidRequest("longer", code="context_length_exceeded")]]], "longer"),
    ],
)
def test_of_several_failures_the_most_helpful_is_told(groups: list[list[list[AdapterError]]], told: object) -> None:
    async def test() -> None:
        names = iter("abc")
        scene = Scene(*([Moody(next(names), failures * 9) for failures in group] for group in groups), attempts_max=2)
        with pytest.raises(AdapterError) as caught:
            await scene.ask()
        assert told in (caught.value, type(caught.value), caught.value.message)

    run(test())


def test_nothing_is_tried_again_after_the_first_event() -> None:
    async def test() -> None:
        other = Moody("b")
        scene = Scene([Moody("a", late=GONE), other])
        with pytest.raises(Unreachable):
            await scene.ask()
        assert other.asked == 0
        assert scene.standings["a"].failures == 1
        assert scene.standings["a"].running == 0

    run(test())


class Direct(Moody):
    """One whose events have a short way, which it keeps."""

    def chat(self, request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
        self._events = super().chat(request, caller)
        return self

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    def divert(self, take: Take) -> None:
        self.take = take


def test_the_short_way_is_that_of_the_target_that_answers() -> None:
    async def test() -> None:
        away, there = Direct("a", [GONE]), Direct("b")
        events = Scene([away, there]).router.chat(REQUEST, Caller("r", "t"))
        assert isinstance(await anext(events), Started)

        def take(event: Event) -> bool:
            return False

        divert(events, take)
        assert there.take is take
        assert not hasattr(away, "take")
        assert [type(event) async for event in events][-1] is Finished

    run(test())


def test_a_client_that_leaves_is_nobodys_failure() -> None:
    async def test() -> None:
        scene = Scene([Moody("a")])
        events = scene.router.chat(REQUEST, Caller("r", "t"))
        assert isinstance(await anext(events), Started)
        assert scene.standings["a"].running == 1
        await events.aclose()  # type: ignore[attr-defined]
        assert (scene.standings["a"].running, scene.standings["a"].failures) == (0, 0)
        assert scene.standings["a"].breaker.state(0) == "closed"

    run(test())


def test_a_client_that_leaves_while_a_retry_waits_keeps_nobody_out() -> None:
    class Waiting(Scene):
        async def _pause(self, seconds: float) -> None:
            waits.set()
            await asyncio.Event().wait()

    waits = asyncio.Event()

    async def test() -> None:
        scene = Waiting([Moody("a", [RateLimited("later", retry_after_s=1)])])
        asking = asyncio.create_task(scene.ask())
        await waits.wait()
        asking.cancel()
        await asyncio.wait([asking])
        scene.now_s += 1
        assert await scene.ask() == "a"

    run(test())


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("weighted", {"a": 300, "b": 300}), ("priority", {"a": 600}), ("least_busy", {"a": 300, "b": 300})],
)
def test_policies_over_many_requests(policy: Policy, expected: dict[str, int]) -> None:
    async def test() -> None:
        scene = Scene([Moody("a"), Moody("b")], policy=policy)
        counts = Counter([await scene.ask() for _ in range(600)])
        assert set(counts) == set(expected)
        assert all(abs(counts[name] - count) <= 60 for name, count in expected.items())

    run(test())


def test_a_conversation_returns_to_its_target() -> None:
    async def test() -> None:
        scene = Scene([Moody("a"), Moody("b"), Moody("c")], policy="sticky")
        for talk in map(str, range(30)):
            assert len({await scene.ask(talk) for _ in range(3)}) == 1
        assert len({await scene.ask(str(i)) for i in range(30)}) == 3

    run(test())


def test_addresses_share_what_their_target_gets() -> None:
    async def test() -> None:
        canary, house = Moody("canary"), [Moody(f"house@{i}") for i in range(3)]
        targets = [Target(identity="canary", provider="p", model="canary", adapter=canary)]
        targets += [
            Target(identity=one.name, provider="p", model=one.name, adapter=one, weight=9, listed="house")
            for one in house
        ]
        standings, dice = {one.identity: Standing(Breaker()) for one in targets}, random.Random(5)
        router = Router("route", [targets], RouteSettings(), standings, RetryBudget(), draw=dice.random)
        for _ in range(300):
            await anext(router.chat(REQUEST, Caller("r", "t")))
        assert canary.asked == 30
        assert all(60 < one.asked < 120 for one in house)
        before = [one.asked for one in house]
        for _ in range(20):
            await anext(router.chat(REQUEST, Caller("r", "t", session_key="talk")))
        assert sorted(one.asked - known for one, known in zip(house, before, strict=True))[:2] == [0, 0]
        gone = house[max(range(3), key=lambda i: house[i].asked - before[i])]
        gone.failures = [GONE] * 10
        for _ in range(10):
            await anext(router.chat(REQUEST, Caller("r", "t", session_key="talk")))

    run(test())


def test_it_overflows_while_the_queue_is_long() -> None:
    async def test() -> None:
        local, remote = Moody("local"), Moody("remote")
        scene = Scene([local, remote], policy="overflow", eta_s_max=2)
        assert await scene.ask() == "local"
        local.eta = 3
        assert await scene.ask() == "remote"

    run(test())


def test_the_fastest_is_learnt() -> None:
    async def test() -> None:
        scene = Scene([Moody("a"), Moody("b")], policy="fastest")
        scene.standings["a"].learn(1.0)
        scene.standings["b"].learn(0.1)
        assert {await scene.ask() for _ in range(5)} == {"b"}

    run(test())


def test_what_a_target_cannot_do_it_is_not_asked_for() -> None:
    async def test() -> None:
        speaker = Moody("a")
        embedder = Scripted("b", Script(answers=(Answer(text="x"),), kinds=("embedding", "rerank")))
        target = [Target(identity=one.name, provider="p", model=one.name, adapter=one) for one in (speaker, embedder)]
        scene = Scene([speaker])
        standings = {one.identity: Standing(Breaker()) for one in target}
        router = Router("route", [target], RouteSettings(policy="priority"), standings, RetryBudget())
        answer = await router.embed(EmbeddingRequest("route", ("x",)), Caller("r", "t"))
        assert answer.served is not None
        assert answer.served.target == "b"
        ranking = await router.rerank(RerankRequest("route", "x", ("x",)), Caller("r", "t"))
        assert ranking.served is not None
        assert router.card.kinds == ("chat", "completion", "embedding", "rerank")
        with pytest.raises(InvalidRequest, match="has no rerank"):
            await scene.router.rerank(RerankRequest("route", "x", ("x",)), Caller("r", "t"))

    run(test())


def test_completions_and_tokens() -> None:
    async def test() -> None:
        router = Scene([Moody("a")]).router
        events = [event async for event in router.complete(CompletionRequest("route", ("x",)), Caller("r", "t"))]
        assert isinstance(events[-1], Finished)
        assert await router.tokenize("ab", special=False) == [97, 98]
        assert await router.detokenize([97, 98]) == "ab"
        assert (await router.apply_template(REQUEST))[1] > 0
        assert await router.list_sessions(None) == []
        assert await router.change_session("t", "k", "pin") is None

    run(test())


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.name == "gateway.routing.standing"]
    caplog.clear()
    return lines


def test_the_log_says_why_a_target_fails_and_rests_and_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    denied = UpstreamRefused("The provider refuses us.", 401)
    denied.words = "Incorrect API key provided"
    scene = Scene([Moody("a", [denied] * 5)], [Moody("b")])

    async def script() -> None:
        why = "The provider refuses us. (401: Incorrect API key provided)"
        for _ in range(4):
            assert await scene.ask() == "b"
        assert told(caplog) == [f"the target a failed: {why}"]
        assert scene.standings["a"].last_failure == why
        assert scene.decisions[-1].attempts[0].message == "The provider refuses us."
        await scene.ask()
        assert told(caplog) == [f"the target a is left alone for 5 s: {why}"]
        await scene.ask()
        assert told(caplog) == []
        scene.now_s = 6
        assert await scene.ask() == "a"
        assert told(caplog) == ["the target a is well again"]

    run(script())


def test_a_target_that_keeps_failing_has_a_line_in_the_log_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene([Moody("a", [UpstreamRefused("It failed.", 500)] * 4)], [Moody("b")])

    async def script() -> None:
        for scene.now_s in (0, 5, 9, 10):
            await scene.ask()
        assert told(caplog) == ["the target a failed: It failed. (500)"] * 2

    run(script())
