"""Answers that guardrails look at, to requests that are passed on: shown as they come but for what is masked or blocked
in them."""

from __future__ import annotations

import asyncio

from adapters.backlog import Backlog, drained
from adapters.said import answered, ending, saying_instead
from adapters.types import Caller, Finished, Inbound, Relay, Relayed, Sink, Started, Usage
from gateway.guardrails.guarding import Guarding
from gateway.metering import counted_tokens

# What of a stream may wait to be looked at before its provider is asked to pause.
WAITING_BYTES_MAX = 256 * 1024


class Watching:
    """`Relay` over another one, for one request."""

    def __init__(self, relay: Relay, guards: Guarding) -> None:
        self._relay = relay
        self._guards = guards

    def takes(self, inbound: Inbound) -> bool:
        return self._relay.takes(inbound)

    async def relay(self, inbound: Inbound, caller: Caller, sink: Sink) -> Relayed:
        """As `Relay` says."""
        if inbound.head.stream:
            return await self._stream(inbound, caller, sink)
        relayed = await self._relay.relay(inbound, caller, sink)
        found = (await answered(relayed.rest)).found
        texts, blocked = await self._guards.check_answer(found)
        body = saying_instead(relayed.rest, found, texts)
        if blocked:
            body = ending(inbound).whole(body, blocked)
        return Relayed(relayed.finished, body, relayed.content_type, relayed.outputs)

    async def _stream(self, inbound: Inbound, caller: Caller, sink: Sink) -> Relayed:
        ends = ending(inbound)
        frames, line = self._guards.frames(inbound.head.n, ends), Line(sink)
        running = asyncio.create_task(self._relay.relay(inbound, caller, line))
        running.add_done_callback(line.end)
        try:
            while not frames.over() and (data := await line.next()) is not None:
                await line.show(await frames.feed(data), frames.outputs)
            if not frames.over():
                relayed = running.result()
                line.prompt_tokens = relayed.finished.usage.prompt_tokens or line.prompt_tokens
                rest = await frames.end(relayed.rest)
                if not frames.over():
                    line.open()
                    return Relayed(relayed.finished, rest, relayed.content_type, relayed.outputs)
                await line.show(rest, frames.outputs)
            prompt_tokens = line.prompt_tokens or counted_tokens(inbound.body)
            usage = Usage(prompt_tokens, frames.outputs)
            return Relayed(Finished(usage, estimated=True), ends.end(usage), line.content_type)
        finally:
            running.cancel()
            frames.close()


class Line:
    """A sink whose stream waits to be looked at, in front of the one that it is shown to."""

    def __init__(self, sink: Sink) -> None:
        self.content_type = ""
        self.prompt_tokens = 0
        self.serving = sink.serving
        self._sink = sink
        self._backlog = Backlog(WAITING_BYTES_MAX)
        self.write = self._backlog.write
        self.when_drained = self._backlog.when_drained
        self._ended = False
        self._opened = False
        self._shown = 0

    # What comes

    def started(self, started: Started) -> None:
        self.prompt_tokens = started.prompt_tokens
        self._sink.started(started)

    def begin(self, content_type: str) -> None:
        self.content_type = content_type

    def end(self, running: asyncio.Task[Relayed]) -> None:
        """Nothing more comes."""
        self._ended = True
        self._backlog.changed.set()
        if not running.cancelled():
            running.exception()  # Whoever waits for the result is told; nobody does when he has left.

    async def next(self) -> bytes | None:
        """Whole events that have come; None when no more will."""
        while not self._backlog.waits:
            if self._ended:
                return None
            await self._backlog.change()
        return self._backlog.take()

    # What goes

    def open(self) -> None:
        if not self._opened:
            self._opened = True
            self._sink.begin(self.content_type)

    async def show(self, data: bytes, outputs: int) -> None:
        """Pass on what may be shown, with as many `outputs` so far, and wait until the client has taken it."""
        if not data:
            return
        self.open()
        before, self._shown = self._shown, outputs
        if not self._sink.write(data, outputs - before):
            await drained(self._sink)
