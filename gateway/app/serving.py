"""What is served at the moment: routers, ways to providers and the catalog of them all, put in place of each other."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

from adapters import open_remote
from adapters.remote import Remote
from gateway.api.health import ModelStatus
from gateway.app.models import Local, offered, route_target
from gateway.app.ways import Place, Way
from gateway.catalog import Adapter, Catalog, Price, price_place, price_table
from gateway.config import Config, ProviderConfig, RouteConfig, TargetConfig
from gateway.config_providers import MirrorConfig
from gateway.remotes import hedge_settings, remote_model, route_settings
from gateway.routing.backoff import RetryBudget
from gateway.routing.breaker import Breaker
from gateway.routing.decisions import Decisions
from gateway.routing.hedging import Hedging
from gateway.routing.mirror import Mirror
from gateway.routing.router import Router
from gateway.routing.standing import Standing
from gateway.routing.trip import Target as RouteTarget
from gateway.served import Served
from gateway.served.live import Live
from gateway.served.stock import Stock
from gateway.state.database import Database
from gateway.state.shared import SharedState
from gateway.telemetry import Telemetry


class _Made(NamedTuple):
    """A router, and everything that it was made from: while that is the same, it goes on, with its turns."""

    route: RouteConfig
    through: tuple[tuple[Place, ...], ...]
    prices: tuple[Price | None, ...]
    router: Router


class Serving:
    """What is served now.

    `swap` replaces it at one moment, between two requests: each request sees all of the old or all of the new, and ends
    with what it began with. What stays of providers and routes keeps its connections, breakers and measurements.
    """

    def __init__(self, models: Sequence[Local], decisions: Decisions, telemetry: Telemetry | None = None) -> None:
        """`models` serve the models of every configuration that is swapped in, in their order."""
        self.catalog = Catalog(())
        self.remotes: dict[str, Remote] = {}
        self.standings: dict[str, Standing] = {}
        self._models = tuple(models)
        self._decided = decisions.add
        self._telemetry = telemetry
        self._budget = RetryBudget()
        self._ways: dict[str, Way] = {}
        self._asked: Served | Config = Config()
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

    def swap(self, served: Served | Config) -> None:
        """Serve this from now on, a configuration alone or with what was made at run time.

        Everything is made before anything is replaced, and nothing is sent to a provider before a request.
        """
        config = served if isinstance(served, Config) else served.config
        since_s, overrides = ({}, {}) if isinstance(served, Config) else (served.since_s, served.prices)
        ways = {one.name: self._way(one) for one in config.providers}
        placed = {name: way.placed() for name, way in ways.items()}
        prices = price_table([*config.models, *config.routes], config.providers, overrides)
        standings = self._standings(config, placed)
        made = {route.name: self._route(config, route, placed, prices, standings) for route in config.routes}
        routers = [one.router for one in made.values()]
        targets = offered(config, self._models, routers, prices, {"": self._began_s, **since_s})
        before = self._places()
        self.catalog.replace(targets)
        gone = [one for name, one in self._ways.items() if ways.get(name) is not one]
        new = [one for name, one in ways.items() if self._ways.get(name) is not one]
        self.standings, self._ways, self._made, self._asked = standings, ways, made, served
        for name, way in ways.items():
            way.places = placed[name]
        self.remotes.clear()
        self.remotes.update({name: way.own for name, way in ways.items() if way.own is not None})
        after = self._places()
        for place in after - before:
            place.start()
        for way in new:
            way.start()
        for closing in (*(way.stop() for way in gone), *(place.close_when_quiet() for place in before - after)):
            task = asyncio.get_running_loop().create_task(closing)
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _places(self) -> set[Place]:
        return {place for way in self._ways.values() for place in way.everywhere}

    async def close(self) -> None:
        """End all connections to providers."""
        for router in self.routers:
            if router.mirror is not None:
                router.mirror.close()
        for closing in self._closing:
            closing.cancel()
        if self._closing:
            await asyncio.wait(self._closing)
        async with AsyncExitStack() as stack:
            for way in self._ways.values():
                stack.push_async_callback(way.close)

    def _way(self, provider: ProviderConfig) -> Way:
        known = self._ways.get(provider.name)
        if known is not None and known.config == provider:
            return known
        return Way(provider, lambda: self.swap(self._asked))

    def _standings(self, config: Config, placed: Mapping[str, tuple[Place, ...]]) -> dict[str, Standing]:
        """How each target does. One whose provider was described anew is another target of the same name."""
        found, before = dict[str, Standing](), self._places()
        for target in (target for route in config.routes for group in route.groups for target in group):
            for place in placed.get(target.provider, ()):
                identity = target.identity + place.suffix
                known = found.get(identity) or (self.standings.get(identity) if place in before else None)
                found[identity] = known or Standing(
                    Breaker(), place.condition, address=place.address, entered_s=place.entered_s
                )
            if target.provider not in placed:
                found[target.identity] = self.standings.get(target.identity) or Standing(Breaker())
        return found

    def _route(
        self,
        config: Config,
        route: RouteConfig,
        placed: Mapping[str, tuple[Place, ...]],
        prices: Mapping[str, Price],
        standings: Mapping[str, Standing],
    ) -> _Made:
        targets = list(itertools.chain.from_iterable(route.groups))
        shadow = () if route.mirror is None else placed.get(route.mirror.provider, ())
        through = (*(placed.get(target.provider, ()) for target in targets), shadow)
        costs = tuple(prices.get(price_place(route.name, target.identity)) for target in targets)
        known = self._made.get(route.name)
        if known is not None and known[:3] == (route, through, costs):
            return known
        local = {model.name: adapter for model, adapter in zip(config.models, self._models, strict=True)}

        def made(one: TargetConfig, price: Price | None, places: tuple[Place, ...]) -> list[RouteTarget]:
            if not places:
                return [route_target(one, price, local[one.model])]
            model = remote_model(route, one)
            return [route_target(one, price, open_remote(model, place.upstream), place.suffix) for place in places]

        every = {
            one.identity: made(one, price, places) for one, places, price in zip(targets, through, costs, strict=False)
        }
        router = Router(
            route.name,
            [[target for one in group for target in every[one.identity]] for group in route.groups],
            route_settings(route),
            standings,
            self._budget,
            decided=self._decided,
            hedging=self._hedging(route),
            mirror=None if route.mirror is None else self._mirror(route, route.mirror, shadow, local),
        )
        return _Made(route, through, costs, router)

    def _hedging(self, route: RouteConfig) -> Hedging | None:
        """While its settings stay, what was learnt stays too."""
        known = self._made.get(route.name)
        if known is not None and known.route.hedge == route.hedge:
            return known.router.hedging
        return None if route.hedge is None else Hedging(hedge_settings(route.hedge))

    def _mirror(
        self, route: RouteConfig, mirror: MirrorConfig, places: tuple[Place, ...], local: Mapping[str, Adapter]
    ) -> Mirror:
        model = remote_model(route, mirror.target)
        shadows: list[Adapter] = [open_remote(model, place.upstream) for place in places]
        shadows = shadows or [local[mirror.model]]
        telemetry, name = self._telemetry, route.name
        if telemetry is None:
            return Mirror(name, shadows, mirror)
        return Mirror(
            name,
            shadows,
            mirror,
            told=lambda outcome: telemetry.mirrored(name, outcome),
            timed=lambda side, seconds: telemetry.mirror_took(name, side, seconds),
        )


async def open_live(
    config: Config, serving: Serving, database: Database | None, shared: SharedState, stack: AsyncExitStack
) -> Live:
    """Serve what the configuration and the database say, and follow the database's changes."""
    stock = None if database is None else Stock(database, config, shared)
    live = Live(config, serving.swap, stock, shared)
    stack.push_async_callback(live.close)
    await live.open()
    return live
