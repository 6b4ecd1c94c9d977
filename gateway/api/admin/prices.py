"""The prices in force and where they come from, and those that administrators set."""

from __future__ import annotations

from typing import Literal

import msgspec

from gateway import errors
from gateway.api.admin.routes import Call, Page, Paging, Route, kept, part_of
from gateway.api.admin.server import PriceShown, price_shown
from gateway.config_limits import PriceConfig
from gateway.prices import in_force, price_of
from gateway.served import PriceOverride
from gateway.served.live import Live
from gateway.served.stock import Stock

ALL = "/admin/v1/prices"
ONE = "/admin/v1/prices/{name:text}"


class PriceInForce(msgspec.Struct, frozen=True, kw_only=True):
    """What a model costs, or a `target` of a route.

    `source`: `config` is set where the model or target is configured, or with a route made at run time; `api` by an
    administrator, for all targets of that identity; `table` is the one of well-known models, read at `url` on
    `checked`. `model` null: a price that nothing uses now.
    """

    object: str = "price"
    id: str
    model: str | None
    target: str | None
    source: Literal["config", "api", "table"]
    checked: str | None = None
    url: str | None = None
    price: PriceShown


class PriceRoutes:
    """`/admin/v1/prices`."""

    def __init__(self, live: Live | None) -> None:
        self._maybe = live

    @property
    def _live(self) -> Live:
        return kept(self._maybe)

    @property
    def _stock(self) -> Stock:
        return kept(self._live.stock)

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET",
                ALL,
                "catalog.read",
                self.list,
                "The prices in force, and where they come from",
                query=Paging,
                answer=list[PriceInForce],
            ),
            Route(
                "PUT",
                ONE,
                "catalog.write",
                self.set,
                "Set the price of a provider's model",
                body=PriceConfig,
                answer=PriceInForce,
                action="price.set",
                description="`name` is the provider, a slash and the model. It holds for all targets of routes that "
                "have no price of their own.",
            ),
            Route("DELETE", ONE, "catalog.write", self.delete, "Take a set price away", action="price.delete"),
        )

    async def list(self, call: Call[Paging, None]) -> Page[PriceInForce]:
        return Page(*part_of(self._all(), call.query, lambda price: price.id))

    async def set(self, call: Call[None, PriceConfig]) -> PriceInForce:
        name = call.path["name"]
        fields = {field: getattr(call.body, field) for field in call.body.__struct_fields__}
        try:
            override = msgspec.convert({"name": name}, _Named)
        except msgspec.ValidationError:
            message = "A price is for a provider's model: its name, a slash, and the model."
            raise errors.error("invalid_value", message, param="name") from None
        await self._stock.set_price(PriceOverride(name=override.name, **fields), call.version)
        call.note(name, input=call.body.input, output=call.body.output)
        await self._live.refresh()
        return _set(name, call.body)

    async def delete(self, call: Call[None, None]) -> None:
        name = call.path["name"]
        await self._stock.delete("price", name, call.version)
        call.note(name)
        await self._live.refresh()

    def _all(self) -> tuple[PriceInForce, ...]:
        served = self._live.served
        found = in_force([*served.config.models, *served.config.routes], served.config.providers, served.prices)
        shown = []
        for place, known in found.items():
            model, _, target = place.partition(" ")
            row = known.row
            shown.append(
                PriceInForce(
                    id=place,
                    model=model,
                    target=target or None,
                    source=known.source,
                    checked=None if row is None else row.checked,
                    url=None if row is None else row.source,
                    price=price_shown(known.price),
                )
            )
        used = {one.target for one in shown if one.source == "api"}
        unused = [_set(name, price) for name, price in served.prices.items() if name not in used]
        return (*shown, *unused)


class _Named(PriceOverride, frozen=True, kw_only=True):
    """The name alone."""

    input: str = "0"


def _set(name: str, price: PriceConfig) -> PriceInForce:
    return PriceInForce(id=name, model=None, target=name, source="api", price=price_shown(price_of(price, "")))
