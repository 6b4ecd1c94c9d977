"""The verbs of `gateway routes`, `gateway providers` and `gateway prices`, and `gateway rotate-secrets`."""

from __future__ import annotations

import argparse
import getpass
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gateway import command

if TYPE_CHECKING:
    from gateway.auth.records import Directory
    from gateway.served import Item, Kind, Served
    from gateway.served.stock import Stock

T = TypeVar("T")

SETTINGS = "a YAML or JSON file, - for the input, or the text itself in braces"
SECRETS = ("api_key", "aws_secret_access_key", "aws_session_token", "google_account")


def add_commands(commands: Any) -> None:
    for kind, name, summary in (
        ("route", "routes", "routes: list, show, create, set, delete; those of the configuration can only be seen"),
        ("provider", "providers", "providers: list, show, create, set, delete, secret"),
    ):
        group = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
        _verb(verbs, kind, "list", _list, f"list all {name}")
        _verb(verbs, kind, "show", _show, f"everything about a {kind}", "name")
        create = _verb(verbs, kind, "create", _create, f"make a {kind}, on all replicas within seconds")
        change = _verb(verbs, kind, "set", _change, f"change a {kind}; what is not given stays as it is", "name")
        for verb in (create, change):
            verb.add_argument("settings", metavar="SETTINGS", help=f"as in the configuration: {SETTINGS}")
        _verb(verbs, kind, "delete", _delete, f"remove a {kind}; what runs there ends first", "name")
        if kind == "provider":
            secret = _verb(verbs, kind, "secret", _secret, "set its key, from the terminal or a pipe", "name")
            secret.add_argument("--field", choices=SECRETS, default="api_key", help="what it is (default: api_key)")
            secret.add_argument("--remove", action="store_true", help="forget it")
    summary = "prices: list, set, delete, known"
    group = commands.add_parser("prices", help=summary, description=summary[0].upper() + summary[1:] + ".")
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _verb(verbs, "price", "list", _prices, "list the prices in force, and where they come from")
    price = _verb(verbs, "price", "set", _set_price, "set the price of a provider's model, as PROVIDER/MODEL", "name")
    price.add_argument("settings", metavar="SETTINGS", help=f"as in the configuration: {SETTINGS}")
    _verb(verbs, "price", "delete", _delete, "take a price away that was set", "name")
    _verb(verbs, "price", "known", _known, "list the well-known models whose prices are used where none is given")
    rotate = command.add(commands, "rotate-secrets", _rotate, "encrypt the secrets of providers with a new key")
    command.add_config_options(rotate)


def _verb(
    verbs: Any, kind: str, name: str, run: Callable[[argparse.Namespace], int], summary: str, *places: str
) -> argparse.ArgumentParser:
    verb = command.add(verbs, name, run, summary)
    for place in places:
        verb.add_argument(place, metavar=place.upper())
    verb.add_argument("--json", action="store_true", help="machine-readable output")
    verb.set_defaults(kind=kind)
    command.add_config_options(verb)
    return verb


def _with_stock(options: argparse.Namespace, work: Callable[[Stock, Directory], Awaitable[T]]) -> T:
    from gateway.errors import GatewayError
    from gateway.served.stock import Stock

    config = command.load(options)

    async def run(directory: Directory) -> T:
        try:
            return await work(Stock(directory.database, config, directory.shared), directory)
        except GatewayError as error:
            if error.code == "not_found":
                raise command.CommandError(f"there is no {options.kind} {options.name}") from None
            message = error.message.rstrip(".") + (f" ({error.param})" if error.param else "")
            raise command.CommandError(message) from None

    return command.with_directory(options, run)


def _given(options: argparse.Namespace, kind: type[T]) -> T:
    """The settings that were given."""
    import msgspec

    from adapters.choices import WRONG, choices
    from gateway import yaml_lines
    from gateway.config import amounts_as_text

    text = options.settings
    try:
        if text == "-":
            text = sys.stdin.read()
        elif not text.lstrip().startswith("{"):
            text = Path(text).read_text(encoding="utf-8")
        values, _ = yaml_lines.parse(text)
        return msgspec.convert(amounts_as_text(values, msgspec.inspect.type_info(kind)), kind)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise command.CommandError(f"{options.settings}: cannot be read: {reason}; SETTINGS is {SETTINGS}") from None
    except yaml_lines.YamlError as error:
        raise command.CommandError(f"line {error.line} of the settings: {error.problem}") from None
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        possible = choices(kind, place.rstrip("`")) if problem.startswith(WRONG) else []
        hint = f"; expected one of {', '.join(possible)}" if possible else ""
        if re.fullmatch(rf"Object contains unknown field `({'|'.join(SECRETS)})`", problem):
            hint = "; a secret is set apart, by `gateway providers secret NAME`"
        raise command.CommandError(f"these settings cannot be: {error}{hint}") from None


def _plain(item: Item) -> dict[str, Any]:
    """What there is to be known about something, its secret apart."""
    import msgspec

    from gateway.config_providers import ProviderSettings, RouteConfig

    kind = RouteConfig if item.kind == "route" else ProviderSettings
    known = {name: msgspec.to_builtins(getattr(item.settings, name)) for name in kind.__struct_fields__}
    known |= {"source": "config" if item.row is None else "api", "problem": item.problem and item.problem.message}
    if item.row is not None:
        known |= {name: getattr(item.row, name) for name in ("version", "created_us", "changed_us")}
    if item.kind == "provider" and item.row is not None:
        sealed = item.sealed
        known["secret"] = sealed and {"set_us": sealed.set_us, "set_by": sealed.set_by, "usable": item.open}
    return known


def _print(options: argparse.Namespace, item: Item) -> int:
    command.print_record(_plain(item), options)
    return 0


def _list(options: argparse.Namespace) -> int:
    async def work(stock: Stock, directory: Directory) -> list[Item]:
        return (await stock.read()).of(options.kind)

    items = _with_stock(options, work)
    if options.json:
        command.print_json([_plain(item) for item in items])
        return 0
    rows: list[tuple[str, ...]] = []
    for item in items:
        known = _plain(item)
        if options.kind == "route":
            told = (", ".join(f"{one['model']} of {one['provider']}" for one in group) for group in known["groups"])
            about = (known["policy"], "; then ".join(told))
        else:
            about = (known["kind"], known["base_url"] or "")
        rows.append((item.name, *about, known["source"], known["problem"] or ""))
    head = ("POLICY", "TARGETS") if options.kind == "route" else ("KIND", "URL")
    command.print_table([("NAME", *head, "SOURCE", "PROBLEM"), *rows])
    return 0


def _show(options: argparse.Namespace) -> int:
    async def work(stock: Stock, directory: Directory) -> Item | None:
        return (await stock.read()).find(options.kind, options.name)

    item = _with_stock(options, work)
    if item is None:
        raise command.CommandError(f"there is no {options.kind} {options.name}")
    return _print(options, item)


def _create(options: argparse.Namespace) -> int:
    from gateway.served import TYPES

    settings = _given(options, TYPES[options.kind])

    async def work(stock: Stock, directory: Directory) -> Item:
        item = await stock.create(settings)
        await command.note(directory, f"{options.kind}.create", item.name)
        return item

    return _print(options, _with_stock(options, work))


def _change(options: argparse.Namespace) -> int:
    from gateway.served import CHANGES, given

    asked = given(_given(options, CHANGES[options.kind]))
    if not asked:
        raise command.CommandError("say what to change")

    async def work(stock: Stock, directory: Directory) -> Item:
        item = await stock.change(options.kind, options.name, asked)
        await command.note(directory, f"{options.kind}.change", item.name, fields=", ".join(asked))
        return item

    return _print(options, _with_stock(options, work))


def _delete(options: argparse.Namespace) -> int:
    async def work(stock: Stock, directory: Directory) -> None:
        kind: Kind = options.kind
        await stock.delete(kind, options.name)
        await command.note(directory, f"{kind}.delete", options.name)

    _with_stock(options, work)
    if options.json:
        command.print_json({"name": options.name, "deleted": True})
    else:
        print(f"The {options.kind} {options.name} is no longer {'in force' if options.kind == 'price' else 'served'}.")
    return 0


def _secret(options: argparse.Namespace) -> int:
    from gateway.audit import CLI
    from gateway.served import ProviderSecret

    text = None
    if not options.remove:
        text = getpass.getpass("Secret: ") if sys.stdin.isatty() else sys.stdin.read()
        text = text.strip()
        if not text or (options.field != "google_account" and not re.fullmatch(r"[!-~]+", text)):
            raise command.CommandError("a secret is visible ASCII characters without spaces")
    secret = None if text is None else ProviderSecret(**{options.field: text})

    async def work(stock: Stock, directory: Directory) -> Item:
        item = await stock.set_secret(options.name, secret, CLI)
        action = "provider.secret" if secret is not None else "provider.secret.delete"
        await command.note(directory, action, item.name)
        return item

    return _print(options, _with_stock(options, work))


def _prices(options: argparse.Namespace) -> int:
    from gateway.ledger.export import usd
    from gateway.prices import in_force

    async def work(stock: Stock, directory: Directory) -> Served:
        return await stock.read()

    served = _with_stock(options, work)
    config = served.config
    found = in_force([*config.models, *config.routes], config.providers, served.prices)
    rows = [("MODEL", "TARGET", "INPUT", "CACHED", "OUTPUT", "SOURCE", "CHECKED")]
    for place, known in found.items():
        model, _, target = place.partition(" ")
        price = known.price
        usds = (usd(price.input_nano), usd(price.cached_nano), usd(price.output_nano))
        rows.append((model, target, *usds, known.source, "" if known.row is None else known.row.checked))
    command.print_rows(rows, found, options)
    return 0


def _set_price(options: argparse.Namespace) -> int:
    import msgspec

    from gateway.config_limits import PriceConfig
    from gateway.served import PriceOverride

    price = _given(options, PriceConfig)
    try:
        override = msgspec.convert({"name": options.name, **msgspec.to_builtins(price)}, PriceOverride)
    except msgspec.ValidationError:
        raise command.CommandError("a price is for PROVIDER/MODEL, such as openai/gpt-4o") from None

    async def work(stock: Stock, directory: Directory) -> None:
        await stock.set_price(override)
        await command.note(directory, "price.set", override.name, input=price.input, output=price.output)

    _with_stock(options, work)
    print(f"{override.name} costs {price.input} per million tokens of input and {price.output} of output.")
    return 0


def _known(options: argparse.Namespace) -> int:
    from gateway.known_prices import TABLE, VERSION

    rows = [("KIND", "MODEL", "INPUT", "CACHED", "OUTPUT", "CHECKED", "AT")]
    for row in TABLE.values():
        price = row.price
        usds = (price.input, price.cached_input or "", price.output)
        rows.append((row.kind, row.model, *usds, row.checked, row.source))
    command.print_rows(rows, {"version": VERSION, "prices": list(TABLE.values())}, options)
    return 0


def _rotate(options: argparse.Namespace) -> int:
    async def work(stock: Stock, directory: Directory) -> tuple[int, list[str]]:
        done, left = await stock.reseal()
        await command.note(directory, "provider.secrets.rotate", "", secrets=done)
        return done, left

    done, left = _with_stock(options, work)
    print(f"{done} secrets are encrypted with a new key.")
    for name in left:
        print(f"The secret of {name} could not be read; set it anew.", file=sys.stderr)
    return int(bool(left))
