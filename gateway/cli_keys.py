"""The verbs of `gateway keys`."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from gateway import cli_money, command

if TYPE_CHECKING:
    from gateway.auth.keys import Key, Keys
    from gateway.state.database import Database


def add_commands(commands: Any) -> None:
    keys = commands.add_parser("keys", help="create, list and revoke API keys", description="Manage API keys.")
    verbs = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = command.add(verbs, "create", _keys_create, "create a key and print it, once")
    create.add_argument("name", help="what the key is for")
    create.add_argument("--tenant", help="share everything with the other keys of this tenant (default: its own)")
    create.add_argument("--admin", action="store_true", help="the key may administrate")
    cli_money.add_limit_options(create)
    create.add_argument(
        "--expires", type=command.expiry_us, metavar="WHEN", help="after 12h, 30d or 4w, or at 2030-12-31"
    )
    listing = command.add(verbs, "list", _keys_list, "list all keys")
    revoke = command.add(verbs, "revoke", _keys_revoke, "withdraw a key; a running server follows within five seconds")
    revoke.add_argument("id", help="the key's id, or the key itself")
    revoke.add_argument("--reason", default="", help="kept with the key")
    for verb in (create, listing, revoke):
        verb.add_argument("--json", action="store_true", help="machine-readable output")
        command.add_config_options(verb)


def _keys_create(options: argparse.Namespace) -> int:
    import msgspec

    from gateway import audit, usage
    from gateway.auth.keys import InvalidName

    async def create(keys: Keys, database: Database) -> tuple[Key, str]:
        key, text = await keys.create(
            options.name, options.tenant, admin=options.admin, expires_us=options.expires, limits=limits
        )
        await audit.note(database, "key.create", key.id, name=key.name, tenant=key.tenant, admin=key.admin)
        return key, text

    try:
        limits = usage.limits_of(options)
        key, text = command.with_keys(options, create)
    except InvalidName as error:
        raise command.CommandError(str(error)) from None
    if options.json:
        print(msgspec.json.encode(msgspec.to_builtins(key) | {"key": text}).decode())
    else:
        print(text)
        print(f"Key {key.id} of tenant {key.tenant}. It is shown only now; keep it safe.", file=sys.stderr)
    return 0


def _keys_list(options: argparse.Namespace) -> int:
    import msgspec

    keys: list[Key] = command.with_keys(options, lambda keys, _: keys.list())
    if options.json:
        print(msgspec.json.encode(keys).decode())
        return 0
    now_us = time.time_ns() // 1000
    rows = [["ID", "NAME", "TENANT", "ADMIN", "STATUS", "CREATED", "EXPIRES", "LAST USED"]]
    for key in keys:
        times = [command.moment(time_us) for time_us in (key.created_us, key.expires_us, key.last_used_us)]
        rows.append([key.id, key.name, key.tenant, "yes" if key.admin else "", key.status(now_us), *times])
    command.print_table(rows)
    return 0


def _keys_revoke(options: argparse.Namespace) -> int:
    from gateway import audit
    from gateway.auth.key_text import key_id

    identity = key_id(options.id) or options.id

    async def revoke(keys: Keys, database: Database) -> bool:
        revoked = await keys.revoke(identity, options.reason)
        if revoked:
            await audit.note(database, "key.revoke", identity, reason=options.reason)
        return revoked

    if not command.with_keys(options, revoke):
        raise command.CommandError(f"there is no active key {identity}")
    print(f'{{"id":"{identity}","revoked":true}}' if options.json else f"Key {identity} is revoked.")
    return 0
