"""`gateway audit`: reads the audit log and follows its chain of hashes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from gateway import command
from gateway.cli_money import date_us

if TYPE_CHECKING:
    from gateway.state.database import Database

LIMIT_MAX = 10_000


def add_commands(commands: Any) -> None:
    audit = commands.add_parser("audit", help="who administrated what, and who was refused", description="Audit log.")
    verbs = audit.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = command.add(verbs, "list", _list, "list entries as JSON lines, the newest first")
    for name in ("actor", "tenant", "outcome"):
        listing.add_argument(f"--{name}", help=f"only this {name}")
    listing.add_argument("--action", help="only actions that begin like this, such as key. or session.delete")
    listing.add_argument("--since", type=date_us, default=0, metavar="DATE")
    listing.add_argument("--until", type=date_us, default=2**62, metavar="DATE")
    listing.add_argument("--limit", type=int, default=100, metavar="N", help="at most so many (default: 100)")
    verify = command.add(verbs, "verify", _verify, "check that no entry was changed, removed or moved")
    verify.add_argument("hash", nargs="?", help="a hash that an earlier check has printed")
    for verb in (listing, verify):
        command.add_config_options(verb)


def _list(options: argparse.Namespace) -> int:
    import msgspec

    from gateway.audit import Audit, Entry, Filter
    from gateway.stores import with_database

    names = ("actor", "tenant", "action", "outcome")
    given = {name: getattr(options, name) for name in names}
    wanted = Filter(since_us=options.since, until_us=options.until, **given)

    async def read(database: Database) -> tuple[list[Entry], bool]:
        return await Audit(database).page(wanted, min(max(options.limit, 1), LIMIT_MAX))

    entries, _ = with_database(command.load(options), read)
    for entry in entries:
        print(msgspec.json.encode(entry).decode())
    return 0


def _verify(options: argparse.Namespace) -> int:
    from gateway.audit import verify
    from gateway.stores import with_database

    chain = with_database(command.load(options), lambda database: verify(database, options.hash))
    print(f"{chain.count} entries are as they were written; the hash of the last one is {chain.hash}")
    if chain.problem is not None:
        print(f"From there on the audit log is not as it was written: {chain.problem}.")
    return int(chain.problem is not None)
