"""The verbs of `gateway users` about logging in: passwords, invitations, and the end of log-ins."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gateway import command

if TYPE_CHECKING:
    from gateway.auth.browser import BrowserSessions
    from gateway.auth.records import Directory, User
    from gateway.config import Config

Verb = Callable[..., argparse.ArgumentParser]
T = TypeVar("T")


def add_verbs(verbs: Any, verb: Verb, roles: tuple[str, ...]) -> None:
    """`verb` gives each the options that all verbs have."""
    password = verb(verbs, "password", _password, "set a user's password, from the terminal or a pipe", "user")
    password.add_argument("--remove", action="store_true", help="take it away: only providers log the user in then")
    verb(verbs, "logout", _log_out, "end all log-ins of a user, on all replicas", "user")
    invite = verb(verbs, "invite", _invite, "invite somebody; prints the token to sign up with, once", "email")
    invite.add_argument("--org", metavar="ORG", required=True, help="the organisation they come into")
    invite.add_argument("--role", choices=roles, default="member", help="in the organisation; at first member")
    verb(verbs, "invitations", _invitations, "list the open invitations of an organisation", "org")
    verb(verbs, "withdraw", _withdraw, "withdraw an invitation", "id")


def _with_log_ins(
    options: argparse.Namespace, work: Callable[[Directory, BrowserSessions, Config, bytes], Awaitable[T]]
) -> T:
    from gateway.auth.browser import BrowserSessions
    from gateway.auth.key_text import load_pepper
    from gateway.auth.keys import Keys

    config = command.load(options)

    async def run(directory: Directory) -> T:
        pepper = load_pepper(Path(config.data_dir), config.auth.pepper)
        await Keys(directory.database, pepper).open()
        return await work(directory, BrowserSessions(directory, pepper, config.auth.people), config, pepper)

    return command.with_directory(options, run)


async def _user(directory: Directory, options: argparse.Namespace) -> User:
    from gateway.auth.users import Users

    identity = await command.user_id(directory, options.user)
    return await Users(directory).get(command.operator(), str(identity))


def _password(options: argparse.Namespace) -> int:
    from gateway.auth.passwords import Hashing, Passwords

    password = None if options.remove else _typed()

    async def work(directory: Directory, sessions: BrowserSessions, config: Config, pepper: bytes) -> str:
        user, hashing = await _user(directory, options), Hashing()
        try:
            await Passwords(directory, hashing, config.auth.people.password_length_min).set(sessions, user, password)
        finally:
            hashing.close()
        await command.note(directory, "user.password", user.id, removed=password is None)
        return user.id

    user_id = _with_log_ins(options, work)
    if options.json:
        command.print_json({"user_id": user_id, "has_password": password is not None})
    else:
        done = "has no password now" if password is None else "has a new password"
        print(f"{user_id} {done}, and is logged out everywhere.")
    return 0


def _typed() -> str:
    """The new password: typed twice where somebody can type, else the first line of the input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("New password: ")
    if getpass.getpass("Once more: ") != password:
        raise command.CommandError("the two are not the same")
    return password


def _log_out(options: argparse.Namespace) -> int:
    async def work(directory: Directory, sessions: BrowserSessions, config: Config, pepper: bytes) -> tuple[str, int]:
        user = await _user(directory, options)
        async with directory.transaction() as inside:
            ended = await sessions.end_all(inside, user.id)
        await sessions.announce(user.id)
        await command.note(directory, "user.logout", user.id, ended=ended)
        return user.id, ended

    user_id, ended = _with_log_ins(options, work)
    if options.json:
        command.print_json({"user_id": user_id, "ended": ended})
    else:
        print(f"{ended} log-ins of {user_id} have ended.")
    return 0


def _invite(options: argparse.Namespace) -> int:
    from gateway.auth.invitations import Invitation, Invitations
    from gateway.auth.orgs import Orgs

    async def work(
        directory: Directory, sessions: BrowserSessions, config: Config, pepper: bytes
    ) -> tuple[Invitation, str, Config]:
        org = await Orgs(directory).get(command.operator(), options.org)
        operator = command.operator().key_id
        invitation, token = await Invitations(directory.database, pepper).create(
            options.email, org.id, options.role, operator
        )
        details = {"email": invitation.email, "org": org.id, "role": invitation.role}
        await command.note(directory, "invitation.create", invitation.id, **details)
        return invitation, token, config

    invitation, token, config = _with_log_ins(options, work)
    if options.json:
        command.print_json({"id": invitation.id, "email": invitation.email, "token": token})
        return 0
    print(token)
    until = command.moment(invitation.expires_us)
    print(f"{invitation.email} can sign up with this token until {until}.", file=sys.stderr)
    if config.auth.people.signup == "off":
        print("Nobody can sign up, though, while auth.people.signup is off.", file=sys.stderr)
    return 0


def _invitations(options: argparse.Namespace) -> int:
    from gateway.auth.invitations import Invitation, Invitations

    async def work(directory: Directory, sessions: BrowserSessions, config: Config, pepper: bytes) -> list[Invitation]:
        return await Invitations(directory.database, pepper).list(options.org)

    found = _with_log_ins(options, work)
    if options.json:
        command.print_json(found)
        return 0
    rows = [["ID", "EMAIL", "ROLE", "UNTIL"]]
    rows += [[one.id, one.email, one.role, command.moment(one.expires_us)] for one in found]
    command.print_table(rows)
    return 0


def _withdraw(options: argparse.Namespace) -> int:
    from gateway.auth.invitations import Invitations

    async def work(directory: Directory, sessions: BrowserSessions, config: Config, pepper: bytes) -> bool:
        withdrawn = await Invitations(directory.database, pepper).withdraw(options.id)
        if withdrawn:
            await command.note(directory, "invitation.withdraw", options.id)
        return withdrawn

    if not _with_log_ins(options, work):
        raise command.CommandError(f"there is no open invitation {options.id}")
    if options.json:
        command.print_json({"id": options.id, "withdrawn": True})
    else:
        print(f"{options.id} is withdrawn.")
    return 0
