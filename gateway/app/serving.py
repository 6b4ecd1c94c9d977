"""What is served at the moment: routers, ways to providers and the catalog of them all, put in place of each other."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

from adapters import open_remote, open_upstream
from adapters.asking import knock
from adapters.llama_cpp import LlamaCpp
from adapters.remote import Remote, RemoteModel
from adapters.scripted import Scripted
from adapters.upstream import Upstream
from gateway.api.health import ModelStatus
from gateway.app.models import offered, route_target
from gateway.catalog import Catalog, Price, price_place, price_table
from gateway.config import Config, ProviderConfig, RouteConfig
from gateway.remotes import health_settings, remote_model, route_settings, upstream_settings
from gateway.routing.backoff import RetryBudget
from gateway.routing.breaker import Breaker
from gateway.routing.decisions import Decisions
from gateway.routing.health import Checks, Condition
from gateway.routing.router import Router
from gateway.routing.standing import Standing

# How long nothing has run at a provider that is no longer served before its client is closed. A request that began
# before may still come back to it after a pause.
QUIET_S = 60.0
LOOK_S = 5.0


class _Way(NamedTuple):
    """A provider as it was described, the ways there, and checks of how it does where they are wanted; `own` is the way
    to its own API, where that is open."""

    config: ProviderConfig
    upstream: Upstream
    own: Remote | None
    checked: tuple[Condition, Checks] | None

    @property
    def condition(self) -> Condition | None:
        return None if self.checked is None else self.checked[0]

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        return (self.upstream,) if self.own is None else (self.upstream, self.own.upstream)

    async def close(self) -> None:
        async with AsyncExitStack() as stack:
            for upstream in self.upstreams:
                stack.push_async_callback(upstream.close)
            if self.checked is not None:
                await self.checked[1].close()

    async def close_when_quiet(self) -> None:
        """Let what runs end. Connections are closed with their last requests, and the rest when nothing comes back."""
        if self.checked is not None:
            await self.checked[1].close()
        quiet_since_s = time.monotonic()
        try:
            while time.monotonic() - quiet_since_s < QUIET_S:
                await asyncio.sleep(LOOK_S)
                if any(upstream.connections for upstream in self.upstreams):
                    quiet_since_s = time.monotonic()
        finally:
            await asyncio.shield(self.close())


class _Made(NamedTuple):
    """A router, and everything that it was made from: while that is the same, it goes on, with its turns."""

    route: RouteConfig
    ways: tuple[_Way | None, ...]
    prices: tuple[Price | None, ...]
    router: Router


class Serving:
    """What is served now.

    `swap` replaces it at one moment, between two requests: each request sees all of the old or all of the new, and ends
    with what it began with. What stays of providers and routes keeps its connections, breakers and measurements.
    """

    def __init__(self, models: Sequence[LlamaCpp | Scripted], decisions: Decisions) -> None:
        """`models` serve the models of every configuration that is swapped in, in their order."""
        self.catalog = Catalog(())
        self.remotes: dict[str, Remote] = {}
        self.standings: dict[str, Standing] = {}
        self._models = tuple(models)
        self._decided = decisions.add
        self._budget = RetryBudget()
        self._ways: dict[str, _Way] = {}
        self._made: dict[str, _Made] = {}
        self._began_s = int(time.time())
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def routers(self) -> tuple[Router, ...]:
        return tuple(made.router for made in self._made.values())

    def statuses(self) -> dict[str, ModelStatus]:
        """The state of each model and route, by name."""
        return {one.name: one.status() for one in (*self._models, *self.routers)}

    def router(self, name: str) -> Router | None:
        """What serves the route of this name."""
        made = self._made.get(name)
        return None if made is None else made.router

    def swap(self, config: Config, since_s: Mapping[str, int] | None = None) -> None:
        """Serve what `config` says from now on; `since_s` is when the routes began that have not always been there.

        Everything is made before anything is replaced, and nothing is sent to a provider before a request.
        """
        ways = {one.name: self._way(one) for one in config.providers}
        prices = price_table([*config.models, *config.routes])
        standings = self._standings(config, ways)
        made = {route.name: self._route(config, route, ways, prices, standings) for route in config.routes}
        routers = [one.router for one in made.values()]
        targets = offered(config, self._models, routers, prices, {"": self._began_s, **(since_s or {})})
        new = [one for name, one in ways.items() if self._ways.get(name) is not one]
        gone = [one for name, one in self._ways.items() if ways.get(name) is not one]
        self.catalog.replace(targets)
        self.standings, self._ways, self._made = standings, ways, made
        self.remotes.clear()
        self.remotes.update({name: way.own for name, way in ways.items() if way.own is not None})
        for way in new:
            if way.checked is not None:
                way.checked[1].start()
        for way in gone:
            for upstream in way.upstreams:
                upstream.retire()
            closing = asyncio.get_running_loop().create_task(way.close_when_quiet())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End all connections to providers."""
        for closing in self._closing:
            closing.cancel()
        if self._closing:
            await asyncio.wait(self._closing)
        async with AsyncExitStack() as stack:
            for way in self._ways.values():
                stack.push_async_callback(way.close)

    def _way(self, provider: ProviderConfig) -> _Way:
        known = self._ways.get(provider.name)
        return known if known is not None and known.config == provider else _way(provider)

    def _standings(self, config: Config, ways: Mapping[str, _Way]) -> dict[str, Standing]:
        """How each target does. One whose provider was described anew is another target of the same name."""
        found: dict[str, Standing] = {}
        for target in (target for route in config.routes for group in route.groups for target in group):
            way = ways.get(target.provider)
            known = self.standings.get(target.identity) if self._ways.get(target.provider) is way else None
            condition = None if way is None else way.condition
            found[target.identity] = found.get(target.identity) or known or Standing(Breaker(), condition)
        return found

    def _route(
        self,
        config: Config,
        route: RouteConfig,
        ways: Mapping[str, _Way],
        prices: Mapping[str, Price],
        standings: Mapping[str, Standing],
    ) -> _Made:
        targets = list(itertools.chain.from_iterable(route.groups))
        through = tuple(ways.get(target.provider) for target in targets)
        costs = tuple(prices.get(price_place(route.name, target.identity)) for target in targets)
        known = self._made.get(route.name)
        if known is not None and known[:3] == (route, through, costs):
            return known
        local = {model.name: adapter for model, adapter in zip(config.models, self._models, strict=True)}
        made = {
            one.identity: route_target(
                one, price, local[one.model] if way is None else open_remote(remote_model(route, one), way.upstream)
            )
            for one, way, price in zip(targets, through, costs, strict=True)
        }
        router = Router(
            route.name,
            [[made[one.identity] for one in group] for group in route.groups],
            route_settings(route),
            standings,
            self._budget,
            decided=self._decided,
        )
        return _Made(route, through, costs, router)


def _way(provider: ProviderConfig) -> _Way:
    """The ways to a provider; nothing is sent there yet."""
    upstream, own, checked = open_upstream(upstream_settings(provider)), None, None
    if provider.passthrough:
        model = RemoteModel(name=f"{provider.name}/*", model="*")
        own = open_remote(model, open_upstream(upstream_settings(provider)))
    if provider.health is not None:
        health, condition = provider.health, Condition(health_settings(provider.health))
        checks = Checks(provider.name, condition, lambda: knock(upstream, health.path, health.timeout_s))
        checked = condition, checks
    return _Way(provider, upstream, own, checked)
