"""One request on its way through the targets of a route: what it has met, and what was shown of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from msgspec.structs import force_setattr

from adapters.capabilities import Request as Canonical
from adapters.errors import AdapterError
from adapters.translated import Translation, Translator
from adapters.types import Caller, Inbound, Relay, Sink, Started
from gateway.catalog import Adapter, relay_of
from gateway.routing.decisions import Attempt
from gateway.routing.standing import Visit

Request = Canonical | Inbound


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter as a route uses it. `identity` is the same on all replicas; `cost_nano` forecasts a request's cost.

    `listed` is what the route calls it when it is one of several addresses of that. `relay` is the adapter as one that
    is passed requests as they came, if it is one.
    """

    identity: str
    provider: str
    model: str
    adapter: Adapter
    weight: float = 1.0
    listed: str | None = None
    cost_nano: Callable[[Request], int | None] = lambda request: None
    relay: Relay | None = None

    def __post_init__(self) -> None:
        force_setattr(self, "relay", relay_of(self.adapter))


class Trip(msgspec.Struct, eq=False):
    """What a request has met so far: how targets `failed`, and why others are `absent`, who were not tried.

    `shown` is the visit whose answer the client sees, after which nothing is tried again; `over` says that no other one
    is wanted. `answered` is there where somebody waits for the first of several tries.
    """

    request: Request
    caller: Caller
    group: int = 0
    tries: int = 0
    failed: dict[str, AdapterError] = {}
    passed_over: dict[str, str] = {}
    absent: dict[str, AdapterError] = {}
    attempts: list[Attempt] = []
    pause_s: float = 0.0
    last: AdapterError | None = None
    shown: Visit | None = None
    over: bool = False
    mirrored: bool = False
    answered: asyncio.Event | None = None
    translated: Translation | None = None

    def translation(self, translator: Translator) -> Translation:
        """The request for targets that do not speak its dialect, parsed once. Raises `InvalidRequest`."""
        assert isinstance(self.request, Inbound), "only what came as it is can be translated"
        if self.translated is None:
            self.translated = translator.translation(self.request)
        return self.translated

    @property
    def failures(self) -> list[AdapterError]:
        """Why nobody answered: those who were not tried, then those who were, in that order."""
        absent = [error for identity, error in self.absent.items() if identity not in self.failed]
        return [*absent, *self.failed.values()]

    def pass_over(self, target: Target, error: AdapterError, why: str) -> None:
        """A target is not even tried: `error` is what that comes to for the client, `why` what decisions say of it."""
        self.absent[target.identity] = error
        self.passed_over[target.identity] = why

    def note(
        self, target: Target, outcome: str, took_s: float, cost_nano: int | None = None, message: str | None = None
    ) -> None:
        """How a try ended."""
        self.attempts.append(Attempt(target.identity, outcome, self.pause_s, took_s, cost_nano, message))


class Watched:
    """A sink for one try that notes when something is shown to the client. Of several tries only one shows anything."""

    def __init__(self, sink: Sink, trip: Trip, visit: Visit) -> None:
        self._sink = sink
        self._trip = trip
        self._visit = visit
        self._outrun = False
        self._started: Started | None = None
        self.write = sink.write if trip.answered is None else self._write
        self.when_drained = sink.when_drained
        self.serving = sink.serving

    def started(self, started: Started) -> None:
        self._started = started

    def begin(self, content_type: str) -> None:
        trip, visit = self._trip, self._visit
        if trip.over or trip.shown is not None:
            self._outrun = True  # It is given up in a moment.
            return
        trip.shown = visit
        visit.answered()
        if trip.answered is not None:
            trip.answered.set()
        self._sink.serving(visit.served)
        if self._started is not None:
            self._sink.started(self._started)
        self._sink.begin(content_type)

    def _write(self, data: bytes, outputs: int) -> bool:
        return True if self._outrun or self._trip.over else self._sink.write(data, outputs)
