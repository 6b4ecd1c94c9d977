"""The last decisions, for whoever asks why a request went where it did."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from gateway.config_providers import Policy

DECISIONS_MAX = 10_000


class Attempt(msgspec.Struct, frozen=True):
    """One try. `outcome` is `ok`, an error's code, or `outrun` where another target was quicker; `waited_ms` is the
    pause before it, `took_ms` how long it took until its first event or its failure. `cost_nano` is what one may have
    cost at most that was given up, of which nobody says what it did cost."""

    target: str
    outcome: str
    waited_ms: float
    took_ms: float
    cost_nano: int | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request went where it did. `passed_over` says of each target that was not even tried why."""

    request_id: str
    tenant: str
    route: str
    policy: Policy
    attempts: tuple[Attempt, ...]
    passed_over: Mapping[str, str]


class Decisions:
    """The decisions of this process by request, the oldest forgotten first."""

    def __init__(self, count_max: int = DECISIONS_MAX) -> None:
        self._count_max = count_max
        self._decisions: OrderedDict[str, Decision] = OrderedDict()

    def add(self, decision: Decision) -> None:
        self._decisions[decision.request_id] = decision
        if len(self._decisions) > self._count_max:
            self._decisions.popitem(last=False)

    def find(self, request_id: str, tenant: str | None) -> Decision | None:
        """The decision about a request of a tenant, or (None) of anybody."""
        found = self._decisions.get(request_id)
        return found if found is not None and tenant in (None, found.tenant) else None
