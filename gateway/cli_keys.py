"""The verbs of `gateway keys`."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from gateway import cli_money, cli_notes, command

if TYPE_CHECKING:
    from gateway.auth.key_rules import KeyChange
    from gateway.auth.keyring import Keyring
    from gateway.auth.records import Directory, Key

PAGE = 1000


def add_commands(commands: Any) -> None:
    keys = commands.add_parser("keys", help="create, list, change, rotate and revoke API keys", description="API keys.")
    verbs = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = command.add(verbs, "create", _create, "create a key and print it, once")
    create.add_argument("name", help="what the key is for")
    create.add_argument("--tenant", help="share everything with the other keys of this tenant (default: its own)")
    create.add_argument("--org", metavar="ORG", help="the organisation it belongs to, as a service account")
    create.add_argument("--team", metavar="TEAM", help="the team it belongs to")
    create.add_argument("--user", metavar="USER", help="the person it belongs to, by id or e-mail address")
    create.add_argument("--admin", action="store_true", help="the key may administrate")
    listing = command.add(verbs, "list", _list, "list all keys, or some")
    for name in ("org", "team", "user", "tenant"):
        listing.add_argument(f"--{name}", metavar=name.upper(), help=f"only those of this {name}")
    show = command.add(verbs, "show", _show, "everything about a key but its text")
    change = command.add(verbs, "set", _set, "change a key; what is not given stays as it is")
    change.add_argument("--name", help="what the key is for")
    for verb, more in ((create, False), (change, True)):
        _add_settings(verb, more)
    rotate = command.add(verbs, "rotate", _rotate, "replace a key by a new one, which is printed once")
    rotate.add_argument(
        "--overlap", type=command.span_s, default=0, metavar="SPAN", help="how long the old one works on, such as 24h"
    )
    _add_expiry(rotate, "when the new one ends (default: when the old one would have)")
    revoke = command.add(verbs, "revoke", _revoke, "withdraw a key; a running server follows within five seconds")
    revoke.add_argument("--reason", default="", help="kept with the key")
    for verb in (show, change, rotate, revoke):
        verb.add_argument("id", help="the key's id, or the key itself")
    for verb in (create, listing, show, change, rotate, revoke):
        verb.add_argument("--json", action="store_true", help="machine-readable output")
        command.add_config_options(verb)


def _add_settings(verb: argparse.ArgumentParser, change: bool) -> None:
    _add_expiry(verb, "after 12h, 30d or 4w, or at 2030-12-31" + (", or never" if change else ""))
    empty = "; none: any" if change else ""
    verb.add_argument("--scopes", type=_list_of, metavar="A,B", help=f"permissions, such as inference{empty}")
    verb.add_argument("--models", type=_list_of, metavar="A,B", help=f"models it may use, a* for many{empty}")
    verb.add_argument("--addresses", type=_list_of, metavar="A,B", help=f"networks it may be used from{empty}")
    verb.add_argument("--tags", type=_list_of, metavar="A,B", help="further scopes that its requests are counted in")
    verb.add_argument("--guardrails", type=_list_of, metavar="A,B", help="those its requests pass, by name; or none")
    verb.add_argument("--meta", action="append", metavar="NAME=VALUE", help="kept with the key (repeatable)")
    verb.add_argument("--weight", type=float, metavar="N", help="its share of a queue, 0.01 to 100 (default: 1)")
    verb.add_argument("--priority", type=int, metavar="N", help="its order in its tenant's queue, -100 to 100")
    if change:
        verb.add_argument("--no-limits", action="store_true", help="take the limits of its own away")
    cli_money.add_limit_options(verb, "key")


def _add_expiry(verb: argparse.ArgumentParser, summary: str) -> None:
    verb.add_argument("--expires", type=command.expiry_or_never, metavar="WHEN", help=summary)


def _list_of(text: str) -> tuple[str, ...]:
    """Names between commas; `none` is the empty list."""
    return () if text == "none" else tuple(name for name in text.split(",") if name)


def _settings(options: argparse.Namespace) -> KeyChange:
    from msgspec import UNSET

    from gateway import usage
    from gateway.auth.key_rules import KeyChange

    values: dict[str, Any] = {
        "name": getattr(options, "name", None),
        "scopes": options.scopes,
        "models": options.models,
        "addresses": options.addresses,
        "tags": options.tags,
        "guardrails": options.guardrails,
        "metadata": None if options.meta is None else dict(_pair(text) for text in options.meta),
        "weight": options.weight,
        "priority": options.priority,
        "limits": usage.limits_of(options),
        "expires_us": options.expires,
    }
    values = {name: value for name, value in values.items() if value is not None}
    for name in ("scopes", "models"):
        # An empty list would mean none at all, which revoking says better.
        if values.get(name) == ():
            values[name] = None
    if values.get("expires_us") == 0:
        values["expires_us"] = None
    if getattr(options, "no_limits", False):
        values["limits"] = None
    return KeyChange(**{name: values.get(name, UNSET) for name in KeyChange.__struct_fields__})


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise command.CommandError(f"metadata is NAME=VALUE, not {text!r}")
    return name, value


def _create(options: argparse.Namespace) -> int:
    from gateway.auth.keyring import Place

    async def create(keyring: Keyring, directory: Directory) -> tuple[Key, str]:
        place = Place(
            tenant=options.tenant,
            org_id=options.org,
            team_id=options.team,
            user_id=await command.user_id(directory, options.user),
            admin=options.admin,
        )
        key, text = await keyring.create(command.operator(), options.name, place, _settings(options))
        await command.note(directory, "key.create", key.id, name=key.name, tenant=key.tenant, admin=key.admin)
        await cli_notes.models_not_here(options, directory, key.models)
        await cli_notes.models_without_price(options, directory, key)
        return key, text

    return _print_new(options, *command.with_keys(options, create))


def _print_new(options: argparse.Namespace, key: Key, text: str) -> int:
    import msgspec

    if options.json:
        command.print_json(msgspec.to_builtins(key) | {"key": text})
    else:
        print(text)
        print(f"Key {key.id} of tenant {key.tenant}. It is shown only now; keep it safe.", file=sys.stderr)
    return 0


def _list(options: argparse.Namespace) -> int:
    async def read(keyring: Keyring, directory: Directory) -> list[Key]:
        user_id = await command.user_id(directory, options.user)
        filters = {"org_id": options.org, "team_id": options.team, "tenant": options.tenant}
        found: list[Key] = []
        more = True
        while more:
            after = found[-1].id if found else None
            part, more = await keyring.list(command.operator(), PAGE, after, user_id=user_id, **filters)
            found += part
        return found

    keys = command.with_keys(options, read)
    now_us = time.time_ns() // 1000
    rows = [["ID", "NAME", "TENANT", "TEAM", "KIND", "STATUS", "CREATED", "EXPIRES", "LAST USED"]]
    for key in keys:
        times = [command.moment(time_us) for time_us in (key.created_us, key.expires_us, key.last_used_us)]
        rows.append([key.id, key.name, key.tenant, key.team_id or "", key.kind, key.status(now_us), *times])
    command.print_rows(rows, keys, options)
    return 0


def _identity(options: argparse.Namespace) -> str:
    from gateway.auth.key_text import key_id

    return key_id(options.id) or str(options.id)


def _show(options: argparse.Namespace) -> int:
    key = command.with_keys(options, lambda keyring, _: keyring.get(command.operator(), _identity(options)))
    command.print_record(key, options)
    return 0


def _set(options: argparse.Namespace) -> int:
    change = _settings(options)
    if not change.given():
        raise command.CommandError("say what to change; gateway keys set --help lists what there is")

    async def work(keyring: Keyring, directory: Directory) -> Key:
        key = await keyring.change(command.operator(), _identity(options), change)
        await command.note(directory, "key.change", key.id, changed=" ".join(change.given()))
        if "models" in change.given():
            await cli_notes.models_not_here(options, directory, key.models)
        return key

    command.print_record(command.with_keys(options, work), options)
    return 0


def _rotate(options: argparse.Namespace) -> int:
    from msgspec import UNSET

    ends = {None: UNSET, 0: None}.get(options.expires, options.expires)

    async def work(keyring: Keyring, directory: Directory) -> tuple[Key, str]:
        identity = _identity(options)
        key, text = await keyring.rotate(command.operator(), identity, overlap_s=options.overlap, expires_us=ends)
        await command.note(directory, "key.rotate", identity, successor=key.id, overlap_s=options.overlap)
        return key, text

    return _print_new(options, *command.with_keys(options, work))


def _revoke(options: argparse.Namespace) -> int:
    identity = _identity(options)

    async def work(keyring: Keyring, directory: Directory) -> None:
        if (await keyring.get(command.operator(), identity)).revoked_us is not None:
            raise command.CommandError(f"key {identity} has been revoked already")
        await keyring.revoke(command.operator(), identity, options.reason)
        await command.note(directory, "key.revoke", identity, reason=options.reason)

    command.with_keys(options, work)
    print(f'{{"id":"{identity}","revoked":true}}' if options.json else f"Key {identity} is revoked.")
    return 0
