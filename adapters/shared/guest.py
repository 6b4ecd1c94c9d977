"""The side of those who ask: models that another process has, as adapters like any other."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import msgspec

from adapters.errors import EngineFailed, InvalidRequest, ModelLoading
from adapters.llama_cpp import Status
from adapters.llama_cpp.messages import FrameError, FrameReader, SessionCounters, frame
from adapters.llama_cpp.part import Counters
from adapters.llama_cpp.pool import Verb
from adapters.llama_cpp.resident import Placement
from adapters.shared import messages as say
from adapters.types import (
    Caller,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    ModelCard,
    Ranking,
    RerankRequest,
    SessionAction,
    SessionInfo,
    TokenCount,
)

# How often the others are told what is counted here.
METRICS_EVERY_S = 2.0
RETRY_S = 0.05
RETRY_S_MAX = 1.0

log = logging.getLogger(__name__)


class _Inbox:
    """What was told about one question and not yet taken."""

    def __init__(self) -> None:
        self._told: deque[say.Event | say.Value | say.Failed] = deque()
        self._came = asyncio.Event()

    def put(self, told: say.Event | say.Value | say.Failed) -> None:
        self._told.append(told)
        self._came.set()

    async def take(self) -> say.Event | say.Value:
        """The next of it; raises what the host raised."""
        while not self._told:
            self._came.clear()
            await self._came.wait()
        told = self._told.popleft()
        if isinstance(told, say.Failed):
            raise say.error_of(told)
        return told


class Link(asyncio.Protocol):
    """The connection to the engine process. When it breaks, what waits fails; it is made anew until it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.state = say.State([])
        self.models: dict[str, say.Model] = {}
        self.metrics: dict[int, bytes] = {}
        self._known = asyncio.Event()
        self._ids = itertools.count(1)
        self._inboxes: dict[int, _Inbox] = {}
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._decoder = msgspec.msgpack.Decoder(list[say.Told])
        self._encoder = msgspec.msgpack.Encoder()
        self._lost = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connected(self) -> bool:
        return self._transport is not None

    async def start(self, timeout_s: float) -> None:
        """Connect, and wait that long until it is known which models there are."""
        self._tasks.append(asyncio.create_task(self._keep()))
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._known.wait()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._transport is not None:
            self._transport.abort()

    def share_metrics(self, number: int, render: Callable[[], bytes], every_s: float = METRICS_EVERY_S) -> None:
        """Tell the other processes now and then what this one counts; what they count is in `metrics`, by their
        numbers."""
        self._tasks.append(asyncio.create_task(self._share_metrics(number, render, every_s)))

    async def _share_metrics(self, number: int, render: Callable[[], bytes], every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            if self.connected:
                self._say(say.Metrics(number, render()))

    async def _keep(self) -> None:
        loop, wait_s = asyncio.get_running_loop(), RETRY_S
        while True:
            self._lost.clear()
            try:
                await loop.create_unix_connection(lambda: self, str(self._path))
                wait_s = RETRY_S
                await self._lost.wait()
                log.warning("the engine process is gone; waiting for the next one")
            except OSError:
                wait_s = min(2 * wait_s, RETRY_S_MAX)
            await asyncio.sleep(wait_s)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._reader = FrameReader()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.metrics.clear()
        self._lost.set()
        error = EngineFailed("The engine process stopped while it worked on the request.", retry_after_s=1.0)
        for number, inbox in self._inboxes.items():
            inbox.put(say.failed(number, error))

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                for told in self._decoder.decode(payload):
                    self._take(told)
        except (FrameError, msgspec.DecodeError):
            log.exception("what the engine process says cannot be understood")
            assert self._transport is not None
            self._transport.abort()

    def _take(self, told: say.Told) -> None:
        if isinstance(told, say.State):
            self.state, self.models = told, {model.name: model for model in told.models}
            self._known.set()
        elif isinstance(told, say.Metrics):
            self.metrics[told.number] = told.text
            if not told.text:
                del self.metrics[told.number]
        elif (inbox := self._inboxes.get(told.id)) is not None:
            inbox.put(told)

    async def value(self, question: Callable[[int], say.Question]) -> Any:
        """Ask something that has one answer."""
        number, inbox = self.ask(question)
        answered = False
        try:
            told = await inbox.take()
            answered = True
        finally:
            self.forget(number, cancel=not answered)
        return told.value

    async def call(self, part: str, body: bytes) -> bytes:
        """What that part of the engine process answers."""
        found: bytes = await self.value(lambda number: say.Call(number, part, body))
        return found

    def ask(self, question: Callable[[int], say.Question]) -> tuple[int, _Inbox]:
        """Ask; whoever does forgets the answer in the end."""
        if self._transport is None:
            raise ModelLoading("The engine process is being started.", retry_after_s=1.0)
        number = next(self._ids)
        try:
            data = frame([question(number)], self._encoder)
        except FrameError:
            raise InvalidRequest("The request is too large for a local model.", code="request_too_large") from None
        inbox = self._inboxes[number] = _Inbox()
        self._transport.write(data)
        return number, inbox

    def forget(self, number: int, *, cancel: bool) -> None:
        """Nobody waits for the answer any more."""
        self._inboxes.pop(number, None)
        if cancel:
            self._say(say.Cancel(number))

    def more(self, number: int, count: int) -> None:
        """So many more events can be taken."""
        self._say(say.More(number, count))

    def _say(self, message: say.Asked) -> None:
        if self._transport is not None:
            self._transport.write(frame([message], self._encoder))


class Shared:
    """Chat, Embedder, Reranker, Tokenizer and Sessions of a model that the engine process has."""

    def __init__(self, name: str, link: Link) -> None:
        self.name = name
        self._link = link

    # How it is

    @property
    def _model(self) -> say.Model | None:
        return self._link.models.get(self.name)

    @property
    def card(self) -> ModelCard:
        return ModelCard() if self._model is None else self._model.card

    @property
    def counters(self) -> Counters:
        return Counters(restarts=0 if self._model is None else self._model.restarts)

    @property
    def session_counters(self) -> SessionCounters:
        return SessionCounters() if self._model is None else self._model.sessions

    def status(self) -> Status:
        model = self._model
        if model is not None and self._link.connected:
            return model.status
        return Status(
            name=self.name,
            state="loading" if model is None else "restarting",
            progress=0.0,
            reason="the engine process is being started",
            info=None,
            pid=None,
            queue_depth=0,
            running=0,
            busyness=None,
        )

    def eta_s(self) -> float:
        """Seconds that a request which came now would wait for its turn."""
        model = self._model
        return math.inf if model is None or model.eta_s is None or not self._link.connected else model.eta_s

    # What it does

    def chat(self, request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
        return self._events(lambda number: say.Chat(number, self.name, request, caller))

    def complete(self, request: CompletionRequest, caller: Caller) -> AsyncIterator[Event]:
        return self._events(lambda number: say.Complete(number, self.name, request, caller))

    async def _events(self, question: Callable[[int], say.Question]) -> AsyncIterator[Event]:
        number, inbox = self._link.ask(question)
        taken, ended = 0, False
        try:
            while not ended:
                event = cast(Event, (await inbox.take()).value)
                taken += 1
                if taken % (say.WINDOW // 2) == 0:
                    self._link.more(number, say.WINDOW // 2)
                ended = isinstance(event, Finished)
                yield event
        finally:
            self._link.forget(number, cancel=not ended)

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        found: Embeddings = await self._link.value(lambda number: say.Embed(number, self.name, request, caller))
        return found

    async def rerank(self, request: RerankRequest, caller: Caller) -> Ranking:
        found: Ranking = await self._link.value(lambda number: say.Rerank(number, self.name, request, caller))
        return found

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        found: list[int] = await self._link.value(lambda number: say.Tokenize(number, self.name, text, special))
        return found

    async def detokenize(self, tokens: list[int]) -> str:
        found: str = await self._link.value(lambda number: say.Detokenize(number, self.name, tokens))
        return found

    async def apply_template(self, request: ChatRequest) -> tuple[str, int]:
        found: tuple[str, int] = await self._link.value(lambda number: say.Render(number, self.name, request))
        return found

    async def count_tokens(self, request: ChatRequest) -> TokenCount:
        return TokenCount((await self.apply_template(request))[1])

    async def list_sessions(self, tenant: str | None) -> list[SessionInfo]:
        found: list[SessionInfo] = await self._link.value(lambda number: say.ListSessions(number, self.name, tenant))
        return found

    async def change_session(
        self, tenant: str, key: str, action: SessionAction, new_key: str | None = None
    ) -> SessionInfo | None:
        found: SessionInfo | None = await self._link.value(
            lambda number: say.ChangeSession(number, self.name, tenant, key, action, new_key)
        )
        return found


class SharedPool:
    """The pool of the engine process. While that is away, what is known is what was."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def memory_bytes_max(self) -> int:
        return self._link.state.memory_bytes_max

    @property
    def taken_bytes(self) -> int:
        return self._link.state.taken_bytes

    def placements(self) -> Mapping[str, Placement]:
        return {name: model.place for name, model in self._link.models.items() if model.place is not None}

    async def do(self, verb: Verb, name: str, *, force: bool = False) -> bool:
        done: bool = await self._link.value(lambda number: say.Change(number, name, verb, force))
        return done
