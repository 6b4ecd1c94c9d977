"""The verbs of `gateway orgs`, `gateway teams` and `gateway users`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway import cli_log_ins, cli_money, cli_notes, command

if TYPE_CHECKING:
    from gateway.auth.records import Directory

PAGE = 1000
ROLES = ("owner", "admin", "member", "viewer")


class _Kind(NamedTuple):
    """What organisations, teams and people have in common: `name` is the option that says which one is meant,
    `settable` are the options that say what it is to be, `columns` those of a list."""

    name: str
    settable: tuple[str, ...]
    columns: tuple[str, ...]


_ORG = _Kind("org", ("name", "archived"), ("id", "name", "created_us", "archived_us"))
_TEAM = _Kind("team", ("name", "archived"), ("id", "org_id", "name", "created_us", "archived_us"))
_USER = _Kind(
    "user",
    ("name", "email", "role", "admin", "disabled"),
    ("id", "org_id", "email", "name", "role", "admin", "created_us", "disabled_us"),
)


def add_commands(commands: Any) -> None:
    _add_orgs(command.group(commands, "orgs", "organisations: create, list, show, set, archive, restore"))
    teams = command.group(
        commands, "teams", "teams and their members: create, list, show, set, archive, restore, add, ..."
    )
    _add_teams(teams)
    _add_members(teams)
    _add_users(
        command.group(commands, "users", "people: create, list, show, set, disable, enable, password, invite, ...")
    )


def _verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str, *places: str) -> Any:
    """A verb whose arguments are ids."""
    verb = command.add(verbs, name, run, summary)
    for place in places:
        verb.add_argument(place, metavar=place.upper())
    verb.add_argument("--json", action="store_true", help="machine-readable output")
    command.add_config_options(verb)
    return verb


def _add_limits(verb: argparse.ArgumentParser, of: str, change: bool) -> None:
    if of in ("organisation", "team"):
        verb.add_argument("--models", metavar="A,B", help="models it may use, a* for many; `all` for all")
        verb.add_argument("--price-factor", metavar="0.9", help="what its prices are multiplied by; or `none`")
        verb.add_argument("--guardrails", metavar="A,B", help="those its requests pass, by name; or `none`")
    if change:
        verb.add_argument("--no-limits", action="store_true", help="take the limits of its own away")
    cli_money.add_limit_options(verb, of)


def _add_shared(verbs: Any, kind: _Kind, what: str, ends: Sequence[tuple[str, str, bool]]) -> argparse.ArgumentParser:
    """The verbs that all of them have; `ends` are those that set one's last option of `settable`. The one that sets."""
    listing = _verb(verbs, "list", _list, f"list all {'people' if kind is _USER else what + 's'}")
    if kind is not _ORG:
        listing.add_argument("--org", metavar="ORG", help="only those of this organisation")
    article = "an" if kind is _ORG else "a"
    showing = _verb(verbs, "show", _show, f"everything about {article} {what}", kind.name)
    change: argparse.ArgumentParser = _verb(
        verbs, "set", _set, f"change {article} {what}; what is not given stays as it is", kind.name
    )
    change.add_argument("--name")
    _add_limits(change, what, True)
    last = [_verb(verbs, name, _set, summary, kind.name) for name, summary, _ in ends]
    for verb, (_, _, ended) in zip(last, ends, strict=True):
        verb.set_defaults(**{kind.settable[-1]: ended})
    for verb in (listing, showing, change, *last):
        verb.set_defaults(kind=kind)
    return change


_ARCHIVING = (("archive", "refuse all of its keys", True), ("restore", "let its keys in again", False))


def _add_orgs(verbs: Any) -> None:
    _add_limits(_verb(verbs, "create", _orgs_create, "make an organisation", "name"), "organisation", False)
    _add_shared(verbs, _ORG, "organisation", _ARCHIVING)


def _add_teams(verbs: Any) -> None:
    _add_limits(_verb(verbs, "create", _teams_create, "make a team", "org", "name"), "team", False)
    _add_shared(verbs, _TEAM, "team", _ARCHIVING)


def _add_members(verbs: Any) -> None:
    _verb(verbs, "members", _members, "list the members of a team", "team")
    add = _verb(verbs, "add", _member_add, "take a user of the organisation into a team", "team", "user")
    change = _verb(verbs, "set-member", _member_set, "change a member's role or limits", "team", "user")
    for verb in (add, change):
        verb.add_argument("--role", choices=ROLES, help="in the team; at first member")
        _add_limits(verb, "member", verb is change)
    _verb(verbs, "remove", _member_remove, "take a member out of a team", "team", "user")


def _add_users(verbs: Any) -> None:
    create = _verb(verbs, "create", _users_create, "make a user", "email")
    create.add_argument("--org", metavar="ORG", help="the organisation; an administrator of the gateway may have none")
    create.add_argument("--name")
    _add_limits(create, "user", False)
    disabling = (("disable", "refuse all keys and log-ins of a user", True), ("enable", "let a user in again", False))
    change = _add_shared(verbs, _USER, "user", disabling)
    change.add_argument("--email")
    for verb in (create, change):
        verb.add_argument("--role", choices=ROLES, help="in the organisation")
        verb.add_argument("--admin", choices=("yes", "no"), help="whether to administrate the whole gateway")
    cli_log_ins.add_verbs(verbs, _verb, ROLES)


def _asked(options: argparse.Namespace, kind: Callable[..., Any], *names: str) -> Any:
    """What an option was given for; the rest is UNSET."""
    from gateway import usage

    values = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    if getattr(options, "models", None) is not None:
        values["models"] = None if options.models == "all" else tuple(filter(None, options.models.split(",")))
    if getattr(options, "guardrails", None) is not None:
        values["guardrails"] = (
            () if options.guardrails == "none" else tuple(filter(None, options.guardrails.split(",")))
        )
    if (factor := getattr(options, "price_factor", None)) is not None:
        if factor != "none" and not re.fullmatch(r"\d{1,3}(\.\d{1,6})?", factor):
            raise command.CommandError("a factor is a decimal number such as 0.9 or 1.25")
        values["price_factor"] = None if factor == "none" else factor
    if hasattr(options, "wallet") and (limits := usage.limits_of(options)) is not None:
        values["limits"] = limits
    if getattr(options, "no_limits", False):
        values["limits"] = None
    if "admin" in values:
        values["admin"] = values["admin"] == "yes"
    return kind(**values)


def _check_asked(change: Any) -> None:
    from gateway.auth.records import changes

    if not changes(change):
        raise command.CommandError("say what to change; --help lists what there is")


async def _all(read: Callable[[str | None], Awaitable[tuple[Sequence[Any], bool]]], key: str = "id") -> list[Any]:
    found: list[Any] = []
    more = True
    while more:
        part, more = await read(getattr(found[-1], key) if found else None)
        found += part
    return found


def _print_all(options: argparse.Namespace, records: list[Any], fields: Sequence[str]) -> int:
    """The records as JSON, or these fields of them as a table."""
    rows = [[field.removesuffix("_us").replace("_", " ").upper() for field in fields]]
    for record in records:
        values = [(field, getattr(record, field)) for field in fields]
        rows.append([command.moment(value) if field.endswith("_us") else str(value or "") for field, value in values])
    command.print_rows(rows, records, options)
    return 0


def _do(options: argparse.Namespace, work: Callable[[Directory], Awaitable[Any]]) -> int:
    command.print_record(command.with_directory(options, work), options)
    return 0


def _domain(kind: _Kind, directory: Directory) -> Any:
    """What reads and changes things of a kind."""
    from gateway.auth.orgs import Orgs
    from gateway.auth.teams import Teams
    from gateway.auth.users import Users

    return {"org": Orgs, "team": Teams, "user": Users}[kind.name](directory)


async def _identity(options: argparse.Namespace, directory: Directory) -> str:
    """Which one is meant; people are also named by their addresses."""
    kind: _Kind = options.kind
    named = getattr(options, kind.name)
    return str(await command.user_id(directory, named) if kind is _USER else named)


def _list(options: argparse.Namespace) -> int:
    kind: _Kind = options.kind
    within = {"org_id": options.org} if hasattr(options, "org") else {}

    def work(directory: Directory) -> Awaitable[list[Any]]:
        return _all(lambda after: _domain(kind, directory).list(command.operator(), PAGE, after, **within))

    return _print_all(options, command.with_directory(options, work), kind.columns)


def _show(options: argparse.Namespace) -> int:
    async def work(directory: Directory) -> Any:
        return await _domain(options.kind, directory).get(command.operator(), await _identity(options, directory))

    return _do(options, work)


def _set(options: argparse.Namespace) -> int:
    from gateway.auth.orgs import OrgChange
    from gateway.auth.records import changes
    from gateway.auth.teams import TeamChange
    from gateway.auth.users import UserChange

    kind: _Kind = options.kind
    kinds: dict[str, type[Any]] = {"org": OrgChange, "team": TeamChange, "user": UserChange}
    change = _asked(options, kinds[kind.name], *kind.settable)
    _check_asked(change)

    async def work(directory: Directory) -> Any:
        identity = await _identity(options, directory)
        changed = await _domain(kind, directory).change(command.operator(), identity, change)
        await command.note(directory, f"{kind.name}.change", changed.id, **changes(change))
        if "models" in changes(change):
            await cli_notes.models_not_here(options, directory, changed.models)
        return changed

    return _do(options, work)


def _orgs_create(options: argparse.Namespace) -> int:
    from gateway.auth.orgs import Orgs

    async def work(directory: Directory) -> Any:
        org = await _asked(options, lambda **more: Orgs(directory).create(command.operator(), options.name, **more))
        await command.note(directory, "org.create", org.id, name=org.name)
        await cli_notes.models_not_here(options, directory, org.models)
        return org

    return _do(options, work)


def _teams_create(options: argparse.Namespace) -> int:
    from gateway.auth.teams import Teams

    async def work(directory: Directory) -> Any:
        teams = Teams(directory)
        team = await _asked(options, lambda **more: teams.create(command.operator(), options.org, options.name, **more))
        await command.note(directory, "team.create", team.id, name=team.name, org=team.org_id)
        await cli_notes.models_not_here(options, directory, team.models)
        return team

    return _do(options, work)


def _members(options: argparse.Namespace) -> int:
    from gateway.auth.teams import Teams

    members = command.with_directory(
        options,
        lambda directory: _all(
            lambda after: Teams(directory).members(command.operator(), options.team, PAGE, after), "user_id"
        ),
    )
    return _print_all(options, members, ("user_id", "role", "created_us"))


async def _user(directory: Directory, options: argparse.Namespace) -> str:
    return str(await command.user_id(directory, options.user))


def _member_add(options: argparse.Namespace) -> int:
    from gateway.auth.teams import Teams

    async def work(directory: Directory) -> Any:
        user_id = await _user(directory, options)
        teams = Teams(directory)
        member = await _asked(
            options, lambda **more: teams.add(command.operator(), options.team, user_id, **more), "role"
        )
        await command.note(directory, "member.add", options.team, user=user_id, role=member.role)
        return member

    return _do(options, work)


def _member_set(options: argparse.Namespace) -> int:
    from gateway.auth.records import changes
    from gateway.auth.teams import MemberChange, Teams

    change = _asked(options, MemberChange, "role")
    _check_asked(change)

    async def work(directory: Directory) -> Any:
        user_id = await _user(directory, options)
        member = await Teams(directory).set_member(command.operator(), options.team, user_id, change)
        await command.note(directory, "member.change", options.team, user=user_id, **changes(change))
        return member

    return _do(options, work)


def _member_remove(options: argparse.Namespace) -> int:
    from gateway.auth.teams import Teams

    async def work(directory: Directory) -> str:
        user_id = await _user(directory, options)
        await Teams(directory).remove(command.operator(), options.team, user_id)
        await command.note(directory, "member.remove", options.team, user=user_id)
        return user_id

    user_id = command.with_directory(options, work)
    if options.json:
        command.print_json({"team_id": options.team, "user_id": user_id, "removed": True})
    else:
        print(f"{user_id} is no longer in {options.team}.")
    return 0


def _users_create(options: argparse.Namespace) -> int:
    from gateway.auth.users import Users

    async def work(directory: Directory) -> Any:
        users = Users(directory)
        user = await _asked(
            options,
            lambda **more: users.create(command.operator(), options.org, options.email, **more),
            "name",
            "role",
            "admin",
        )
        await command.note(directory, "user.create", user.id, email=user.email, role=user.role, admin=user.admin)
        return user

    return _do(options, work)
