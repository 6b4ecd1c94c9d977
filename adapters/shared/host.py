"""The side of the engines: answers whatever other processes of this gateway ask over a Unix socket."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

from adapters import types
from adapters.errors import AdapterError, EngineFailed, InvalidRequest, ModelUnavailable
from adapters.llama_cpp import Status
from adapters.llama_cpp.messages import FrameError, FrameReader, SessionCounters, frame
from adapters.llama_cpp.part import Counters
from adapters.llama_cpp.pool import Occupied
from adapters.llama_cpp.resident import Placement
from adapters.shared import messages as say
from adapters.types import Event, ModelCard

STATE_EVERY_S = 0.1

Part = Callable[[bytes], Awaitable[bytes]]

log = logging.getLogger(__name__)


class Hosted(types.Chat, types.Embedder, types.Reranker, types.Tokenizer, types.Sessions, Protocol):
    """A model that is shared, as `LlamaCpp` is one."""

    name: str
    counters: Counters

    @property
    def card(self) -> ModelCard: ...

    @property
    def session_counters(self) -> SessionCounters: ...

    def status(self) -> Status: ...

    def eta_s(self) -> float: ...


class Host:
    """Serves models at a path until it is closed."""

    def __init__(
        self,
        models: Iterable[Hosted],
        path: Path,
        pool: Occupied | None = None,
        parts: Mapping[str, Part] | None = None,
    ) -> None:
        """`parts` are what can be called beside the models, by name."""
        self.models: Mapping[str, Hosted] = {model.name: model for model in models}
        self.pool = pool
        self.parts = parts or {}
        self._path = path
        self._guests: set[_Guest] = set()
        self._told = b""
        self._server: asyncio.Server | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; whatever was at the path before is gone."""
        self._path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Guest(self), str(self._path))
        self._path.chmod(0o600)
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """End all connections, and with them what runs for them."""
        if self._watching is not None:
            self._watching.cancel()
        if self._server is not None:
            self._server.close()
        for guest in list(self._guests):
            guest.leave()

    def joined(self, guest: _Guest) -> None:
        self._guests.add(guest)
        guest.tell(self.state())

    def left(self, guest: _Guest) -> None:
        self._guests.discard(guest)
        if guest.number is not None:
            self.pass_on(say.Metrics(guest.number, b""), guest)

    def pass_on(self, told: say.Metrics, sender: _Guest) -> None:
        """Tell the others what one of them counts."""
        for guest in self._guests - {sender}:
            guest.tell(told)

    def state(self) -> say.State:
        places = {} if self.pool is None else self.pool.placements()
        models = [_model(model, places.get(model.name)) for model in self.models.values()]
        if self.pool is None:
            return say.State(models)
        return say.State(models, self.pool.taken_bytes, self.pool.memory_bytes_max)

    async def _watch(self) -> None:
        """Tell everybody when something has changed; polled, as a model has many parts that change."""
        while True:
            await asyncio.sleep(STATE_EVERY_S)
            state = self.state()
            encoded = msgspec.msgpack.encode(state)
            if encoded != self._told:
                self._told = encoded
                for guest in self._guests:
                    guest.tell(state)


def _model(model: Hosted, place: Placement | None) -> say.Model:
    eta_s = model.eta_s()
    return say.Model(
        model.name,
        model.status(),
        model.card,
        model.session_counters,
        model.counters.restarts,
        round(eta_s, 1) if math.isfinite(eta_s) else None,
        place,
    )


class _Credit:
    """How many more events of a stream may be sent."""

    def __init__(self) -> None:
        self._left = say.WINDOW
        self._more = asyncio.Event()

    def add(self, count: int) -> None:
        self._left += count
        self._more.set()

    async def take(self) -> None:
        while self._left <= 0:
            self._more.clear()
            await self._more.wait()
        self._left -= 1


class _Guest(asyncio.Protocol):
    """One connection. What is told in one turn of the loop goes out as one frame, so a step of an engine is one."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.number: int | None = None
        self._reader = FrameReader()
        self._decoder = msgspec.msgpack.Decoder(list[say.Asked])
        self._encoder = msgspec.msgpack.Encoder()
        self._transport: asyncio.Transport | None = None
        self._running: dict[int, asyncio.Task[None]] = {}
        self._credits: dict[int, _Credit] = {}
        self._waiting: list[say.Told] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._host.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._host.left(self)
        for task in self._running.values():
            task.cancel()

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                for asked in self._decoder.decode(payload):
                    self._take(asked)
        except (FrameError, msgspec.DecodeError):
            log.exception("what another process of this gateway asks cannot be understood")
            self.leave()

    def _take(self, asked: say.Asked) -> None:
        match asked:
            case say.Cancel():
                if (task := self._running.get(asked.id)) is not None:
                    task.cancel()
            case say.More():
                if (credit := self._credits.get(asked.id)) is not None:
                    credit.add(asked.count)
            case say.Metrics(number=number):
                self.number = number
                self._host.pass_on(asked, self)
            case _:
                task = asyncio.get_running_loop().create_task(self._answer(asked))
                self._running[asked.id] = task
                task.add_done_callback(lambda _: self._forget(asked.id))

    def _forget(self, id: int) -> None:
        self._running.pop(id, None)
        self._credits.pop(id, None)

    async def _answer(self, asked: say.Question) -> None:
        """Answer one question; whatever goes wrong is an answer too."""
        try:
            if isinstance(asked, say.Call):
                self.tell(say.Answered(asked.id, await self._host.parts[asked.part](asked.body)))
                return
            model = self._host.models.get(asked.model)
            if model is None:
                raise ModelUnavailable("The model is not among those of the engine process.")
            await self._ask(model, asked)
        except AdapterError as error:
            self.tell(say.failed(asked.id, error))
        except Exception:
            log.exception("a request of another process failed unexpectedly")
            self.tell(say.failed(asked.id, EngineFailed("The engine process had an error.")))

    async def _ask(self, model: Hosted, asked: say.ModelQuestion) -> None:
        match asked:
            case say.Chat(id=id, request=chat, caller=caller):
                await self._stream(id, model.chat(chat, caller))
            case say.Complete(id=id, request=completion, caller=caller):
                await self._stream(id, model.complete(completion, caller))
            case say.Embed(id=id, request=embedding, caller=caller):
                self.tell(say.Embedded(id, await model.embed(embedding, caller)))
            case say.Rerank(id=id, request=reranking, caller=caller):
                self.tell(say.Ranked(id, await model.rerank(reranking, caller)))
            case say.Tokenize(id=id, text=text, special=special):
                self.tell(say.Tokens(id, await model.tokenize(text, special=special)))
            case say.Detokenize(id=id, tokens=tokens):
                self.tell(say.Text(id, await model.detokenize(tokens)))
            case say.Render(id=id, request=rendered):
                self.tell(say.Rendered(id, await model.apply_template(rendered)))
            case say.ListSessions(id=id, tenant=tenant):
                self.tell(say.Sessions(id, await model.list_sessions(tenant)))
            case say.ChangeSession(id=id, tenant=owner, key=key, action=action, new_key=new_key):
                self.tell(say.Session(id, await model.change_session(owner, key, action, new_key)))
            case say.Change(id=id, model=name, verb=verb, force=force):
                done = self._host.pool is not None and await self._host.pool.do(verb, name, force=force)
                # Whoever asked finds the model as it is then.
                self.tell(self._host.state())
                self.tell(say.Changed(id, done))

    async def _stream(self, id: int, events: AsyncIterator[Event]) -> None:
        credit = self._credits[id] = _Credit()
        async with aclosing(cast(Any, events)) as opened:
            async for event in opened:
                await credit.take()
                self.tell(_EVENT_OF[type(event)](id, event))

    def tell(self, told: say.Told) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(told)

    def _flush(self) -> None:
        told, self._waiting = self._waiting, []
        if self._transport is not None:
            self._send(self._transport, told)

    def _send(self, transport: asyncio.Transport, told: list[say.Told]) -> None:
        """What is too large for one frame goes in several; an answer that is too large for any is an error."""
        try:
            transport.write(frame(told, self._encoder))
        except FrameError:
            if (middle := len(told) // 2) > 0:
                self._send(transport, told[:middle])
                self._send(transport, told[middle:])
            elif not isinstance(told[0], say.State | say.Metrics):
                error = InvalidRequest("The answer would be too large.", code="request_too_large")
                transport.write(frame([say.failed(told[0].id, error)], self._encoder))


_EVENT_OF = cast(Mapping[type, Callable[[int, Any], say.Event]], say.EVENTS)
