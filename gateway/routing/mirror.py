"""Copies of a route's requests for a shadow target: its answers are read, measured and thrown away.

Whatever becomes of a copy, the request itself does not notice. A copy has its own time-out, none of the client's
headers, and costs the client nothing; one that a provider would do more for than answer is not made.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from msgspec.structs import replace

from adapters.capabilities import Request, repeatable
from adapters.errors import AdapterError
from adapters.translated import Translator, generated
from adapters.types import (
    Caller,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Inbound,
    RerankRequest,
    Served,
    Started,
)
from gateway.catalog import Adapter, relay_of
from gateway.config_providers import MirrorConfig

log = logging.getLogger(__name__)

Outcome = Literal["ok", "failed", "dropped"]
# Copies wait behind everything else, where a local model is the shadow.
WEIGHT = 0.01
PRIORITY = -1_000_000


class Mirror:
    """One route's. `shadows` are the adapters of the shadow target, one for each of its addresses.

    `told` hears how each copy ended, and `timed` how long the first output took of the request itself and its copy.
    """

    def __init__(
        self,
        route: str,
        shadows: Sequence[Adapter],
        settings: MirrorConfig,
        *,
        told: Callable[[Outcome], None] = lambda outcome: None,
        timed: Callable[[Literal["real", "shadow"], float], None] = lambda side, seconds: None,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._route = route
        self._shadows = itertools.cycle(shadows)
        self._translator = Translator(route)
        self._settings = settings
        self._told = told
        self._timed = timed
        self._clock = clock
        self._draw = draw
        self._waiting: deque[tuple[Request | Inbound, Caller]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    def offer(self, request: Request | Inbound, caller: Caller) -> bool:
        """Make a copy, perhaps; whether there is one. Never waits and never fails."""
        settings = self._settings
        if self._draw() >= settings.share or not repeatable(request):
            return False
        if len(self._running) >= settings.running_max and len(self._waiting) >= settings.waiting_max:
            self._told("dropped")
            return False
        copied = _bare(request)
        # A copy takes neither a place in line nor a conversation of the client's own: it is of another tenant. No other
        # tenant's name holds a slash.
        names = {"request_id": f"{caller.request_id}-mirror", "tenant": f"{caller.tenant}/mirror"}
        behalf = replace(caller, **names, weight=WEIGHT, priority=PRIORITY)
        self._waiting.append((copied, behalf))
        self._next()
        return True

    def real(self, seconds: float) -> None:
        """How long the first output took of a request that there is a copy of."""
        self._timed("real", seconds)

    def close(self) -> None:
        """Give up all copies."""
        self._waiting.clear()
        for task in self._running:
            task.cancel()

    def _next(self) -> None:
        while self._waiting and len(self._running) < self._settings.running_max:
            task = asyncio.get_running_loop().create_task(self._run(*self._waiting.popleft()))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            self._next()

    async def _run(self, request: Request | Inbound, caller: Caller) -> None:
        reading = _Reading(self._clock)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await self._ask(next(self._shadows), request, caller, reading)
        except (AdapterError, TimeoutError) as error:
            log.debug("a copy for the shadow of %s failed: %s", self._route, error)
            self._told("failed")
        except Exception:
            log.exception("a copy for the shadow of %s failed unexpectedly", self._route)
            self._told("failed")
        else:
            self._timed("shadow", reading.first_s)
            self._told("ok")

    async def _ask(self, shadow: Adapter, request: Request | Inbound, caller: Caller, reading: _Reading) -> None:
        match request:
            case Inbound():
                relay = relay_of(shadow)
                if relay is not None and relay.takes(request):
                    await relay.relay(request, caller, reading)
                else:
                    await self._translator.translation(request).relay(shadow, caller, reading)
                reading.note()
            case ChatRequest() | CompletionRequest():
                async for _ in generated(shadow, request, caller):
                    reading.note()
            case EmbeddingRequest():
                await shadow.embed(request, caller)
                reading.note()
            case RerankRequest():
                await shadow.rerank(request, caller)
                reading.note()


def _bare(request: Request | Inbound) -> Request | Inbound:
    """The request without the client's headers."""
    if isinstance(request, Inbound):
        return replace(request, headers=())
    return request


class _Reading:
    """A sink that keeps nothing but the time of the first output."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started_s = clock()
        self.first_s = 0.0
        self._noted = False

    def note(self) -> None:
        if not self._noted:
            self._noted, self.first_s = True, self._clock() - self._started_s

    def serving(self, served: Served) -> None:
        """Nobody asks."""

    def started(self, started: Started) -> None:
        """Nobody asks."""

    def begin(self, content_type: str) -> None:
        self.note()

    def write(self, data: bytes, outputs: int) -> bool:
        return True

    def when_drained(self, then: Callable[[], None]) -> None:
        then()
