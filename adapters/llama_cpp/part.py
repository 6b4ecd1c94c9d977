"""One prompt of a text request, as the line and the worker know it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Protocol

import msgspec

from adapters.errors import (
    AdapterError,
    EngineFailed,
    InvalidRequest,
    ModelLoading,
    ModelUnavailable,
)
from adapters.llama_cpp.line import Line
from adapters.llama_cpp.messages import (
    CacheReport,
    Cancel,
    Delta,
    Prepared,
    Refused,
    Start,
)
from adapters.llama_cpp.process import Answer, Worker
from adapters.llama_cpp.queue import Entry
from adapters.types import Caller


class Counters(msgspec.Struct):
    """What happened since the start; only ever grows."""

    requests: int = 0
    rejected: int = 0
    cancelled: int = 0
    failed: int = 0
    restarts: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    embedded_tokens: int = 0


class Engine(msgspec.Struct, frozen=True):
    """What requests of one model share: the worker, the line for its slots and the line for its tokenisers. `enter`
    waits, on behalf of a tenant, until the worker can be asked; it raises when that is not going to be."""

    worker: Worker
    places: Line
    preparing: Line
    counters: Counters
    enter: Callable[[str], Awaitable[object]]


def refused(answer: Refused) -> AdapterError:
    """The error a worker's refusal stands for."""
    match answer.code:
        case "model_unavailable" | "overloaded" | "insufficient_storage":
            return ModelUnavailable(answer.message, code=answer.code, param=answer.param, retry_after_s=1.0)
        case "internal_error" | "engine_failed":
            return EngineFailed(answer.message, param=answer.param)
    return InvalidRequest(answer.message, code=answer.code, param=answer.param)


class Request(Protocol):
    """What a prompt belongs to; it is told what becomes of it, on the event loop between awaits."""

    engine: Engine

    def part_prepared(self) -> None:
        """It is no longer in preparation."""
        ...

    def part_started(self) -> None: ...

    def arrived(self, delta: Delta) -> None: ...

    def fail(self, error: AdapterError) -> None: ...


class Stage(Enum):
    PREPARING = auto()
    PREPARED = auto()
    QUEUED = auto()
    RUNNING = auto()
    OVER = auto()


class Part:
    """One prompt of a request, known to the worker under its own id until it is over.

    Giving it up sends `Cancel`; a waiting part leaves the line at once, a running one keeps its slots until the worker
    says that they are free.
    """

    def __init__(self, request: Request, offset: int, choices: int) -> None:
        self.id = request.engine.worker.register(self)
        self.stage = Stage.PREPARING
        self.cancelled = False
        self.offset = offset
        self.prompt_tokens = 0
        self.max_tokens = 0
        self.thinking = False
        self.reasoning_tokens = 0
        self.cached_tokens: int | None = None
        self.cache: CacheReport | None = None
        self.message_ends: tuple[int, ...] = ()
        self.queue_us = 0
        self.prefill_us = 0
        self.decode_us = 0
        self._request = request
        self._engine = request.engine
        self._choices = choices
        self._unfinished = choices
        self._entry: Entry | None = None

    @property
    def completion_tokens(self) -> int:
        return 0 if self._entry is None else self._entry.produced

    def join(self, caller: Caller, endless: bool, committed: bool) -> None:
        entry = Entry(
            tenant=caller.tenant,
            owner=self,
            prompt_tokens=self.prompt_tokens,
            max_tokens=self.max_tokens,
            endless=endless,
            choices=self._choices,
            weight=caller.weight,
            priority=caller.priority,
            committed=committed,
        )
        self._entry = entry
        self.stage = Stage.QUEUED
        self._engine.places.join(entry)

    def cancel(self) -> None:
        if self.stage is Stage.OVER or self.cancelled:
            return
        self.cancelled = True
        self._engine.worker.send(Cancel(self.id))
        if self.stage is Stage.QUEUED and self._entry is not None:
            self._engine.places.leave(self._entry)

    # The line

    def granted(self, entry: Entry) -> None:
        self.stage = Stage.RUNNING
        self.queue_us = round((entry.started_s - entry.joined_s) * 1e6)
        self._engine.worker.send(Start(self.id))
        self._request.part_started()

    def evicted(self, entry: Entry, error: AdapterError) -> None:
        self._request.fail(error)

    # The worker

    def delta(self, delta: Delta) -> None:
        entry = self._entry
        if entry is None or not entry.running:
            return
        entry.produced += delta.tokens
        if delta.reasoning_tokens:
            self.reasoning_tokens += delta.reasoning_tokens
        if delta.cached_tokens >= 0:
            self._prefilled(entry, delta)
        if not self.cancelled:
            self._request.arrived(delta)
        if delta.finish is not None:
            self.decode_us = max(self.decode_us, delta.decode_us)
            self._unfinished -= 1
            if self._unfinished:
                self._engine.places.shrink(entry, self._unfinished)
            else:
                self._over(finished=True)

    def _prefilled(self, entry: Entry, delta: Delta) -> None:
        """The choices share one prompt: what the first of them did not compute was cached."""
        self.prefill_us = max(self.prefill_us, delta.prefill_us)
        if delta.cache is not None:
            self.cache = delta.cache
        if self.cached_tokens is None:
            self.cached_tokens = delta.cached_tokens
            self._engine.counters.prompt_tokens += self.prompt_tokens
            self._engine.counters.cached_tokens += delta.cached_tokens
            self._engine.places.queue.prefilled(entry, delta.cached_tokens)

    def answer(self, answer: Answer) -> None:
        if isinstance(answer, Prepared):
            if self.stage is Stage.PREPARING:
                self.prompt_tokens = answer.prompt_tokens
                self.max_tokens = answer.max_tokens
                self.thinking = answer.thinking
                self.message_ends = answer.message_ends
                self.stage = Stage.PREPARED
                self._request.part_prepared()
            return
        was = self.stage
        self._over()
        if was is Stage.PREPARING:
            self._request.part_prepared()
        if isinstance(answer, Refused):
            self._request.fail(refused(answer))

    def lost(self, reason: str) -> None:
        was = self.stage
        self._over()
        if was is Stage.PREPARING:
            self._request.part_prepared()
        if was is Stage.RUNNING:
            self._request.fail(EngineFailed("The engine died while it worked on this request.", retry_after_s=1.0))
        else:
            error = self._engine.worker.unavailable()
            self._request.fail(error or ModelLoading("The engine was restarted.", retry_after_s=1.0))

    def _over(self, finished: bool = False) -> None:
        self.stage = Stage.OVER
        self._engine.worker.forget(self.id)
        self._engine.counters.completion_tokens += self.completion_tokens
        if self._entry is not None:
            (self._engine.places.finished if finished else self._engine.places.leave)(self._entry)
