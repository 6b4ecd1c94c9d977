"""A circuit breaker per target: closed, open, half-open (Nygard, "Release It!"), with the clock passed in."""

from __future__ import annotations

from typing import Literal

import msgspec

State = Literal["closed", "open", "half_open"]


class BreakerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """It opens after `failures` in a row, or when half of at least `requests_min` requests in `window_s` failed.

    It stays open for `open_s`, twice as long after each trial that failed, up to `open_s_max`.
    """

    failures: int = 5
    requests_min: int = 20
    window_s: float = 30.0
    open_s: float = 5.0
    open_s_max: float = 120.0


class Breaker:
    """One target's breaker. Whoever was told `try_enter` ends with exactly one of `succeeded`, `failed`, `left`.

    While it is half-open one request at a time is a trial: its success closes the breaker, its failure opens it again.
    An answer that has `begun` lets others in, as it may last for minutes; the next failure opens the breaker again.
    """

    def __init__(self, settings: BreakerSettings | None = None) -> None:
        self._settings = settings or BreakerSettings()
        self._until_s: float | None = None
        self._open_for_s = self._settings.open_s
        self._trial = False
        self._in_a_row = 0
        self._window_from_s = float("-inf")
        self._requests = 0
        self._failures = 0

    def state(self, now_s: float) -> State:
        if self._until_s is None:
            return "closed"
        return "open" if now_s < self._until_s else "half_open"

    def admits(self, now_s: float) -> bool:
        """Whether `try_enter` would let a request in."""
        return self._until_s is None or (now_s >= self._until_s and not self._trial)

    def wait_s(self, now_s: float) -> float:
        """How long until another request may be let in; 0 when it may now."""
        return 0.0 if self._until_s is None else max(0.0, self._until_s - now_s)

    def try_enter(self, now_s: float) -> bool:
        """Let a request in, or not."""
        if self._until_s is None:
            return True
        if not self.admits(now_s):
            return False
        self._trial = True
        return True

    def begun(self) -> None:
        """A request is being answered, and ends as ever."""
        if self._trial:
            self._until_s, self._trial = None, False
            self._requests = self._failures = 0
            self._in_a_row = self._settings.failures - 1

    def succeeded(self, now_s: float) -> None:
        self.begun()
        if self._until_s is None:
            self._open_for_s = self._settings.open_s
        self._in_a_row = 0
        self._count(now_s, failed=False)

    def failed(self, now_s: float, retry_after_s: float | None = None) -> None:
        """The target failed. The time for which it asked to be left alone, `retry_after_s`, it is left alone."""
        if retry_after_s is not None:
            self._open(now_s, min(retry_after_s, self._settings.open_s_max))
            return
        if self._trial:
            self._open_for_s = min(self._open_for_s * 2, self._settings.open_s_max)
            self._open(now_s, self._open_for_s)
        if self._until_s is not None:
            return
        self._in_a_row += 1
        self._count(now_s, failed=True)
        many = self._requests >= self._settings.requests_min and 2 * self._failures >= self._requests
        if many or self._in_a_row >= self._settings.failures:
            self._open(now_s, self._open_for_s)

    def try_again(self, now_s: float) -> None:
        """Something else than a request says that the target may be well again: the next request is a trial."""
        self._until_s, self._open_for_s = now_s, self._settings.open_s
        self._trial = False

    def left(self) -> None:
        """The request ended in a way that says nothing about the target, such as its client leaving."""
        self._trial = False

    def _open(self, now_s: float, for_s: float) -> None:
        self._until_s = max(now_s + for_s, self._until_s or 0.0)
        self._trial = False
        self._in_a_row = 0

    def _count(self, now_s: float, *, failed: bool) -> None:
        if now_s - self._window_from_s >= self._settings.window_s:
            self._window_from_s, self._requests, self._failures = now_s, 0, 0
        self._requests += 1
        self._failures += failed
