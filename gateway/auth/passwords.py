"""Passwords as argon2id hashes, made and checked off the event loop by a few threads."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import msgspec

from gateway import errors
from gateway.auth.browser import BrowserSessions
from gateway.auth.records import Directory, User
from gateway.state.database import Statements

if TYPE_CHECKING:
    from argon2 import PasswordHasher

# RFC 9106 section 4 recommends three passes over 64 MiB where memory is not plentiful. One lane instead of its four: a
# log-in then takes one core for a tenth of a second, and never all of those that models are running on.
PASSES = 3
MEMORY_KIB = 64 << 10
LANES = 1
# Two at a time take 128 MiB at most. Who would wait for more than WAITING_MAX others, some two seconds, is told so.
THREADS = 2
WAITING_MAX = 32

# As much as anybody types or a password generator makes; it bounds what is hashed.
LENGTH_MAX = 256
# Of a password such as aaaaaaaaaaaa or 121212121212 there is little to guess, however long it is.
DISTINCT_MIN = 5

T = TypeVar("T")


class Kept(msgspec.Struct, frozen=True):
    """A password as the database has it. `claimed` while only its user has said that the e-mail address is theirs."""

    hash: str
    claimed: bool


class Verdict(msgspec.Struct, frozen=True):
    """Whether the password is right; `renewed` is its hash under the present parameters when the old one has others."""

    right: bool
    renewed: str | None = None


class Hashing:
    """Makes and checks hashes. `hasher` None: with the parameters of this module."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._given = hasher
        self._threads = ThreadPoolExecutor(THREADS, "passwords")
        self._waiting = 0

    @cached_property
    def _hasher(self) -> PasswordHasher:
        # Imported by those who use it: it takes as long to load as a good part of the gateway.
        from argon2 import PasswordHasher

        return self._given or PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES)

    def close(self) -> None:
        """Drop what has not begun, and let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str) -> str:
        """The hash to keep; 503 when too many wait."""
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, known: str | None, password: str) -> Verdict:
        """Check a password against its hash; without a hash it takes as long, and is wrong. 503 when too many wait."""
        return await self._run(lambda: self._verify(known, password))

    def _verify(self, known: str | None, password: str) -> Verdict:
        from argon2.exceptions import InvalidHashError, VerificationError

        if known is None:
            self._hasher.hash(password)
            return Verdict(right=False)
        try:
            self._hasher.verify(known, password)
        except (VerificationError, InvalidHashError):
            return Verdict(right=False)
        outdated = self._hasher.check_needs_rehash(known)
        return Verdict(right=True, renewed=self._hasher.hash(password) if outdated else None)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= THREADS + WAITING_MAX:
            raise errors.error("overloaded", "Too many log-ins at the moment. Try again shortly.", retry_after_s=2)
        self._waiting += 1
        done = self._threads.submit(work)
        # Counted until the work has ended and not until its caller has gone, who may have left long before.
        loop = asyncio.get_running_loop()
        done.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended))
        return await asyncio.wrap_future(done)

    def _ended(self) -> None:
        self._waiting -= 1


class Passwords:
    """The passwords of a database. `length_min` is the least number of characters of a new one."""

    def __init__(self, directory: Directory, hashing: Hashing, length_min: int) -> None:
        self._directory = directory
        self._hashing = hashing
        self._length_min = length_min

    async def read(self, statements: Statements, user_id: str) -> Kept | None:
        rows = await statements.query("SELECT hash, claimed FROM passwords WHERE user_id = $1", user_id)
        return msgspec.convert(rows[0], Kept, strict=False) if rows else None

    async def verify(self, kept: Kept | None, password: str) -> Verdict:
        """Check a password; without one it takes as long, and is wrong."""
        return await self._hashing.verify(None if kept is None else kept.hash, normal(password))

    async def hash(self, password: str, email: str) -> str:
        """The hash of a new password; raises `invalid_value` when it is too easy to guess."""
        return await self._hashing.hash(acceptable(password, email, self._length_min))

    async def write(self, inside: Statements, user_id: str, hashed: str, *, claimed: bool) -> None:
        await inside.execute(
            "INSERT INTO passwords (user_id, hash, claimed, changed_us) VALUES ($1, $2, $3, $4) ON CONFLICT (user_id) "
            "DO UPDATE SET hash = excluded.hash, claimed = excluded.claimed, changed_us = excluded.changed_us",
            user_id,
            hashed,
            claimed,
            self._directory.now_us(),
        )

    async def renew(self, inside: Statements, user_id: str, old: Kept, renewed: str) -> None:
        """Keep a hash under the present parameters, unless the password was changed meanwhile."""
        sql = "UPDATE passwords SET hash = $1 WHERE user_id = $2 AND hash = $3"
        await inside.execute(sql, renewed, user_id, old.hash)

    async def remove(self, inside: Statements, user_id: str) -> None:
        await inside.execute("DELETE FROM passwords WHERE user_id = $1", user_id)

    async def set(self, sessions: BrowserSessions, user: User, password: str | None) -> None:
        """Set somebody's password, or (None) take it away; all their log-ins end. For administrators, who vouch for the
        address."""
        hashed = None if password is None else await self.hash(password, user.email)
        async with self._directory.transaction() as inside:
            if hashed is None:
                await self.remove(inside, user.id)
            else:
                await self.write(inside, user.id, hashed, claimed=False)
            await sessions.end_all(inside, user.id)
        await sessions.announce(user.id)


def normal(password: str) -> str:
    """The password as it is hashed: the same letters typed on another system are the same password (NFKC)."""
    return unicodedata.normalize("NFKC", password)


def acceptable(password: str, email: str, length_min: int) -> str:
    """A new password in its normal form; raises `invalid_value` when it is too easy to guess."""
    password = normal(password)
    if not length_min <= len(password) <= LENGTH_MAX:
        raise _unfit(f"expected {length_min} to {LENGTH_MAX} characters")
    local, _, domain = email.partition("@")
    rest = password.casefold()
    for known in (email, local, domain.partition(".")[0]):
        rest = rest.replace(known, "") if known else rest
    if len(set(rest)) < DISTINCT_MIN:
        raise _unfit("it is too easy to guess; use several words, or a password generator")
    return password


def _unfit(problem: str) -> errors.GatewayError:
    return errors.error("invalid_value", f"Invalid value for 'password': {problem}.", param="password")
