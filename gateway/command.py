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
    from gateway.auth.keys import Keys
    from gateway.config import Config
    from gateway.state.database import Database

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

T = TypeVar("T")


class CommandError(Exception):
    """What the person asked for cannot be done; the message is all they need."""


def add(commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:]
    )
    command.set_defaults(run=run)
    return command


def add_config_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (default: ./config.yaml if there is one)"
    )
    command.add_argument("--data-dir", metavar="DIR", help="where keys and other state are kept")
    command.set_defaults(load=load)


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


def load(options: argparse.Namespace, models: Sequence[str] = ()) -> Config:
    """The configuration as the options, the environment and the file say."""
    from gateway import config

    path: Path | None = options.config
    if path is None and not os.environ.get("GATEWAY_CONFIG") and Path("config.yaml").is_file():
        path = Path("config.yaml")
    given = {
        "server.host": getattr(options, "host", None),
        "server.port": getattr(options, "port", None),
        "data_dir": options.data_dir,
        "auth.enabled": False if getattr(options, "no_auth", False) else None,
        "models": [{"name": config.name_of_file(model), "path": model} for model in models] or None,
    }
    return config.load(path, os.environ, {name: value for name, value in given.items() if value is not None})


def require_models(config: Config) -> None:
    for model in config.models:
        if not Path(model.file).is_file():
            raise CommandError(f"model {model.name}: there is no file {model.file}")


def with_keys(options: argparse.Namespace, work: Callable[[Keys, Database], Awaitable[T]]) -> T:
    """Do `work` on the table of keys, beside a running server if there is one."""
    from gateway.auth.key_text import load_pepper
    from gateway.auth.keys import Keys
    from gateway.stores import open_shared

    config = load(options)

    async def run(database: Database) -> T:
        shared = await open_shared(config)
        try:
            keys = Keys(database, load_pepper(Path(config.data_dir), config.auth.pepper), shared=shared)
            await keys.open()
            return await work(keys, database)
        finally:
            await shared.close()

    return with_database(options, run)


def with_database(options: argparse.Namespace, work: Callable[[Database], Awaitable[T]]) -> T:
    """Do `work` on the database, beside a running server if there is one."""
    from gateway.state.migrate import known, migrate
    from gateway.stores import with_database

    async def run(database: Database) -> T:
        await migrate(database, known())
        return await work(database)

    return with_database(load(options), run)


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
