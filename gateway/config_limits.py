"""The settings of prices, limits and fetched images."""

from __future__ import annotations

from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Meta


def words(text: str) -> dict[str, str]:
    """As `Meta.extra`: what a value has to be, where its pattern does not say it to people."""
    return {"words": text}


# Exact decimal text, as a float could not say 0.1; a file may have it without quotes.
USD, FACTOR = r"^\d{1,6}(\.\d{1,9})?\Z", r"^\d{1,3}(\.\d{1,6})?\Z"
Usd = Annotated[str, Meta(pattern=USD, extra=words("US dollars such as 12.50"))]
# What prices are multiplied by.
Factor = Annotated[str, Meta(pattern=FACTOR, extra=words("a factor such as 0.9"))]
Identity = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9*][A-Za-z0-9._:/@+-]*\Z")]
TimeZone = Annotated[str, Meta(min_length=1, max_length=64)]
Count = Annotated[int, Meta(ge=0, le=1 << 40)]
Scope = Literal["key", "user", "team", "org", "tenant", "model", "tag"]


def zone_of(name: str) -> ZoneInfo:
    """A time zone by its name; ValueError when there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"no time zone is called {name!r}; try UTC or Europe/Berlin") from None


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of the file whose every key is known."""


class LongPromptPrice(Section, frozen=True, kw_only=True):
    """What a request costs whose prompt has more than `above_tokens`; null: as in short prompts."""

    above_tokens: Annotated[int, Meta(ge=1, le=1 << 40)]
    input: Usd | None = None
    output: Usd | None = None
    cached_input: Usd | None = None
    cache_write: Usd | None = None
    cache_write_1h: Usd | None = None

    def price(self, short: PriceConfig) -> PriceConfig:
        """The whole price of such a request."""
        given = {name: getattr(self, name) for name in self.__struct_fields__ if name != "above_tokens"}
        known = {name: usd for name, usd in given.items() if usd is not None}
        return msgspec.structs.replace(short, long_prompts=None, **known)


class PriceConfig(Section, frozen=True, kw_only=True):
    """US dollars per million tokens.

    `cached_input` is for what a provider kept from an earlier prompt, `cache_write` for what it is to keep (null: both
    as `input`), `cache_write_1h` for what it is to keep for an hour (null: as `cache_write`). `audio_*` null: as text.
    """

    input: Usd
    output: Usd = "0"
    cached_input: Usd | None = None
    cache_write: Usd | None = None
    cache_write_1h: Usd | None = None
    audio_input: Usd | None = None
    audio_output: Usd | None = None
    long_prompts: LongPromptPrice | None = None


class ImagesConfig(Section, frozen=True, kw_only=True):
    """Whether and how images are fetched that a request names by a web address."""

    remote: bool = False
    hosts: tuple[
        Annotated[str, Meta(pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)*\Z", extra=words("a host such as example.com"))], ...
    ] = ()
    bytes_max: Annotated[int, Meta(ge=1024, le=20 << 20)] = 10 << 20
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 10


class RateConfig(Section, frozen=True, kw_only=True):
    """At most `limit` requests or tokens (input and output) in any `window_s`, or in each calendar period."""

    unit: Literal["requests", "tokens"]
    limit: Count
    window_s: Annotated[int, Meta(ge=1, le=366 * 86_400)] | None = None
    period: Literal["hour", "day", "week", "month", "year"] | None = None

    def __post_init__(self) -> None:
        if (self.window_s is None) == (self.period is None):
            raise ValueError("a rate has either window_s or period")


class BudgetConfig(Section, frozen=True, kw_only=True):
    """At most `usd` in each calendar period (null: month), or in any `window_s`; crossing a percentage is reported."""

    usd: Usd
    period: Literal["hour", "day", "week", "month", "year", "total"] | None = None
    window_s: Annotated[int, Meta(ge=60, le=366 * 86_400)] | None = None
    alert_percents: tuple[Annotated[int, Meta(ge=1, le=100)], ...] = (80, 100)

    def __post_init__(self) -> None:
        if self.window_s is not None and self.period is not None:
            raise ValueError("a budget has either window_s or period")


class ScopeLimits(Section, frozen=True, kw_only=True):
    """What one key, team or model may use; null and empty: no limit. A wallet is prepaid credit that has to last.

    Calendar periods begin in `time_zone`; null: the one of all limits.
    """

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    rates: tuple[RateConfig, ...] = ()
    budgets: tuple[BudgetConfig, ...] = ()
    wallet: Identity | None = None
    time_zone: TimeZone | None = None

    def __post_init__(self) -> None:
        if self.time_zone is not None:
            zone_of(self.time_zone)


class RuleConfig(ScopeLimits, frozen=True, kw_only=True):
    """Limits of a scope: of the one `id`, or with `*` of each that has none of its own, counted apart."""

    scope: Scope
    id: Identity = "*"


class LimitsConfig(Section, frozen=True, kw_only=True):
    """Limits by scope; a request has to fit into all that apply to it."""

    time_zone: TimeZone = "UTC"
    rules: tuple[RuleConfig, ...] = ()
