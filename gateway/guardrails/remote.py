"""What guardrails have in common that somebody else asks: texts go there in windows, or as one."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence

import httpcore

from gateway.guardrails import GuardrailFailed, Scanned, Span, united
from gateway.public_network import FAILURES, Resolve, network_to, resolve

ANSWER_BYTES_MAX = 4 << 20
CONNECTIONS_MAX = 32
SEPARATOR = "\n\n"

Ask = Callable[[str], Awaitable[Sequence[Span]]]


class Windows:
    """The scan of one text by somebody who is asked about windows of it.

    Windows lie at fixed places of the text, and each begins in the middle of the last one: what begins in their common
    half is left to the later one, which sees what follows.
    """

    def __init__(self, ask: Ask, window_chars: int) -> None:
        self._ask = ask
        self._size = window_chars
        self._text = ""
        self._base = 0

    async def feed(self, piece: str, *, last: bool) -> Scanned:
        self._text += piece
        spans: list[Span] = []
        while len(self._text) > self._size or (last and self._text):
            spans += await self._window()
        return Scanned(self._base, spans)

    async def _window(self) -> list[Span]:
        """Ask about the first window, and go on behind what is decided with it."""
        window, ends = self._text[: self._size], len(self._text) <= self._size
        found = united(_checked(await self._ask(window), len(window)))
        step = len(window) if ends else self._size // 2
        found = [one for one in found if one.start < step]
        step = max([step, *(one.end for one in found)])
        placed = [Span(self._base + one.start, self._base + one.end, one.kind, one.put) for one in found]
        self._text, self._base = self._text[step:], self._base + step
        return placed


async def find_joined(ask: Ask, texts: Sequence[str]) -> list[Sequence[Span]]:
    """What is in each of these texts, asked about as one. What reaches over the border of two is in both."""
    whole = SEPARATOR.join(texts)
    if not whole.strip():
        return [() for _ in texts]
    found = united(_checked(await ask(whole), len(whole)))
    placed: list[Sequence[Span]] = []
    start = 0
    for text in texts:
        end = start + len(text)
        inside = [one for one in found if one.start < end and one.end > start]
        placed.append([_clipped(one, start, end) for one in inside])
        start = end + len(SEPARATOR)
    return placed


def _clipped(span: Span, start: int, end: int) -> Span:
    return Span(max(span.start, start) - start, min(span.end, end) - start, span.kind, span.put)


def _checked(spans: Sequence[Span], length: int) -> Sequence[Span]:
    if not all(0 <= one.start < one.end <= length for one in spans):
        raise GuardrailFailed("it found something where there is no text")
    return spans


class Poster:
    """Posts JSON to an address, over connections that are kept."""

    def __init__(
        self,
        *,
        private_addresses: bool,
        resolve: Resolve = resolve,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._network = network_to(private_addresses=private_addresses, resolve=resolve, network=network)
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def post(self, url: str, payload: bytes, headers: Sequence[tuple[str, str]] = ()) -> bytes:
        """The body of the answer, which has to be a 200; a redirect is a failure. Raises GuardrailFailed."""
        usual = (("content-type", "application/json"), ("user-agent", "inference-gateway"))
        try:
            pool = self._pool or await self._opened()
            async with pool.stream("POST", url, headers=[*usual, *headers], content=payload) as response:
                if response.status != 200:
                    raise GuardrailFailed(f"it answered with status {response.status}")
                body = b""
                async for piece in response.aiter_stream():
                    body += piece
                    if len(body) > ANSWER_BYTES_MAX:
                        raise GuardrailFailed(f"its answer has more than {ANSWER_BYTES_MAX} bytes")
                return body
        except (OSError, *FAILURES) as error:
            raise GuardrailFailed(f"it cannot be reached: {type(error).__name__}") from error

    async def _opened(self) -> httpcore.AsyncConnectionPool:
        # Reading the system's certificates takes tens of milliseconds, in which somebody else may have come as far.
        context = await asyncio.to_thread(ssl.create_default_context)
        if self._pool is None:
            self._pool = httpcore.AsyncConnectionPool(
                ssl_context=context, network_backend=self._network, max_connections=CONNECTIONS_MAX, retries=0
            )
        return self._pool

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()
