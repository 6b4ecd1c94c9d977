"""Which of the targets that fit a request is tried: what the policies need is gathered here, and turns are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from gateway.config_providers import FallsThrough
from gateway.routing.policies import Candidate, Policy, Wish, address, order, turns
from gateway.routing.standing import Standing
from gateway.routing.trip import Request, Target, Trip


class RouteSettings(msgspec.Struct, frozen=True, kw_only=True):
    policy: Policy = "weighted"
    attempts_max: int = 3
    eta_s_max: float = 5.0
    falls_through: frozenset[FallsThrough] = frozenset({"context_length_exceeded"})


class Balance:
    """One route's."""

    def __init__(
        self,
        settings: RouteSettings,
        targets: Iterable[Target],
        standings: Mapping[str, Standing],
        draw: Callable[[], float],
    ) -> None:
        targets = tuple(targets)
        self._settings = settings
        self._standings = standings
        self._draw = draw
        # What each target has saved up in this route's round robin, and before the last choice.
        self.turns = {target.listed or target.identity: 0.0 for target in targets}
        self._before = self.turns
        self._spread = any(target.listed is not None for target in targets)

    def take_back(self, target: Target) -> None:
        """The target that was chosen just now is not asked after all."""
        self.turns = self._before
        self._standings[target.identity].breaker.left()

    def choose(self, fitting: list[Target], trip: Trip, now_s: float) -> Target:
        """One of them, of which there is one at least; entering its breaker belongs to the choice."""
        self._before = self.turns
        caller = trip.caller
        conversation = None if caller.session_key is None else f"{caller.tenant}\0{caller.session_key}"
        wish = Wish(
            draws=tuple(self._draw() for _ in fitting), conversation=conversation, eta_s_max=self._settings.eta_s_max
        )
        if self._spread:
            fitting = self._one_address_each(fitting, wish, now_s)
        candidates = [self._candidate(one, trip.request) for one in fitting]
        place = order(self._settings.policy, candidates, wish)[0]
        if self._settings.policy in ("weighted", "sticky"):
            names = [one.listed or one.identity for one in fitting]
            self.turns = self.turns | dict(zip(names, turns(candidates, place), strict=True))
        entered = self._standings[fitting[place].identity].try_enter(now_s)
        assert entered, "only targets whose breaker admits were ordered"
        return fitting[place]

    def _one_address_each(self, fitting: list[Target], wish: Wish, now_s: float) -> list[Target]:
        """Of targets that have several addresses one each."""
        addresses: dict[str, list[Target]] = {}
        for one in fitting:
            addresses.setdefault(one.listed or one.identity, []).append(one)
        return [some[address([self._address(one, now_s) for one in some], wish)] for some in addresses.values()]

    def _address(self, target: Target, now_s: float) -> Candidate:
        standing = self._standings[target.identity]
        return Candidate(identity=target.identity, weight=standing.warmth(now_s), running=standing.running)

    def _candidate(self, target: Target, request: Request) -> Candidate:
        standing = self._standings[target.identity]
        # Each of these looks over a queue or a whole request, so only who decides by it asks.
        policy = self._settings.policy
        eta: Callable[[], float] | None = getattr(target.adapter, "eta_s", None) if policy == "overflow" else None
        return Candidate(
            identity=target.listed or target.identity,
            weight=target.weight,
            running=standing.running,
            turn=self.turns[target.listed or target.identity],
            first_output_s=standing.first_output_s,
            cost_nano=target.cost_nano(request) if policy == "cheapest" else None,
            eta_s=None if eta is None else eta(),
        )
