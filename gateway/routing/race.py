"""Several tries of one request side by side: the first that answers counts, the others are given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from adapters.errors import AdapterError
from gateway.routing.standing import Visit
from gateway.routing.trip import Target, Trip

T = TypeVar("T")


class Race(Generic[T]):
    """`run` makes one try; `undo` is given what one brought that came too late.

    A try that was cancelled is noted here, any other notes itself; `given_up_nano` is what those may have cost that
    were. `clock` is in seconds, `pause` waits. Whoever starts a race ends it with `close`, which is a plain call.
    """

    def __init__(
        self,
        trip: Trip,
        run: Callable[[Target], Coroutine[Any, Any, tuple[T, Visit]]],
        undo: Callable[[T], None],
        *,
        clock: Callable[[], float],
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self._trip = trip
        self._run = run
        self._undo = undo
        self._clock = clock
        self._pause = pause
        self.given_up_nano = 0
        self._running: dict[asyncio.Task[tuple[T, Visit]], tuple[Target, float]] = {}
        trip.answered = asyncio.Event()
        self._answered = asyncio.ensure_future(trip.answered.wait())

    def start(self, target: Target) -> None:
        self._running[asyncio.ensure_future(self._run(target))] = target, self._clock()

    async def quiet_for(self, seconds: float) -> bool:
        """Wait until somebody answers or fails; whether nobody did for so long."""
        timer = asyncio.ensure_future(self._pause(seconds))
        try:
            await asyncio.wait([timer, self._answered, *self._running], return_when=asyncio.FIRST_COMPLETED)
            return not self._answered.done() and not any(task.done() for task in self._running)
        finally:
            timer.cancel()

    async def winner(self) -> tuple[T, Visit]:
        """What the first to answer brings. Raises the error of the one that failed last, which is not noted."""
        while True:
            if (shown := self._trip.shown) is not None:
                (task,) = (
                    task for task, (target, _) in self._running.items() if target.identity == shown.served.target
                )
                self._give_up(task)
                return await task
            error: BaseException | None = None
            for task in [task for task in self._running if task.done()]:
                error = task.exception()
                if error is None:
                    self._give_up(task)
                    del self._running[task]
                    return task.result()
                target, _ = self._running.pop(task)
                if isinstance(error, AdapterError) and self._running:
                    self._trip.failed[target.identity] = self._trip.last = error
            if not self._running:
                assert error is not None, "who does not run any more has failed"
                self._trip.answered = None  # Whoever is tried next is alone, and shown.
                raise error
            await asyncio.wait([self._answered, *self._running], return_when=asyncio.FIRST_COMPLETED)

    def close(self) -> None:
        """Give up whatever still runs: its client has gone, or somebody has answered. Nothing does when all failed."""
        self._trip.over = self._trip.answered is not None
        self._give_up(None)
        self._answered.cancel()

    def _give_up(self, winner: asyncio.Task[tuple[T, Visit]] | None) -> None:
        """All but the winner. What each of them costs is not known, so it is told as what it may cost at most."""
        for task, (target, started_s) in list(self._running.items()):
            if task is winner:
                continue
            del self._running[task]
            if not task.done() or task.cancelled():
                cost_nano = target.cost_nano(self._trip.request)
                self.given_up_nano += cost_nano or 0
                outcome = "cancelled" if winner is None else "outrun"
                self._trip.note(target, outcome, self._clock() - started_s, cost_nano)
            task.add_done_callback(self._late)
            task.cancel()

    def _late(self, task: asyncio.Task[tuple[T, Visit]]) -> None:
        if not task.cancelled() and task.exception() is None:
            brought, visit = task.result()
            visit.end()
            self._undo(brought)
