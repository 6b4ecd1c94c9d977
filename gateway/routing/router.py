"""One name over several targets: picks one, tries others while nothing was shown, and knows how each of them does.

A router is an adapter itself. What happens to a request:

1. Of the first group, the targets that can serve the request and whose breaker lets it in are ordered by the policy.
2. The first of them is tried. Once its first event has come, the request stays there, whatever happens.
3. Before that, a failure that another target may not have is tried elsewhere: on the next of the group, or of the next
   group when the group has no more; on the same one, after a pause, when it is the only one.
4. A request that is wrong itself fails at once, unless the route says that its kind of wrong falls through: a prompt
   that is too long, or content that is not wanted, goes to the next group.
5. Each further try is taken from the one budget of the process, and there are at most `attempts_max`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from adapters.errors import (
    AdapterError,
    InvalidRequest,
    ModelUnavailable,
)
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
from gateway.catalog import Adapter, relay_of
from gateway.config_providers import FallsThrough
from gateway.routing.backoff import RetryBudget, delay_s
from gateway.routing.decisions import Attempt, Decision
from gateway.routing.policies import Candidate, Policy, Wish, address, order, turns
from gateway.routing.standing import Standing, Visit, may_come_again, may_go_elsewhere

Request = ChatRequest | CompletionRequest | EmbeddingRequest | RerankRequest | Inbound
Unary = TypeVar("Unary", Embeddings, Ranking)
T = TypeVar("T")
NOBODY: Mapping[str, str] = {}
NOT_TRIED = Served("", "", "")


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter as a route uses it. `identity` is the same on all replicas; `cost_nano` forecasts a request's cost.

    `listed` is what the route calls it when it is one of several addresses of that.
    """

    identity: str
    provider: str
    model: str
    adapter: Adapter
    weight: float = 1.0
    listed: str | None = None
    cost_nano: Callable[[Request], int | None] = lambda request: None


class RouterStatus(msgspec.Struct, frozen=True):
    """A route serves as soon as one of its targets does."""

    state: str
    progress: float
    reason: str | None = None


class RouteSettings(msgspec.Struct, frozen=True, kw_only=True):
    policy: Policy = "weighted"
    attempts_max: int = 3
    eta_s_max: float = 5.0
    falls_through: frozenset[FallsThrough] = frozenset({"context_length_exceeded"})


class _Trip(msgspec.Struct, eq=False):
    """What a request has met on its way so far."""

    request: Request
    caller: Caller
    group: int = 0
    failed: dict[str, AdapterError] = {}
    passed_over: dict[str, str] = {}
    refusal: InvalidRequest | None = None
    attempts: list[Attempt] = []
    pause_s: float = 0.0
    last: AdapterError | None = None
    # Who serves it, as far as the try that is under way or was the last one goes.
    served: Served = NOT_TRIED
    shown: bool = False


class _Watched:
    """A sink that notes when something was shown to the client, after which nothing is tried again."""

    def __init__(self, sink: Sink, trip: _Trip) -> None:
        self._sink = sink
        self._trip = trip
        self.write = sink.write
        self.when_drained = sink.when_drained
        self.serving = sink.serving

    def begin(self, content_type: str) -> None:
        self._trip.shown = True
        self._sink.serving(self._trip.served)
        self._sink.begin(content_type)


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
        self.targets = [target for group in self.groups for target in group]
        # What each target has saved up in this route's round robin.
        self._turns = {target.listed or target.identity: 0.0 for target in self.targets}
        self._spread = any(target.listed is not None for target in self.targets)
        self._only = self.targets[0] if len(self.targets) == 1 else None
        self._relays = [relay_of(target.adapter) for target in self.targets]
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
        return self._stream("chat", request, caller, lambda adapter: adapter.chat(request, caller))

    def complete(self, request: CompletionRequest, caller: Caller) -> AsyncIterator[Event]:
        return self._stream("completion", request, caller, lambda adapter: adapter.complete(request, caller))

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        return await self._unary("embedding", request, caller, lambda adapter: adapter.embed(request, caller))

    async def rerank(self, request: RerankRequest, caller: Caller) -> Ranking:
        return await self._unary("rerank", request, caller, lambda adapter: adapter.rerank(request, caller))

    def takes(self, inbound: Inbound) -> bool:
        """Whether every target can be passed the request as it came: which one it will be is not known yet."""
        if self._only is None:
            return all(relay is not None and relay.takes(inbound) for relay in self._relays)
        relay = self._relays[0]
        return relay is not None and relay.takes(inbound)

    async def relay(self, inbound: Inbound, caller: Caller, sink: Sink) -> Relayed:
        """As `Relay` says."""
        trip = _Trip(inbound, caller)
        # The sink of a unary answer is never touched.
        watched = _Watched(sink, trip) if inbound.head.stream else sink

        def work(adapter: Adapter) -> Awaitable[Relayed]:
            relay = relay_of(adapter)
            assert relay is not None, "the router takes only what all its targets do"
            return relay.relay(inbound, caller, watched)

        relayed, visit = await self._try(inbound.kind, trip, work)
        visit.end()
        if not trip.shown:
            sink.serving(trip.served)
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
        self, kind: Kind, request: Request, caller: Caller, start: Callable[[Adapter], AsyncIterator[Event]]
    ) -> AsyncGenerator[Event]:
        async def begin(adapter: Adapter) -> tuple[AsyncIterator[Event], Event]:
            events = start(adapter)
            try:
                return events, await anext(events)
            except BaseException:
                await _close(events)
                raise

        trip = _Trip(request, caller)
        (events, first), visit = await self._try(kind, trip, begin)
        failure: BaseException | None = None
        try:
            yield replace(first, served=trip.served) if isinstance(first, Started) else first
            async for event in events:
                yield event
        except BaseException as error:
            failure = error
            raise
        finally:
            visit.end(failure)
            await _close(events)

    async def _unary(
        self, kind: Kind, request: Request, caller: Caller, work: Callable[[Adapter], Awaitable[Unary]]
    ) -> Unary:
        trip = _Trip(request, caller)
        answer, visit = await self._try(kind, trip, work)
        visit.end()
        return replace(answer, served=trip.served)

    async def _try(self, kind: Kind, trip: _Trip, work: Callable[[Adapter], Awaitable[T]]) -> tuple[T, Visit]:
        """Find a target that does the work; raises the last failure when none does."""
        self._budget.earn()
        try:
            while True:
                target = self._next(kind, trip)
                if trip.pause_s:
                    await self._pause(trip.pause_s)
                result = await self._attempt(target, trip, work)
                if result is not None:
                    return result
        finally:
            self._decided(
                Decision(
                    request_id=trip.caller.request_id,
                    tenant=trip.caller.tenant,
                    route=self.name,
                    policy=self.settings.policy,
                    attempts=tuple(trip.attempts),
                    passed_over=trip.passed_over or NOBODY,
                )
            )

    async def _attempt(
        self, target: Target, trip: _Trip, work: Callable[[Adapter], Awaitable[T]]
    ) -> tuple[T, Visit] | None:
        """One try; None when it failed in a way that leaves others to be tried."""
        trip.served = Served(target.identity, target.provider, target.model, len(trip.attempts) + 1)
        visit = Visit(self.standings[target.identity], self._clock)
        try:
            result = await work(target.adapter)
        except BaseException as error:
            visit.end(error)
            self._note(trip, target, visit, error.code if isinstance(error, AdapterError) else "cancelled")
            if not isinstance(error, AdapterError) or not self._goes_on(target, trip, error):
                raise
            return None
        visit.answered()
        self._note(trip, target, visit, "ok")
        return result, visit

    def _note(self, trip: _Trip, target: Target, visit: Visit, outcome: str) -> None:
        took_us, waited_us = int(visit.took_s * 1e6), int(trip.pause_s * 1e6)
        trip.attempts.append(Attempt(target.identity, outcome, waited_us / 1000, took_us / 1000))

    # Decisions

    def _next(self, kind: Kind, trip: _Trip) -> Target:
        """The target to try now; raises when there is none. Entering its breaker belongs to the choice."""
        now_s = self._clock()
        if (
            (only := self._only) is not None
            and not trip.attempts
            and self._refusal(kind, trip.request, only) is None
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
                return self._chosen(fitting, trip, now_s)
            trip.group += 1
        raise trip.last or self._nobody(trip, now_s)

    def _fits(self, kind: Kind, trip: _Trip, target: Target, now_s: float) -> bool:
        if target.identity in trip.failed:
            return False
        standing = self.standings[target.identity]
        refusal = self._refusal(kind, trip.request, target)
        if refusal is not None:
            trip.refusal = trip.refusal or refusal
            trip.passed_over[target.identity] = refusal.message
        elif not standing.admits(now_s):
            trip.passed_over[target.identity] = standing.absence(now_s)
        else:
            return True
        return False

    def _refusal(self, kind: Kind, request: Request, target: Target) -> InvalidRequest | None:
        """What a target cannot do that the request needs."""
        if kind not in target.adapter.card.kinds:
            return InvalidRequest(f"The model '{self.name}' has no {kind}.", param="model")
        if isinstance(request, Inbound):
            return None  # It was looked at before, and what is wrong with it is for its target to say.
        refusal: Callable[[Request], InvalidRequest | None] | None = getattr(target.adapter, "refusal", None)
        return None if refusal is None else refusal(request)

    def _chosen(self, fitting: list[Target], trip: _Trip, now_s: float) -> Target:
        caller = trip.caller
        conversation = None if caller.session_key is None else f"{caller.tenant}\0{caller.session_key}"
        wish = Wish(
            draws=tuple(self._draw() for _ in fitting), conversation=conversation, eta_s_max=self.settings.eta_s_max
        )
        if self._spread:
            fitting = self._one_address_each(fitting, wish, now_s)
        candidates = [self._candidate(one, trip.request) for one in fitting]
        place = order(self.settings.policy, candidates, wish)[0]
        if self.settings.policy in ("weighted", "sticky"):
            for one, saved in zip(fitting, turns(candidates, place), strict=True):
                self._turns[one.listed or one.identity] = saved
        entered = self.standings[fitting[place].identity].try_enter(now_s)
        assert entered, "only targets whose breaker admits were ordered"
        return fitting[place]

    def _one_address_each(self, fitting: list[Target], wish: Wish, now_s: float) -> list[Target]:
        """Of targets that have several addresses one each."""
        addresses: dict[str, list[Target]] = {}
        for one in fitting:
            addresses.setdefault(one.listed or one.identity, []).append(one)
        return [some[address([self._address(one, now_s) for one in some], wish)] for some in addresses.values()]

    def _address(self, target: Target, now_s: float) -> Candidate:
        standing = self.standings[target.identity]
        return Candidate(identity=target.identity, weight=standing.warmth(now_s), running=standing.running)

    def _candidate(self, target: Target, request: Request) -> Candidate:
        standing = self.standings[target.identity]
        # Each of these looks over a queue or a whole request, so only who decides by it asks.
        policy = self.settings.policy
        eta: Callable[[], float] | None = getattr(target.adapter, "eta_s", None) if policy == "overflow" else None
        return Candidate(
            identity=target.listed or target.identity,
            weight=target.weight,
            running=standing.running,
            turn=self._turns[target.listed or target.identity],
            first_output_s=standing.first_output_s,
            cost_nano=target.cost_nano(request) if policy == "cheapest" else None,
            eta_s=None if eta is None else eta(),
        )

    def _goes_on(self, target: Target, trip: _Trip, error: AdapterError) -> bool:
        """Whether the request is tried again after this failure, and where."""
        trip.last, trip.failed[target.identity], trip.pause_s = error, error, 0.0
        if trip.shown:
            return False
        if isinstance(error, InvalidRequest):
            # Everybody of the group would say the same; a later group may have a longer context or another opinion.
            trip.group += 1
            return error.code in self.settings.falls_through and trip.group < len(self.groups)
        if len(trip.attempts) >= self.settings.attempts_max or not may_go_elsewhere(error):
            return False
        others = [one for group in self.groups[trip.group :] for one in group if one.identity not in trip.failed]
        if not others:
            if not may_come_again(error):
                return False
            pause_s = delay_s(len(trip.attempts), self._draw(), error.retry_after_s)
            if pause_s is None:
                return False
            # A pause of no length would read as none.
            trip.pause_s = max(pause_s, 1e-6)
        return self._budget.spend()

    def _nobody(self, trip: _Trip, now_s: float) -> AdapterError:
        """Nobody was tried: all targets rest, or none can do what is asked."""
        waits = [self.standings[one.identity].wait_s(now_s) for one in self.targets]
        resting = [wait_s for wait_s in waits if wait_s > 0]
        if resting:
            message = f"All targets of '{self.name}' are resting. Try again shortly."
            return ModelUnavailable(message, retry_after_s=max(min(resting), 1.0))
        assert trip.refusal is not None, "who does not rest and was not tried has refused"
        return trip.refusal


async def _close(events: AsyncIterator[Event]) -> None:
    """Stop the work behind a stream, also when this task is being cancelled once more."""
    aclose = getattr(events, "aclose", None)
    if aclose is not None:
        closing = asyncio.ensure_future(aclose())
        with suppress(AdapterError):
            await asyncio.shield(closing)
