"""One adapter for every provider: a canonical request in its dialect, sent, and its stream back as canonical events."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from adapters.answers import Answer, Reading, as_text, fetch, streamed
from adapters.aws import EVENT_STREAM, MessageSplitter
from adapters.capabilities import Request, refusal
from adapters.dialects import (
    anthropic_messages,
    bedrock_converse,
    bedrock_embeddings,
    cohere_embeddings,
    gemini,
    openai_chat_events,
    openai_chat_requests,
    openai_completions_client,
    openai_embeddings_client,
    openai_responses,
    rerank_client,
)
from adapters.dialects.client import EventParser, Style
from adapters.dialects.counting import COUNTINGS
from adapters.dialects.failures import failure, failure_in_stream
from adapters.dialects.gemini import embeddings as gemini_embeddings
from adapters.errors import AdapterError, InvalidRequest, UpstreamInvalid
from adapters.estimates import Tally, prompt_tokens
from adapters.providers import Capability
from adapters.relay import REST_S, Relaying
from adapters.sse import EventSplitter
from adapters.types import (
    Caller,
    ChatRequest,
    CompletionRequest,
    DialectName,
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    Kind,
    ModelCard,
    Ranking,
    RerankRequest,
    SessionAction,
    SessionInfo,
    Started,
    TokenCount,
)
from adapters.upstream import Upstream

ERROR_BYTES_MAX = 64 * 1024
ANSWER_BYTES_MAX = 256 << 20
# How many texts a request may have where nothing else is known, and into how many a larger one is cut at a time.
INPUTS_MAX = 1 << 16
REQUESTS_AT_ONCE = 8
T = TypeVar("T")
Headers = tuple[tuple[str, str], ...]


# What is not passed on even where a provider's row lacks it: an engine inside one's own network would fetch from any
# address that a client names.
FETCHING: frozenset[Capability] = frozenset(("image_urls",))


class ChatDialect(msgspec.Struct, frozen=True):
    """The client half of a dialect for chats."""

    render: Callable[[ChatRequest, Style], bytes]
    parser: Callable[[ChatRequest], EventParser]


CHATS: Mapping[DialectName, ChatDialect] = {
    "openai_chat": ChatDialect(openai_chat_requests.render_request, openai_chat_events.EventParser),
    "anthropic_messages": ChatDialect(anthropic_messages.render_request, anthropic_messages.EventParser),
    "gemini": ChatDialect(gemini.render_request, gemini.EventParser),
    "bedrock_converse": ChatDialect(bedrock_converse.render_request, bedrock_converse.EventParser),
    "openai_responses": ChatDialect(openai_responses.render_request, openai_responses.EventParser),
}


class EmbeddingDialect(msgspec.Struct, frozen=True):
    """The client half of a dialect for vectors. One request takes so many texts of a model."""

    render: Callable[[EmbeddingRequest], bytes]
    parse: Callable[[bytes, EmbeddingRequest], Embeddings]
    inputs_max: Callable[[str], int] = lambda model: INPUTS_MAX


EMBEDDINGS: Mapping[DialectName, EmbeddingDialect] = {
    "openai_embeddings": EmbeddingDialect(
        openai_embeddings_client.render_request, openai_embeddings_client.parse_answer
    ),
    "gemini_embeddings": EmbeddingDialect(
        gemini_embeddings.render_request, gemini_embeddings.parse_answer, gemini_embeddings.inputs_max
    ),
    "vertex_embeddings": EmbeddingDialect(
        gemini_embeddings.render_vertex_request,
        gemini_embeddings.parse_vertex_answer,
        gemini_embeddings.vertex_inputs_max,
    ),
    "cohere_embeddings": EmbeddingDialect(
        cohere_embeddings.render_request, cohere_embeddings.parse_answer, cohere_embeddings.inputs_max
    ),
    "bedrock_embeddings": EmbeddingDialect(
        bedrock_embeddings.render_request, bedrock_embeddings.parse_answer, bedrock_embeddings.inputs_max
    ),
}


class Splitter(Protocol):
    """Turns the pieces of a body into payloads."""

    def feed(self, piece: bytes) -> list[tuple[str, bytes]]: ...

    def end(self) -> list[tuple[str, bytes]]: ...


class RemoteModel(msgspec.Struct, frozen=True, kw_only=True):
    """A provider's model under a public name. `capabilities` None: all that the provider has. `dialect` is the only one
    in which chats are held with it; None: the first of its provider's, or any that can be passed on."""

    name: str
    model: str
    kinds: tuple[Kind, ...] = ("chat",)
    context_tokens: int | None = None
    description: str = ""
    capabilities: frozenset[Capability] | None = None
    dialect: DialectName | None = None


class RemoteStatus(msgspec.Struct, frozen=True):
    """A remote model is there until a request shows that it is not."""

    state: str = "ready"
    progress: float = 1.0
    reason: str | None = None


class Remote:
    """Chat, Relay, Embedder, Reranker, Tokenizer and Sessions, as far as the provider has them."""

    def __init__(self, model: RemoteModel, upstream: Upstream, *, now_s: Callable[[], float] = time.time) -> None:
        self.name = model.name
        self.upstream = upstream
        self.model = model.model
        can = upstream.row.capabilities if model.capabilities is None else model.capabilities
        self.capabilities = can
        self.card = ModelCard(
            context_tokens=model.context_tokens,
            kinds=model.kinds,
            description=model.description,
            vision="images" in can and "chat" in model.kinds,
            image_urls="image_urls" in can,
        )
        self._now_s = now_s
        self._chats = model.dialect or upstream.row.dialect_of("chat")
        lacks = (upstream.row.capabilities | FETCHING) - can
        relaying = Relaying(model.model, upstream, lacks, chats=model.dialect, now_s=now_s)
        self.takes, self.relay = relaying.takes, relaying.relay

    def status(self) -> RemoteStatus:
        return RemoteStatus()

    def refusal(self, request: Request) -> InvalidRequest | None:
        """Why this model cannot answer a request; None when it can."""
        return refusal(self.name, self.capabilities, request)

    def chat(self, request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
        self._check(request)
        dialect = self._dialect("chat")
        client = CHATS[dialect]
        body = client.render(replace(request, model=self.model), self.upstream.row.style)
        return self._stream(dialect, body, client.parser(request), request)

    def complete(self, request: CompletionRequest, caller: Caller) -> AsyncIterator[Event]:
        self._check(request)
        dialect = self._dialect("completion")
        body = openai_completions_client.render_request(replace(request, model=self.model), self.upstream.row.style)
        return self._stream(dialect, body, openai_completions_client.EventParser(request), request)

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        self._check(request)
        dialect = self._dialect("embedding")
        at_once = EMBEDDINGS[dialect].inputs_max(self.model)
        parts = [
            replace(request, model=self.model, inputs=request.inputs[start : start + at_once])
            for start in range(0, len(request.inputs), at_once)
        ]
        found: list[Embeddings] = []
        for start in range(0, len(parts), REQUESTS_AT_ONCE):
            found += await together(self._vectors(dialect, part) for part in parts[start : start + REQUESTS_AT_ONCE])
        if len({one.dimensions for one in found}) > 1:
            raise UpstreamInvalid("The provider sent vectors of several lengths.")
        vectors = tuple(vector for one in found for vector in one.vectors)
        return Embeddings(vectors, found[0].dimensions, sum(one.prompt_tokens for one in found))

    async def _vectors(self, dialect: DialectName, request: EmbeddingRequest) -> Embeddings:
        """Those of texts that fit into one request."""
        client = EMBEDDINGS[dialect]
        embeddings = client.parse(await self._whole(dialect, client.render(request)), request)
        return replace(embeddings, prompt_tokens=embeddings.prompt_tokens or prompt_tokens(request))

    async def rerank(self, request: RerankRequest, caller: Caller) -> Ranking:
        self._check(request)
        body = rerank_client.render_request(replace(request, model=self.model))
        ranking = rerank_client.parse_answer(await self._whole(self._dialect("rerank"), body), request)
        return replace(ranking, prompt_tokens=ranking.prompt_tokens or prompt_tokens(request))

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        raise self._unsupported("tokenising")

    async def detokenize(self, tokens: list[int]) -> str:
        raise self._unsupported("tokenising")

    async def count_tokens(self, request: ChatRequest) -> TokenCount:
        """Asks the provider where that is possible; whatever keeps it from answering, clients need a number."""
        self._check(request)
        upstream, counting = self.upstream, self.upstream.row.counting
        if counting is not None:
            question = COUNTINGS[counting[0]].ask(replace(request, model=self.model), upstream.row.style)
            with contextlib.suppress(AdapterError):
                answer = await self._answer(upstream.address(counting[1], self.model), question)
                return TokenCount(COUNTINGS[counting[0]].read(answer))
        return TokenCount(prompt_tokens(request), exact=False)

    async def apply_template(self, request: ChatRequest) -> tuple[str, int]:
        raise self._unsupported("templates")

    async def list_sessions(self, tenant: str | None) -> list[SessionInfo]:
        return []

    async def change_session(
        self, tenant: str, key: str, action: SessionAction, new_key: str | None = None
    ) -> SessionInfo | None:
        return None

    def _unsupported(self, what: str) -> InvalidRequest:
        message = f"The model '{self.name}' does not support {what}: its provider does not offer it."
        return InvalidRequest(message, code="unsupported_parameter", param="model")

    def _check(self, request: Request) -> None:
        if (problem := self.refusal(request)) is not None:
            raise problem

    def _dialect(self, kind: Kind) -> DialectName:
        dialect = self._chats if kind == "chat" else self.upstream.row.dialect_of(kind)
        if dialect is None:
            raise self._unsupported(kind)
        return dialect

    async def _stream(
        self,
        dialect: DialectName,
        body: bytes,
        parser: EventParser,
        request: ChatRequest | CompletionRequest,
    ) -> AsyncIterator[Event]:
        """The events of an answer, with what the provider did not report counted here."""
        estimate, tally = prompt_tokens(request), Tally()
        try:
            async with aclosing(self._events(dialect, body, parser)) as events:
                async for event in events:
                    tally.add(event)
                    if isinstance(event, Started) and not event.prompt_tokens:
                        event = replace(event, prompt_tokens=estimate)
                    elif isinstance(event, Finished):
                        event = _completed(event, estimate, tally)
                    yield event
        except AdapterError as error:
            raise self.upstream.own(error) from None

    async def _events(self, dialect: DialectName, body: bytes, parser: EventParser) -> AsyncGenerator[Event]:
        upstream = self.upstream
        head = await upstream.head("POST", upstream.target(dialect, self.model), body, _STREAM)
        try:
            async with streamed(upstream.wire, head, body) as reading:
                if reading.status != 200:
                    raise await self._failure(reading)
                splitter = await _splitter(reading)
                async for piece in reading:
                    for kind, payload in splitter.feed(piece):
                        for event in parser.feed(kind, payload):
                            yield event
                    if parser.done:
                        await reading.over(REST_S)
                        break
        except AdapterError:
            if not parser.done:
                raise
        for kind, payload in splitter.end():
            for event in parser.feed(kind, payload):
                yield event
        for event in parser.end():
            yield event

    async def _whole(self, dialect: DialectName, body: bytes) -> bytes:
        """The body of an answer that is no stream."""
        return await self._answer(self.upstream.target(dialect, self.model, stream=False), body)

    async def _answer(self, target: str, body: bytes) -> bytes:
        upstream = self.upstream
        head = await upstream.head("POST", target, body, _JSON)
        answer = await fetch(upstream.wire, head, body, bytes_max=ANSWER_BYTES_MAX)
        if answer.status != 200:
            raise self.upstream.own(self._failed(answer))
        return answer.body

    async def _failure(self, reading: Reading) -> AdapterError:
        return self._failed(Answer(reading.status, reading.headers, await _some(reading)))

    def _failed(self, answer: Answer) -> AdapterError:
        return failure(answer.status, answer.body, as_text(answer.headers), self._now_s())


_JSON = (("content-type", "application/json"), ("accept", "application/json"))
_STREAM = (("content-type", "application/json"), ("accept", "text/event-stream, application/vnd.amazon.eventstream"))


async def together(works: Iterable[Awaitable[T]]) -> list[T]:
    """All results; when one fails the others are given up."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _some(reading: Reading) -> bytes:
    """The beginning of a body, which is all that is looked at of an error."""
    body = b""
    async for piece in reading:
        body += piece
        if len(body) >= ERROR_BYTES_MAX:
            break
    return body[:ERROR_BYTES_MAX]


async def _splitter(reading: Reading) -> Splitter:
    """How the body is split; raises when it is no stream at all, such as a page that a proxy put there."""
    given = reading.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if given == EVENT_STREAM.encode():
        return MessageSplitter()
    if given == b"text/event-stream":
        return EventSplitter()
    if (problem := failure_in_stream(await _some(reading))) is not None:
        raise problem
    raise UpstreamInvalid("The provider answered with something else than a stream.")


def _completed(event: Finished, estimate: int, tally: Tally) -> Finished:
    """The end with a usage that can be: what is missing of it was counted here."""
    usage = event.usage
    prompt, completion = usage.prompt_tokens or estimate, usage.completion_tokens or tally.tokens
    if (prompt, completion) == (usage.prompt_tokens, usage.completion_tokens):
        return event
    reasoning = usage.reasoning_tokens or min(tally.reasoning_tokens, completion)
    counted = replace(usage, prompt_tokens=prompt, completion_tokens=completion, reasoning_tokens=reasoning)
    return replace(event, usage=counted, estimated=True)
