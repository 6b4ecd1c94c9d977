"""Requests passed on to a provider in their own dialect: the body with only its routed fields replaced, the answer as
it comes, its events framed anew.

Of a stream every piece goes from the upstream's socket to the sink in one call. The last event is held back, because
what the request used is recorded first.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping

from adapters.answers import Whole, as_text, check_encoding
from adapters.connection import Flow, Headers
from adapters.dialects import openai_passing
from adapters.dialects.anthropic_messages.passing import MESSAGES
from adapters.dialects.failures import failure
from adapters.dialects.openai_responses.passing import COMPACTION, RESPONSES
from adapters.dialects.passing import Passing, Watch
from adapters.dialects.pieces import pieces
from adapters.errors import AdapterError, UpstreamInvalid
from adapters.estimates import BYTES_PER_TOKEN
from adapters.providers import Capability
from adapters.sse import EventSplitter
from adapters.types import Caller, DialectName, Finished, Inbound, Relayed, Sink
from adapters.upstream import Upstream

ANSWER_BYTES_MAX = 64 << 20
ERROR_BYTES_MAX = 64 * 1024
COUNTED_BYTES_MAX = 64 * 1024
# How long the end of a body may take when the stream in it is over.
REST_S = 0.5

PASSING: Mapping[DialectName, Passing] = {
    "openai_chat": openai_passing.CHAT,
    "openai_completions": openai_passing.COMPLETION,
    "openai_embeddings": openai_passing.EMBEDDING,
    "openai_responses": RESPONSES,
    "openai_compaction": COMPACTION,
    "anthropic_messages": MESSAGES,
}

# What belongs to another dialect, in which chats are held.
OF: Mapping[DialectName, DialectName] = {"openai_compaction": "openai_responses"}
_NAMED = re.compile(rb"(?:event: [^\n]+\ndata: [^\n]*\n\n)+")
_JSON = (("content-type", "application/json"),)


class Relaying:
    """One model of a provider. `lacks` is what it cannot do of what its provider can; `chats` the only dialect in which
    chats are passed on, if not all of its provider's; `now_s` is the Unix time."""

    def __init__(
        self,
        model: str,
        upstream: Upstream,
        lacks: frozenset[Capability] = frozenset(),
        *,
        chats: DialectName | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._targets = {
            dialect: (upstream.target(dialect, model, stream=False), upstream.target(dialect, model))
            for dialect in upstream.dialects & frozenset(PASSING)
            if chats in (None, dialect, OF.get(dialect)) or PASSING[dialect].kind != "chat"
        }
        self._short_ids = upstream.row.style.short_ids
        self._upstream = upstream
        self._model = model
        self._lacks = lacks
        self._now_s = now_s

    def takes(self, inbound: Inbound) -> bool:
        """As `Relay` says. What a provider lacks as a whole it refuses itself."""
        if inbound.dialect not in self._targets:
            return False
        if self._short_ids and b'"tool_call_id"' in inbound.body:
            return False  # The ids may be another provider's.
        return not self._lacks or not PASSING[inbound.dialect].may_need(inbound, self._lacks)

    async def relay(self, inbound: Inbound, caller: Caller, sink: Sink) -> Relayed:
        """As `Relay` says."""
        passing, upstream = PASSING[inbound.dialect], self._upstream
        body = passing.rewrite(inbound, self._model, upstream.row.style)
        # Providers that sign bodies speak none of the dialects that are passed on.
        headers = (*_JSON, *inbound.headers) if inbound.headers else _JSON
        head = await upstream.head("POST", self._targets[inbound.dialect][inbound.head.stream], b"", headers)
        if not inbound.head.stream:
            whole = Whole(ANSWER_BYTES_MAX)
            await upstream.wire.send(head, body, whole)
            return self._whole(passing, whole)
        stream = _Stream(passing.watch(inbound), sink)
        try:
            await upstream.wire.send(head, body, stream)
        except AdapterError as error:
            if not stream.done:
                raise self._upstream.own(error) from None
        if stream.refused is not None:
            self._check(stream.refused.status, stream.refused.headers, stream.refused.body)
        return stream.end()

    def _whole(self, passing: Passing, whole: Whole) -> Relayed:
        body = whole.body
        self._check(whole.status, whole.headers, body)
        usage = passing.usage_of(body)
        counted = 0 if usage.completion_tokens or passing.kind == "embedding" else _counted(body)
        return Relayed(Finished(usage), body, "application/json", counted)

    def _check(self, status: int, headers: Headers, body: bytes) -> None:
        """Raise what an answer other than success means."""
        if status != 200:
            raise self._upstream.own(failure(status, body, as_text(headers), self._now_s()))
        check_encoding(headers)


def _counted(body: bytes) -> int:
    """What an answer has about in tokens that does not say so; all of a large one counts as said."""
    said = len(body) if len(body) > COUNTED_BYTES_MAX else pieces(body).size_bytes
    return -(-said // BYTES_PER_TOKEN)


class _Stream:
    """Receives a stream and hands it on."""

    def __init__(self, watch: Watch, sink: Sink) -> None:
        self.refused: Whole | None = None
        self._watch = watch
        self._sink = sink
        self._frames = Frames()
        self._begun = False
        self._flow: Flow | None = None

    @property
    def done(self) -> bool:
        return self._watch.done

    def on_head(self, status: int, headers: Headers, flow: Flow) -> None:
        self._flow = flow
        if status != 200:
            self.refused = Whole(ERROR_BYTES_MAX)
            self.refused.on_head(status, headers, flow)
            return
        check_encoding(headers)
        if not headers.get(b"content-type", b"").lower().startswith(b"text/event-stream"):
            raise UpstreamInvalid("The provider answered with something that is not a stream.")

    def on_data(self, data: bytes) -> None:
        if self.refused is not None:
            self.refused.on_data(data)
            return
        frames, events = self._frames.feed(data)
        if events:
            self._pass(frames, events)

    def _pass(self, frames: bytes, events: int) -> None:
        try:
            frames, outputs = self._watch.passed(frames, events)
        except AdapterError:
            if self._begun and events > 1:
                # Where something was shown already, so is what came before the failure.
                for frame in frames[:-2].split(b"\n\n"):
                    self._pass(frame + b"\n\n", 1)
            raise
        assert self._flow is not None
        if frames:
            if not self._begun:
                self._begun = True
                self._sink.begin("text/event-stream; charset=utf-8")
            if not self._sink.write(frames, outputs):
                self._flow.pause()
                self._sink.when_drained(self._flow.resume)
        if self._watch.done:
            self._flow.hurry(REST_S)

    def end(self) -> Relayed:
        """What is left to send."""
        frames, events = self._frames.end()
        if events and not self._watch.done:
            self._pass(frames, events)
        rest = self._watch.end()
        if not self._begun:
            self._sink.begin("text/event-stream; charset=utf-8")
        return Relayed(Finished(self._watch.usage), rest, "text/event-stream; charset=utf-8")


class Frames:
    """Server-sent events framed as clients get them: an `event:` line if there is a kind, one line of data, an empty
    line. Pieces that are framed like that already are not taken apart."""

    def __init__(self) -> None:
        self._splitter = EventSplitter()
        self._between = True

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """The whole events so far, and how many."""
        if self._between and data.endswith(b"\n\n") and data.find(b"\r") < 0:
            if data.startswith(b"data: ") and data.find(b"\n") == len(data) - 2:
                return data, 1
            events = data.count(b"\n\n")
            lines = data.count(b"\n")
            if data.startswith(b"data: ") and lines == 2 * events and data.count(b"\n\ndata: ") == events - 1:
                return data, events
            if lines == 3 * events and _NAMED.fullmatch(data):
                return data, events
        split = self._splitter.feed(data)
        # An empty line completes an event, so nothing of one is left.
        self._between = data.endswith(b"\n\n")
        return _framed(split), len(split)

    def end(self) -> tuple[bytes, int]:
        """What the end of the stream completes."""
        split = self._splitter.end()
        return _framed(split), len(split)


def _framed(events: list[tuple[str, bytes]]) -> bytes:
    """Line ends inside the data become spaces: in JSON they mean the same."""
    return b"".join(
        b"%bdata: %b\n\n" % (b"event: %b\n" % kind.encode() if kind else b"", data.replace(b"\n", b" "))
        for kind, data in events
    )
