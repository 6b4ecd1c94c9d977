"""What tokens cost: exact prices, and which of them is in force for each model and each target of a route.

The price that a target or a model is configured with comes first, then the one that an administrator has set for the
model of a provider, then that of the table of well-known models.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec
from msgspec.structs import replace

from adapters.types import Usage
from gateway.config_limits import PriceConfig
from gateway.config_models import ModelConfig
from gateway.config_providers import LOCAL, ProviderSettings, RouteConfig, TargetConfig
from gateway.known_prices import VERSION, Known, known_price

MILLION = 1_000_000
Source = Literal["config", "api", "table"]
RATES = (
    "input_nano",
    "cached_nano",
    "output_nano",
    "write_nano",
    "write_1h_nano",
    "audio_input_nano",
    "audio_output_nano",
)


class Price(msgspec.Struct, frozen=True, omit_defaults=True, cache_hash=True):
    """Nano-USD per million tokens; `table` is the version of the price table it stands in.

    `write_nano` is for input that the provider is to keep for later prompts, None: as other input; `write_1h_nano` for
    what it is to keep for an hour, None: as what is kept. A prompt of more than `above_tokens` has the price `beyond`.
    `factor_ppm` millionths of what is in the table is what it was multiplied by.
    """

    input_nano: int
    cached_nano: int
    output_nano: int
    table: str = ""
    write_nano: int | None = None
    write_1h_nano: int | None = None
    audio_input_nano: int | None = None
    audio_output_nano: int | None = None
    above_tokens: int = 0
    beyond: Price | None = None
    factor_ppm: int = MILLION

    def times(self, factor_ppm: int) -> Price:
        """So many millionths of this price, each rounded up to a nano-USD for a million tokens."""
        if factor_ppm == MILLION:
            return self
        rates = {name: getattr(self, name) for name in RATES if getattr(self, name) is not None}
        scaled = {name: -(-nano * factor_ppm // MILLION) for name, nano in rates.items()}
        beyond = None if self.beyond is None else self.beyond.times(factor_ppm)
        return replace(self, beyond=beyond, factor_ppm=factor_ppm, **scaled)

    @property
    def plain(self) -> bool:
        """Whether there is nothing to it but input, cached input and output."""
        return (
            self.beyond is None
            and self.write_nano is None
            and self.write_1h_nano is None
            and self.audio_input_nano is None
            and self.audio_output_nano is None
        )

    def at(self, prompt_tokens: int) -> Price:
        """The price of a request whose prompt is so long."""
        return self if self.beyond is None or prompt_tokens <= self.above_tokens else self.beyond

    def lines(self, usage: Usage) -> tuple[tuple[str, int, int], ...]:
        """A usage item by item: what it is, its tokens, and their price."""
        prompt, output = usage.prompt_tokens, usage.completion_tokens
        written = min(usage.cache_write_tokens, prompt - usage.cached_tokens)
        hour = min(usage.cache_write_1h_tokens, written)
        heard = min(usage.prompt_audio_tokens, prompt - usage.cached_tokens - written)
        spoken = min(usage.completion_audio_tokens, output)
        write_nano = _else(self.write_nano, self.input_nano)
        return (
            ("input", prompt - usage.cached_tokens - written - heard, self.input_nano),
            ("cached_input", usage.cached_tokens, self.cached_nano),
            ("cache_write", written - hour, write_nano),
            ("cache_write_1h", hour, _else(self.write_1h_nano, write_nano)),
            ("audio_input", heard, _else(self.audio_input_nano, self.input_nano)),
            ("output", output - spoken, self.output_nano),
            ("audio_output", spoken, _else(self.audio_output_nano, self.output_nano)),
        )

    def cost_nano(self, usage: Usage) -> int:
        """What a usage costs, rounded up once, to the next nano-USD."""
        if self.plain:
            fresh = usage.prompt_tokens - usage.cached_tokens
            micro = fresh * self.input_nano + usage.cached_tokens * self.cached_nano
            return -(-(micro + usage.completion_tokens * self.output_nano) // MILLION)
        lines = self.at(usage.prompt_tokens).lines(usage)
        return -(-sum(tokens * nano for _, tokens, nano in lines) // MILLION)

    def worst_nano(self, tokens: int, choices: int, kept: bool, audio: bool) -> tuple[int, int]:
        """What a request costs at most for its prompt, and for one more token in each of `choices` answers."""
        if kept or audio or self.beyond is not None:
            at = self.at(tokens)
            return at.input_cost_nano(tokens, kept=kept, audio=audio), at.output_unit_nano(choices, audio=audio)
        dearest_nano = self.input_nano if self.input_nano > self.cached_nano else self.cached_nano
        return -(-tokens * dearest_nano // MILLION), -(-choices * self.output_nano // MILLION)

    def input_cost_nano(self, tokens: int, *, kept: bool = False, audio: bool = False) -> int:
        """What a prompt costs at most, whatever part of it turns out to be cached, to be kept, or to be audio, where it
        asks for that or has some."""
        dearest_nano = max(self.input_nano, self.cached_nano)
        if kept:
            dearest_nano = max(dearest_nano, self.write_nano or 0, self.write_1h_nano or 0)
        if audio:
            dearest_nano = max(dearest_nano, self.audio_input_nano or 0)
        return -(-tokens * dearest_nano // MILLION)

    def output_unit_nano(self, choices: int, *, audio: bool = False) -> int:
        """What one more token in each of `choices` answers costs at most."""
        dearest_nano = max(self.output_nano, self.audio_output_nano or 0) if audio else self.output_nano
        return -(-choices * dearest_nano // MILLION)


def _else(nano: int | None, otherwise_nano: int) -> int:
    return otherwise_nano if nano is None else nano


def nano_usd(usd: str) -> int:
    """Exact nano-USD of a decimal text such as `0.0375`; ValueError when it is finer than that."""
    whole, _, fraction = usd.partition(".")
    if len(fraction) > 9 or not (whole + fraction).isdecimal() or not usd.isascii():
        raise ValueError(f"not an amount in US dollars: {usd!r}")
    return int(whole) * 10**9 + int(fraction.ljust(9, "0") or "0")


def price_of(config: PriceConfig, table: str) -> Price:
    """A price that was written down."""
    long = config.long_prompts
    return Price(
        nano_usd(config.input),
        nano_usd(config.cached_input or config.input),
        nano_usd(config.output),
        table=table,
        write_nano=_maybe(config.cache_write),
        write_1h_nano=_maybe(config.cache_write_1h or config.cache_write),
        audio_input_nano=_maybe(config.audio_input),
        audio_output_nano=_maybe(config.audio_output),
        above_tokens=0 if long is None else long.above_tokens,
        beyond=None if long is None else price_of(long.price(config), table),
    )


def _maybe(usd: str | None) -> int | None:
    return None if usd is None else nano_usd(usd)


class InForce(msgspec.Struct, frozen=True):
    """A price and where it comes from; `row` is that of the table of well-known models."""

    price: Price
    source: Source
    row: Known | None = None


def in_force(
    models: Iterable[ModelConfig | RouteConfig],
    providers: Iterable[ProviderSettings] = (),
    overrides: Mapping[str, PriceConfig] | None = None,
) -> dict[str, InForce]:
    """The prices of the models, by name, and of the targets of routes, by `price_place`.

    `overrides` are those that administrators set, by the identities of targets. The version of what is written down
    changes with any of it; the table of well-known models has its own.
    """
    own, kinds = dict[str, PriceConfig](), {provider.name: provider.kind for provider in providers}
    written: dict[str, tuple[PriceConfig, Source]] = {}
    found: dict[str, InForce] = {}
    models, overrides = list(models), overrides or {}
    for model in models:
        if isinstance(model, ModelConfig) and model.price is not None:
            own[model.name], written[model.name] = model.price, (model.price, "config")
    for place, target in _places(models):
        if (price := own.get(target.model) if target.provider == LOCAL else target.price) is not None:
            written[place] = price, "config"
        elif (price := overrides.get(target.identity)) is not None:
            written[place] = price, "api"
        elif (row := known_price(kinds.get(target.provider), target.model)) is not None:
            found[place] = InForce(price_of(row.price, VERSION), "table", row)
    table = hashlib.sha256(msgspec.json.encode(sorted((place, price) for place, (price, _) in written.items())))
    version = table.hexdigest()[:12]
    return found | {place: InForce(price_of(price, version), source) for place, (price, source) in written.items()}


def price_table(
    models: Iterable[ModelConfig | RouteConfig],
    providers: Iterable[ProviderSettings] = (),
    overrides: Mapping[str, PriceConfig] | None = None,
) -> dict[str, Price]:
    """As `in_force`, the prices alone."""
    return {place: found.price for place, found in in_force(models, providers, overrides).items()}


def _places(models: Iterable[ModelConfig | RouteConfig]) -> Iterator[tuple[str, TargetConfig]]:
    for route in models:
        if isinstance(route, RouteConfig):
            for target in itertools.chain.from_iterable(route.groups):
                yield price_place(route.name, target.identity), target


def price_place(route: str, identity: str) -> str:
    """Where the price of a route's target stands in the table."""
    return f"{route} {identity}"


def dearest(prices: Iterable[Price | None]) -> Price | None:
    """A price that none of these is above; None when one of them is not known."""
    known = list(prices)
    if None in known or not known:
        return None
    sure = [price for price in known if price is not None]
    if all(price == sure[0] for price in sure):
        return sure[0]
    flat = _dearest(sure)
    long = [price for price in sure if price.beyond is not None]
    if not long:
        return flat
    beyond = _dearest([price.at(1 << 62) for price in sure])
    return replace(flat, above_tokens=min(price.above_tokens for price in long), beyond=_dearest([flat, beyond]))


def _dearest(sure: list[Price]) -> Price:
    """The dearest of each, in prompts that are not long."""

    def most(name: str, *otherwise: str) -> int | None:
        if all(getattr(price, name) is None for price in sure):
            return None
        each: list[list[int | None]] = [[getattr(price, one) for one in (name, *otherwise)] for price in sure]
        return max(next(nano for nano in rates if nano is not None) for rates in each)

    return Price(
        max(price.input_nano for price in sure),
        max(price.cached_nano for price in sure),
        max(price.output_nano for price in sure),
        table=sure[0].table,
        write_nano=most("write_nano", "input_nano"),
        write_1h_nano=most("write_1h_nano", "write_nano", "input_nano"),
        audio_input_nano=most("audio_input_nano", "input_nano"),
        audio_output_nano=most("audio_output_nano", "output_nano"),
    )
