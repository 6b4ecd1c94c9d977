"""The verbs of `gateway orgs`, `gateway teams` and `gateway users`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from gateway import cli_log_ins, cli_money, command

if TYPE_CHECKING:
    from gateway.auth.records import Directory

PAGE = 1000
ROLES = ("owner", "admin", "member", "viewer")


def add_commands(commands: Any) -> None:
    _add_orgs(_group(commands, "orgs", "organisations: create, list, show, set, archive, restore"))
    teams = _group(commands, "teams", "teams and their members: create, list, show, set, archive, restore, add, ...")
    _add_teams(teams)
    _add_members(teams)
    _add_users(_group(commands, "users", "people: create, list, show, set, disable, enable, password, invite, ..."))


def _group(commands: Any, name: str, summary: str) -> Any:
    group = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    return group.add_subparsers(title="commands", metavar="COMMAND", required=True)


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


def _add_orgs(verbs: Any) -> None:
    create = _verb(verbs, "create", _orgs_create, "make an organisation", "name")
    _verb(verbs, "list", _orgs_list, "list all organisations")
    _verb(verbs, "show", _orgs_show, "everything about an organisation", "org")
    change = _verb(verbs, "set", _orgs_set, "change an organisation; what is not given stays as it is", "org")
    change.add_argument("--name")
    _add_limits(create, "organisation", False)
    _add_limits(change, "organisation", True)
    for name, summary in (("archive", "refuse all of its keys"), ("restore", "let its keys in again")):
        _verb(verbs, name, _orgs_set, summary, "org").set_defaults(archived=name == "archive")


def _add_teams(verbs: Any) -> None:
    create = _verb(verbs, "create", _teams_create, "make a team", "org", "name")
    listing = _verb(verbs, "list", _teams_list, "list all teams")
    listing.add_argument("--org", metavar="ORG", help="only those of this organisation")
    _verb(verbs, "show", _teams_show, "everything about a team", "team")
    change = _verb(verbs, "set", _teams_set, "change a team; what is not given stays as it is", "team")
    change.add_argument("--name")
    _add_limits(create, "team", False)
    _add_limits(change, "team", True)
    for name, summary in (("archive", "refuse all of its keys"), ("restore", "let its keys in again")):
        _verb(verbs, name, _teams_set, summary, "team").set_defaults(archived=name == "archive")


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
    listing = _verb(verbs, "list", _users_list, "list all people")
    listing.add_argument("--org", metavar="ORG", help="only those of this organisation")
    _verb(verbs, "show", _users_show, "everything about a user", "user")
    change = _verb(verbs, "set", _users_set, "change a user; what is not given stays as it is", "user")
    change.add_argument("--email")
    for verb in (create, change):
        verb.add_argument("--name")
        verb.add_argument("--role", choices=ROLES, help="in the organisation")
        verb.add_argument("--admin", choices=("yes", "no"), help="whether to administrate the whole gateway")
        _add_limits(verb, "user", verb is change)
    for name, summary in (("disable", "refuse all keys and log-ins of a user"), ("enable", "let a user in again")):
        _verb(verbs, name, _users_set, summary, "user").set_defaults(disabled=name == "disable")
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


def _changed(change: Any) -> dict[str, str]:
    """For the audit log: what was changed, and to what where it is short."""
    import msgspec

    return {
        name: value if isinstance(value, str) else msgspec.json.encode(value).decode()
        for name, value in msgspec.structs.asdict(change).items()
        if value is not msgspec.UNSET
    }


def _check_asked(change: Any) -> None:
    if not _changed(change):
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
    if options.json:
        command.print_json(records)
        return 0
    rows = [[field.removesuffix("_us").replace("_", " ").upper() for field in fields]]
    for record in records:
        values = [(field, getattr(record, field)) for field in fields]
        rows.append([command.moment(value) if field.endswith("_us") else str(value or "") for field, value in values])
    command.print_table(rows)
    return 0


def _do(options: argparse.Namespace, work: Callable[[Directory], Awaitable[Any]]) -> int:
    command.print_record(command.with_directory(options, work), options)
    return 0


def _orgs_create(options: argparse.Namespace) -> int:
    from gateway.auth.orgs import Orgs

    async def work(directory: Directory) -> Any:
        org = await _asked(options, lambda **more: Orgs(directory).create(command.operator(), options.name, **more))
        await command.note(directory, "org.create", org.id, name=org.name)
        return org

    return _do(options, work)


def _orgs_list(options: argparse.Namespace) -> int:
    from gateway.auth.orgs import Orgs

    orgs = command.with_directory(
        options, lambda directory: _all(lambda after: Orgs(directory).list(command.operator(), PAGE, after))
    )
    return _print_all(options, orgs, ("id", "name", "created_us", "archived_us"))


def _orgs_show(options: argparse.Namespace) -> int:
    from gateway.auth.orgs import Orgs

    return _do(options, lambda directory: Orgs(directory).get(command.operator(), options.org))


def _orgs_set(options: argparse.Namespace) -> int:
    from gateway.auth.orgs import OrgChange, Orgs

    change = _asked(options, OrgChange, "name", "archived")
    _check_asked(change)

    async def work(directory: Directory) -> Any:
        org = await Orgs(directory).change(command.operator(), options.org, change)
        await command.note(directory, "org.change", org.id, **_changed(change))
        return org

    return _do(options, work)


def _teams_create(options: argparse.Namespace) -> int:
    from gateway.auth.teams import Teams

    async def work(directory: Directory) -> Any:
        teams = Teams(directory)
        team = await _asked(options, lambda **more: teams.create(command.operator(), options.org, options.name, **more))
        await command.note(directory, "team.create", team.id, name=team.name, org=team.org_id)
        return team

    return _do(options, work)


def _teams_list(options: argparse.Namespace) -> int:
    from gateway.auth.teams import Teams

    teams = command.with_directory(
        options,
        lambda directory: _all(
            lambda after: Teams(directory).list(command.operator(), PAGE, after, org_id=options.org)
        ),
    )
    return _print_all(options, teams, ("id", "org_id", "name", "created_us", "archived_us"))


def _teams_show(options: argparse.Namespace) -> int:
    from gateway.auth.teams import Teams

    return _do(options, lambda directory: Teams(directory).get(command.operator(), options.team))


def _teams_set(options: argparse.Namespace) -> int:
    from gateway.auth.teams import TeamChange, Teams

    change = _asked(options, TeamChange, "name", "archived")
    _check_asked(change)

    async def work(directory: Directory) -> Any:
        team = await Teams(directory).change(command.operator(), options.team, change)
        await command.note(directory, "team.change", team.id, **_changed(change))
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
    from gateway.auth.teams import MemberChange, Teams

    change = _asked(options, MemberChange, "role")
    _check_asked(change)

    async def work(directory: Directory) -> Any:
        user_id = await _user(directory, options)
        member = await Teams(directory).set_member(command.operator(), options.team, user_id, change)
        await command.note(directory, "member.change", options.team, user=user_id, **_changed(change))
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


def _users_list(options: argparse.Namespace) -> int:
    from gateway.auth.users import Users

    users = command.with_directory(
        options,
        lambda directory: _all(
            lambda after: Users(directory).list(command.operator(), PAGE, after, org_id=options.org)
        ),
    )
    return _print_all(options, users, ("id", "org_id", "email", "name", "role", "admin", "created_us", "disabled_us"))


def _users_show(options: argparse.Namespace) -> int:
    from gateway.auth.users import Users

    async def work(directory: Directory) -> Any:
        return await Users(directory).get(command.operator(), await _user(directory, options))

    return _do(options, work)


def _users_set(options: argparse.Namespace) -> int:
    from gateway.auth.users import UserChange, Users

    change = _asked(options, UserChange, "name", "email", "role", "admin", "disabled")
    _check_asked(change)

    async def work(directory: Directory) -> Any:
        user = await Users(directory).change(command.operator(), await _user(directory, options), change)
        await command.note(directory, "user.change", user.id, **_changed(change))
        return user

    return _do(options, work)
