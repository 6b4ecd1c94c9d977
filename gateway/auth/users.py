"""People: made, changed and disabled."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from gateway import errors
from gateway.auth import Principal, Role
from gateway.auth.orgs import ended_us, org_of
from gateway.auth.records import (
    Directory,
    Name,
    Part,
    User,
    Wanted,
    check_name,
    check_version,
    denied,
    find,
    given,
    insert,
    invalid,
    new_id,
    not_found,
    page,
    require,
    set_to,
    update,
)
from gateway.auth.roles import may, outranks, reach
from gateway.auth.teams import check_own_limits, check_wallet
from gateway.config_limits import ScopeLimits
from gateway.state.database import Statements

EMAIL_LENGTH_MAX = 254
Email = Annotated[str, Meta(min_length=3, max_length=EMAIL_LENGTH_MAX)]
# No more than what an address is sure to have; whether it exists, only a message to it can tell.
_EMAIL = re.compile(r"[^\s@<>,;:\"()\[\]\\\x00-\x1f\x7f]{1,64}@[a-z0-9-]+(\.[a-z0-9-]+)+|[a-z0-9._+-]{1,64}@localhost")


class UserChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be set of a user; what is left out stays as it is."""

    name: Name | UnsetType = UNSET
    email: Email | UnsetType = UNSET
    role: Role | UnsetType = UNSET
    admin: bool | UnsetType = UNSET
    limits: ScopeLimits | UnsetType | None = UNSET
    disabled: bool | UnsetType = UNSET


class Users:
    """Every function raises GatewayError: `permission_denied`, `not_found`, `invalid_value`, `conflict`, and
    `precondition_failed` when `version` is not that of the user.

    Nobody gives or takes a role above his own, and the last owner of an organisation stays.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def create(
        self,
        principal: Principal,
        org_id: str | None,
        email: str,
        *,
        name: str | None = None,
        role: Role = "member",
        admin: bool = False,
        limits: ScopeLimits | None = None,
    ) -> User:
        """A new user; only an administrator of the gateway can be in no organisation."""
        user = User(
            id=new_id("user"),
            org_id=org_id,
            email=check_email(email),
            name=check_name(email.strip().partition("@")[0] if name is None else name),
            role=role,
            admin=admin,
            created_us=self._directory.now_us(),
            limits=limits,
        )
        async with self._directory.transaction() as inside:
            await create_user(inside, principal, user)
        return user

    async def get(self, principal: Principal, identity: str) -> User:
        user = await find(self._directory.database, "users", User, id=identity)
        if user is None:
            raise not_found()
        require(principal, "users.read", user.resource)
        return user

    async def by_email(self, principal: Principal, email: str) -> User:
        user = await find(self._directory.database, "users", User, email=email.lower())
        if user is None:
            raise not_found("email")
        require(principal, "users.read", user.resource)
        return user

    async def list(
        self, principal: Principal, limit: int, after: str | None = None, *, org_id: str | None = None
    ) -> Part[User]:
        """The people that the caller may see, the oldest first; and whether there are more."""
        wanted, seen = Wanted(), reach(principal, "users.read")
        wanted.equal(org_id=org_id)
        if not seen.everything:
            wanted.any_of([("org_id", seen.org_id), ("id", seen.user_id)])
        return await page(self._directory.database, "users", User, wanted, (limit, after))

    async def change(self, principal: Principal, identity: str, change: UserChange, version: int | None = None) -> User:
        """Everybody may change his own name; the rest is for those who administrate the organisation's people."""
        async with self._directory.transaction() as inside:
            user = await find(inside, "users", User, id=identity)
            if user is None:
                raise not_found()
            _check_rights(principal, user, change)
            check_version(user, version)
            now_us = self._directory.now_us()
            changed = replace(
                user,
                name=check_name(set_to(change.name, user.name)),
                email=check_email(set_to(change.email, user.email)),
                role=set_to(change.role, user.role),
                admin=set_to(change.admin, user.admin),
                limits=set_to(change.limits, user.limits),
                disabled_us=ended_us(change.disabled, user.disabled_us, now_us),
                version=user.version + 1,
            )
            _check_belongs(changed)
            if changed.role != "owner" or changed.disabled_us is not None:
                await _check_owners(inside, user)
            if changed.email != user.email:
                await _check_free(inside, changed.email)
            await update(inside, "users", changed)
        await self._directory.announce(identity)
        return changed


async def create_user(inside: Statements, principal: Principal, user: User) -> None:
    """Add a user as part of a transaction that takes turns."""
    _check_belongs(user)
    if user.org_id is None:
        require(principal, "users.write", user.resource)
    else:
        org = await org_of(inside, principal, user.org_id, "users.write")
        if org.archived_us is not None:
            raise errors.error("conflict", "The organisation is archived.")
    _check_role(principal, user.role, user)
    if user.admin and not _unbound(principal):
        raise denied("Only administrators of the gateway make others.", "admin")
    check_wallet(principal, user.limits)
    await _check_free(inside, user.email)
    await insert(inside, "users", user)


def check_email(email: str) -> str:
    """An address in lower case, as which it is kept."""
    email = email.strip().lower()
    if len(email) > EMAIL_LENGTH_MAX or not email.isprintable() or not _EMAIL.fullmatch(email):
        raise invalid("This is no e-mail address.", "email")
    return email


def _check_rights(principal: Principal, user: User, change: UserChange) -> None:
    if not (
        user.id == principal.user_id
        and may(principal, "account.write", user.resource) == "allowed"
        and not given(change.email, change.role, change.admin, change.limits, change.disabled)
    ):
        require(principal, "users.write", user.resource)
        _check_role(principal, user.role, user)
    if set_to(change.role, user.role) != user.role:
        _check_role(principal, set_to(change.role, user.role), user)
    if given(change.admin, change.email) and not _unbound(principal):
        raise denied("Only administrators of the gateway change this.", "admin" if given(change.admin) else "email")
    if user.admin and not principal.admin and given(change.role, change.limits, change.disabled):
        raise denied("Only administrators of the gateway change one.")
    if given(change.limits):
        check_own_limits(principal, user.id)
        check_wallet(principal, set_to(change.limits, None))


def _unbound(principal: Principal) -> bool:
    """An administrator of the gateway whose credential may do everything that he may."""
    return principal.admin and principal.scopes is None


def _check_belongs(user: User) -> None:
    if user.org_id is None and not user.admin:
        raise invalid("Only an administrator of the gateway can be in no organisation.", "org_id")


def _check_role(principal: Principal, role: Role, user: User) -> None:
    if not outranks(principal, role, user.resource):
        raise denied(f"Your role is below that of {role}.", "role")


async def _check_free(inside: Statements, email: str) -> None:
    if await find(inside, "users", User, email=email) is not None:
        raise errors.error("conflict", "There is a user with this e-mail address.", param="email")


async def _check_owners(inside: Statements, leaving: User) -> None:
    """Raise when a user is the only owner of his organisation who can log in."""
    if leaving.role != "owner" or leaving.org_id is None or leaving.disabled_us is not None:
        return
    rows = await inside.query(
        "SELECT COUNT(*) AS count FROM users WHERE org_id = $1 AND role = 'owner' AND disabled_us IS NULL AND id <> $2",
        leaving.org_id,
        leaving.id,
    )
    if not rows[0]["count"]:
        raise errors.error("conflict", "The last owner of an organisation stays; make somebody else an owner first.")
