"""When a failed request is tried again: how long to wait, and how much of that the targets have to bear in all."""

from __future__ import annotations

FIRST_DELAY_S = 0.2
DELAY_S_MAX = 5.0


def delay_s(failures: int, draw: float, retry_after_s: float | None = None) -> float | None:
    """How long to wait after the `failures`-th failure in a row; None: longer than anybody should be kept waiting.

    Exponential with full jitter (Brooker, "Exponential Backoff And Jitter"): `draw` is uniform in [0, 1). What the
    target itself asked for is the least.
    """
    if retry_after_s is not None and retry_after_s > DELAY_S_MAX:
        return None
    jittered = draw * min(DELAY_S_MAX, FIRST_DELAY_S * 2.0 ** (failures - 1))
    return max(jittered, retry_after_s or 0.0)


class RetryBudget:
    """Retries may add `share` to the load, over all requests of a process.

    Each request earns a `share` of a retry, and up to `saved_max` are kept for a bad moment, which it starts with.
    """

    def __init__(self, share: float = 0.1, saved_max: float = 10.0) -> None:
        self._share = share
        self._saved_max = saved_max
        self._saved = saved_max

    def earn(self) -> None:
        """A request was let in."""
        if self._saved < self._saved_max:
            self._saved = min(self._saved_max, self._saved + self._share)

    def spend(self) -> bool:
        """Whether one retry may be made, which is then spent."""
        # Ten tenths are a whole retry, though their sum in floating point is a hair less.
        if self._saved < 1.0 - 1e-9:
            return False
        self._saved -= 1.0
        return True
