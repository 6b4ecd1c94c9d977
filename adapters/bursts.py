"""Writes of one moment to many connections, made one right behind the other."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

# So many writes wait at most: enough for each to cost little, while the first are not kept waiting for long.
WRITES_MAX = 16


class Writing(Protocol):
    """Somebody who has something to write."""

    def flush(self) -> None:
        """Write it."""
        ...


class Burst:
    """Who writes in the same millisecond as somebody before does so when the loop comes round, with all others.

    Beside Python code a system call finds nothing that it needs in the processor's caches, and whoever reads at the
    other end has to be woken for each. Behind one of its kind it takes half as long. The clock is that of uvloop, which
    counts milliseconds; by a finer one everybody writes at once.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._written_s = -1.0
        self._waiting: deque[Writing] = deque()

    def first(self) -> bool:
        """Whether a write now is the first of its moment; if so, the caller makes it."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        now_s = loop.time()
        if self._waiting or now_s == self._written_s:
            return False
        self._written_s = now_s
        return True

    def wait(self, writing: Writing) -> None:
        """Let somebody who is not the first write soon."""
        assert self._loop is not None
        self._waiting.append(writing)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._write)
        elif len(self._waiting) >= WRITES_MAX:
            self._write()

    def _write(self) -> None:
        try:
            while self._waiting:
                self._waiting.popleft().flush()
        finally:
            if self._waiting:  # One that raises, by a bug of ours, is no reason to forget the others.
                asyncio.get_running_loop().call_soon(self._write)
