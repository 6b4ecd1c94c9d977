"""Providers, routes and prices: of the configuration, and made while the gateway runs, as one set with a version.

This file is the pure half: what the database has of them, and what all of them together are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from adapters.errors import ModelUnavailable
from adapters.providers import PROVIDERS
from adapters.upstream import location
from gateway.config import Config, ProviderConfig, RouteConfig, conflicts
from gateway.config_limits import PriceConfig
from gateway.config_providers import ProviderSettings
from gateway.remotes import upstream_settings
from gateway.secret import ProviderKey, Secret, ServiceAccount

Kind = Literal["provider", "route", "price"]
FIELDS: Mapping[Kind, str] = {"provider": "providers", "route": "routes", "price": "prices"}

_PLACE = re.compile(r"(providers|routes)\[(\d+)\]\.?(.*)")


class PriceOverride(PriceConfig, frozen=True, kw_only=True):
    """A price for the targets of routes with this identity that have none of their own."""

    name: Annotated[str, Meta(max_length=600, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}/[!-~]+\Z")]


Settings = ProviderSettings | RouteConfig | PriceOverride
TYPES: Mapping[Kind, type[Settings]] = {"provider": ProviderSettings, "route": RouteConfig, "price": PriceOverride}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A provider, route or price made at run time, as the database has it. `settings` is JSON."""

    kind: Kind
    name: str
    settings: str
    created_us: int
    changed_us: int
    version: int = 1


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """The encrypted secret of a provider, which may be sent to `origin` only."""

    provider: str
    sealed: str
    key_id: str
    origin: str
    set_us: int
    set_by: str


class Stored(msgspec.Struct, frozen=True):
    """All that the database has, at a version."""

    version: int = 0
    rows: tuple[Row, ...] = ()
    secrets: tuple[Sealed, ...] = ()


class ProviderSecret(msgspec.Struct, frozen=True, omit_defaults=True):
    """What authorises requests to a provider."""

    api_key: str | None = None
    aws_secret_access_key: str | None = None
    aws_session_token: str | None = None
    google_account: str | None = None

    def __repr__(self) -> str:
        return "ProviderSecret(***)"


_SECRETS: Mapping[str, type[Secret]] = {
    name: ServiceAccount if name == "google_account" else ProviderKey for name in ProviderSecret.__struct_fields__
}


class Problem(msgspec.Struct, frozen=True):
    """Why something made at run time is not served, and the field that is at fault."""

    param: str
    message: str


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A provider, a route or a price. Without a `row` it is of the configuration.

    `sealed` is the secret of a provider made at run time; with `open` False it cannot be read here.
    """

    kind: Kind
    settings: ProviderConfig | RouteConfig | PriceOverride
    row: Row | None = None
    sealed: Sealed | None = None
    open: bool = True
    problem: Problem | None = None

    @property
    def name(self) -> str:
        return self.settings.name


class Served(msgspec.Struct, frozen=True):
    """Everything there is; `config` is the configuration with all that is served besides what it says itself."""

    version: int
    config: Config
    items: tuple[Item, ...]

    def of(self, kind: Kind) -> list[Item]:
        """Those of the configuration first, then the oldest."""
        return [item for item in self.items if item.kind == kind]

    def find(self, kind: Kind, name: str) -> Item | None:
        """What is called so; what has lost its name to the configuration comes second."""
        return next((item for item in self.items if item.kind == kind and item.name == name), None)

    def made(self, kind: Kind, name: str) -> Item | None:
        """The one of this name that was made at run time."""
        found = (item for item in self.items if item.kind == kind and item.name == name)
        return next((item for item in found if item.row is not None), None)

    @property
    def prices(self) -> dict[str, PriceConfig]:
        """Those that administrators set, by the identities of targets."""
        return {item.name: item.settings for item in self.of("price") if isinstance(item.settings, PriceOverride)}

    @property
    def since_s(self) -> dict[str, int]:
        """When each route made at run time was made, as a Unix time."""
        return {item.name: item.row.created_us // 1_000_000 for item in self.of("route") if item.row is not None}


class NoKey(ProviderKey):
    """In the place of a secret that is not there."""

    __slots__ = ()

    def reveal(self) -> str:
        raise ModelUnavailable("The gateway has no key for the provider of this model.")


Unseal = Callable[[Sealed], ProviderSecret | None]


def changes_of(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The type of changes to settings: all of their fields but the name, each of which may be left out."""
    hints = get_type_hints(kind, include_extras=True)
    fields = [(name, hints[name] | UnsetType, UNSET) for name in kind.__struct_fields__ if name != "name"]
    name = re.sub("(Settings|Config|Override)$", "", kind.__name__) + "Change"
    return msgspec.defstruct(
        name, fields, module=__name__, namespace={"__doc__": kind.__doc__}, kw_only=True, forbid_unknown_fields=True
    )


ProviderChange = changes_of(ProviderSettings)
RouteChange = changes_of(RouteConfig)
PriceChange = changes_of(PriceOverride)
CHANGES: Mapping[Kind, type[msgspec.Struct]] = {
    "provider": ProviderChange,
    "route": RouteChange,
    "price": PriceChange,
}


def given(change: msgspec.Struct) -> dict[str, Any]:
    """What a change is about."""
    fields = {name: getattr(change, name) for name in change.__struct_fields__}
    return {name: value for name, value in fields.items() if value is not UNSET}


def encoded(settings: Settings) -> str:
    """Settings as they are kept: what is as it is by default is left out, so that other releases read it as well."""
    return msgspec.json.encode(_plain(settings)).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        fields = {field.name: (field, getattr(value, field.name)) for field in msgspec.structs.fields(value)}
        return {name: _plain(found) for name, (field, found) in fields.items() if found != _default(field)}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _default(field: Any) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def origin_of(provider: ProviderConfig) -> str | None:
    """Where requests to a provider go: scheme, host and port. None: its settings do not say."""
    try:
        origin, _ = location(upstream_settings(provider))
    except (ValueError, KeyError):
        return None
    return f"{origin.scheme}://{origin.host}:{origin.port}"


def combine(config: Config, stored: Stored, unseal: Unseal) -> tuple[Served, list[str]]:
    """All of them together, and the names of rows that this release cannot read.

    What does not fit is left out, with its problem: the configuration may have changed since it was made.
    """
    items = [Item(kind="provider", settings=one) for one in config.providers]
    items += [Item(kind="route", settings=one) for one in config.routes]
    secrets, unread = {one.provider: one for one in stored.secrets}, []
    for row in sorted(stored.rows, key=lambda row: (row.created_us, row.name)):
        try:
            settings = msgspec.json.decode(row.settings, type=TYPES[row.kind])
        except (msgspec.DecodeError, KeyError):
            unread.append(row.name)
            continue
        items.append(_item(row, settings, secrets.get(row.name), unseal))
    while True:
        merged, problems = _merged(config, items), dict[int, Problem]()
        for where, message in conflicts(merged):
            place = _place(items, where)
            if place is not None:
                problems.setdefault(place[0], Problem(place[1], re.sub(r"(is already taken) by .*", r"\1", message)))
        if not problems:
            return Served(stored.version, merged, tuple(items)), unread
        items = [replace(item, problem=problems.get(i, item.problem)) for i, item in enumerate(items)]


def _item(row: Row, settings: Settings, sealed: Sealed | None, unseal: Unseal) -> Item:
    if not isinstance(settings, ProviderSettings):
        return Item(kind=row.kind, settings=settings, row=row)
    bound = sealed is not None and origin_of(described(settings, None)) == sealed.origin
    secret = unseal(sealed) if sealed is not None and bound else None
    return Item(
        kind="provider",
        settings=described(settings, secret),
        row=row,
        sealed=sealed,
        open=sealed is None or secret is not None,
    )


def described(settings: ProviderSettings, secret: ProviderSecret | None) -> ProviderConfig:
    """A provider with its secret. One that needs a key and has none can be described, and not be asked."""
    plain = {name: getattr(settings, name) for name in ProviderSettings.__struct_fields__}
    keys: dict[str, Any] = {}
    if secret is not None:
        texts = {name: getattr(secret, name) for name in secret.__struct_fields__}
        keys = {name: _SECRETS[name](text) for name, text in texts.items() if text is not None}
    elif settings.aws_access_key_id is not None:
        keys = {"aws_secret_access_key": NoKey("")}
    elif PROVIDERS[settings.kind].key_needed:
        keys = {"api_key": NoKey("")}
    return ProviderConfig(**plain, **keys)


def _merged(config: Config, items: Iterable[Item]) -> Config:
    """The configuration with all that has no problem."""
    good = [item.settings for item in items if item.problem is None]
    return replace(
        config,
        providers=tuple(one for one in good if isinstance(one, ProviderConfig)),
        routes=tuple(one for one in good if isinstance(one, RouteConfig)),
    )


def _place(items: list[Item], where: str) -> tuple[int, str] | None:
    """Which item a conflict of the merged configuration is about, and what in it; None: none made at run time."""
    found = _PLACE.fullmatch(where)
    if found is None:
        return None
    good = [i for i, item in enumerate(items) if item.problem is None and FIELDS[item.kind] == found[1]]
    place = good[int(found[2])]
    return None if items[place].row is None else (place, found[3])
