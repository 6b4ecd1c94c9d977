"""How each target does, and what a failure says about it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from adapters.errors import (
    AdapterError,
    Busy,
    EngineFailed,
    InvalidRequest,
    ModelLoading,
    ModelUnavailable,
    RateLimited,
    Timeout,
    Unavailable,
    UpstreamFailed,
    UpstreamRefused,
    in_full,
)
from adapters.types import Served
from gateway.routing.breaker import Breaker
from gateway.routing.health import Condition

log = logging.getLogger(__name__)

SMOOTHING = 0.2
# How often the log has a line about a target that fails, and one about a target that rests.
TOLD_EVERY_S = 10.0
# How long a new address takes until it has its whole part of the requests, and the part it begins with.
WARMING_S = 30.0
COLD = 0.1


class Standing:
    """How one target does. Routes that share a target share its standing.

    With a `condition` it is left alone while its origin is ill, and comes back with one request as a trial. It may
    be about one `address` only, which came up beside others at `entered_s`. `last_failure` is for whoever runs the
    gateway, and `missed` says that the log called it resting.
    """

    def __init__(
        self,
        breaker: Breaker,
        condition: Condition | None = None,
        *,
        address: str | None = None,
        entered_s: float | None = None,
    ) -> None:
        self.breaker = breaker
        self.condition = condition
        self.address = address
        self.entered_s = entered_s
        self._recoveries = 0 if condition is None else condition.recoveries
        self.running = 0
        self.first_output_s: float | None = None
        self.requests = 0
        self.failures = 0
        self.last_failure: str | None = None
        self.missed = False
        self._limited = False
        self._told_s = {False: float("-inf"), True: float("-inf")}

    def admits(self, now_s: float) -> bool:
        """Whether `try_enter` would let a request in."""
        condition = self.condition
        if condition is not None:
            if condition.ill is not None:
                return False
            if condition.recoveries != self._recoveries:
                self._recoveries = condition.recoveries
                self.breaker.try_again(now_s)
        return self.breaker.admits(now_s)

    def try_enter(self, now_s: float) -> bool:
        """Let a request in, or not."""
        return (self.condition is None or self.admits(now_s)) and self.breaker.try_enter(now_s)

    def absence(self, now_s: float) -> str:
        """Why it admits nobody."""
        ill = None if self.condition is None else self.condition.ill
        return ill or f"its breaker is {self.breaker.state(now_s)}"

    def rest(self, name: str, now_s: float) -> AdapterError:
        """What a client that asked for `name` is told while it admits nobody."""
        # While a trial runs there is nothing to wait for but its end.
        wait_s = max(self.wait_s(now_s), 1.0)
        if self._limited and (self.condition is None or self.condition.ill is None):
            message = f"The provider of '{name}' limits how often this gateway may ask it. Try again later."
            return RateLimited(message, retry_after_s=wait_s)
        return ModelUnavailable(f"What serves '{name}' failed and is resting. Try again shortly.", retry_after_s=wait_s)

    def wait_s(self, now_s: float) -> float:
        """How long until another request may be let in at the earliest; 0 when it may now."""
        if self.condition is not None and self.condition.ill is not None:
            return self.condition.settings.interval_s
        return self.breaker.wait_s(now_s)

    def warmth(self, now_s: float) -> float:
        """What part of the requests of one that is warm it should get."""
        if self.entered_s is None:
            return 1.0
        return min(1.0, COLD + (1.0 - COLD) * (now_s - self.entered_s) / WARMING_S)

    def failed(self, error: AdapterError, name: str, now_s: float) -> None:
        """Count a failure that is its own fault, note whether it is well and only asked too often, and log it, unless
        that was done a moment ago."""
        self.breaker.failed(now_s, error.retry_after_s if isinstance(error, RateLimited) else None)
        self.failures += 1
        self._limited = isinstance(error, RateLimited)
        self.last_failure = in_full(error)
        rests = self.breaker.state(now_s) == "open"
        if now_s - self._told_s[rests] >= TOLD_EVERY_S:
            self._told_s[rests] = now_s
            self.missed = self.missed or rests
            what = f"is left alone for {self.breaker.wait_s(now_s):.3g} s" if rests else "failed"
            log.warning("the target %s %s: %s", name, what, self.last_failure)

    def succeeded(self, name: str, now_s: float) -> None:
        """A request went well."""
        self.breaker.succeeded(now_s)
        if self.missed and self.breaker.state(now_s) == "closed":
            self.missed = False
            log.warning("the target %s is well again", name)

    def learn(self, first_output_s: float) -> None:
        known = self.first_output_s
        self.first_output_s = first_output_s if known is None else known + SMOOTHING * (first_output_s - known)


class Visit:
    """One request at one target, from the try to its end. It ends once. `took_s` is how long it took to its first event
    or its failure."""

    took_s = 0.0
    _answered = False
    _ended = False

    def __init__(self, standing: Standing, served: Served, clock: Callable[[], float]) -> None:
        self.served = served
        self._standing = standing
        self._clock = clock
        self._started_s = clock()
        standing.running += 1
        standing.requests += 1

    def answered(self) -> None:
        """Its first event has come; said again, nothing."""
        if not self._answered:
            self._answered = True
            self.took_s = self._clock() - self._started_s
            self._standing.learn(self.took_s)
            self._standing.breaker.begun()

    def end(self, error: BaseException | None = None) -> None:
        """`error` None: all went well. A cancellation is the client's own, and says nothing about the target."""
        if self._ended:
            return
        self._ended = True
        self._standing.running -= 1
        now_s = self._clock()
        self.took_s = self.took_s or now_s - self._started_s
        if error is None:
            self._standing.succeeded(self.served.target, now_s)
        elif isinstance(error, AdapterError) and is_targets_fault(error):
            self._standing.failed(error, self.served.target, now_s)
        else:
            self._standing.breaker.left()


def is_targets_fault(error: AdapterError) -> bool:
    """Whether an error says that the target is ill, and not that a request was wrong or a queue is full."""
    if isinstance(error, InvalidRequest | ModelLoading):
        return False
    return isinstance(error, RateLimited) or not isinstance(error, Busy)


def may_go_elsewhere(error: AdapterError) -> bool:
    """Whether another target may do better."""
    return isinstance(error, Busy | Unavailable | EngineFailed | UpstreamFailed | Timeout)


def may_come_again(error: AdapterError) -> bool:
    """Whether the same target may do better after a pause. What refuses our credentials will do so again, and whoever
    waited out a deadline should not wait for another one."""
    if isinstance(error, UpstreamRefused):
        return error.status == 408 or error.status >= 500
    return isinstance(error, RateLimited | EngineFailed | UpstreamFailed)
