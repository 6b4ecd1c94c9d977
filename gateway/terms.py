"""What the requests of one principal for one target have in common, worked out once."""

from __future__ import annotations

from msgspec.structs import replace

from adapters.types import Kind, Served
from gateway.auth import Principal
from gateway.catalog import MILLION, Price, Target
from gateway.ledger import Entry
from gateway.limits.plans import Plan

# Who answers in the place of a target: its own targets, and what clients of a provider's own API name as the model.
SERVED_MAX = 100
FOREVER_US = 2**62


class Terms:
    """The price and the limits of requests of one kind, and what the ledger says of all of them.

    `plan` None: nothing is limited. `entry` is that of a request which has no end, without what tells it from others.
    """

    def __init__(self, principal: Principal, target: Target, kind: Kind, plan: Plan | None) -> None:
        self.principal = principal
        self.target = target
        self.plan = plan if plan is not None and plan.limited else None
        # How long the periods of the limits last, by the time of day.
        self._starts_us, self._ends_us = 0, FOREVER_US
        if self.plan is not None:
            self._starts_us = self.plan.starts_us
            self._ends_us = FOREVER_US if self.plan.ends_us is None else self.plan.ends_us
        self.entry = Entry(
            id="",
            request_id="",
            at_us=0,
            status="voided",
            outcome="",
            tenant=principal.tenant,
            key_id=principal.key_id,
            model=target.name,
            target=target.name,
            provider=target.provider,
            kind=kind,
            user_id=principal.user_id,
            team_id=principal.team_id,
            org_id=principal.org_id,
            price=_at_factor(target.price, principal.price_ppm),
        )
        self._served: dict[Served, Entry] = {}

    def made_for(self, principal: Principal, target: Target, now_us: int) -> bool:
        """Whether they hold for a request of now."""
        same = self.principal is principal and self.target is target
        return same and self._starts_us <= now_us < self._ends_us

    def served_by(self, served: Served) -> Entry:
        """`entry` where this target of a route answers, at that one's price."""
        known = self._served.get(served)
        if known is None:
            if len(self._served) >= SERVED_MAX:
                self._served.clear()
            price = _at_factor(self.target.price_at(served), self.principal.price_ppm)
            known = self._served[served] = replace(
                self.entry, target=served.model, provider=served.provider, attempts=served.attempts, price=price
            )
        return known


def _at_factor(price: Price | None, factor_ppm: int) -> Price | None:
    return price if price is None or factor_ppm == MILLION else price.times(factor_ppm)
