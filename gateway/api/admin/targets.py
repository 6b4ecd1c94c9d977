"""How the targets of routes do, as this process sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from gateway.api.admin.routes import Call, Page, Paging, Route
from gateway.routing.standing import Standing


class HealthShown(msgspec.Struct, frozen=True, kw_only=True):
    """What the health checks of a target's provider say; `reason` is why it is not well."""

    healthy: bool
    reason: str | None
    checks: int
    failures: int


class TargetShown(msgspec.Struct, frozen=True, kw_only=True):
    """A target of routes on this replica. `address` is the one it is about, where a name has several; `wait_s` is how
    long it is left alone yet, `last_failure` what went wrong last, in its provider's words too, `health` null is not
    asked for."""

    object: str = "target"
    id: str
    address: str | None
    breaker: Literal["closed", "open", "half_open"]
    wait_s: float
    running: int
    requests: int
    failures: int
    last_failure: str | None
    first_output_s: float | None
    health: HealthShown | None


class TargetRoutes:
    """Targets, to be looked at."""

    def __init__(self, standings: Callable[[], Mapping[str, Standing]], clock: Callable[[], float]) -> None:
        self._standings = standings
        self._clock = clock

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET",
                "/admin/v1/targets",
                "routing.read",
                self.list,
                "How the targets of routes do, on this replica",
                query=Paging,
                answer=list[TargetShown],
            ),
        )

    async def list(self, call: Call[Paging, None]) -> Page[TargetShown]:
        standings, now_s, query = self._standings(), self._clock(), call.query
        behind = sorted(identity for identity in standings if query.after is None or identity > query.after)
        page = behind[: query.limit]
        cursor = page[-1] if len(behind) > len(page) else None
        return Page([shown(identity, standings[identity], now_s) for identity in page], cursor)


def shown(identity: str, standing: Standing, now_s: float) -> TargetShown:
    first_output_s, condition = standing.first_output_s, standing.condition
    return TargetShown(
        id=identity,
        address=standing.address,
        breaker=standing.breaker.state(now_s),
        wait_s=round(standing.wait_s(now_s), 3),
        running=standing.running,
        requests=standing.requests,
        failures=standing.failures,
        last_failure=standing.last_failure,
        first_output_s=None if first_output_s is None else round(first_output_s, 6),
        health=None
        if condition is None
        else HealthShown(
            healthy=condition.ill is None,
            reason=condition.ill,
            checks=condition.checks,
            failures=condition.failures,
        ),
    )
