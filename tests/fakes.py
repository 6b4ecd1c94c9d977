"""Adapters that play a script, so that what stands in front of them is tested without an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from msgspec.structs import replace

from adapters.types import (
    CacheDiagnosis,
    Caller,
    ChatRequest,
    ChoiceFinished,
    CompletionRequest,
    Divergence,
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    ModelCard,
    Ranking,
    RerankRequest,
    SessionAction,
    SessionInfo,
    Started,
    TextDelta,
    TokenCount,
    Usage,
)
from gateway.limits.limiter import Balance


async def no_balances(accounts: Sequence[str]) -> dict[str, Balance]:
    """Of accounts that were never used."""
    return {}


Step = Event | Exception | asyncio.Event

HELLO: tuple[Event, ...] = (
    Started(prompt_tokens=7, cached_tokens=3, queue_us=1500, prefill_us=2500),
    TextDelta(0, "Hello"),
    TextDelta(0, " world"),
    ChoiceFinished(0, "stop"),
    Finished(Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3)),
)


DIAGNOSIS = CacheDiagnosis(
    cached_tokens=8,
    session_tokens=30,
    recomputed_tokens=14,
    recompute_us=600,
    restore_us=100,
    tier="disk",
    divergence=Divergence(8, 1, "user", "\u2028", " is"),
)


class Scripted:
    """Implements Chat, Embedder, Reranker, Tokenizer and Sessions.

    Each step of `script` is an event to yield, an exception to raise, or an `asyncio.Event` to wait for. What was asked
    is kept in `requests` and `callers`; `closed` counts the streams that were cut or closed before their script ended.
    `sessions` are those it keeps, by their ids; `absence` is raised in their place.
    """

    def __init__(self, script: Sequence[Step] = HELLO, *, card: ModelCard | None = None) -> None:
        self.script = script
        self.card = card or ModelCard(context_tokens=2048, kinds=("chat", "completion", "embedding", "rerank"))
        self.requests: list[ChatRequest | CompletionRequest | EmbeddingRequest | RerankRequest] = []
        self.callers: list[Caller] = []
        self.closed = 0
        self.sessions: dict[str, SessionInfo] = {}
        self.absence: Exception | None = None

    def chat(self, request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
        return self._play(request, caller)

    def complete(self, request: CompletionRequest, caller: Caller) -> AsyncIterator[Event]:
        return self._play(request, caller)

    async def _play(self, request: ChatRequest | CompletionRequest, caller: Caller) -> AsyncIterator[Event]:
        self.requests.append(request)
        self.callers.append(caller)
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    yield step
        except (GeneratorExit, asyncio.CancelledError):
            self.closed += 1
            raise

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        """Every vector is (0.5, -0.25); exceptions and waits of the script come first."""
        await self._hold_up(request, caller)
        vector = b"\x00\x00\x00\x3f\x00\x00\x80\xbe"
        return Embeddings(tuple(vector for _ in request.inputs), 2, sum(len(one) for one in request.inputs))

    async def rerank(self, request: RerankRequest, caller: Caller) -> Ranking:
        """A document's score is its length over 100; exceptions and waits of the script come first."""
        await self._hold_up(request, caller)
        return Ranking(tuple(len(one) / 100 for one in request.documents), len(request.documents))

    async def _hold_up(self, request: EmbeddingRequest | RerankRequest, caller: Caller) -> None:
        self.requests.append(request)
        self.callers.append(caller)
        for step in self.script:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        return [*([1] if special else []), *text.encode()]

    async def detokenize(self, tokens: list[int]) -> str:
        return bytes(tokens).decode()

    async def count_tokens(self, request: ChatRequest) -> TokenCount:
        return TokenCount((await self.apply_template(request))[1])

    async def apply_template(self, request: ChatRequest) -> tuple[str, int]:
        prompt = "".join(f"<{message.role}>{message.content}" for message in request.messages)
        return prompt, len(prompt)

    async def list_sessions(self, tenant: str | None) -> list[SessionInfo]:
        if self.absence is not None:
            raise self.absence
        return [one for one in self.sessions.values() if tenant in (None, one.tenant)]

    async def change_session(
        self, tenant: str, key: str, action: SessionAction, new_key: str | None = None
    ) -> SessionInfo | None:
        found = next((one for one in await self.list_sessions(tenant) if key in (one.key, one.id)), None)
        if found is None or action == "delete":
            return None if found is None else self.sessions.pop(found.id)
        match action:
            case "pin" | "unpin":
                found = replace(found, pinned=action == "pin")
            case "reset":
                found = replace(found, tokens=0)
            case "fork":
                found = replace(found, key=new_key, id=f"{found.id}_fork")
        self.sessions[found.id] = found
        return found


def session(id: str, key: str | None = None, *, tenant: str = "local", created_us: int = 1_000_000) -> SessionInfo:
    """A kept conversation of 300 tokens."""
    return SessionInfo(
        tenant=tenant,
        key=key,
        id=id,
        tokens=300,
        tier="ram",
        size_bytes=4096,
        created_us=created_us,
        used_us=created_us + 5_000_000,
        pinned=False,
    )
