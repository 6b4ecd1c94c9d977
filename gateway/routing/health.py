"""Active health checks: an origin is asked now and then whether it is well, and its targets are left alone if not."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from adapters.errors import AdapterError, Busy
from gateway.config_routing import HealthConfig

log = logging.getLogger(__name__)


class Condition:
    """Whether an origin is well by its latest checks. It is taken to be well until they say otherwise.

    `ill` says why it is not; `recoveries` counts how often it came back.
    """

    def __init__(self, settings: HealthConfig) -> None:
        self.settings = settings
        self.ill: str | None = None
        self.recoveries = 0
        self.checks = 0
        self.failures = 0
        self._in_a_row = 0

    def note(self, problem: str | None) -> bool:
        """How a check went, None: well. Whether that changes what is thought of the origin."""
        self.checks += 1
        self.failures += problem is not None
        if (problem is None) == (self.ill is None):
            self._in_a_row = 0
            self.ill = self.ill and problem
            return False
        self._in_a_row += 1
        if self._in_a_row < (self.settings.healthy_after if problem is None else self.settings.unhealthy_after):
            return False
        self._in_a_row = 0
        self.recoveries += problem is None
        self.ill = problem
        return True


class Checks:
    """Asks one origin how it does. `knock` answers with its HTTP status."""

    def __init__(self, name: str, condition: Condition, knock: Callable[[], Awaitable[int]]) -> None:
        self._name = name
        self._condition = condition
        self._knock = knock

    async def check(self) -> None:
        """Ask once."""
        problem = await self._problem()
        if self._condition.note(problem):
            told = "is well again" if problem is None else f"is left alone: {problem}"
            log.warning("the provider %s %s", self._name, told)

    async def _problem(self) -> str | None:
        try:
            status = await self._knock()
        except Busy:
            return self._condition.ill  # It was not asked, because all of its connections are in use.
        except AdapterError as error:
            return f"its health check failed ({error.code})"
        return None if status == self._condition.settings.status else f"its health check was answered with {status}"
