"""The one path of all inference: resolve the model, check that it fits, open its stream, count what happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from msgspec.structs import replace

from adapters.errors import AdapterError, EngineFailed, InvalidRequest, Timeout
from adapters.types import (
    Caller,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    Inbound,
    Kind,
    Outlet,
    Ranking,
    ReasoningDelta,
    Relay,
    Relayed,
    RerankRequest,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from gateway.auth import Principal
from gateway.catalog import Catalog, Target
from gateway.errors import GatewayError
from gateway.ledger import believable
from gateway.metering import Meter, Metering, Request, durable, inbound_tokens
from gateway.telemetry import Telemetry

T = TypeVar("T")
Encoded = TypeVar("Encoded", Embeddings, Ranking)
TextRequest = TypeVar("TextRequest", ChatRequest, CompletionRequest)

# What a token of a prompt that nobody counted is taken to have in bytes.
TOKEN_BYTES = 3
FIRST_EVENT_TIMEOUT_S = 600.0
TOTAL_TIMEOUT_S = 3600.0

_KIND_NAMES: dict[Kind, str] = {
    "chat": "chat completions",
    "completion": "completions",
    "embedding": "embeddings",
    "rerank": "reranking",
}


class Record:
    """Counts one request and settles its meter. It ends exactly once, by plain calls that a cancelled task can make."""

    def __init__(self, model: str, telemetry: Telemetry, clock: Callable[[], float], meter: Meter) -> None:
        self.meter = meter
        self._model = model
        self._telemetry = telemetry
        self._clock = clock
        self._started_s = clock()
        self._first_s: float | None = None
        self._output_s: float | None = None
        self._outputs = 0
        self._counted = 0
        self._prompt: Started | None = None
        self._estimate: Callable[[], int] | None = None
        self._ended = False

    def event(self, event: Event) -> None:
        """Note the next event of the stream; the last one ends the record."""
        kind = type(event)
        if isinstance(event, TextDelta):
            self._output()
            self._counted += len(event.logprobs) or 1
        elif kind is ToolCallDelta:
            self._output()
            self._counted += 1
        elif kind is ReasoningDelta:
            self._counted += 1
        elif isinstance(event, Started):
            self._prompt = event
            if event.served is not None:
                self.meter.serve(event.served)
        elif isinstance(event, Finished):
            self.end("ok", event.usage, estimated=event.estimated)

    def sent(self, prompt_tokens: Callable[[], int]) -> None:
        """The request is on its way to a place where it costs its input, which is about so much."""
        self._estimate = prompt_tokens

    def passed(self, outputs: int) -> None:
        """Tokens went to the client, at least so many."""
        if outputs:
            self._output()
            self._counted += outputs

    def _output(self) -> None:
        now_s = self._clock()
        if self._output_s is None:
            self._first_s = now_s
            self._telemetry.first_token(self._model, now_s - self._started_s)
        else:
            self._telemetry.gap(self._model, now_s - self._output_s)
        self._output_s = now_s
        self._outputs += 1

    def fail(self, exc: BaseException) -> None:
        """The request ended with an exception; a cancellation is the client's or the server's own wish."""
        if isinstance(exc, (AdapterError, GatewayError)):
            self.end(exc.code)
        elif isinstance(exc, Exception):
            self.end("internal_error")
        else:
            self.cancel()

    def cancel(self) -> None:
        """The client left, or the server ends; what was computed for it by then is its own."""
        self.end("cancelled", cancelled=True)

    def end(
        self, outcome: str, usage: Usage | None = None, *, cancelled: bool = False, estimated: bool = False
    ) -> None:
        """Count and settle the request.

        What was sent of a stream that was cut is charged, each output as one token at least, with the whole input. A
        request that we failed before its first output costs nothing.
        """
        if self._ended:
            return
        self._ended = True
        self._telemetry.inference(self._model, outcome)
        if self._estimate is not None and (usage is None or usage.prompt_tokens <= 0):
            self._prompt = Started(self._estimate())
        prompt = self._prompt or Started(prompt_tokens=0)
        reported = usage or Usage(cached_tokens=prompt.cached_tokens)
        charged = believable(reported, prompt.prompt_tokens, self._counted)
        self._telemetry.tokens(self._model, charged)
        used = usage is not None or self._counted > 0 or (cancelled and self._prompt is not None)
        first_us = None if self._first_s is None else round((self._first_s - self._started_s) * 1e6)
        self.meter.end(
            outcome, charged if used else None, estimated=estimated or usage is None, first_token_us=first_us
        )


class Stream:
    """The events of one request. The first, `started`, has been awaited already and is handed out once more.

    It ends after its `Finished` or it raises. One task at a time reads it, and whoever stops before its end closes it.
    """

    def __init__(self, target: Target, events: AsyncIterator[Event], record: Record) -> None:
        self.target = target
        self.meter = record.meter
        self.started = Started(prompt_tokens=0)
        self._events = events
        self._next = events.__anext__
        self._record = record
        self._pending: Event | None = None
        self._finished = False
        self._expired = False
        self._reader: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, first_event_timeout_s: float, total_timeout_s: float) -> None:
        """Await the first event; raises whatever kept it from coming, a `Timeout` too."""
        self._expire_after(first_event_timeout_s)
        first = await self.__anext__()
        if not isinstance(first, Started):
            failure = EngineFailed("The model's answer did not begin as it should.")
            self._record.fail(failure)
            await self.aclose()
            raise failure
        self.started = self._pending = first
        self._expire_after(total_timeout_s)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        if self._pending is not None:
            event, self._pending = self._pending, None
            return event
        try:
            if self._expired:
                raise Timeout("The request took too long.")
            event = await self._read()
        except BaseException as exc:
            if not self._finished:
                self._stop_timer()
                self._record.fail(exc)
            raise
        self._record.event(event)
        if type(event) is Finished:
            self._finished = True
            self._stop_timer()
            await durable(self.meter)
        return event

    async def _read(self) -> Event:
        """The adapter's next event. An end without `Finished` is a failure, and so is the timer's cancellation."""
        self._reader = task = asyncio.current_task()
        try:
            return await self._next()
        except StopAsyncIteration:
            if self._finished:
                raise
            raise EngineFailed("The model's answer broke off.") from None
        except asyncio.CancelledError:
            if self._expired and task is not None and task.uncancel() == 0:
                raise Timeout("The request took too long.") from None
            raise
        finally:
            self._reader = None

    def _expire_after(self, timeout_s: float) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._expire)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        """One timer per stream instead of a time-out per event; it only cancels a task that waits for the adapter."""
        self._expired = True
        if self._reader is not None:
            self._reader.cancel()

    async def aclose(self) -> None:
        """Stop the work; a no-op after the end."""
        self._stop_timer()
        self._record.cancel()
        aclose = getattr(self._events, "aclose", None)
        if aclose is not None:
            await aclose()


class Passage:
    """A request that its target takes as it came. Whoever has one runs it, once."""

    def __init__(self, target: Target, relay: Relay, inbound: Inbound, caller: Caller, record: Record) -> None:
        self.target = target
        self.meter = record.meter
        self._relay = relay
        self._inbound = inbound
        self._caller = caller
        self._record = record

    async def run(self, sink: Outlet) -> Relayed:
        """Pass it on. What it used is durable when this is done; the rest of the answer is still to be sent."""
        record = self._record
        record.sent(lambda: inbound_tokens(self._inbound.body) // TOKEN_BYTES)
        try:
            relayed = await self._relay.relay(self._inbound, self._caller, Noted(sink, record))
        except BaseException as exc:
            record.fail(exc)
            raise
        record.passed(relayed.outputs)
        usage = relayed.finished.usage
        record.end("ok", usage, estimated=relayed.finished.estimated or not usage.prompt_tokens)
        await durable(record.meter)
        return relayed


class Noted:
    """A sink that has a record of what goes through it."""

    def __init__(self, sink: Outlet, record: Record) -> None:
        self.begin = sink.begin
        self.serving = record.meter.serve
        self.when_drained = sink.when_drained
        self._write = sink.write
        self._passed = record.passed

    def write(self, data: bytes, outputs: int) -> bool:
        self._passed(outputs)
        return self._write(data, outputs)


class Inference:
    """Entrances for each kind of request. All of them raise `GatewayError` or `AdapterError`."""

    def __init__(
        self,
        catalog: Catalog,
        telemetry: Telemetry,
        metering: Metering | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        first_event_timeout_s: float = FIRST_EVENT_TIMEOUT_S,
        total_timeout_s: float = TOTAL_TIMEOUT_S,
    ) -> None:
        self._catalog = catalog
        self._telemetry = telemetry
        self._metering = metering or Metering()
        self._clock = clock
        self._first_event_timeout_s = first_event_timeout_s
        self._total_timeout_s = total_timeout_s

    def takes_image_urls(self, principal: Principal, request: ChatRequest) -> bool:
        """Whether images of a request may stay web addresses, because its target's provider fetches them."""
        return self._catalog.resolve(principal, request.model).card.image_urls

    async def chat(self, principal: Principal, request: ChatRequest, caller: Caller) -> Stream:
        """Continue a conversation."""
        target = self._target(principal, request.model, "chat")
        request = replace(request, generation=target.generation(request.generation))
        record = await self._admit(principal, target, caller, "chat", request)
        return await self._open(target, lambda: target.adapter.chat(_bounded(request, record), caller), record)

    async def passage(self, principal: Principal, inbound: Inbound, caller: Callable[[], Caller]) -> Passage | None:
        """The way of a request to a target that speaks its dialect, with what it may use held; None where there is no
        such target, and the request has to be translated. `caller` is only asked for where there is."""
        target = self._catalog.resolve(principal, inbound.head.model)
        kind, relay = inbound.kind, target.relay(inbound)
        if relay is None or kind not in target.card.kinds:
            return None
        behalf = caller()
        record = await self._admit(principal, target, behalf, kind, inbound)
        grant = record.meter.grant
        if grant is not None and inbound.head.max_tokens is None and (grant.nano or grant.slots):
            inbound = replace(inbound, output_tokens_max=grant.output_tokens or None)
        return Passage(target, relay, inbound, behalf, record)

    async def complete(self, principal: Principal, request: CompletionRequest, caller: Caller) -> Stream:
        """Continue raw prompts."""
        target = self._target(principal, request.model, "completion")
        request = replace(request, generation=target.generation(request.generation))
        record = await self._admit(principal, target, caller, "completion", request)
        return await self._open(target, lambda: target.adapter.complete(_bounded(request, record), caller), record)

    async def embed(self, principal: Principal, request: EmbeddingRequest, caller: Caller) -> tuple[Embeddings, Meter]:
        """Turn texts into vectors; what it cost is in the meter."""
        target = self._target(principal, request.model, "embedding")
        record = await self._admit(principal, target, caller, "embedding", request)
        return await self._encoded(record, target.adapter.embed(request, caller))

    async def rerank(self, principal: Principal, request: RerankRequest, caller: Caller) -> tuple[Ranking, Meter]:
        """Score documents by how well they answer a query; what it cost is in the meter."""
        target = self._target(principal, request.model, "rerank")
        record = await self._admit(principal, target, caller, "rerank", request)
        return await self._encoded(record, target.adapter.rerank(request, caller))

    async def _encoded(self, record: Record, work: Awaitable[Encoded]) -> tuple[Encoded, Meter]:
        try:
            encoded = await self._in_time(work)
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
        return Record(target.name, self._telemetry, self._clock, meter)

    async def _open(self, target: Target, start: Callable[[], AsyncIterator[Event]], record: Record) -> Stream:
        """Start the adapter; one that refuses at once ends the record like one that refuses later."""
        try:
            events = start()
        except BaseException as exc:
            record.fail(exc)
            raise
        stream = Stream(target, events, record)
        await stream.open(self._first_event_timeout_s, self._total_timeout_s)
        return stream

    async def _in_time(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._first_event_timeout_s):
                return await work
        except TimeoutError:
            raise Timeout("The request took too long.") from None


def _bounded(request: TextRequest, record: Record) -> TextRequest:
    """The request with its answer bounded by what is held for it."""
    grant = record.meter.grant
    asked = request.generation
    if grant is None or (asked.max_tokens is not None and asked.max_tokens <= grant.output_tokens):
        return request
    return replace(request, generation=replace(asked, max_tokens=grant.output_tokens))
