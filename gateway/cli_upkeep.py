"""`gateway migrate`, `backup` and `restore`: what an operator does to the stores."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway import command

if TYPE_CHECKING:
    from gateway.state.backup import Summary
    from gateway.state.postgres import Postgres
    from gateway.state.sqlite import Sqlite


def add_commands(commands: Any) -> None:
    verbs = command.group(commands, "migrate", "bring the database to this version's schema")
    status = command.add(verbs, "status", _status, "list the migrations and which are applied")
    apply = command.add(verbs, "apply", _apply, "apply what is missing, as every start does")
    backup = command.add(commands, "backup", _backup, "copy all tables into one file, also while the gateway runs")
    backup.add_argument("file", type=Path, metavar="FILE", help="must not exist")
    restore = command.add(
        commands, "restore", _restore, "put a copy in the place of the database; stop all gateways first"
    )
    restore.add_argument("file", type=Path, metavar="FILE")
    restore.add_argument("--force", action="store_true", help="also when the database holds data, which is then lost")
    for verb in (status, apply, backup, restore):
        command.add_config_options(verb)


def _status(options: argparse.Namespace) -> int:
    from gateway.state.migrate import known, pending
    from gateway.stores import with_database

    missing = with_database(command.load(options), lambda database: pending(database, known()))
    for migration in known():
        print(f"{'missing' if migration.name in missing else 'applied'}  {migration.name}")
    return 0


def _apply(options: argparse.Namespace) -> int:
    from gateway.audit import note
    from gateway.state.migrate import known, migrate
    from gateway.stores import with_database

    async def work(database: Sqlite | Postgres) -> list[str]:
        applied = await migrate(database, known())
        if applied:
            await note(database, "database.migrate", applied[-1], count=len(applied))
        return applied

    applied = with_database(command.load(options), work)
    print("\n".join(f"applied  {name}" for name in applied) or "Nothing was missing.")
    return 0


def _backup(options: argparse.Namespace) -> int:
    from gateway.auth.key_text import PEPPER_NAME
    from gateway.state.backup import back_up
    from gateway.state.migrate import known, pending
    from gateway.stores import with_database

    config = command.load(options)

    async def work(database: Sqlite | Postgres) -> Summary:
        missing = await pending(database, known())
        return await back_up(database, options.file, [each for each in known() if each.name not in missing])

    _show(with_database(config, work))
    if config.auth.pepper is None:
        print(
            f"Keep {Path(config.data_dir) / PEPPER_NAME} with it: without that file no API key of this copy is valid."
        )
    return 0


def _restore(options: argparse.Namespace) -> int:
    from gateway.audit import note
    from gateway.limits.wallets import new_money_epoch
    from gateway.state.backup import restore
    from gateway.state.migrate import known
    from gateway.stores import with_database

    async def work(database: Sqlite | Postgres) -> Summary:
        summary = await restore(database, options.file, known(), force=options.force)
        await new_money_epoch(database)
        await note(database, "database.restore", options.file.name, copy_of_us=summary.created_us)
        return summary

    _show(with_database(command.load(options), work, serve=True))
    return 0


def _show(summary: Summary) -> None:
    made = datetime.datetime.fromtimestamp(summary.created_us / 1e6, datetime.UTC)
    print(f"copy of {made:%Y-%m-%d %H:%M:%S} UTC")
    for name, count in summary.rows.items():
        print(f"{count:>10}  {name}")
