"""Routes over scripted targets, with a clock that only moves when it is told to."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from adapters.errors import AdapterError, Unreachable
from adapters.scripted import Answer, Script, Scripted
from adapters.types import (
    Caller,
    ChatRequest,
    Event,
    Finished,
    Inbound,
    Message,
    Relayed,
    Served,
    Sink,
    Started,
    TextDelta,
    Usage,
)
from gateway.routing.backoff import RetryBudget
from gateway.routing.balance import RouteSettings
from gateway.routing.breaker import Breaker
from gateway.routing.decisions import Decision
from gateway.routing.policies import Policy
from gateway.routing.router import Router
from gateway.routing.standing import Standing
from gateway.routing.trip import Target

REQUEST = ChatRequest("route", (Message("user", "hello"),))


class Moody(Scripted):
    """Fails as often as there are errors in its list, before its first event; answers with its name otherwise."""

    def __init__(self, name: str, failures: Sequence[AdapterError] = (), *, late: AdapterError | None = None) -> None:
        super().__init__(name, Script(answers=(Answer(chunks=(name, "!")),)))
        self.failures = list(failures)
        self.late = late
        self.asked = 0
        self.eta = 0.0

    def eta_s(self) -> float:
        return self.eta

    def chat(self, request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
        return self._moody(super().chat(request, caller))

    async def _moody(self, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        async for event in events:
            yield event
            if isinstance(event, TextDelta) and self.late is not None:
                raise self.late


class Scene:
    """A route over groups of moody targets, a clock that only pauses move, and all decisions."""

    def __init__(self, *groups: Sequence[Moody], policy: Policy = "priority", **settings: object) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []
        self.decisions: list[Decision] = []
        self.budget = RetryBudget()
        dice = random.Random(5)
        targets = [
            [Target(identity=one.name, provider="p", model=one.name, adapter=one) for one in group] for group in groups
        ]
        self.standings = {one.name: Standing(Breaker()) for group in groups for one in group}
        self.router = Router(
            "route",
            targets,
            RouteSettings(policy=policy, **settings),  # type: ignore[arg-type]
            self.standings,
            self.budget,
            decided=self.decisions.append,
            clock=lambda: self.now_s,
            draw=dice.random,
            pause=self._pause,
        )

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds

    async def ask(self, session: str | None = None) -> str:
        events = [event async for event in self.router.chat(REQUEST, Caller("r", "t", session_key=session))]
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Finished)
        assert events[0].served is not None
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        assert text == events[0].served.model + "!"
        return events[0].served.target

    def outcomes(self) -> list[tuple[str, str]]:
        return [(one.target, one.outcome) for one in self.decisions[-1].attempts]


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await work

    asyncio.run(bounded())


GONE = Unreachable("gone")


class Passing(Scripted):
    """Takes requests as they came; fails before or after something was shown, when it has to."""

    def __init__(self, name: str, *, early: AdapterError | None = None, late: AdapterError | None = None) -> None:
        super().__init__(name, Script(answers=(Answer(text="x"),)))
        self.early, self.late = early, late

    def takes(self, inbound: Inbound) -> bool:
        return inbound.dialect == "openai_chat"

    async def relay(self, inbound: Inbound, caller: Caller, sink: Sink) -> Relayed:
        if self.early is not None:
            raise self.early
        if inbound.head.stream:
            sink.begin("text/event-stream")
            sink.write(self.name.encode(), 1)
        if self.late is not None:
            raise self.late
        return Relayed(Finished(Usage(1, 1)), self.name.encode(), "application/json")


class Shown:
    """A sink that remembers all it was told, in order."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def serving(self, served: Served) -> None:
        self.told.append((served.target, served.attempts))

    def started(self, started: Started) -> None:
        self.told.append(started)

    def begin(self, content_type: str) -> None:
        self.told.append(content_type)

    def write(self, data: bytes, outputs: int) -> bool:
        self.told.append(data)
        return True

    def when_drained(self, then: Callable[[], None]) -> None:
        then()


def passing(*targets: Scripted) -> Router:
    group = [Target(identity=one.name, provider="p", model=one.name, adapter=one) for one in targets]
    standings = {one.name: Standing(Breaker()) for one in targets}
    return Router("route", [group], RouteSettings(policy="priority"), standings, RetryBudget())
