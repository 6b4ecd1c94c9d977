"""Accounts of people: sign-up, log-in by password, the password itself, and who may be invited.

Whoever is not told apart from somebody unknown costs the same work and gets the same answer, so that nobody finds out
who has an account here.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gateway import errors
from gateway.auth import attempts
from gateway.auth.attempts import Attempts
from gateway.auth.browser import BrowserSession, BrowserSessions
from gateway.auth.invitations import Invitations, unknown
from gateway.auth.newcomers import Newcomers, Place
from gateway.auth.passwords import Passwords
from gateway.auth.records import Directory, Org, User, check_name, find
from gateway.auth.standing import Standing, of_user
from gateway.auth.users import check_email
from gateway.config_people import PeopleConfig
from gateway.state.database import Statements

# How long ago a log-in may be that is as good as a proof of who sits there.
RECENT_US = 600_000_000


class Visit(msgspec.Struct, frozen=True):
    """The browser that somebody comes with; `session` is the log-in that it had until now."""

    address: str
    agent: str
    session: BrowserSession | None = None


class Entered(msgspec.Struct, frozen=True):
    """Somebody who is logged in now. `token` is what the browser has to keep, and nobody else."""

    user: User
    session: BrowserSession
    token: str


class Rejected(errors.GatewayError):
    """A log-in that failed. `user` is the one that was meant, None when there is none; for the audit log only."""

    def __init__(self, code: str, message: str, user: User | None = None) -> None:
        super().__init__(errors.TABLE[code].status, code, message)
        self.user = user


class Accounts:
    """The accounts of a database."""

    def __init__(
        self,
        directory: Directory,
        config: PeopleConfig,
        sessions: BrowserSessions,
        newcomers: Newcomers,
        invitations: Invitations,
        guards: tuple[Passwords, Attempts],
    ) -> None:
        self._directory = directory
        self._config = config
        self._sessions = sessions
        self._newcomers = newcomers
        self._invitations = invitations
        self._passwords, self._attempts = guards

    @property
    def signup(self) -> Literal["off", "invited", "open"]:
        """Who may sign up."""
        return self._config.signup

    async def sign_up(self, email: str, password: str, name: str, token: str | None, visit: Visit) -> Entered:
        """A new account, logged in. `token` is that of an invitation, whose address `email` has to be.

        Raises `permission_denied` when the configuration does not allow it, `invalid_value` and `conflict`.
        """
        if self._config.signup == "off" or (self._config.signup == "invited" and token is None):
            raise errors.error("permission_denied", "Signing up needs an invitation here.", param="invitation")
        await self._attempts.take((attempts.SIGN_UP_ADDRESS, attempts.origin_of(visit.address)))
        email, name = check_email(email), check_name(name.strip() or email.partition("@")[0])
        invitation = None if token is None else await self._invitations.of_token(token)
        if token is not None and (invitation is None or invitation.email != email):
            raise unknown()
        hashed = await self._passwords.hash(password, email)
        async with self._directory.transaction() as inside:
            if invitation is not None:
                await self._invitations.use(inside, invitation)
                place = Place(invitation.org_id, invitation.role)
            else:
                place = await self._newcomers.place(inside)
            user = await self._newcomers.admit(inside, email, name, place)
            await self._passwords.write(inside, user.id, hashed, claimed=invitation is None)
            entered = await self.enter(inside, user, "", visit)
        await self.leave(visit)
        return entered

    async def log_in(self, email: str, password: str, visit: Visit) -> Entered:
        """Raises `Rejected`, and `rate_limit_exceeded` before the password is looked at."""
        email = email.strip().lower()
        tries = (
            (attempts.LOG_IN_ADDRESS, attempts.origin_of(visit.address)),
            (attempts.LOG_IN_ACCOUNT, email),
        )
        await self._attempts.take(*tries)
        database = self._directory.database
        # A database need not take every text, and no user has an address that cannot be printed.
        user = await find(database, "users", User, email=email) if email.isprintable() else None
        kept = await self._passwords.read(database, "" if user is None else user.id)
        verdict = await self._passwords.verify(kept, password)
        if user is None or kept is None or not verdict.right:
            raise _wrong(user)
        await self._attempts.give_back(*tries)
        async with self._directory.transaction() as inside:
            user = await self.admissible(inside, user.id)
            if await self._passwords.read(inside, user.id) != kept:
                # It was changed while it was looked at: its log-ins have ended, and this one must not outlive them.
                raise _wrong(user)
            if verdict.renewed is not None:
                await self._passwords.renew(inside, user.id, kept, verdict.renewed)
            entered = await self.enter(inside, user, "", visit)
        await self.leave(visit)
        return entered

    async def admissible(self, inside: Statements, user_id: str) -> User:
        """The user, who may log in; raises `Rejected` when they are disabled or their organisation is closed."""
        user = await find(inside, "users", User, id=user_id)
        closed = user is None or user.disabled_us is not None
        if user is not None and user.org_id is not None:
            org = await find(inside, "orgs", Org, id=user.org_id)
            closed = closed or org is None or org.archived_us is not None
        if user is None or closed:
            raise Rejected("permission_denied", "This account is disabled.", user)
        return user

    async def enter(self, inside: Statements, user: User, provider: str, visit: Visit) -> Entered:
        """Log a user in who has proven who they are: always in a session of its own, and out of the one before."""
        if visit.session is not None:
            await self._sessions.drop(inside, visit.session.id)
        session, token = await self._sessions.begin(
            inside, user.id, provider=provider, address=visit.address, agent=visit.agent
        )
        return Entered(user, session, token)

    async def leave(self, visit: Visit) -> None:
        """Have the session that a browser had before forgotten everywhere."""
        if visit.session is not None:
            await self._sessions.announce(visit.session.user_id)

    async def profile(self, user_id: str) -> tuple[Standing, bool]:
        """A user with all that stands behind them, and whether they have a password."""
        database = self._directory.database
        standing = await of_user(database, user_id)
        if standing is None:
            raise errors.error("not_found", "There is no such user.")
        return standing, await self.has_password(database, user_id)

    async def end_others(self, session: BrowserSession) -> int:
        """Log out all other browsers of the user; how many."""
        async with self._directory.transaction() as inside:
            ended = await self._sessions.end_all(inside, session.user_id, keep=session.id)
        await self._sessions.announce(session.user_id)
        return ended

    async def has_password(self, statements: Statements, user_id: str) -> bool:
        return await self._passwords.read(statements, user_id) is not None

    async def change_password(
        self, session: BrowserSession, current: str | None, password: str, visit: Visit
    ) -> Entered:
        """Set one's own password. All log-ins end, and this browser gets a new one.

        Raises `Rejected` when `current` is wrong. Who has none yet has to have logged in a moment ago.
        """
        database = self._directory.database
        user = await self.admissible(database, session.user_id)
        kept = await self._passwords.read(database, user.id)
        if kept is not None:
            tries = ((attempts.LOG_IN_ACCOUNT, user.email),)
            await self._attempts.take(*tries)
            if not (await self._passwords.verify(kept, current or "")).right:
                raise Rejected("permission_denied", "The current password is wrong.", user)
            await self._attempts.give_back(*tries)
        elif self._directory.now_us() - session.created_us > RECENT_US:
            message = "Log in again first: this log-in is too old to set a password."
            raise Rejected("permission_denied", message, user)
        hashed = await self._passwords.hash(password, user.email)
        async with self._directory.transaction() as inside:
            user = await self.admissible(inside, user.id)
            if await self._passwords.read(inside, user.id) != kept:
                raise Rejected("permission_denied", "The password was changed meanwhile.", user)
            await self._passwords.write(inside, user.id, hashed, claimed=kept is not None and kept.claimed)
            await self._sessions.end_all(inside, user.id)
            entered = await self.enter(inside, user, session.provider, visit)
        await self._sessions.announce(user.id)
        return entered

    async def claimed(self, inside: Statements, user_id: str) -> bool:
        """Whether only the user's own word says that the e-mail address is theirs."""
        kept = await self._passwords.read(inside, user_id)
        return kept is not None and kept.claimed


def _wrong(user: User | None) -> Rejected:
    return Rejected("invalid_credentials", "The e-mail address or the password is wrong.", user)
