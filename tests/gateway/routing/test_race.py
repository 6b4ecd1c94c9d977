"""A second target beside a slow first one: who answers, what becomes of the other, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
from msgspec.structs import replace

from adapters.errors import AdapterError, InvalidRequest, Unreachable
from adapters.scripted import Answer, Script, Scripted
from adapters.types import (
    Caller,
    ChatRequest,
    Event,
    Finished,
    Head,
    Inbound,
    NativePart,
    Relayed,
    Sink,
    Started,
    Usage,
)
from gateway.routing.backoff import RetryBudget
from gateway.routing.balance import RouteSettings
from gateway.routing.breaker import Breaker
from gateway.routing.decisions import Decision
from gateway.routing.hedging import HedgeSettings, Hedging
from gateway.routing.policies import Policy
from gateway.routing.router import Router
from gateway.routing.standing import Standing
from gateway.routing.trip import Target
from tests.adapters.upstream import until
from tests.gateway.routing.scenes import GONE, REQUEST, Shown, run

BODY = b'{"model":"route","messages":[]}'


class Runner(Scripted):
    """Answers, or fails, when it is let go; says when it was asked and when it was given up."""

    def __init__(self, name: str, failure: AdapterError | None = None) -> None:
        super().__init__(name, Script(answers=(Answer(text=name),)))
        self.failure = failure
        self.asked, self.go, self.left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def _wait(self) -> None:
        self.asked.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        if self.failure is not None:
            raise self.failure

    def chat(self, request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
        return self._late(super().chat(request, caller))

    async def _late(self, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
        await self._wait()
        async for event in events:
            yield event

    def takes(self, inbound: Inbound) -> bool:
        return True

    async def relay(self, inbound: Inbound, caller: Caller, sink: Sink) -> Relayed:
        await self._wait()
        if inbound.head.stream:
            sink.begin("text/event-stream")
            for _ in range(3):
                sink.write(self.name.encode(), 1)
                await asyncio.sleep(0)
        return Relayed(Finished(Usage(1, 1)), self.name.encode(), "application/json")


class Course:
    """A route over runners in the order of their names, hedged after a second that `tick` lets pass."""

    def __init__(
        self, *runners: Runner, share: float = 1.0, cost: int | None = None, policy: Policy = "priority"
    ) -> None:
        self.now_s = 0.0
        self.decisions: list[Decision] = []
        self.ticks = asyncio.Semaphore(0)
        self.hedging = Hedging(HedgeSettings(after_s=1.0, share_max=share))
        group = [
            Target(identity=one.name, provider="p", model=one.name, adapter=one, cost_nano=lambda _: cost)
            for one in runners
        ]
        self.standings = {one.name: Standing(Breaker()) for one in runners}
        self.router = Router(
            "route",
            [group],
            RouteSettings(policy=policy),
            self.standings,
            RetryBudget(),
            decided=self.decisions.append,
            clock=lambda: self.now_s,
            hedging=self.hedging,
            pause=self._pause,
        )

    async def _pause(self, seconds: float) -> None:
        await self.ticks.acquire()
        self.now_s += seconds

    async def ask(self, request: ChatRequest = REQUEST) -> str:
        events = [event async for event in self.router.chat(request, Caller("r", "t"))]
        assert isinstance(events[0], Started) and events[0].served is not None
        return events[0].served.target

    def told(self) -> list[tuple[str, str]]:
        (decision,) = self.decisions
        return [(one.target, one.outcome) for one in decision.attempts]

    def at_rest(self) -> None:
        """Nobody runs any more, and nobody is blamed for having been slower."""
        for standing in self.standings.values():
            assert (standing.running, standing.breaker.state(0)) == (0, "closed")


def test_the_second_answers_and_the_first_is_given_up() -> None:
    async def test() -> None:
        first, second = Runner("a"), Runner("b")
        course = Course(first, second, cost=70)
        asking = asyncio.ensure_future(course.ask())
        await first.asked.wait()
        course.ticks.release()
        await second.asked.wait()
        second.go.set()
        assert await asking == "b"
        await first.left.wait()
        assert course.told() == [("b", "ok"), ("a", "outrun")] or course.told() == [("a", "outrun"), ("b", "ok")]
        assert {one.target: one.cost_nano for one in course.decisions[0].attempts} == {"a": 70, "b": None}
        assert (course.hedging.started, course.hedging.won, course.hedging.cost_nano) == (1, 1, 70)
        course.at_rest()

    run(test())


def test_the_first_answers_after_all() -> None:
    async def test() -> None:
        first, second = Runner("a"), Runner("b")
        course = Course(first, second)
        asking = asyncio.ensure_future(course.ask())
        await first.asked.wait()
        course.ticks.release()
        await second.asked.wait()
        first.go.set()
        assert await asking == "a"
        await second.left.wait()
        assert sorted(course.told()) == [("a", "ok"), ("b", "outrun")]
        assert (course.hedging.started, course.hedging.won) == (1, 0)
        course.at_rest()

    run(test())


def test_one_that_answers_in_time_is_alone() -> None:
    async def test() -> None:
        first, second = Runner("a"), Runner("b")
        first.go.set()
        course = Course(first, second)
        assert await course.ask() == "a"
        assert not second.asked.is_set() and course.hedging.started == 0
        assert course.told() == [("a", "ok")]

    run(test())


def test_one_that_fails_in_time_is_tried_elsewhere_as_ever() -> None:
    async def test() -> None:
        first, second = Runner("a", GONE), Runner("b")
        first.go.set()
        second.go.set()
        course = Course(first, second)
        assert await course.ask() == "b"
        assert course.told() == [("a", "upstream_error"), ("b", "ok")]
        assert course.hedging.started == 0

    run(test())


@pytest.mark.parametrize("failing", ["a", "b"])
def test_when_one_of_two_fails_the_other_is_waited_for(failing: str) -> None:
    async def test() -> None:
        runners = {name: Runner(name, GONE if name == failing else None) for name in "ab"}
        course = Course(*runners.values())
        asking = asyncio.ensure_future(course.ask())
        await runners["a"].asked.wait()
        course.ticks.release()
        await runners["b"].asked.wait()
        runners[failing].go.set()
        await until(lambda: bool(course.router.standings[failing].failures))
        (other,) = set(runners) - {failing}
        runners[other].go.set()
        assert await asking == other
        assert sorted(course.told()) == sorted([(failing, "upstream_error"), (other, "ok")])

    run(test())


def test_when_both_fail_a_third_is_tried() -> None:
    async def test() -> None:
        first, second, third = Runner("a", GONE), Runner("b", GONE), Runner("c")
        third.go.set()
        course = Course(first, second, third)
        asking = asyncio.ensure_future(course.ask())
        await first.asked.wait()
        course.ticks.release()
        await second.asked.wait()
        second.go.set()
        first.go.set()
        assert await asking == "c"
        assert [one[1] for one in course.told()] == ["upstream_error", "upstream_error", "ok"]

    run(test())


def test_the_last_failure_is_what_is_told() -> None:
    async def test() -> None:
        first, second = Runner("a", Unreachable("gone")), Runner("b", InvalidRequest("wrong"))
        course = Course(first, second)
        asking = asyncio.ensure_future(course.ask())
        await first.asked.wait()
        course.ticks.release()
        await second.asked.wait()
        first.go.set()
        await until(lambda: bool(course.standings["a"].failures))
        second.go.set()
        with pytest.raises(InvalidRequest, match="wrong"):
            await asking
        assert [one.running for one in course.standings.values()] == [0, 0]

    run(test())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("winner", ["a", "b"])
def test_of_what_is_passed_on_only_the_winner_is_shown(winner: str, stream: bool) -> None:
    async def test() -> None:
        runners, sink = {name: Runner(name) for name in "ab"}, Shown()
        course = Course(*runners.values())
        inbound = Inbound("openai_chat", BODY, Head("route", stream=stream))
        asking = asyncio.ensure_future(course.router.relay(inbound, Caller("r", "t"), sink))
        await runners["a"].asked.wait()
        course.ticks.release()
        await runners["b"].asked.wait()
        runners[winner].go.set()
        # The other one comes a moment later, before anybody could give it up.
        for one in runners.values():
            one.go.set()
        relayed = await asking
        shown = sink.told[0]
        assert isinstance(shown, tuple)
        assert shown[0] == relayed.rest.decode()
        assert set(sink.told[2:]) <= {relayed.rest}
        assert len(sink.told) == (5 if stream else 1)
        await asyncio.sleep(0)
        course.at_rest()

    run(test())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_both_with_it(stream: bool) -> None:
    async def test() -> None:
        first, second, sink = Runner("a"), Runner("b"), Shown()
        course = Course(first, second)
        inbound = Inbound("openai_chat", BODY, Head("route", stream=stream))
        asking = asyncio.ensure_future(course.router.relay(inbound, Caller("r", "t"), sink))
        await first.asked.wait()
        course.ticks.release()
        await second.asked.wait()
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        await first.left.wait()
        await second.left.wait()
        assert sorted(course.told()) == [("a", "cancelled"), ("b", "cancelled")]
        assert sink.told == []
        course.at_rest()

    run(test())


def test_the_cap_is_kept_and_turns_are_not_lost_to_it() -> None:
    async def test() -> None:
        first, second = Runner("a"), Runner("b")
        course = Course(first, second, share=0.1, policy="weighted")
        asking = asyncio.ensure_future(course.ask())
        await first.asked.wait()
        turns = course.router.balance.turns
        course.ticks.release()
        await until(lambda: bool(course.hedging.refused))
        first.go.set()
        assert await asking == "a"
        assert not second.asked.is_set() and course.router.balance.turns == turns
        course.at_rest()

    run(test())


@pytest.mark.parametrize(
    "ask",
    [
        lambda course: course.ask(replace(REQUEST, native_tools=(NativePart("anthropic_messages", b"{}"),))),
        lambda course: course.router.relay(
            Inbound("openai_chat", b'{"model":"route","store":true}', Head("route")), Caller("r", "t"), Shown()
        ),
    ],
    ids=["native tool", "stored"],
)
def test_what_a_provider_does_more_for_than_answer_is_asked_for_once(ask: Callable[[Course], object]) -> None:
    async def test() -> None:
        first, second = Runner("a"), Runner("b")
        course = Course(first, second)
        course.ticks.release()
        asking = asyncio.ensure_future(ask(course))  # type: ignore[call-overload]
        await first.asked.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        first.go.set()
        await asking
        assert not second.asked.is_set()

    run(test())


@pytest.mark.parametrize("both", [False, True])
def test_what_is_passed_on_is_shown_when_it_is_tried_again_after_a_race(both: bool) -> None:
    async def test() -> None:
        first, second, third = Runner("a", GONE), Runner("b", GONE if both else None), Runner("c")
        sink = Shown()
        course = Course(first, second, third)
        inbound = Inbound("openai_chat", BODY, Head("route", stream=True))
        asking = asyncio.ensure_future(course.router.relay(inbound, Caller("r", "t"), sink))
        await first.asked.wait()
        if both:
            course.ticks.release()
            await second.asked.wait()
        for one in (first, second, third):
            one.go.set()
        relayed = await asking
        assert [one for one in sink.told if isinstance(one, bytes)] == [relayed.rest] * 3
        assert relayed.rest == (b"c" if both else b"b")

    run(test())


def test_the_answer_of_the_winner_is_not_closed_with_the_race() -> None:
    async def test() -> None:
        runner = Runner("a")
        runner.go.set()
        events = Course(runner, Runner("b")).router.chat(REQUEST, Caller("r", "t"))
        assert isinstance(await anext(events), Started)
        for _ in range(5):  # The client takes its time.
            await asyncio.sleep(0)
        assert isinstance([event async for event in events][-1], Finished)

    run(test())
