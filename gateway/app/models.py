"""What serves each model and each target of a route, and the names that clients know them by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapters import open_adapter
from adapters.llama_cpp import LlamaCpp
from adapters.scripted import Scripted
from adapters.shared.guest import Link, Shared
from gateway.app.caching import caching_of
from gateway.catalog import Adapter, Price, Target, dearest, price_place
from gateway.config import Config, TargetConfig
from gateway.engines import engine_settings
from gateway.engines import scripts as engine_scripts
from gateway.metering import forecast_nano
from gateway.routing.router import Router
from gateway.routing.trip import Target as RouteTarget

Local = LlamaCpp | Shared | Scripted


def open_adapters(config: Config, link: Link | None = None) -> list[Local]:
    """What serves each configured model, in order; engines are not started yet, and with a `link` another process has
    them."""
    if link is not None:
        played = engine_scripts(config)
        return [
            Shared(model.name, link) if model.local else Scripted(model.name, played[model.name])
            for model in config.models
        ]
    engines, scripts = iter(engine_settings(config)), engine_scripts(config)
    return [
        open_adapter(model.name, model.path or "", next(engines), queue_depth_max=model.queue_depth_max)
        if model.local
        else Scripted(model.name, scripts[model.name])
        for model in config.models
    ]


def route_target(target: TargetConfig, price: Price | None, adapter: Adapter, suffix: str = "") -> RouteTarget:
    """A target of a route; a `suffix` tells one of its addresses from the others."""
    return RouteTarget(
        identity=target.identity + suffix,
        listed=target.identity if suffix else None,
        provider=target.provider,
        model=target.model,
        adapter=adapter,
        weight=target.weight,
        cost_nano=lambda request: None if price is None else forecast_nano(request, price, target.context_tokens),
    )


def offered(
    config: Config,
    models: Sequence[Adapter],
    routers: Sequence[Router],
    prices: Mapping[str, Price],
    since_s: Mapping[str, int],
) -> list[Target]:
    """What clients may ask for; an adapter's name is that of its model, a colon and its own.

    `since_s` is when each route began, by its name, and under the empty name when everything else did.
    """
    targets, began_s = [], since_s[""]
    for model, adapter in zip(config.models, models, strict=True):
        price, caching = prices.get(model.name), caching_of(config, model)
        targets.append(
            Target(
                model.name,
                adapter,
                aliases=model.aliases,
                created_s=began_s,
                price=price,
                caching=caching,
                default=model.default,
            )
        )
        for lora in model.engine.loras:
            name, *aliases = (f"{known}:{lora.name}" for known in (model.name, *model.aliases))
            targets.append(
                Target(
                    name,
                    adapter,
                    aliases=tuple(aliases),
                    created_s=began_s,
                    lora=lora.name,
                    parent=model.name,
                    price=price,
                    caching=caching,
                )
            )
    for route, router in zip(config.routes, routers, strict=True):
        listed = {one.identity: one.listed or one.identity for one in router.targets}
        listed |= {name: name for name in listed.values()}
        known = {name: prices.get(price_place(route.name, listed[name])) for name in listed}
        targets.append(
            Target(
                route.name,
                router,
                aliases=route.aliases,
                created_s=since_s.get(route.name, began_s),
                price=dearest(known.values()),
                prices=known,
                caching=caching_of(config, route),
            )
        )
    return targets
