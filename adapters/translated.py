"""Requests as they came for targets that do not speak their dialect: parsed once, answered, and rendered back in it.

What a route does with them is what it does with a `Relay`, so that one request may be passed on at one of its targets
and translated at another.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Protocol

import msgspec
from msgspec.structs import replace

from adapters.closing import close
from adapters.dialects import anthropic_messages, openai_chat, openai_completions, openai_embeddings, openai_responses
from adapters.dialects.openai_wire import EventRenderer, Folded, ResponseHead
from adapters.diverting import divert
from adapters.errors import EngineFailed, Timeout
from adapters.relay import PASSING
from adapters.types import (
    Caller,
    Chat,
    ChatRequest,
    CompletionRequest,
    DialectName,
    Embedder,
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    Inbound,
    ReasoningDelta,
    Relayed,
    Sink,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)

JSON = "application/json"
STREAM = "text/event-stream; charset=utf-8"
FIRST_EVENT_TIMEOUT_S = 600.0
TOTAL_TIMEOUT_S = 3600.0

TextRequest = ChatRequest | CompletionRequest


class Target(Chat, Embedder, Protocol):
    """What answers."""


class Text(msgspec.Struct, frozen=True):
    """A parsed request for text, and how its dialect writes the answer: a stream's frames, or the folded whole."""

    request: TextRequest
    choices: int
    frames: Callable[[ResponseHead], EventRenderer]
    whole: Callable[[ResponseHead, Folded], bytes]


class Vectors(msgspec.Struct, frozen=True):
    """A parsed request for vectors, and how its dialect writes them, in pieces."""

    request: EmbeddingRequest
    whole: Callable[[str, Embeddings], Iterator[bytes]]


def _chat(body: bytes) -> Text:
    inbound, dialect = openai_chat.parse_request(body), openai_chat
    return Text(
        inbound.request,
        inbound.request.generation.n,
        lambda head: dialect.ChunkRenderer(head, inbound),
        lambda head, folded: dialect.render_answer(head, inbound.request, folded),
    )


def _completion(body: bytes) -> Text:
    inbound, dialect = openai_completions.parse_request(body), openai_completions
    return Text(
        inbound.request,
        dialect.choice_count(inbound.request),
        lambda head: dialect.ChunkRenderer(head, inbound),
        lambda head, folded: dialect.render_answer(head, inbound.request, folded),
    )


def _responses(body: bytes) -> Text:
    inbound, dialect = openai_responses.parse_request(body), openai_responses
    dialect.refuse_kept(inbound.store, inbound.previous_response_id, inbound.conversation, inbound.background)
    return Text(
        inbound.request,
        1,
        lambda head: dialect.ChunkRenderer(head, inbound),
        lambda head, folded: dialect.render_answer(head, inbound, folded),
    )


def _messages(body: bytes) -> Text:
    inbound, dialect = anthropic_messages.parse_request(body), anthropic_messages
    return Text(
        inbound.request,
        1,
        lambda head: dialect.ChunkRenderer(head, inbound),
        lambda head, folded: dialect.render_answer(head, inbound.request, folded),
    )


def _embeddings(body: bytes) -> Vectors:
    inbound, dialect = openai_embeddings.parse_request(body), openai_embeddings
    return Vectors(
        inbound.request, lambda model, embeddings: dialect.render_answer(model, embeddings, as_base64=inbound.base64)
    )


# The server's half of each dialect, with what the ids of its answers begin with.
FACES: Mapping[DialectName, tuple[str, Callable[[bytes], Text | Vectors]]] = {
    "openai_chat": ("chatcmpl-", _chat),
    "openai_completions": ("cmpl-", _completion),
    "openai_responses": ("resp_", _responses),
    "openai_embeddings": ("", _embeddings),
    "anthropic_messages": ("msg_", _messages),
}


class Translator:
    """Translates for the targets of one public name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def takes(self, inbound: Inbound) -> bool:
        """Whether it could; who has to fetch something first, such as an image by its address, is asked elsewhere."""
        return inbound.dialect in FACES and not PASSING[inbound.dialect].may_need(inbound, ("image_urls",))

    def translation(self, inbound: Inbound) -> Translation:
        """Raises `InvalidRequest` for what is wrong with a request that was read no further than its head."""
        return Translation(self._name, inbound)


class Translation:
    """One request, to be answered by any target. `request` is what it comes to, bounded as its inbound is."""

    def __init__(self, name: str, inbound: Inbound) -> None:
        self._prefix, parse = FACES[inbound.dialect]
        self._name = name
        self._inbound = inbound
        self._parsed = parse(inbound.body)
        self.request = self._parsed.request
        if inbound.output_tokens_max is not None and not isinstance(self.request, EmbeddingRequest):
            generation = replace(self.request.generation, max_tokens=inbound.output_tokens_max)
            self.request = replace(self.request, generation=generation)

    async def relay(self, target: Target, caller: Caller, sink: Sink) -> Relayed:
        """As `Relay` says."""
        parsed, request = self._parsed, self.request
        if isinstance(parsed, Vectors):
            return await self._embed(parsed, target, caller)
        assert not isinstance(request, EmbeddingRequest), "text was asked for"
        events = generated(target, request, caller)
        try:
            async with asyncio.timeout(FIRST_EVENT_TIMEOUT_S) as limit:
                first = await anext(events, None)
                limit.reschedule(asyncio.get_running_loop().time() + TOTAL_TIMEOUT_S)
                answer = self._stream if self._inbound.head.stream else self._fold
                return await answer(parsed, first, events, caller, sink)
        except TimeoutError:
            raise Timeout("The request took too long.") from None
        finally:
            await close(events)

    async def _embed(self, parsed: Vectors, target: Target, caller: Caller) -> Relayed:
        embeddings = await target.embed(parsed.request, caller)
        parts = []
        for part in parsed.whole(self._name, embeddings):
            parts.append(part)
            await asyncio.sleep(0)  # Streams of others go on while thousands of vectors are written.
        return Relayed(Finished(Usage(embeddings.prompt_tokens)), b"".join(parts), JSON)

    async def _stream(
        self, parsed: Text, first: Event | None, events: AsyncIterator[Event], caller: Caller, sink: Sink
    ) -> Relayed:
        rendered, begun = Rendered(parsed.frames(self._head(caller)).render, sink), False
        async for event in _all(first, events):
            if isinstance(event, Started):
                sink.started(event)
            if not begun:
                begun = True
                sink.begin(STREAM)
                divert(events, rendered.take)
            await rendered.drained()
            if isinstance(event, Finished):
                return Relayed(event, rendered.render(event), STREAM)
            rendered.write(event)
        raise EngineFailed("The model's answer broke off.")

    async def _fold(
        self, parsed: Text, first: Event | None, events: AsyncIterator[Event], caller: Caller, sink: Sink
    ) -> Relayed:
        folded = Folded(parsed.choices)
        async for event in _all(first, events):
            folded.add(event)
            if isinstance(event, Finished):
                return Relayed(event, parsed.whole(self._head(caller), folded), JSON)
        raise EngineFailed("The model's answer broke off.")

    def _head(self, caller: Caller) -> ResponseHead:
        fingerprint = "fp_" + hashlib.sha256(self._name.encode()).hexdigest()[:10]
        return ResponseHead(self._prefix + caller.request_id, int(time.time()), self._name, fingerprint)


class Rendered:
    """A sink for events, which may ask for a pause behind each."""

    def __init__(self, render: Callable[[Event], bytes], sink: Sink) -> None:
        self.render = render
        self._sink = sink
        self._open = asyncio.Event()
        self._open.set()

    def take(self, event: Event) -> bool:
        """As `Direct` says."""
        if not self._open.is_set():
            return False
        self.write(event)
        return True

    def write(self, event: Event) -> None:
        frame = self.render(event)
        if frame and not self._sink.write(frame, int(isinstance(event, TextDelta | ToolCallDelta | ReasoningDelta))):
            self._open.clear()
            self._sink.when_drained(self._open.set)

    async def drained(self) -> None:
        """Wait for the end of a pause."""
        await self._open.wait()


def generated(target: Chat, request: TextRequest, caller: Caller) -> AsyncIterator[Event]:
    """The events with which a target answers a request for text."""
    return target.chat(request, caller) if isinstance(request, ChatRequest) else target.complete(request, caller)


async def _all(first: Event | None, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    if first is not None:
        yield first
    async for event in events:
        yield event
