"""What commands share: their options, the configuration, the stores beside a running server, tables."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.moments import iso, moment_us

if TYPE_CHECKING:
    from gateway.auth import Principal
    from gateway.auth.keyring import Keyring
    from gateway.auth.records import Directory
    from gateway.config import Config
    from gateway.errors import GatewayError
    from gateway.state.database import Database

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

T = TypeVar("T")


class CommandError(Exception):
    """What the person asked for cannot be done; the message is all they need."""


class Parser(argparse.ArgumentParser):
    """Complains of arguments it does not know with the usage of the verb they were given to."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown


def add(commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:]
    )
    command.set_defaults(run=run)
    return command


def group(commands: Any, name: str, summary: str) -> Any:
    """What the verbs of a noun are added to; without one, all of them are shown."""
    noun = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:])
    return noun.add_subparsers(title="commands", metavar="COMMAND", required=True)


def add_config_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (default: ./config.yaml if there is one)"
    )
    command.add_argument("--data-dir", metavar="DIR", help="where keys and other state are kept")


def add_remote_options(command: argparse.ArgumentParser, url: str | None) -> None:
    fallback = f", else {url}" if url else ""
    command.add_argument(
        "--url",
        default=os.environ.get("GATEWAY_URL") or url,
        help=f"the server, with or without /v1 (default: GATEWAY_URL{fallback})",
    )
    command.add_argument(
        "--key", "--api-key", default=os.environ.get("GATEWAY_API_KEY"), help="API key (default: GATEWAY_API_KEY)"
    )


def expiry_us(text: str) -> int:
    """A span from now such as `30d`, or a date, as microseconds since 1970."""
    if match := re.fullmatch(r"(\d{1,6})([smhdw])", text):
        return time.time_ns() // 1000 + int(match[1]) * _UNITS_S[match[2]] * 1_000_000
    try:
        expires_us = moment_us(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            "expected a span such as 12h, 30d or 4w, or a date such as 2030-12-31"
        ) from None
    if expires_us <= time.time_ns() // 1000:
        raise argparse.ArgumentTypeError("that moment has passed")
    return expires_us


def expiry_or_never(text: str) -> int:
    """As `expiry_us`; 0 for `never`."""
    return 0 if text == "never" else expiry_us(text)


def span_s(text: str) -> int:
    """A span such as `24h` in seconds."""
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError("expected a span such as 10m, 24h or 7d")
    return int(match[1]) * _UNITS_S[match[2]]


def load(options: argparse.Namespace, models: Sequence[str] = ()) -> Config:
    """The configuration as the options, the environment and the file say."""
    from gateway import config

    path: Path | None = options.config
    if path is None and not os.environ.get("GATEWAY_CONFIG") and Path("config.yaml").is_file():
        path = Path("config.yaml")
    given = {
        "server.host": getattr(options, "host", None),
        "server.port": getattr(options, "port", None),
        "server.workers": getattr(options, "workers", None),
        "data_dir": options.data_dir,
        "auth.enabled": False if getattr(options, "no_auth", False) else None,
        "models": [{"name": config.name_of_file(model), "path": model} for model in models] or None,
    }
    return config.load(path, os.environ, {name: value for name, value in given.items() if value is not None})


def require_models(config: Config) -> None:
    for model in config.models:
        if model.pull is None and not Path(model.file).is_file():
            is_folder = Path(model.file).is_dir()
            problem = f"{model.file} is a folder, not a file" if is_folder else f"there is no file {model.file}"
            raise CommandError(f"model {model.name}: {problem}")


def with_directory(options: argparse.Namespace, work: Callable[[Directory], Awaitable[T]]) -> T:
    """Do `work` on organisations, teams and people, beside a running server if there is one."""
    from gateway.auth.records import Directory
    from gateway.errors import GatewayError
    from gateway.stores import open_shared

    config = load(options)

    async def run(database: Database) -> T:
        shared = await open_shared(config)
        try:
            directory = Directory(database, shared)
            await _put_ids(options, directory)
            return await work(directory)
        except GatewayError as error:
            raise CommandError(_explained(error, options)) from None
        finally:
            await shared.close()

    return with_database(options, run)


async def _put_ids(options: argparse.Namespace, directory: Directory) -> None:
    """Puts ids in the place of the names that an organisation and a team were given by."""
    from gateway.auth.records import Org, Team, Wanted, page

    async def put(option: str, kind: Any, **within: str | None) -> None:
        name = getattr(options, option, None)
        if name is None or name.startswith(f"{option}_"):
            return
        wanted = Wanted()
        wanted.equal(name=name, **within)
        found, _ = await page(directory.database, f"{option}s", kind, wanted, (2, None))
        if len(found) > 1:
            raise CommandError(f"several {option}s are called {name}; say which by its id")
        if found:
            setattr(options, option, found[0].id)

    await put("org", Org)
    await put("team", Team, org_id=getattr(options, "org", None))


def _explained(error: GatewayError, options: argparse.Namespace) -> str:
    """What a person is told who named things on the command line."""
    if error.code != "not_found":
        told = error.param is None or f"'{error.param}'" in error.message
        return error.message.rstrip(".") + ("" if told else f" ({str(error.param).removesuffix('_id')})")
    named = [name for name in ("id", "team", "org", "user") if getattr(options, name, None)]
    at = next((name for name in named if error.param == f"{name}_id"), "user" if error.param else (named or [""])[0])
    noun = "key" if at == "id" else at
    return f"there is no {noun} {getattr(options, at, '')}; `gateway {noun}s list` shows which there are"


def with_keys(options: argparse.Namespace, work: Callable[[Keyring, Directory], Awaitable[T]]) -> T:
    """Do `work` on the table of keys, beside a running server if there is one."""
    from gateway.auth.key_text import load_pepper
    from gateway.auth.keyring import Keyring
    from gateway.auth.keys import Keys

    config = load(options)

    async def run(directory: Directory) -> T:
        pepper = load_pepper(Path(config.data_dir), config.auth.pepper)
        await Keys(directory.database, pepper).open()
        return await work(Keyring(directory, pepper), directory)

    return with_directory(options, run)


def with_database(options: argparse.Namespace, work: Callable[[Database], Awaitable[T]]) -> T:
    """Do `work` on the database, beside a running server if there is one."""
    from gateway.state.migrate import known, migrate
    from gateway.stores import with_database

    async def run(database: Database) -> T:
        await migrate(database, known())
        return await work(database)

    return with_database(load(options), run)


def operator() -> Principal:
    """As whom commands act: whoever can write to the database may do everything."""
    from gateway.audit import CLI
    from gateway.auth import Principal

    return Principal(tenant=CLI, key_id=CLI, name=CLI, admin=True, kind="admin")


async def note(directory: Directory, action: str, subject: str, **details: str | int | bool) -> None:
    """Put what a command did into the audit log."""
    from gateway import audit

    await audit.note(directory.database, action, subject, **details)


async def user_id(directory: Directory, text: str | None) -> str | None:
    """The id of a user who is named by it or by an e-mail address."""
    if text is None or "@" not in text:
        return text
    from gateway.auth.users import Users

    return (await Users(directory).by_email(operator(), text)).id


def print_json(value: Any) -> None:
    import msgspec

    print(msgspec.json.encode(value).decode())


def print_record(value: Any, options: argparse.Namespace) -> None:
    """One thing with all its fields: as JSON, or a line for each that says something."""
    import msgspec

    if options.json:
        print_json(value)
        return
    rows = []
    for name, field in _told(msgspec.to_builtins(value)).items():
        if field not in ({}, ""):
            text = field if isinstance(field, str) else msgspec.json.encode(field).decode()
            rows.append((name.removesuffix("_us"), moment(field) if name.endswith("_us") else text))
    print_table(rows)


def _told(value: Any) -> Any:
    """A value without what says nothing."""
    if not isinstance(value, dict):
        return value
    return {name: _told(field) for name, field in value.items() if field is not None and field not in ([], ())}


def print_rows(rows: Sequence[Sequence[str]], value: Any, options: argparse.Namespace) -> None:
    """Several things: as JSON, or as a table of which `rows` has the headings first."""
    if options.json:
        print_json(value)
    else:
        print_table(rows)


def moment(time_us: int | None) -> str:
    if time_us is None:
        return ""
    return iso(time_us)[:16].replace("T", " ")


def print_table(rows: Sequence[Sequence[str]]) -> None:
    from gateway.logs import escape

    rows = [[escape(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
