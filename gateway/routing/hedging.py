"""When a second target is asked for the same request, and how often (Dean and Barroso, "The Tail at Scale", 2013).

What it costs: the client is charged for the answer that he got, as for any request, and once. The call that was given
up costs its provider's customer something that nobody tells him. It is taken to cost what the request may cost there at
most, which is told in the decision, and counts against the share of all costs that may go into such calls.
"""

from __future__ import annotations

from collections import deque

import msgspec

SAMPLES = 256
SAMPLES_MIN = 20
# How many new samples it takes until the percentile is computed anew.
STALE = 16
SAVED_MAX = 10.0


class HedgeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`after_s` None: longer than `percentile` of the latest requests took."""

    after_s: float | None = None
    percentile: float = 95.0
    share_max: float = 0.05


class Hedging:
    """One route's. Counts `started` second calls, those that `won`, and those `refused` by the cap; `cost_nano` is what
    those that were given up may have cost."""

    def __init__(self, settings: HedgeSettings) -> None:
        self.started = 0
        self.won = 0
        self.refused = 0
        self.cost_nano = 0
        self._settings = settings
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._fresh = 0
        self._percentile_s: float | None = None
        self._requests = 0.0
        self._nano = 0.0

    def learn(self, first_output_s: float) -> None:
        """How long a request waited for its first output, or without one until it was given up."""
        self._samples.append(first_output_s)
        self._fresh += 1
        if len(self._samples) >= SAMPLES_MIN and (self._percentile_s is None or self._fresh >= STALE):
            ordered = sorted(self._samples)
            self._percentile_s = ordered[int(len(ordered) * self._settings.percentile / 100)]
            self._fresh = 0

    @property
    def after_s(self) -> float | None:
        """How long the first target has; None: nobody knows yet what is long."""
        return self._percentile_s if self._settings.after_s is None else self._settings.after_s

    def earn(self, cost_nano: int | None) -> None:
        """A request was let in that may cost so much."""
        self._requests = min(SAVED_MAX, self._requests + self._settings.share_max)
        self._nano += self._settings.share_max * (cost_nano or 0)

    def spend(self, cost_nano: int | None) -> bool:
        """Whether a second call that may cost so much may be made, which is then spent."""
        # A sum of tenths in floating point may be a hair less than a whole.
        if self._requests < 1.0 - 1e-9 or self._nano < (cost_nano or 0) * (1.0 - 1e-9):
            self.refused += 1
            return False
        self._requests -= 1.0
        self._nano -= cost_nano or 0
        self.started += 1
        return True
