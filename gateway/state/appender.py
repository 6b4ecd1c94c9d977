"""A thread of its own that adds records to an outbox.

The event loop wakes it and is woken by it once per group. Handing each group to the pool of threads costs a few times
as much, which at a thousand groups a second is what they are about.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Appender(Generic[T]):
    """Calls `append` with one group after the other. The thread begins with the first of them."""

    def __init__(self, append: Callable[[Sequence[bytes]], T]) -> None:
        self._append = append
        self._groups: SimpleQueue[tuple[Sequence[bytes], asyncio.Future[T]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def append(self, records: Sequence[bytes]) -> T:
        """What `append` returns or raises. Whoever stops waiting for it leaves it to be done all the same."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
            self._thread.start()
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._groups.put((records, done))
        return await done

    def close(self) -> None:
        """End the thread, after all groups that it was given."""
        if self._thread is not None:
            self._groups.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (group := self._groups.get()) is not None:
            records, done = group
            try:
                outcome: T | Exception = self._append(records)
            except Exception as error:
                outcome = error
            done.get_loop().call_soon_threadsafe(_tell, done, outcome)


def _tell(done: asyncio.Future[T], outcome: T | Exception) -> None:
    if done.done():
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
