"""Requests passed on to a provider in its own API, with the gateway's key in the place of the client's."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, suppress
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes

import msgspec

from adapters.answers import Reading, as_text, check_encoding, streamed
from adapters.aws import EVENT_STREAM, MessageSplitter
from adapters.dialects.failures import failure
from adapters.dialects.recognised import latest, usage_in
from adapters.errors import AdapterError, UpstreamInvalid
from adapters.sse import EventSplitter
from adapters.types import Usage
from adapters.upstream import Upstream

ANSWER_BYTES_MAX = 64 << 20
# What of a request's headers goes along, nothing that authorises, frames or routes, and what of an answer's; and
# Amazon's own of both, which begin alike.
HEADERS = frozenset(("accept", "content-type", "anthropic-version", "anthropic-beta", "openai-beta"))
ANSWER_HEADERS = frozenset(("retry-after", "retry-after-ms", "x-should-retry", "x-amzn-errortype", "x-amzn-requestid"))
AMAZON = "x-amzn-bedrock-"
# Names under which some APIs take a key in the query.
_KEYS = (b"key", b"api_key", b"api-key", b"apikey", b"access_token", b"token")
_SAFE = "-._~!$&'()*+,=:@"
# Where Amazon's, Google's and Azure's APIs name the model. Amazon's names may hold slashes.
_NAMED = re.compile(r"(?:^|/)(?:models/([^/:]+):|deployments/([^/]+)/)")
_NAMED_BY_AMAZON = re.compile(r"model/(.+)/([a-z-]+)")


class Outgoing(msgspec.Struct, frozen=True):
    """A request to pass on. `path` is decoded and checked to climb nowhere, `query` is as it came."""

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def model(self) -> str | None:
        """The model that the path names, whatever the body says; None where it names none."""
        if (found := _NAMED_BY_AMAZON.fullmatch(self.path)) is not None:
            return found[1]
        found = _NAMED.search(self.path)
        return None if found is None else found[1] or found[2]


class Exchange:
    """A request and its answer. Whoever opens it closes it."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._stack = AsyncExitStack()
        self._reading = Reading()
        self.status = 0
        self.content_type = ""
        self.headers: dict[str, str] = {}
        self.usage: Usage | None = None
        self.received_bytes = 0

    async def open(self, outgoing: Outgoing) -> None:
        """Send the request and wait for the head of its answer.

        Raises an `AdapterError`, also where the answer is about the gateway's own account or leads elsewhere.
        """
        upstream = self._upstream
        target = upstream.path(_quoted(outgoing.path)) + _query(outgoing.query)
        head = await upstream.head(outgoing.method, target, outgoing.body, _passed(outgoing.headers))
        self._reading = await self._stack.enter_async_context(streamed(upstream.wire, head, outgoing.body))
        self.status = self._reading.status
        named = as_text(self._reading.headers)
        self.content_type = named.get("content-type", "application/octet-stream")
        self.headers = {name: one for name, one in named.items() if name in ANSWER_HEADERS or name.startswith(AMAZON)}
        if self.status in (401, 402, 403, 407) or 300 <= self.status < 400:
            await self.drop()
            raise failure(self.status, b"", {}, 0.0)
        try:
            check_encoding(self._reading.headers)
        except AdapterError:
            await self.drop()
            raise

    @property
    def is_stream(self) -> bool:
        """Whether the answer is to be passed on as it comes."""
        return self.status == 200 and self._kind in ("text/event-stream", EVENT_STREAM)

    @property
    def is_binary(self) -> bool:
        """Whether a stream is one of Amazon's messages."""
        return self._kind == EVENT_STREAM

    @property
    def _kind(self) -> str:
        return self.content_type.partition(";")[0].strip().lower()

    def events(self) -> AsyncIterator[bytes]:
        """A stream: whole events framed anew, or messages as they come."""
        return self._messages() if self.is_binary else self._events()

    async def _messages(self) -> AsyncIterator[bytes]:
        """Who reads them checks them, and is told in them what failed."""
        splitter: MessageSplitter | None = MessageSplitter()
        async for piece in self._reading:
            try:
                for _, payload in [] if splitter is None else splitter.feed(piece):
                    self.received_bytes += len(payload)
                    self.usage = latest(self.usage, usage_in(payload))
            except AdapterError:
                splitter = None
            yield piece
        await self.aclose()

    async def _events(self) -> AsyncIterator[bytes]:
        splitter = EventSplitter()
        async for piece in self._reading:
            self.received_bytes += len(piece)
            if frames := self._framed(splitter.feed(piece)):
                yield frames
        if frames := self._framed(splitter.end()):
            yield frames
        await self.aclose()

    async def body(self) -> bytes:
        """The whole answer. Of an error it says nothing about the gateway's key or where the provider is."""
        parts = []
        async for piece in self._reading:
            self.received_bytes += len(piece)
            if self.received_bytes > ANSWER_BYTES_MAX:
                raise UpstreamInvalid("The provider's answer is too large.")
            parts.append(piece)
        await self.aclose()
        body = b"".join(parts)
        self.usage = usage_in(body) or self._counted()
        return body if self.status < 400 else self._upstream.redacted(body)

    def _counted(self) -> Usage | None:
        """What Amazon says of the use of any model."""
        counts = [self.headers.get(f"{AMAZON}{side}-token-count", "") for side in ("input", "output")]
        return Usage(*(int(one or 0) for one in counts)) if any(map(str.isdigit, counts)) else None

    async def drop(self) -> None:
        """The same without a word. Nothing in it waits, so that a cancelled task can still do it."""
        with suppress(AdapterError):
            await self.aclose()

    async def aclose(self) -> None:
        """Drop what is still to come; raises why the answer broke off, if it did."""
        await self._stack.aclose()

    def _framed(self, events: Iterable[tuple[str, bytes]]) -> bytes:
        frames = b""
        for kind, payload in events:
            self.usage = latest(self.usage, usage_in(payload))
            name = b"event: " + kind.encode() + b"\n" if kind else b""
            frames += name + b"data: " + payload.replace(b"\n", b"\ndata: ") + b"\n\n"
        return frames


def _passed(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name in HEADERS or name.startswith(AMAZON)]


def _quoted(path: str) -> str:
    found = _NAMED_BY_AMAZON.fullmatch(path)
    return quote(path, safe="/" + _SAFE) if found is None else f"model/{quote(found[1], safe=_SAFE)}/{found[2]}"


def _query(raw: bytes) -> str:
    """The query without anything that would be taken for a key."""
    pairs = [pair for pair in raw.split(b"&") if pair and _name(pair) not in _KEYS]
    encoded = "&".join("=".join(_encoded(part) for part in pair.split(b"=", 1)) for pair in pairs)
    return f"?{encoded}" if encoded else ""


def _name(pair: bytes) -> bytes:
    return unquote_to_bytes(pair.partition(b"=")[0].replace(b"+", b" ")).strip().lower()


def _encoded(part: bytes) -> str:
    return quote_from_bytes(unquote_to_bytes(part.replace(b"+", b"%20")), safe="-._~")
