"""One request's answer on its way: its events or the bytes that are passed on, and the record of what it used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec

from adapters.diverting import Take, divert
from adapters.errors import AdapterError, EngineFailed, Timeout
from adapters.types import (
    Caller,
    Event,
    Finished,
    Inbound,
    Outlet,
    ReasoningDelta,
    Relay,
    Relayed,
    Served,
    Started,
    TextDelta,
    Timings,
    ToolCallDelta,
    Usage,
)
from gateway.catalog import Target
from gateway.errors import GatewayError
from gateway.ledger import believable
from gateway.metering import Meter, counted_tokens, durable
from gateway.telemetry import Telemetry


class Record(msgspec.Struct, eq=False):
    """Counts one request and settles its meter. It ends exactly once, by plain calls that a cancelled task can make.

    `sent` is what is on its way to a place where it costs its input, whether or not anybody counts that.
    """

    _model: str
    _telemetry: Telemetry
    _clock: Callable[[], float]
    _started_s: float
    meter: Meter
    _first_s: float | None = None
    _output_s: float | None = None
    _counted: int = 0
    _prompt: Started | None = None
    sent: Inbound | None = None
    _again: bool = False
    _ended: bool = False

    def event(self, event: Event) -> None:
        """Note the next event of the stream; the last one ends the record."""
        kind = type(event)
        if type(event) is TextDelta:
            self.passed(len(event.logprobs) or 1)
        elif kind is ToolCallDelta:
            self.passed(1)
        elif kind is ReasoningDelta:
            if not self._counted:
                self.meter.show()
            self._counted += 1
        elif isinstance(event, Started):
            self._prompt = event
            if event.served is not None:
                self.meter.serve(event.served)
        elif isinstance(event, Finished):
            self.end("ok", event.usage, estimated=event.estimated)

    def passed(self, outputs: int) -> None:
        """Tokens go to the client, at least so many."""
        if outputs and not self._counted:
            self.meter.show()
        self._counted += outputs
        if not outputs or self._again:
            return
        now_s = self._clock()
        if self._output_s is None:
            self._first_s = now_s
            self._telemetry.first_token(self._model, now_s - self._started_s)
        else:
            self._telemetry.gaps.observe((self._model,), now_s - self._output_s)
        self._output_s = now_s

    def given_again(self) -> None:
        """What comes is an answer that was counted when it was given first."""
        self._again = True

    def fail(self, exc: BaseException) -> None:
        """The request ended with an exception; a cancellation is the client's or the server's own wish."""
        if isinstance(exc, AdapterError) and exc.attempts is not None:
            self.meter.tried(exc.attempts)
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
        if self.sent is not None and (usage is None or usage.prompt_tokens <= 0):
            self._prompt = Started(counted_tokens(self.sent.body))
        prompt = self._prompt or Started(prompt_tokens=0)
        reported = usage or Usage(cached_tokens=prompt.cached_tokens)
        charged = believable(reported, prompt.prompt_tokens, self._counted)
        if not self._again:
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

    def divert(self, taker: Callable[[Callable[[Event], None]], Take]) -> None:
        """As `Direct` says, where the adapter has such a stream and nothing has to look at its events. `taker` is given
        what is to be told of all that is taken."""
        divert(self._events, taker(self._record.event))

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
        record.sent = self._inbound
        try:
            relayed = await self._relay.relay(self._inbound, self._caller, Noted(sink, record))
        except BaseException as exc:
            record.fail(exc)
            raise
        if relayed.outputs:
            record.passed(relayed.outputs)
        usage = relayed.finished.usage
        record.meter.timed(relayed.finished.timings, usage.cached_tokens)
        record.end("ok", usage, estimated=relayed.finished.estimated or not usage.prompt_tokens)
        await durable(record.meter)
        return relayed


class Noted(msgspec.Struct, eq=False):
    """A sink that has a record of what goes through it."""

    _sink: Outlet
    _record: Record

    def serving(self, served: Served) -> None:
        self._record.meter.serve(served)

    def started(self, started: Started) -> None:
        timings = Timings(queue_us=started.queue_us, prefill_us=started.prefill_us)
        self._record.meter.timed(timings, started.cached_tokens)

    def begin(self, content_type: str) -> None:
        self._sink.begin(content_type)

    def write(self, data: bytes, outputs: int) -> bool:
        self._record.passed(outputs)
        return self._sink.write(data, outputs)

    def when_drained(self, then: Callable[[], None]) -> None:
        self._sink.when_drained(then)
