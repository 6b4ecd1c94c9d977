"""What a person is told beside what they asked for: nothing is wrong with it, but it may not be what they meant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gateway import command

if TYPE_CHECKING:
    from gateway.auth.records import Directory, Key
    from gateway.served import Served


async def models_not_here(options: argparse.Namespace, directory: Directory, entries: Sequence[str] | None) -> None:
    """Which entries of a list of models mean nothing that is served; it may come later."""
    from difflib import get_close_matches

    from gateway.catalog import named
    from gateway.config import public_names

    if not entries:
        return
    names = [name for _, name in public_names((await _served(options, directory)).config)]
    for entry in entries:
        if not named(names, entry):
            near = get_close_matches(entry, names, 1)
            hint = (
                f"did you mean {near[0]}?" if near else "`gateway models` and `gateway routes list` say what there is"
            )
            _say(f"no model here is called {entry} so far; {hint}")


async def models_without_price(options: argparse.Namespace, directory: Directory, key: Key) -> None:
    """Which models a key could use if its money had no limit."""
    from gateway.catalog import named

    if key.limits is None or not (key.limits.budgets or key.limits.wallet):
        return
    unpriced = [
        names[0]
        for names in _unpriced(await _served(options, directory))
        if key.models is None or any(named(names, entry) for entry in key.models)
    ]
    if unpriced:
        note = "whoever's money is limited may not use models without a price (price, or `gateway prices set`)"
        _say(f"{note}: {', '.join(unpriced)}")


def _unpriced(served: Served) -> Iterable[tuple[str, ...]]:
    """The names of each model and route of which a part has no price."""
    from gateway.prices import price_place, price_table

    config = served.config
    for model in config.models:
        if model.price is None:
            yield model.name, *model.aliases
    prices = price_table([*config.models, *config.routes], config.providers, served.prices)
    for route in config.routes:
        places = [price_place(route.name, target.identity) for group in route.groups for target in group]
        if any(place not in prices for place in places):
            yield route.name, *route.aliases


async def _served(options: argparse.Namespace, directory: Directory) -> Served:
    from gateway.served.stock import Stock

    return await Stock(directory.database, command.load(options), directory.shared).read()


def _say(note: str) -> None:
    print(f"Note: {note}", file=sys.stderr)
