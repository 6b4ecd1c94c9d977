"""Acts on what a fair queue decides: tells the owners of entries that they were granted a place or lost it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from adapters.errors import AdapterError
from adapters.llama_cpp.queue import Entry, FairQueue, Rates


class Line:
    """A fair queue with its clock. Every change that may free a place grants it to the next in line at once."""

    def __init__(self, queue: FairQueue, clock: Callable[[], float], rates: Callable[[], Rates]) -> None:
        self.queue = queue
        self._clock = clock
        self._rates = rates
        self._granting = False

    def join(self, entry: Entry) -> None:
        """Raises QueueFull or Overloaded; otherwise the owner will hear `granted` or `evicted`, perhaps at once."""
        self.queue.rates = self._rates()
        lost = self.queue.join(entry, self._clock())
        self.grant()
        if lost is not None:
            victim, error = lost
            victim.owner.evicted(victim, error)

    def eta_s(self) -> float:
        """Seconds until a request that came now would be granted a place."""
        self.queue.rates = self._rates()
        return self.queue.eta_s(self._clock())

    def done_s(self) -> float:
        """Seconds until all that run now are expected to be done."""
        self.queue.rates = self._rates()
        return self.queue.done_s(self._clock())

    def shrink(self, entry: Entry, choices: int) -> None:
        self.queue.shrink(entry, choices)
        self.grant()

    def finished(self, entry: Entry) -> None:
        self.queue.finished(entry, self._clock())
        self.grant()

    def leave(self, entry: Entry) -> None:
        self.queue.leave(entry)
        self.grant()

    def grant(self) -> None:
        """An owner may join or leave while it is told: the outermost call sees to all that follows."""
        if self._granting:
            return
        self._granting = True
        try:
            while granted := self.queue.dispatch(self._clock()):
                for entry in granted:
                    if entry.running:
                        entry.owner.granted(entry)
        finally:
            self._granting = False

    def clear(self, error: AdapterError) -> None:
        """Send everybody who waits away."""
        for entry in self.queue.in_line():
            self.queue.leave(entry)
            entry.owner.evicted(entry, error)


class Turn:
    """An entry's owner that is awaited: `line.join(entry)`, then `await turn.come`."""

    def __init__(self) -> None:
        self.come: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def granted(self, entry: Entry) -> None:
        if not self.come.done():
            self.come.set_result(None)

    def evicted(self, entry: Entry, error: AdapterError) -> None:
        if not self.come.done():
            self.come.set_exception(error)


async def take_turn(line: Line, entry: Entry, turn: Turn) -> None:
    """Wait for a place, which the caller then gives back with `line.leave(entry)`; none is held when this raises."""
    line.join(entry)
    try:
        await turn.come
    except BaseException:
        line.leave(entry)
        raise
