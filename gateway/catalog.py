"""What a client may ask for: public names and aliases, and the target each leads to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Protocol, cast

import msgspec
from msgspec.structs import replace

from adapters.errors import InvalidRequest
from adapters.types import (
    Chat,
    Embedder,
    Generation,
    Inbound,
    Lora,
    ModelCard,
    Relay,
    Reranker,
    Served,
    Sessions,
    Tokenizer,
)
from gateway import errors
from gateway.auth import Principal
from gateway.prices import MILLION as MILLION
from gateway.prices import Price as Price
from gateway.prices import dearest as dearest
from gateway.prices import nano_usd as nano_usd
from gateway.prices import price_place as price_place
from gateway.prices import price_table as price_table


class Adapter(Chat, Embedder, Reranker, Tokenizer, Sessions, Protocol):
    """What serves a target. Its `card` may grow while a model loads."""

    @property
    def card(self) -> ModelCard: ...


def relay_of(adapter: Adapter) -> Relay | None:
    """The adapter as one that is passed requests as they came, if it is one."""
    return cast(Relay, adapter) if hasattr(adapter, "takes") else None


class Caching(msgspec.Struct, frozen=True):
    """For how long answers of a target may be given again. `version` is another when it may answer otherwise."""

    ttl_s: int
    version: str = ""


class Target:
    """A public name and what stands behind it; `created_s` is a Unix time, `price` None is not known (not free).

    With a `lora` it is that adapter over the model whose public name is `parent`. What a route leads to has `prices` of
    its own, by identity; `price` is then the dearest. Without `caching` each request is answered anew.
    """

    def __init__(
        self,
        name: str,
        adapter: Adapter,
        *,
        aliases: tuple[str, ...] = (),
        created_s: int = 0,
        lora: str | None = None,
        parent: str | None = None,
        price: Price | None = None,
        prices: Mapping[str, Price | None] | None = None,
        caching: Caching | None = None,
        default: bool = False,
    ) -> None:
        self.name = name
        self.caching = caching
        self._prices = prices or {}
        # Who answers when nobody has said that he does: a route's targets say so.
        self.provider = "local" if prices is None else ""
        self.price = price
        self.adapter = adapter
        self._relay = relay_of(adapter)
        self.aliases = aliases
        self.created_s = created_s
        self.parent = parent
        self.default = default
        self._loras = () if lora is None else (Lora(lora),)

    @property
    def card(self) -> ModelCard:
        card = self.adapter.card
        return card if self.parent is None else replace(card, parent=self.parent)

    def relay(self, inbound: Inbound) -> Relay | None:
        """The adapter as one that takes a request as it came, if it does."""
        relay = self._relay
        return relay if relay is not None and relay.takes(inbound) else None

    def generation(self, asked: Generation) -> Generation:
        """What was asked for, with the adapter that the name stands for."""
        if not self._loras:
            return asked
        if asked.loras:
            message = f"Invalid value for 'lora': the model '{self.name}' is an adapter already; ask '{self.parent}'."
            raise InvalidRequest(message, param="lora")
        return replace(asked, loras=self._loras)

    def leads_to(self, identity: str) -> bool:
        """Whether it is a route with this target."""
        return identity in self._prices

    def price_of(self, identity: str) -> Price | None:
        """The price at a target of the route that it is."""
        return self._prices.get(identity)

    def price_at(self, served: Served) -> Price | None:
        """The price at what served a request."""
        return self._prices.get(served.target, self.price)

    @property
    def fingerprint(self) -> str:
        """Changes when another model is served under the name."""
        card = self.card
        identity = f"{self.name}\n{card.parameters}\n{card.size_bytes}\n{card.description}"
        return "fp_" + hashlib.sha256(identity.encode()).hexdigest()[:10]


class Catalog:
    """All targets by every name they answer to. A name that means two targets is refused."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self.replace(targets)

    def replace(self, targets: Iterable[Target]) -> None:
        """Offer these in the place of all others; who found a target before keeps it."""
        targets, names = tuple(targets), dict[str, Target]()
        for target in targets:
            for name in (target.name, *target.aliases):
                if name in names:
                    raise ValueError(f"the model name {name!r} is used twice")
                names[name] = target
        self._targets, self._names = targets, names

    def resolve(self, principal: Principal, name: str) -> Target:
        """The target of a name or alias; what is hidden from the principal and what is not there look the same."""
        target = self._names.get(name)
        if target is None or (principal.models and not _allowed(principal, target)):
            message = f"The model '{name}' does not exist or you do not have access to it."
            raise errors.error("model_not_found", message, param="model")
        return target

    def only(self, principal: Principal) -> Target:
        """The model for requests that may leave it out: the default one, or the only one there is. The adapters of a
        model are no further ones, and a name that is not known never leads here."""
        targets = [target for target in self.list(principal) if target.parent is None]
        targets = [target for target in targets if target.default] or targets
        if len(targets) != 1:
            raise InvalidRequest("Missing required parameter: 'model'.", param="model")
        return targets[0]

    def find(self, name: str) -> Target | None:
        """What a name or alias leads to, for whom nothing is hidden from."""
        return self._names.get(name)

    def price_of(self, name: str) -> Price | None:
        """What the target of a name costs now, or one target of a route, as `price_place` has it; None: not known, or
        no longer there."""
        route, _, identity = name.partition(" ")
        target = self._names.get(route)
        return None if target is None else target.price_of(identity) if identity else target.price

    def list(self, principal: Principal) -> tuple[Target, ...]:
        """The targets the principal may use, in the order of the configuration."""
        return tuple(target for target in self._targets if _allowed(principal, target))


def _allowed(principal: Principal, target: Target) -> bool:
    """Whether every list of the principal's has the target."""
    return all(any(matches(target, entry) for entry in listed) for listed in principal.models)


def matches(target: Target, entry: str) -> bool:
    """Whether an entry of a list means the target: a name or alias of it, the beginning of one and a `*`, or the model
    that it is an adapter of."""
    names = (target.name, *target.aliases, *([] if target.parent is None else [target.parent]))
    return named(names, entry)


def named(names: Iterable[str], entry: str) -> bool:
    """Whether one of the names is an entry of a list of models, or begins as it does before its `*`."""
    return any(name.startswith(entry[:-1]) if entry.endswith("*") else name == entry for name in names)
