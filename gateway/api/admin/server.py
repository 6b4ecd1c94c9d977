"""What the server offers, and the settings it was started with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from gateway.api.admin.routes import Call, Moment, Page, Route, encode
from gateway.api.health import ModelStatus
from gateway.api.http import Response, json_response
from gateway.catalog import Catalog, Price, Target
from gateway.config import Config
from gateway.ledger.export import usd
from gateway.secret import Secret

MASK = "***"


class PriceShown(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """US dollars per million tokens, and the version of the table they stand in. What is left out costs as other tokens
    of the prompt or the answer. `long_prompts` is the price of prompts of more than `above_tokens`."""

    input: str
    cached_input: str
    output: str
    table: str
    cache_write: str | None = None
    cache_write_1h: str | None = None
    audio_input: str | None = None
    audio_output: str | None = None
    above_tokens: int | None = None
    long_prompts: PriceShown | None = None


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A public name. `price` null is not known, which is not free; `parent` is the model of an adapter."""

    object: str = "catalog.model"
    id: str
    aliases: tuple[str, ...]
    parent: str | None
    state: str | None
    created_at: Moment
    kinds: tuple[str, ...]
    vision: bool
    context_tokens: int | None
    parameters: int | None
    size_bytes: int | None
    description: str | None
    price: PriceShown | None


class ServerRoutes:
    """The catalog and the settings, to be looked at."""

    def __init__(self, config: Config, catalog: Catalog, statuses: Callable[[], Mapping[str, ModelStatus]]) -> None:
        self._config = config
        self._catalog = catalog
        self._statuses = statuses

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET",
                "/admin/v1/models",
                "catalog.read",
                self.models,
                "All models with their prices and states",
                answer=list[Offer],
            ),
            Route(
                "GET",
                "/admin/v1/settings",
                "settings.read",
                self.settings,
                "The settings in force, without their secrets",
                answer={"type": "object"},
            ),
        )

    async def models(self, call: Call[None, None]) -> Page[Offer]:
        statuses = self._statuses()
        return Page([offer(target, statuses) for target in self._catalog.list(call.principal)])

    async def settings(self, call: Call[None, None]) -> Response:
        shown = hidden(msgspec.to_builtins(self._config, enc_hook=_mask))
        return json_response(encode({"object": "settings", "settings": shown}))


def offer(target: Target, statuses: Mapping[str, ModelStatus]) -> Offer:
    card = target.card
    status = statuses.get(target.parent or target.name)
    return Offer(
        id=target.name,
        aliases=target.aliases,
        parent=target.parent,
        state=None if status is None else status.state,
        created_at=Moment(target.created_s * 1_000_000),
        kinds=card.kinds,
        vision=card.vision,
        context_tokens=card.context_tokens,
        parameters=card.parameters,
        size_bytes=card.size_bytes,
        description=card.description or None,
        price=None if target.price is None else price_shown(target.price),
    )


def price_shown(price: Price) -> PriceShown:
    return PriceShown(
        input=usd(price.input_nano),
        cached_input=usd(price.cached_nano),
        output=usd(price.output_nano),
        table=price.table,
        cache_write=maybe_usd(price.write_nano),
        cache_write_1h=maybe_usd(price.write_1h_nano),
        audio_input=maybe_usd(price.audio_input_nano),
        audio_output=maybe_usd(price.audio_output_nano),
        above_tokens=price.above_tokens or None,
        long_prompts=None if price.beyond is None else price_shown(price.beyond),
    )


def maybe_usd(nano: int | None) -> str | None:
    return None if nano is None else usd(nano)


def hidden(settings: Any, name: str = "") -> Any:
    """Settings without what often is a secret although it is plain text: the values of headers, and what follows the
    host in the address of a webhook."""
    if isinstance(settings, dict):
        return {key: MASK if name == "headers" else hidden(value, key) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [hidden(value, name) for value in settings]
    if isinstance(settings, str) and name == "url":
        parts = urlsplit(settings)
        return f"{parts.scheme}://{parts.hostname}/{MASK}"
    return settings


def _mask(value: object) -> object:
    if isinstance(value, Secret):
        return MASK
    raise NotImplementedError(f"{type(value).__name__} is no setting")
