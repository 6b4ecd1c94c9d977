"""Memory for saved states that is there before it is needed.

The first write to fresh memory costs a page fault per 4 KiB, which was measured to take up to 45 ms for 25 MB, against
2 ms for the copy itself. So a thread touches memory ahead of time, and what is given back is used again.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from adapters.llama_cpp.kept import State

UNIT_BYTES = 1 << 20
# Conversations grow; with this much to spare, an eighth, memory fits the same one again for some turns.
GROWTH_SHARE = 8
# How many like the one that was taken are got ready: on a busy machine that takes longer than until the next is wanted.
AHEAD = 2


def step_back() -> None:
    """Makes the calling thread give way: a busy one beside those that compute a step would hold all of them up."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


class Buffers:
    """Hands out memory; keeps up to `spare_bytes_max` of it at hand. Memory comes back by itself when nobody has the
    array any more that was handed out, from whatever thread."""

    def __init__(self, spare_bytes_max: int) -> None:
        self._spare_bytes_max = spare_bytes_max
        self._lock = threading.Lock()
        self._spare: list[State] = []
        # The sizes of what is still to be touched.
        self._coming: list[int] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="buffers", initializer=step_back)

    def take(self, size: int) -> State:
        """An array of shape (size,), whatever it holds. Others like it are got ready, which may be half as large
        again."""
        with self._lock:
            fitting = [one for one in self._spare if _fits(size, len(one))]
            whole = min(fitting, key=len, default=None)
            if whole is not None:
                self._spare = [one for one in self._spare if one is not whole]
        if whole is None:
            whole = np.empty(_rounded(size + size // GROWTH_SHARE), np.uint8)
        self._prepare(size, AHEAD, _most(size))
        state = whole[:size]
        weakref.finalize(state, self._put, whole).atexit = False
        return state

    def prepare(self, size: int, count: int = 1) -> None:
        """Has memory for `count` states of up to `size` bytes touched, as far as there is room and it is not there
        already."""
        self._prepare(size, count, _rounded(size))

    def _prepare(self, size: int, count: int, whole: int) -> None:
        with self._lock:
            ready = sum(_fits(size, one) for one in (*map(len, self._spare), *self._coming))
            missing = min(count, self._spare_bytes_max // whole) - ready
            self._coming += [whole] * missing
        for _ in range(missing):
            self._thread.submit(self._touch, whole)

    @property
    def spare_bytes(self) -> int:
        with self._lock:
            return sum(map(len, self._spare))

    def settle(self) -> None:
        """Waits until what was to be prepared is ready."""
        self._thread.submit(lambda: None).result()

    def _touch(self, size: int) -> None:
        whole = np.empty(size, np.uint8)
        # One value per page would do, but numpy lets go of the interpreter's lock only where it fills a whole run.
        whole.fill(0)
        with self._lock:
            self._coming.remove(size)
        self._put(whole)

    def _put(self, whole: State) -> None:
        """What has lain there longest goes: nobody wants memory of that size any more."""
        with self._lock:
            self._spare.append(whole)
            while sum(map(len, self._spare)) > self._spare_bytes_max:
                self._spare.pop(0)


def _fits(size: int, whole: int) -> bool:
    """Whether memory of `whole` bytes has room for a state of `size`, and not far too much."""
    return size <= whole <= _most(size)


def _most(size: int) -> int:
    return _rounded(size + size // 2)


def _rounded(size: int) -> int:
    return max(1, -(-size // UNIT_BYTES)) * UNIT_BYTES
