"""What may stand in a key, and how far a key may reach that somebody makes or changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from gateway.auth import Principal
from gateway.auth.records import Key, check_guardrails, check_models, check_name, denied, invalid, require
from gateway.auth.roles import TABLE, grantable
from gateway.config_auth import TENANT
from gateway.config_limits import ScopeLimits
from gateway.networks import Networks, parse_network

ADDRESSES_MAX = 100
TAGS_MAX = 20
METADATA_MAX = 16
METADATA_NAME_MAX = 64
METADATA_VALUE_MAX = 500
PRIORITY_MAX = 100
WEIGHT_MIN, WEIGHT_MAX = 0.01, 100.0

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,99}")


class KeyChange(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be set of a key; UNSET stays as it is, and None takes a restriction away."""

    name: str | UnsetType = UNSET
    expires_us: int | UnsetType | None = UNSET
    limits: ScopeLimits | UnsetType | None = UNSET
    scopes: tuple[str, ...] | UnsetType | None = UNSET
    models: tuple[str, ...] | UnsetType | None = UNSET
    addresses: tuple[str, ...] | UnsetType = UNSET
    tags: tuple[str, ...] | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET
    guardrails: tuple[str, ...] | UnsetType = UNSET
    weight: float | UnsetType = UNSET
    priority: int | UnsetType = UNSET

    def given(self) -> dict[str, object]:
        """What was asked for."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not UNSET}


def changed(key: Key, change: KeyChange, now_us: int) -> Key:
    """The key with what was asked for; raises `invalid_value` for what no key can have."""
    key = replace(key, **change.given())
    key = replace(key, guardrails=check_guardrails(key.guardrails))
    check_name(key.name)
    check_models(key.models)
    if not TENANT.fullmatch(key.tenant):
        raise invalid("A tenant has 1 to 100 letters, digits and ._:@- and starts with a letter or digit.", "tenant")
    for scope in key.scopes or ():
        if scope not in TABLE:
            raise invalid(f"There is no permission {scope[:50]!r}; these are: {', '.join(TABLE)}.", "scopes")
    if len(key.addresses) > ADDRESSES_MAX:
        raise invalid(f"At most {ADDRESSES_MAX} networks can be listed.", "addresses")
    for address in key.addresses:
        try:
            parse_network(address)
        except ValueError as error:
            raise invalid(f"{error}.", "addresses") from None
    if len(key.tags) > TAGS_MAX or not all(map(_TAG.fullmatch, key.tags)):
        raise invalid(f"At most {TAGS_MAX} tags of 1 to 100 letters, digits and ._:/@+- are possible.", "tags")
    _check_metadata(key.metadata)
    if not WEIGHT_MIN <= key.weight <= WEIGHT_MAX:
        raise invalid(f"A weight is {WEIGHT_MIN} to {WEIGHT_MAX:g}.", "weight")
    if abs(key.priority) > PRIORITY_MAX:
        raise invalid(f"A priority is -{PRIORITY_MAX} to {PRIORITY_MAX}.", "priority")
    if change.expires_us is not UNSET and key.expires_us is not None and key.expires_us <= now_us:
        raise invalid("That moment has passed.", "expires_at")
    return key


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > METADATA_MAX:
        raise invalid(f"Metadata has at most {METADATA_MAX} entries.", "metadata")
    for name, value in metadata.items():
        if not 0 < len(name) <= METADATA_NAME_MAX or len(value) > METADATA_VALUE_MAX or not _is_text(name + value):
            raise invalid(
                f"Names of metadata have 1 to {METADATA_NAME_MAX} characters, values {METADATA_VALUE_MAX} at most.",
                "metadata",
            )


def _is_text(value: str) -> bool:
    """Whether every database takes it: printable characters, and the ends of lines."""
    return value.replace("\n", "").replace("\t", "").isprintable()


def check_rights(principal: Principal, key: Key, before: Key | None, names: Iterable[str]) -> None:
    """Raise when one of these is set that not everybody may set who may change the key.

    Limits of a key take the place of a default, and a tag brings limits, so both are for those who limit others; and so
    is to take a guardrail away, where to give one is free. To let
    a key live longer that was given any of this is to give it again.
    """
    asked = {name for name in names if before is None or getattr(before, name) != getattr(key, name)}
    if before is not None and _longer(before, key):
        asked |= gifts(key)
    untagged = before is not None and not set(before.tags) <= set(key.tags)
    unguarded = before is not None and not set(before.guardrails) <= set(key.guardrails)
    for name in sorted(asked):
        if name == "weight" and not principal.admin:
            raise denied("Only administrators of the gateway weigh keys.", "weight")
        if name in ("limits", "priority") or (name == "tags" and untagged) or (name == "guardrails" and unguarded):
            require(principal, "limits.write", key.resource, name)
        if name == "limits" and key.limits is not None and key.limits.wallet is not None and not principal.admin:
            raise denied("Only administrators of the gateway bind keys to wallets.", "limits")


def gifts(key: Key, own: Key | None = None) -> set[str]:
    """What somebody gave this key that not everybody may give, and that the key `own` has not got as well."""
    given = {"weight": key.weight != 1, "priority": key.priority != 0, "limits": key.limits is not None}
    return {name for name in given if given[name] and (own is None or getattr(own, name) != getattr(key, name))}


def inherited(principal: Principal, own: Key | None, change: KeyChange, *, admin: bool) -> KeyChange:
    """What is asked for of a new key, and where nothing is, what the key has that asks."""
    narrow: dict[str, object] = {}
    if principal.scopes is not None:
        narrow["scopes"] = tuple(sorted(principal.scopes))
    if own is not None and _bound(principal, admin=admin):
        narrow |= {name: getattr(own, name) for name in ("models", "addresses", "tags", "guardrails", "expires_us")}
    return replace(change, **{name: value for name, value in narrow.items() if getattr(change, name) is UNSET})


def _bound(principal: Principal, *, admin: bool) -> bool:
    """Whether the asking key's own bounds bind a key that it makes. An administrator's do not, as he makes keys for
    others, unless that key is one of an administrator again."""
    return admin or not principal.admin


def check_reach(principal: Principal, own: Key | None, key: Key, before: Key | None = None) -> None:
    """Raise when `key` reaches further than the key `own` that the caller acts with.

    One that only loses something it had `before` need not be in reach. One that gains anything has to be in reach as a
    whole: otherwise two narrow keys could open each other.
    """
    if before is not None and not any(exceeds(before, key) for exceeds in _EXCESS.values()):
        return
    if not grantable(principal, key.scopes):
        raise denied("The key would have scopes that the asking one lacks.", "scopes")
    if own is None or not _bound(principal, admin=key.admin):
        return
    if own.limits is not None and (key.counted_as or key.id) != (own.counted_as or own.id):
        raise denied("A key with limits of its own opens no other, as each would count apart.")
    for name, exceeds in _EXCESS.items():
        if exceeds(own, key):
            param = name.replace("_us", "_at")
            raise denied(f"The key would reach further than the asking one in its {param}.", param)


def _more_scopes(own: Key, key: Key) -> bool:
    return own.scopes is not None and (key.scopes is None or not set(key.scopes) <= set(own.scopes))


def _more_models(own: Key, key: Key) -> bool:
    return own.models is not None and (
        key.models is None or not all(_listed(model, own.models) for model in key.models)
    )


def _listed(model: str, models: Iterable[str]) -> bool:
    return any(model == entry or (entry.endswith("*") and model.startswith(entry[:-1])) for entry in models)


def _more_addresses(own: Key, key: Key) -> bool:
    networks = Networks(own.addresses)
    return bool(networks) and (not key.addresses or not all(map(networks.covers, key.addresses)))


def _longer(own: Key, key: Key) -> bool:
    return own.expires_us is not None and (key.expires_us is None or key.expires_us > own.expires_us)


_EXCESS: Mapping[str, Callable[[Key, Key], bool]] = {
    "scopes": _more_scopes,
    "models": _more_models,
    "addresses": _more_addresses,
    "expires_us": _longer,
    "tags": lambda own, key: not set(own.tags) <= set(key.tags),
    "guardrails": lambda own, key: not set(own.guardrails) <= set(key.guardrails),
    "team_id": lambda own, key: own.team_id not in (None, key.team_id),
}
