"""Requests that wait for a model to come into memory: bounded, with a fair share of the places for each tenant."""

from __future__ import annotations

import asyncio
from collections import Counter

from adapters.errors import AdapterError, ModelLoading


class Arrival:
    """One request. `come` ends when the model is there, or with the error that it is not going to be."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.come: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Arrivals:
    """Those of one model, in their order. Whoever joins has to leave, also after he was let in: until then the model
    counts as busy, so that it cannot go between the two."""

    def __init__(self, depth_max: int) -> None:
        self._depth_max = depth_max
        self._arrivals: list[Arrival] = []

    def __len__(self) -> int:
        return len(self._arrivals)

    def join(self, tenant: str, eta_s: float) -> Arrival:
        """A place in line, if need be that of the last one of the tenant who has most. Raises ModelLoading when the
        tenant has its share of the places already, or when nobody has more than that."""
        if len(self._arrivals) >= self._depth_max:
            self._make_place(tenant, eta_s)
        arrival = Arrival(tenant)
        self._arrivals.append(arrival)
        return arrival

    def leave(self, arrival: Arrival) -> None:
        self._arrivals = [other for other in self._arrivals if other is not arrival]

    def let_in(self) -> None:
        for arrival in self._arrivals:
            if not arrival.come.done():
                arrival.come.set_result(None)

    def send_away(self, error: AdapterError) -> None:
        for arrival in self._arrivals:
            if not arrival.come.done():
                arrival.come.set_exception(error)
        self._arrivals = []

    def _make_place(self, tenant: str, eta_s: float) -> None:
        held = Counter(arrival.tenant for arrival in self._arrivals)
        share = self._depth_max / (len(held) + (tenant not in held))
        if held[tenant] >= share:
            raise _full(eta_s)
        crowd, most = held.most_common(1)[0]
        waiting = [one for one in self._arrivals if one.tenant == crowd and not one.come.done()]
        if most < held[tenant] + 2 or not waiting:
            raise _full(eta_s)
        last = waiting[-1]
        self.leave(last)
        last.come.set_exception(_full(eta_s))


def _full(eta_s: float) -> ModelLoading:
    return ModelLoading("The model is being loaded, and too many requests wait for it.", retry_after_s=eta_s)
