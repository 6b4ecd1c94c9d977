"""The one path of all inference: resolve the model, check that it fits, open its stream, count what happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TypeVar

from msgspec.structs import replace

from adapters.errors import InvalidRequest, Timeout
from adapters.said import readable
from adapters.translated import FIRST_EVENT_TIMEOUT_S, TOTAL_TIMEOUT_S
from adapters.types import (
    Caller,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Embeddings,
    Event,
    Inbound,
    Kind,
    Ranking,
    RerankRequest,
    TokenCount,
    Usage,
)
from gateway.auth import Principal
from gateway.cache import Ask, Cache
from gateway.catalog import Catalog, Target
from gateway.errors import GatewayError
from gateway.guardrails.guarding import Guarding, guarding
from gateway.guardrails.rules import Guardrails
from gateway.guardrails.texts import R
from gateway.metering import Meter, Metering, Request, durable
from gateway.streams import Passage, Record, Stream
from gateway.telemetry import Telemetry
from gateway.watching import Watching

T = TypeVar("T")
Encoded = TypeVar("Encoded", Embeddings, Ranking)
TextRequest = TypeVar("TextRequest", ChatRequest, CompletionRequest)

_KIND_NAMES: dict[Kind, str] = {
    "chat": "chat completions",
    "completion": "completions",
    "embedding": "embeddings",
    "rerank": "reranking",
}


class Inference:
    """Entrances for each kind of request. All of them raise `GatewayError` or `AdapterError`."""

    def __init__(
        self,
        catalog: Catalog,
        telemetry: Telemetry,
        metering: Metering | None = None,
        cache: Cache | None = None,
        *,
        guardrails: Guardrails | None = None,
        clock: Callable[[], float] = time.perf_counter,
        first_event_timeout_s: float = FIRST_EVENT_TIMEOUT_S,
        total_timeout_s: float = TOTAL_TIMEOUT_S,
    ) -> None:
        self._catalog = catalog
        self._telemetry = telemetry
        self._metering = metering or Metering()
        self._cache = cache
        self._guardrails = guardrails or Guardrails((), telemetry)
        self._guarded = bool(self._guardrails.rules)
        self._clock = clock
        self._first_event_timeout_s = first_event_timeout_s
        self._total_timeout_s = total_timeout_s

    def takes_image_urls(self, principal: Principal, request: ChatRequest) -> bool:
        """Whether images of a request may stay web addresses, because its target's provider fetches them."""
        return self._catalog.resolve(principal, request.model).card.image_urls

    def name_of(self, principal: Principal, model: str) -> str:
        """What a model is called; raises `model_not_found`."""
        return self._catalog.resolve(principal, model).name

    async def chat(self, principal: Principal, request: ChatRequest, caller: Caller) -> Stream:
        """Continue a conversation."""
        ask, bounded, guards = await self._text(principal, request, caller, "chat")
        return await self._open(ask, partial(ask.target.adapter.chat, bounded, caller), guards, bounded.generation.n)

    async def passage(self, principal: Principal, inbound: Inbound, caller: Caller) -> Passage | None:
        """The way of a request to a target that speaks its dialect, with what it may use held; None where there is no
        such target, and the request has to be translated."""
        target = self._catalog.resolve(principal, inbound.head.model)
        kind, relay = inbound.kind, target.relay(inbound)
        if relay is None or kind not in target.card.kinds:
            return None
        guards = self._guards(principal, target, caller)
        places = None if guards is None else await readable(inbound)
        if guards is not None and places is None:
            return None
        record = await self._admit(principal, target, caller, kind, inbound)
        if guards is not None and places is not None:
            inbound = await self._looked_at(record, guards.check_said(inbound, places))
        grant = record.meter.grant
        if grant is not None and inbound.head.max_tokens is None and (grant.nano or grant.slots):
            inbound = replace(inbound, output_tokens_max=grant.output_tokens or None)
        if self._cache is not None:
            relay = self._cache.relay(Ask(principal, target, caller, record, inbound, inbound.output_tokens_max), relay)
        if guards is not None and guards.watches and kind != "embedding":
            # What the cache keeps has been looked at by nobody, as another caller's guardrails may be others.
            relay = Watching(relay, guards)
        return Passage(target, relay, inbound, caller, record)

    async def complete(self, principal: Principal, request: CompletionRequest, caller: Caller) -> Stream:
        """Continue raw prompts."""
        ask, bounded, guards = await self._text(principal, request, caller, "completion")
        choices = len(bounded.prompts) * bounded.generation.n
        return await self._open(ask, partial(ask.target.adapter.complete, bounded, caller), guards, choices)

    async def embed(self, principal: Principal, request: EmbeddingRequest, caller: Caller) -> tuple[Embeddings, Meter]:
        """Turn texts into vectors; what it cost is in the meter."""
        target = self._target(principal, request.model, "embedding")
        checked, record, _ = await self._let_in(principal, target, caller, "embedding", request)
        ask = Ask(principal, target, caller, record, checked)
        return await self._encoded(ask, partial(target.adapter.embed, checked, caller))

    async def rerank(self, principal: Principal, request: RerankRequest, caller: Caller) -> tuple[Ranking, Meter]:
        """Score documents by how well they answer a query; what it cost is in the meter."""
        target = self._target(principal, request.model, "rerank")
        checked, record, _ = await self._let_in(principal, target, caller, "rerank", request)
        ask = Ask(principal, target, caller, record, checked)
        return await self._encoded(ask, partial(target.adapter.rerank, checked, caller))

    async def _text(
        self, principal: Principal, request: TextRequest, caller: Caller, kind: Kind
    ) -> tuple[Ask, TextRequest, Guarding | None]:
        """A request for text that was let in, the same with its answer bounded, and what is to watch that."""
        target = self._target(principal, request.model, kind)
        request = replace(request, generation=target.generation(request.generation))
        checked, record, guards = await self._let_in(principal, target, caller, kind, request)
        bounded = _bounded(checked, record)
        return Ask(principal, target, caller, record, checked, _bound_of(bounded, checked)), bounded, guards

    async def _let_in(
        self, principal: Principal, target: Target, caller: Caller, kind: Kind, request: R
    ) -> tuple[R, Record, Guarding | None]:
        """Hold what a request may use, and have it looked at; the request as it may go on. From here on its record has
        to be ended. One that is blocked ends its record, and costs nothing."""
        guards = self._guards(principal, target, caller)
        record = await self._admit(principal, target, caller, kind, request)
        if guards is None:
            return request, record, None
        return await self._looked_at(record, guards.check(request, target.adapter.detokenize)), record, guards

    async def _looked_at(self, record: Record, checking: Awaitable[T]) -> T:
        """A request as it may go on; one that is blocked ends its record."""
        try:
            return await self._in_time(checking)
        except BaseException as exc:
            record.fail(exc)
            raise

    async def _encoded(self, ask: Ask, work: Callable[[], Awaitable[Encoded]]) -> tuple[Encoded, Meter]:
        record, cache = ask.record, self._cache
        try:
            encoded = await self._in_time(work() if cache is None else cache.encoded(ask, work))
        except BaseException as exc:
            record.fail(exc)
            raise
        if encoded.served is not None:
            record.meter.serve(encoded.served)
        record.end("ok", Usage(encoded.prompt_tokens))
        await durable(record.meter)
        return encoded, record.meter

    async def tokenize(self, principal: Principal, model: str | None, text: str, *, special: bool) -> list[int]:
        """The token ids of a text; `special` adds what the model puts around every text. `model` None: the only one."""
        adapter = self._target(principal, model).adapter
        return await self._in_time(adapter.tokenize(text, special=special))

    async def detokenize(self, principal: Principal, model: str | None, tokens: list[int]) -> str:
        """The text of token ids. `model` None: the only one."""
        return await self._in_time(self._target(principal, model).adapter.detokenize(tokens))

    async def apply_template(self, principal: Principal, request: ChatRequest) -> tuple[str, int]:
        """The prompt that a conversation becomes and its length in tokens. An empty model name: the only one."""
        return await self._in_time(self._target(principal, request.model or None).adapter.apply_template(request))

    async def count_tokens(self, principal: Principal, request: ChatRequest) -> TokenCount:
        """How long the prompt is that a conversation becomes. An empty model name: the only one."""
        return await self._in_time(self._target(principal, request.model or None).adapter.count_tokens(request))

    def _target(self, principal: Principal, model: str | None, kind: Kind | None = None) -> Target:
        target = self._catalog.only(principal) if model is None else self._catalog.resolve(principal, model)
        if kind is not None and kind not in target.card.kinds:
            message = f"The model '{target.name}' does not support {_KIND_NAMES[kind]}."
            raise InvalidRequest(message, param="model")
        return target

    async def _admit(
        self, principal: Principal, target: Target, caller: Caller, kind: Kind, request: Request
    ) -> Record:
        """Hold what the request may use; from here on its record has to be ended."""
        try:
            meter = await self._metering.open(principal, target, caller.request_id, kind, request)
        except GatewayError as exc:
            self._telemetry.inference(target.name, exc.code)
            raise
        return Record(target.name, self._telemetry, self._clock, self._clock(), meter)

    def _guards(self, principal: Principal, target: Target, caller: Caller) -> Guarding | None:
        """What looks at a request; None where nothing applies."""
        if not self._guarded and not principal.guardrails:
            return None
        return guarding(self._guardrails, principal, target, caller.request_id)

    async def _open(
        self, ask: Ask, start: Callable[[], AsyncIterator[Event]], guards: Guarding | None, choices: int
    ) -> Stream:
        """Start the adapter; one that refuses at once ends the record like one that refuses later.

        What the cache keeps has been looked at by nobody, as another caller's guardrails may be others.
        """
        try:
            events = start() if self._cache is None else self._cache.events(ask, start)
            if guards is not None:
                events = guards.watch(events, choices)
        except BaseException as exc:
            ask.record.fail(exc)
            raise
        stream = Stream(ask.target, events, ask.record)
        await stream.open(self._first_event_timeout_s, self._total_timeout_s)
        return stream

    async def _in_time(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._first_event_timeout_s):
                return await work
        except TimeoutError:
            raise Timeout("The request took too long.") from None


def _bound_of(bounded: TextRequest, asked: TextRequest) -> int | None:
    """The bound of an answer whose author has set none, or a higher one."""
    return None if bounded is asked else bounded.generation.max_tokens


def _bounded(request: TextRequest, record: Record) -> TextRequest:
    """The request with its answer bounded by what is held for it."""
    grant = record.meter.grant
    asked = request.generation
    if grant is None or (asked.max_tokens is not None and asked.max_tokens <= grant.output_tokens):
        return request
    return replace(request, generation=replace(asked, max_tokens=grant.output_tokens))
