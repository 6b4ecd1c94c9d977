"""What the database said, remembered for a moment, and for longer while it is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec

from gateway import errors
from gateway.state.database import DatabaseError

CACHE_MAX = 10_000
REJECTED_MAX = 10_000
# With the time a query may take, five seconds until a change made elsewhere is noticed.
FRESH_S = 4.0
OUTAGE_S = 300.0
RETRY_S = 1.0
PATIENCE_S = 2.0

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

log = logging.getLogger(__name__)


class _Answer(msgspec.Struct, Generic[T], frozen=True):
    """What the database said (None: there is no such thing), and when by the monotonic clock."""

    value: T | None
    at_s: float


class Remembered(Generic[T]):
    """Answers by the name of what was asked about.

    An answer is believed for FRESH_S; when the database does not answer, one that found something is good for OUTAGE_S.
    `what` is who cannot be checked then, in log lines and errors. `clock` is monotonic seconds.
    """

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._clock = clock
        self._found: OrderedDict[str, _Answer[T]] = OrderedDict()
        self._missed: OrderedDict[str, _Answer[T]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[_Answer[T]]] = {}
        self._fresh_from_s = clock()
        self._down = False
        self._asked_again_s = clock()

    def fresh(self, name: str) -> T | None:
        """What was found a moment ago, as far as it is still believed."""
        seen = self._found.get(name)
        if seen is not None and seen.at_s >= self._fresh_from_s and self._clock() - seen.at_s < FRESH_S:
            return seen.value
        return None

    async def get(self, name: str, ask: Callable[[], Awaitable[T | None]]) -> T | None:
        """What is known of `name`, asking the database once for all who wait for the same answer; raises a 503.

        While the database is known to be away, an earlier answer is used at once, and the database asked again behind
        the request's back.
        """
        seen = self._found.get(name) or self._missed.get(name)
        if seen is not None and self._clock() - seen.at_s < FRESH_S and seen.at_s >= self._fresh_from_s:
            return seen.value
        if self._down and self._clock() - self._asked_again_s < RETRY_S:
            return self._without_database(seen)
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.create_task(self._ask(name, ask))
            task.add_done_callback(lambda task: self._answered(name, task))
        if self._down:
            self._asked_again_s = self._clock()
            if seen is not None and self._may_stand_in(seen):
                return seen.value
        # Not awaited itself: a caller that gives up must not take the answer from the others.
        await asyncio.wait([task], timeout=PATIENCE_S)
        if not task.done():
            self._note_outage("no answer yet")
        elif not isinstance(task.exception(), DatabaseError):
            return task.result().value
        return self._without_database(seen)

    def forget(self, concerns: Callable[[T], bool]) -> None:
        """Ask anew about all that a change concerns."""
        for name in [name for name, seen in self._found.items() if seen.value is not None and concerns(seen.value)]:
            del self._found[name]

    def doubt(self) -> None:
        """Ask anew about everything: something may have changed that nobody was told of."""
        self._fresh_from_s = self._clock()

    async def _ask(self, name: str, ask: Callable[[], Awaitable[T | None]]) -> _Answer[T]:
        at_s = self._clock()
        seen = _Answer(await ask(), at_s)
        if seen.value is None:
            self._found.pop(name, None)
            keep(self._missed, name, seen, REJECTED_MAX)
        else:
            self._missed.pop(name, None)
            keep(self._found, name, seen, CACHE_MAX)
        return seen

    def _answered(self, name: str, task: asyncio.Task[_Answer[T]]) -> None:
        del self._asking[name]
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, DatabaseError):
            self._note_outage(str(error))
        else:
            self._down = False

    def _note_outage(self, reason: str) -> None:
        if not self._down:
            log.warning("%s cannot be checked: %s", self._what, reason)
        self._down = True
        self._asked_again_s = self._clock()

    def _may_stand_in(self, seen: _Answer[T]) -> bool:
        return seen.value is not None and self._clock() - seen.at_s < OUTAGE_S

    def _without_database(self, seen: _Answer[T] | None) -> T | None:
        """An earlier answer while it may still be used; otherwise a 503, because an outage of ours is never a 401."""
        if seen is not None and self._may_stand_in(seen):
            return seen.value
        what = self._what[0].upper() + self._what[1:]
        raise errors.error("overloaded", f"{what} cannot be checked right now. Try again shortly.", retry_after_s=1)


def keep(answers: OrderedDict[K, V], name: K, seen: V, count_max: int) -> None:
    """Keep `seen` as the newest; the oldest leaves when there is no room."""
    answers[name] = seen
    answers.move_to_end(name)
    if len(answers) > count_max:
        answers.popitem(last=False)
