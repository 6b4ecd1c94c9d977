"""Invitations: who may become a user of an organisation, by a token that is shown once and kept as a keyed digest."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable

import msgspec

from gateway import errors
from gateway.auth import Role
from gateway.auth.records import Key, User, find
from gateway.auth.roles import RANKS
from gateway.auth.users import check_email
from gateway.state.database import Database, Statements

LIFETIME_S = 7 * 86_400
# Of one organisation; beyond it somebody has to withdraw some, or wait.
PENDING_MAX = 1000

_TOKEN = re.compile(r"invite_[A-Za-z0-9_-]{43}")
_COLUMNS = "id, email, org_id, role, inviter, created_us, expires_us, used_us"


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """An invitation as it may be shown. Times are microseconds since 1970; `used_us` None: nobody has come yet."""

    id: str
    email: str
    org_id: str
    role: Role
    inviter: str
    created_us: int
    expires_us: int
    used_us: int | None = None


class Invitations:
    """The invitations of a database. Who may invite whom is for the caller to decide. `now_us` is the wall clock."""

    def __init__(
        self, database: Database, pepper: bytes, *, now_us: Callable[[], int] = lambda: time.time_ns() // 1000
    ) -> None:
        self._database = database
        self._pepper = pepper
        self._now_us = now_us

    async def create(self, email: str, org_id: str, role: Role, inviter: str) -> tuple[Invitation, str]:
        """A new invitation and its token; an earlier one of the address into the organisation ends with it.

        Raises `invalid_value`, and `conflict` when too many are open.
        """
        now_us, token = self._now_us(), f"invite_{secrets.token_urlsafe(32)}"
        invitation = Invitation(
            id=f"invitation_{secrets.token_hex(12)}",
            email=check_email(email),
            org_id=org_id,
            role=role,
            inviter=inviter,
            created_us=now_us,
            expires_us=now_us + LIFETIME_S * 1_000_000,
        )
        async with self._database.transaction() as inside:
            await inside.execute(
                "DELETE FROM invitations WHERE org_id = $1 AND used_us IS NULL AND (email = $2 OR expires_us <= $3)",
                org_id,
                invitation.email,
                now_us,
            )
            sql = "SELECT COUNT(*) AS open FROM invitations WHERE org_id = $1 AND used_us IS NULL"
            if int(str((await inside.query(sql, org_id))[0]["open"])) >= PENDING_MAX:
                raise errors.error("conflict", f"There are {PENDING_MAX} open invitations already; withdraw some.")
            await inside.execute(
                f"INSERT INTO invitations (digest, {_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                self._digest(token),
                *msgspec.structs.astuple(invitation),
            )
        return invitation, token

    async def list(self, org_id: str) -> list[Invitation]:
        """Those of an organisation that nobody has used yet and that are still good, the newest first."""
        rows = await self._database.query(
            f"SELECT {_COLUMNS} FROM invitations WHERE org_id = $1 AND used_us IS NULL AND expires_us > $2 "
            "ORDER BY created_us DESC, id",
            org_id,
            self._now_us(),
        )
        return msgspec.convert(rows, list[Invitation])

    async def get(self, identity: str) -> Invitation | None:
        rows = await self._database.query(f"SELECT {_COLUMNS} FROM invitations WHERE id = $1", identity)
        return msgspec.convert(rows[0], Invitation) if rows else None

    async def withdraw(self, identity: str) -> bool:
        """End an open invitation; False when there is none of this id."""
        sql = "DELETE FROM invitations WHERE id = $1 AND used_us IS NULL"
        return await self._database.execute(sql, identity) > 0

    async def of_token(self, token: str) -> Invitation | None:
        """The open invitation that the token is of."""
        if not _TOKEN.fullmatch(token):
            return None
        return await self._open(self._database, "digest", self._digest(token))

    async def of_email(self, inside: Statements, email: str) -> Invitation | None:
        """The newest open invitation of an address that is proven to be the caller's."""
        return await self._open(inside, "email", email)

    async def _open(self, statements: Statements, column: str, value: str) -> Invitation | None:
        rows = await statements.query(
            f"SELECT {_COLUMNS} FROM invitations WHERE {column} = $1 AND used_us IS NULL AND expires_us > $2 "
            "ORDER BY created_us DESC LIMIT 1",
            value,
            self._now_us(),
        )
        return msgspec.convert(rows[0], Invitation) if rows else None

    async def use(self, inside: Statements, invitation: Invitation) -> None:
        """Take an invitation, which only one can, and only while whoever gave it could still do so; raises
        `invalid_value` otherwise."""
        if not await _stands(inside, invitation):
            raise unknown()
        sql = "UPDATE invitations SET used_us = $1 WHERE id = $2 AND used_us IS NULL AND expires_us > $1"
        if not await inside.execute(sql, self._now_us(), invitation.id):
            raise unknown()

    def _digest(self, token: str) -> str:
        return hmac.new(self._pepper, f"invitation:{token}".encode(), hashlib.sha256).hexdigest()


async def _stands(inside: Statements, invitation: Invitation) -> bool:
    """Whether the inviter still has the rights: who is shown the door must not come back by an invitation."""
    user = await find(inside, "users", User, id=invitation.inviter)
    if user is not None:
        ranks = user.org_id == invitation.org_id and RANKS[user.role] >= RANKS[invitation.role]
        return user.disabled_us is None and (user.admin or ranks)
    key = await find(inside, "keys", Key, id=invitation.inviter)
    return key is None or key.revoked_us is None


def unknown() -> errors.GatewayError:
    message = "This invitation is not known here, was used, or has ended. Ask for a new one."
    return errors.error("invalid_value", message, param="invitation")
