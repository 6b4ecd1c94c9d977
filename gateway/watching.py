"""Answers that guardrails look at, to requests that are passed on: sent as they came, and answered in events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

from msgspec.structs import replace

from adapters.closing import close
from adapters.said import Place, readable
from adapters.translated import TextRequest, Translator, generated
from adapters.types import (
    Caller,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Embeddings,
    Event,
    Inbound,
    Relayed,
    Served,
    Sink,
    Started,
)
from gateway.cache import Ask, Cache
from gateway.guardrails.guarding import Guarding


async def passable(inbound: Inbound, guards: Guarding) -> list[Place] | None:
    """The texts of a request that can be passed on behind these guardrails; None for what has to be parsed first."""
    if guards.watches and not Translator(inbound.head.model).takes(inbound):
        return None
    return await readable(inbound)


class Watching:
    """`Relay` for one request. What the cache keeps has been looked at by nobody, as another caller's guardrails may be
    others."""

    def __init__(self, ask: Ask, guards: Guarding, cache: Cache | None) -> None:
        self._ask = ask
        self._guards = guards
        self._cache = cache
        self._serving: Callable[[Served], None] = lambda served: None
        self._translator = Translator(ask.target.name)

    def takes(self, inbound: Inbound) -> bool:
        return self._translator.takes(inbound)

    async def relay(self, inbound: Inbound, caller: Caller, sink: Sink) -> Relayed:
        """As `Relay` says."""
        translation = self._translator.translation(inbound)
        if isinstance(translation.request, ChatRequest):
            translation.request = replace(translation.request, source=inbound)
        self._serving = sink.serving
        return await translation.relay(self, caller, sink)

    # What answers the translation

    def chat(self, request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
        return self._guards.watch(self._noted(self._answered(request, caller)), request.generation.n)

    def complete(self, request: CompletionRequest, caller: Caller) -> AsyncIterator[Event]:
        choices = len(request.prompts) * request.generation.n
        return self._guards.watch(self._noted(self._answered(request, caller)), choices)

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        return await self._ask.target.adapter.embed(request, caller)

    async def _noted(self, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
        """The events; who answers has to be known before anything is shown, and is charged for."""
        try:
            async for event in events:
                if isinstance(event, Started) and event.served is not None:
                    self._serving(event.served)
                yield event
        finally:
            await close(events)

    def _answered(self, request: TextRequest, caller: Caller) -> AsyncIterator[Event]:
        start = partial(generated, self._ask.target.adapter, request, caller)
        if self._cache is None:
            return start()
        if self._ask.output_tokens_max is not None:
            # How much may be spent now makes no other request of it.
            request = replace(request, generation=replace(request.generation, max_tokens=None))
        return self._cache.events(self._ask._replace(request=request), start)
