"""Turns of the workers of one machine: one computes at a time, and each knows whether others do."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable

RECENT_US = 1_000_000
# After a long step of our own the others have had no chance to show themselves, so steps are counted and not time.
ALONE_STEPS_MIN = 4

_CELL = struct.Struct("<QQ")


def _now_us() -> int:
    return time.monotonic_ns() // 1000


class StepLease:
    """Held while a step computes: CPU workers of one machine that decode at the same time cost each other 3-40x.

    A lock on a file, so that it is free again the moment its holder dies. The file itself says who computed last, and
    when by the machine's clock.
    """

    def __init__(self, path: str, clock_us: Callable[[], int] = _now_us) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._clock_us = clock_us
        self._name = int.from_bytes(os.urandom(8)) | 1
        self._alone_steps = ALONE_STEPS_MIN

    def __enter__(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._alone_steps = 0 if self._another_computed() else self._alone_steps + 1
        self._sign()

    def __exit__(self, *_: object) -> None:
        self._sign()
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def contended(self) -> bool:
        """Whether another worker has computed lately: its streams wait while this one computes."""
        return self._alone_steps < ALONE_STEPS_MIN or self._another_computed()

    def _sign(self) -> None:
        os.pwrite(self._descriptor, _CELL.pack(self._name, self._clock_us()), 0)

    def _another_computed(self) -> bool:
        cell = os.pread(self._descriptor, _CELL.size, 0)
        if len(cell) < _CELL.size:
            return False
        name, at_us = _CELL.unpack(cell)
        return bool(name != self._name and self._clock_us() - at_us < RECENT_US)
