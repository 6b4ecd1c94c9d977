"""Builds what serves requests: engines, routes, ways to providers, and the catalog of them all."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AsyncExitStack

from adapters import open_adapter, open_remote, open_upstream
from adapters.asking import knock
from adapters.llama_cpp import LlamaCpp
from adapters.remote import RemoteModel
from adapters.scripted import Scripted
from adapters.upstream import Upstream
from gateway.catalog import Adapter, Catalog, Target, dearest, price_place, price_table
from gateway.config import Config, ProviderConfig, RouteConfig, TargetConfig
from gateway.config_providers import LOCAL
from gateway.engines import engine_settings
from gateway.engines import scripts as engine_scripts
from gateway.metering import Metering, forecast_nano
from gateway.passthrough import PassThrough
from gateway.remotes import health_settings, remote_model, route_settings, upstream_settings
from gateway.routing.backoff import RetryBudget
from gateway.routing.breaker import Breaker
from gateway.routing.decisions import Decisions
from gateway.routing.health import Checks, Condition
from gateway.routing.router import Router
from gateway.routing.router import Target as RouteTarget
from gateway.routing.standing import Standing


def open_adapters(config: Config) -> list[LlamaCpp | Scripted]:
    """What serves each configured model, in order; engines are not started yet."""
    engines, scripts = iter(engine_settings(config)), engine_scripts(config)
    return [
        open_adapter(model.name, model.path, next(engines), queue_depth_max=model.queue_depth_max)
        if model.path is not None
        else Scripted(model.name, scripts[model.name])
        for model in config.models
    ]


def open_routes(
    config: Config, models: Iterable[Adapter], decisions: Decisions, stack: AsyncExitStack
) -> tuple[list[Router], dict[str, Standing]]:
    """What serves each route, in order, and how each target does; nothing is sent to a provider before a request."""
    upstreams = {provider.name: open_upstream(upstream_settings(provider)) for provider in config.providers}
    for upstream in upstreams.values():
        stack.push_async_callback(upstream.close)
    conditions = {one.name: _watched(one, upstreams[one.name], stack) for one in config.providers if one.health}
    local = {model.name: adapter for model, adapter in zip(config.models, models, strict=True)}
    prices = price_table([*config.models, *config.routes])
    standings: dict[str, Standing] = {}
    budget = RetryBudget()

    def target(route: RouteConfig, one: TargetConfig) -> RouteTarget:
        standings.setdefault(one.identity, Standing(Breaker(), conditions.get(one.provider)))
        price = prices.get(price_place(route.name, one.identity))
        return RouteTarget(
            identity=one.identity,
            provider=one.provider,
            model=one.model,
            adapter=local[one.model]
            if one.provider == LOCAL
            else open_remote(remote_model(route, one), upstreams[one.provider]),
            weight=one.weight,
            cost_nano=lambda request: None if price is None else forecast_nano(request, price, one.context_tokens),
        )

    routers = [
        Router(
            route.name,
            [[target(route, one) for one in group] for group in route.groups],
            route_settings(route),
            standings,
            budget,
            decided=decisions.add,
        )
        for route in config.routes
    ]
    return routers, standings


def _watched(provider: ProviderConfig, upstream: Upstream, stack: AsyncExitStack) -> Condition:
    """How a provider does by checks that run from now on."""
    assert provider.health is not None
    health, condition = provider.health, Condition(health_settings(provider.health))
    checks = Checks(provider.name, condition, lambda: knock(upstream, health.path, health.timeout_s))
    checks.start()
    stack.push_async_callback(checks.close)
    return condition


def open_passthrough(config: Config, stack: AsyncExitStack, catalog: Catalog, metering: Metering) -> PassThrough:
    """The way to the providers' own APIs, where it is open; over connections of its own."""
    remotes = {}
    for provider in config.providers:
        if provider.passthrough:
            upstream = open_upstream(upstream_settings(provider))
            stack.push_async_callback(upstream.close)
            remotes[provider.name] = open_remote(RemoteModel(name=f"{provider.name}/*", model="*"), upstream)
    return PassThrough(remotes, catalog, metering)


def build_catalog(config: Config, models: Iterable[Adapter], routers: Iterable[Router] = ()) -> Catalog:
    """The names the models are offered under; an adapter's is that of its model, a colon and its own."""
    created_s = int(time.time())
    prices = price_table([*config.models, *config.routes])
    targets = []
    for model, adapter in zip(config.models, models, strict=True):
        targets.append(
            Target(model.name, adapter, aliases=model.aliases, created_s=created_s, price=prices.get(model.name))
        )
        for lora in model.engine.loras:
            name, *aliases = (f"{known}:{lora.name}" for known in (model.name, *model.aliases))
            targets.append(
                Target(
                    name,
                    adapter,
                    aliases=tuple(aliases),
                    created_s=created_s,
                    lora=lora.name,
                    parent=model.name,
                    price=prices.get(model.name),
                )
            )
    for route, router in zip(config.routes, routers, strict=True):
        known = {one.identity: prices.get(price_place(route.name, one.identity)) for one in router.targets}
        targets.append(
            Target(
                route.name,
                router,
                aliases=route.aliases,
                created_s=created_s,
                price=dearest(known.values()),
                prices=known,
            )
        )
    return Catalog(targets)
