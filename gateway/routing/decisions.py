"""The last decisions, for whoever asks why a request went where it did."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from gateway.config_providers import Policy

DECISIONS_MAX = 10_000


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One try. `outcome` is `ok`, an error's code, or `outrun` where another target was quicker; `waited_s` is the
    pause before it, `took_s` how long it took until its first event or its failure. `cost_nano` is what one may have
    cost at most that was given up, of which nobody says what it did cost; `message` is what a client would
    be told of a failure."""

    target: str
    outcome: str
    waited_s: float
    took_s: float
    cost_nano: int | None = None
    message: str | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request went where it did. `passed_over` says of each target that was not even tried why."""

    request_id: str
    tenant: str
    route: str
    policy: Policy
    attempts: Sequence[Attempt]
    passed_over: Mapping[str, str]


class Decisions:
    """The decisions of this process by request, the oldest forgotten first."""

    def __init__(self, count_max: int = DECISIONS_MAX) -> None:
        self._decisions: deque[Decision] = deque(maxlen=count_max)
        self.add = self._decisions.append

    def find(self, request_id: str, tenant: str | None) -> Decision | None:
        """The decision about a request of a tenant, or (None) of anybody."""
        return next(
            (one for one in reversed(self._decisions) if one.request_id == request_id and tenant in (None, one.tenant)),
            None,
        )
