"""One name over several targets: picks one, tries others while nothing was shown, and knows how each of them does.

A router is an adapter itself. What happens to a request:

1. Of the first group, the targets that can serve the request and whose breaker lets it in are ordered by the policy.
2. The first of them is tried. Once its first event has come, the request stays there, whatever happens.
3. Before that, a failure that another target may not have is tried elsewhere: on the next of the group, or of the next
   group when the group has no more; on the same one, after a pause, when it is the only one.
4. A request that is wrong itself fails at once, unless the route says that its kind of wrong falls through: a prompt
   that is too long, or content that is not wanted, goes to the next group.
5. Each further try is taken from the one budget of the process, and there are at most `attempts_max`.
6. What came in a dialect is passed on as it is by targets that speak it, and translated for the others.
7. Where the route says so, a second target is asked beside a first one that takes long, and a shadow gets a copy.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from adapters.capabilities import repeatable
from adapters.closing import close
from adapters.errors import AdapterError, InvalidRequest
from adapters.translated import Translator
from adapters.types import (
    Caller,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Embeddings,
    Event,
    Inbound,
    Kind,
    ModelCard,
    Ranking,
    Relayed,
    RerankRequest,
    Served,
    SessionAction,
    SessionInfo,
    Sink,
    Started,
    TokenCount,
)
from gateway.catalog import Adapter
from gateway.routing.backoff import RetryBudget, delay_s
from gateway.routing.balance import Balance, RouteSettings
from gateway.routing.decisions import Decision
from gateway.routing.hedging import Hedging
from gateway.routing.mirror import Mirror
from gateway.routing.race import Race
from gateway.routing.routed import Routed
from gateway.routing.standing import Standing, Visit, may_come_again, may_go_elsewhere
from gateway.routing.trip import Request, Target, Trip, Watched
from gateway.routing.verdict import most_helpful

Unary = TypeVar("Unary", Embeddings, Ranking)
T = TypeVar("T")


class RouterStatus(msgspec.Struct, frozen=True):
    """A route serves as soon as one of its targets does."""

    state: str
    progress: float
    reason: str | None = None


class Router:
    """Chat, Embedder, Reranker, Tokenizer and Sessions over the targets of a route."""

    def __init__(
        self,
        name: str,
        groups: Sequence[Sequence[Target]],
        settings: RouteSettings,
        standings: Mapping[str, Standing],
        budget: RetryBudget,
        *,
        decided: Callable[[Decision], None] = lambda decision: None,
        clock: Callable[[], float] = time.monotonic,
        hedging: Hedging | None = None,
        mirror: Mirror | None = None,
        draw: Callable[[], float] = random.random,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`standings` has one for each identity; `decided` hears of each decision when its request has a target."""
        self.name = name
        self.groups = tuple(tuple(group) for group in groups)
        self.settings = settings
        self.standings = standings
        self._budget = budget
        self._decided = decided
        self._clock = clock
        self._draw = draw
        self._pause = pause
        self.hedging = hedging
        self.mirror = mirror
        self._translator = Translator(name)
        self._closing: set[asyncio.Future[None]] = set()
        self.targets = [target for group in self.groups for target in group]
        self._only = self.targets[0] if len(self.targets) == 1 else None
        self.balance = Balance(settings, self.targets, standings, draw)
        self._card: tuple[list[ModelCard], ModelCard] | None = None

    @property
    def card(self) -> ModelCard:
        """What at least one target can do."""
        if self._only is not None:
            return self._only.adapter.card
        cards = [target.adapter.card for target in self.targets]
        if self._card is None or self._card[0] != cards:
            self._card = cards, self._joined(cards)
        return self._card[1]

    def _joined(self, cards: list[ModelCard]) -> ModelCard:
        contexts = [card.context_tokens for card in cards]
        kinds = tuple(dict.fromkeys(kind for card in cards for kind in card.kinds))
        context = None if None in contexts else max(one for one in contexts if one is not None)
        return replace(cards[0], context_tokens=context, kinds=kinds, vision=any(card.vision for card in cards))

    def status(self) -> RouterStatus:
        """The best of its targets'; one that does not say is ready."""
        best: RouterStatus | None = None
        for target in self.targets:
            ask = getattr(target.adapter, "status", None)
            found = RouterStatus("ready", 1.0) if ask is None else ask()
            if best is None or (found.state == "ready", found.progress) > (best.state == "ready", best.progress):
                best = RouterStatus(found.state, found.progress, found.reason)
        assert best is not None, "a route has a target"
        return best

    # What an adapter does

    def chat(self, request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
        return Routed(partial(self._stream, "chat", request, caller, lambda adapter: adapter.chat(request, caller)))

    def complete(self, request: CompletionRequest, caller: Caller) -> AsyncIterator[Event]:
        ask = partial(self._stream, "completion", request, caller, lambda adapter: adapter.complete(request, caller))
        return Routed(ask)

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        return await self._unary("embedding", request, caller, lambda adapter: adapter.embed(request, caller))

    async def rerank(self, request: RerankRequest, caller: Caller) -> Ranking:
        return await self._unary("rerank", request, caller, lambda adapter: adapter.rerank(request, caller))

    def takes(self, inbound: Inbound) -> bool:
        """Whether a target can be passed the request as it came, and all others at least its translation."""
        if self._only is not None:
            relay = self._only.relay
            return relay is not None and relay.takes(inbound)
        taking = [target.relay is not None and target.relay.takes(inbound) for target in self.targets]
        return all(taking) or (any(taking) and self._translator.takes(inbound))

    async def relay(self, inbound: Inbound, caller: Caller, sink: Sink) -> Relayed:
        """As `Relay` says."""
        trip = Trip(inbound, caller)

        def work(target: Target, visit: Visit) -> Awaitable[Relayed]:
            relay = target.relay
            # The sink of a unary answer is never touched.
            watched = Watched(sink, trip, visit) if inbound.head.stream else sink
            if relay is not None and (self._only is not None or relay.takes(inbound)):
                return relay.relay(inbound, caller, watched)
            return trip.translation(self._translator).relay(target.adapter, caller, watched)

        relayed, visit = await self._try(inbound.kind, trip, work)
        visit.end()
        if trip.shown is None:
            sink.serving(visit.served)
        return relayed

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        return await self._first().tokenize(text, special=special)

    async def detokenize(self, tokens: list[int]) -> str:
        return await self._first().detokenize(tokens)

    async def count_tokens(self, request: ChatRequest) -> TokenCount:
        return await self._first().count_tokens(request)

    async def apply_template(self, request: ChatRequest) -> tuple[str, int]:
        return await self._first().apply_template(request)

    async def list_sessions(self, tenant: str | None) -> list[SessionInfo]:
        """Those of models of this gateway are listed under their own names."""
        return []

    async def change_session(
        self, tenant: str, key: str, action: SessionAction, new_key: str | None = None
    ) -> SessionInfo | None:
        return None

    def _first(self) -> Adapter:
        return self.groups[0][0].adapter

    # Ways through the targets

    async def _stream(
        self,
        kind: Kind,
        request: Request,
        caller: Caller,
        start: Callable[[Adapter], AsyncIterator[Event]],
        routed: Routed,
    ) -> AsyncGenerator[Event]:
        async def begin(target: Target, visit: Visit) -> tuple[AsyncIterator[Event], Event]:
            events = start(target.adapter)
            try:
                return events, await anext(events)
            except BaseException:
                await _close(events)
                raise

        trip = Trip(request, caller)
        (events, first), visit = await self._try(kind, trip, begin, lambda begun: self._drop(begun[0]))
        routed.answer = events
        failure: BaseException | None = None
        try:
            yield replace(first, served=visit.served) if isinstance(first, Started) else first
            async for event in events:
                yield event
        except BaseException as error:
            failure = error
            raise
        finally:
            visit.end(failure)
            await _close(events)

    def _drop(self, events: AsyncIterator[Event]) -> None:
        """Close a stream that nobody wants, after this call."""
        closing = asyncio.ensure_future(_close(events))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _unary(
        self, kind: Kind, request: Request, caller: Caller, work: Callable[[Adapter], Awaitable[Unary]]
    ) -> Unary:
        trip = Trip(request, caller)
        answer, visit = await self._try(kind, trip, lambda target, visit: work(target.adapter))
        visit.end()
        return replace(answer, served=visit.served)

    async def _try(
        self,
        kind: Kind,
        trip: Trip,
        work: Callable[[Target, Visit], Awaitable[T]],
        undo: Callable[[T], None] = lambda result: None,
    ) -> tuple[T, Visit]:
        """Find a target that does the work; raises the last failure when none does. `undo` is given what came of one
        that another target has outrun."""
        self._budget.earn()
        try:
            while True:
                target = self._next(kind, trip)
                if self.mirror is not None and not trip.tries:
                    trip.mirrored = self.mirror.offer(trip.request, trip.caller)
                if trip.pause_s:
                    await self._wait(target, trip.pause_s)
                try:
                    if self.hedging is None or trip.tries:
                        result = await self._attempt(target, trip, work)
                    else:
                        result = await self._hedged(self.hedging, kind, trip, target, work, undo)
                except AdapterError as error:
                    if not self._goes_on(trip, error):
                        raise self._last_word(trip, error) from None
                else:
                    if trip.mirrored and self.mirror is not None:
                        self.mirror.real(result[1].took_s)
                    return result
        except AdapterError as error:
            error.attempts = trip.tries
            raise
        finally:
            self._decided(
                Decision(
                    request_id=trip.caller.request_id,
                    tenant=trip.caller.tenant,
                    route=self.name,
                    policy=self.settings.policy,
                    attempts=trip.attempts,
                    passed_over=trip.passed_over,
                )
            )

    async def _wait(self, target: Target, seconds: float) -> None:
        """The pause before a try at a target whose breaker was entered for it; who leaves in it leaves that too."""
        try:
            await self._pause(seconds)
        except BaseException:
            self.standings[target.identity].breaker.left()
            raise

    async def _attempt(
        self, target: Target, trip: Trip, work: Callable[[Target, Visit], Awaitable[T]]
    ) -> tuple[T, Visit]:
        """One try."""
        trip.tries += 1
        served = Served(target.identity, target.provider, target.model, trip.tries)
        visit = Visit(self.standings[target.identity], served, self._clock)
        try:
            result = await work(target, visit)
        except BaseException as error:
            visit.end(error)
            if isinstance(error, AdapterError):
                trip.failed[target.identity] = error
                trip.note(target, error.code, visit.took_s, message=error.message)
            elif trip.answered is None:
                trip.note(target, "cancelled", visit.took_s)
            raise
        visit.answered()
        trip.note(target, "ok", visit.took_s)
        return result, visit

    async def _hedged(
        self,
        hedging: Hedging,
        kind: Kind,
        trip: Trip,
        target: Target,
        work: Callable[[Target, Visit], Awaitable[T]],
        undo: Callable[[T], None],
    ) -> tuple[T, Visit]:
        """A try, and a second one beside it when it takes long. Of several failures the last is raised."""
        hedging.earn(target.cost_nano(trip.request))
        after_s = hedging.after_s
        if after_s is None or not repeatable(trip.request):
            result = await self._attempt(target, trip, work)
            hedging.learn(result[1].took_s)
            return result
        race = Race(trip, lambda one: self._attempt(one, trip, work), undo, clock=self._clock, pause=self._pause)
        try:
            race.start(target)
            if await race.quiet_for(after_s) and (second := self._second(kind, trip, target, hedging)) is not None:
                race.start(second)
            result = await race.winner()
            won = result[1].served.attempts > 1
            hedging.won += won
            # One that was outrun would have taken at least as long as until then.
            hedging.learn(result[1].took_s + after_s * won)
            return result
        finally:
            race.close()
            hedging.cost_nano += race.given_up_nano

    def _second(self, kind: Kind, trip: Trip, first: Target, hedging: Hedging) -> Target | None:
        """Whom to ask beside the first, if anybody and if that may be. Entering its breaker belongs to the choice."""
        now_s = self._clock()
        if trip.tries >= self.settings.attempts_max:
            return None
        for group in self.groups[trip.group :]:
            fitting = [one for one in group if one is not first and self._fits(kind, trip, one, now_s)]
            if fitting:
                second = self.balance.choose(fitting, trip, now_s)
                if hedging.spend(second.cost_nano(trip.request)):
                    return second
                self.balance.take_back(second)
                return None
        return None

    # Decisions

    def _next(self, kind: Kind, trip: Trip) -> Target:
        """The target to try now; raises when there is none. Entering its breaker belongs to the choice."""
        now_s = self._clock()
        if (
            (only := self._only) is not None
            and not trip.tries
            and self._refusal(kind, trip, only) is None
            and self.standings[only.identity].try_enter(now_s)
        ):
            return only  # There is nothing to choose, and taking turns with oneself changes nothing.
        while trip.group < len(self.groups):
            if trip.pause_s and trip.last is not None:
                again = [one for one in self.groups[trip.group] if trip.failed.get(one.identity) is trip.last]
                if again and self.standings[again[0].identity].try_enter(now_s + trip.pause_s):
                    return again[0]
                trip.pause_s = 0.0
            fitting = [one for one in self.groups[trip.group] if self._fits(kind, trip, one, now_s)]
            if fitting:
                return self.balance.choose(fitting, trip, now_s)
            trip.group += 1
        raise most_helpful(trip.failures)

    def _fits(self, kind: Kind, trip: Trip, target: Target, now_s: float) -> bool:
        if target.identity in trip.failed:
            return False
        standing = self.standings[target.identity]
        refusal = self._refusal(kind, trip, target)
        if refusal is not None:
            trip.pass_over(target, refusal, refusal.message)
        elif not standing.admits(now_s):
            trip.pass_over(target, standing.rest(self.name, now_s), standing.absence(now_s))
        else:
            return True
        return False

    def _refusal(self, kind: Kind, trip: Trip, target: Target) -> InvalidRequest | None:
        """What a target cannot do that the request needs."""
        if kind not in target.adapter.card.kinds:
            return InvalidRequest(f"The model '{self.name}' has no {kind}.", param="model")
        request = trip.request
        if isinstance(request, Inbound):
            relay = target.relay
            if self._only is not None or (relay is not None and relay.takes(request)):
                return None  # It was looked at before, and what is wrong with it is for its target to say.
            try:
                request = trip.translation(self._translator).request
            except InvalidRequest as problem:
                return problem
        refusal: Callable[[Request], InvalidRequest | None] | None = getattr(target.adapter, "refusal", None)
        return None if refusal is None else refusal(request)

    def _goes_on(self, trip: Trip, error: AdapterError) -> bool:
        """Whether the request is tried again after this failure, and where."""
        trip.last, trip.pause_s = error, 0.0
        if trip.shown is not None:
            return False
        if isinstance(error, InvalidRequest):
            # Everybody of the group would say the same; a later group may have a longer context or another opinion.
            trip.group += 1
            return error.code in self.settings.falls_through and trip.group < len(self.groups)
        if trip.tries >= self.settings.attempts_max or not may_go_elsewhere(error):
            return False
        others = [one for group in self.groups[trip.group :] for one in group if one.identity not in trip.failed]
        if not others:
            if not may_come_again(error):
                return False
            pause_s = delay_s(trip.tries, self._draw(), error.retry_after_s)
            if pause_s is None:
                return False
            # A pause of no length would read as none.
            trip.pause_s = max(pause_s, 1e-6)
        return self._budget.spend()

    def _last_word(self, trip: Trip, error: AdapterError) -> AdapterError:
        """What the client is told when this failure was the last: its own request's, or that of an answer it was shown,
        is that."""
        wrong = isinstance(error, InvalidRequest) and error.code not in self.settings.falls_through
        return error if wrong or trip.shown is not None else most_helpful(trip.failures)


async def _close(events: AsyncIterator[Event]) -> None:
    """Stop the work behind a stream, whose failures nobody wants to know any more."""
    with suppress(AdapterError):
        await close(events)
