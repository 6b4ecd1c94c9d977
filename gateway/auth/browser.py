"""Log-ins of browsers: an opaque random token in a cookie, of which only a keyed digest is kept, and its end."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from gateway import errors
from gateway.auth.remembered import CACHE_MAX, FRESH_S, OUTAGE_S, PATIENCE_S, REJECTED_MAX
from gateway.config_people import PeopleConfig
from gateway.state.database import Database, DatabaseError, Statements
from gateway.state.shared import SharedState, SharedStateUnavailable

CHANNEL = "browser-sessions"
TOKEN_BYTES = 32
SEEN_EVERY_US = 60_000_000
WRITES_MAX = 1000
# Of one user; the log-in that was not used for longest makes room.
SESSIONS_MAX = 50
AGENT_LENGTH_MAX = 200

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_COLUMNS = "id, user_id, provider, address, agent, created_us, seen_us, expires_us"

log = logging.getLogger(__name__)


class BrowserSession(msgspec.Struct, frozen=True, kw_only=True):
    """A log-in as it may be shown to its user. `provider` is the one that vouched, empty for a password.

    Times are microseconds since 1970.
    """

    id: str
    user_id: str
    provider: str
    address: str
    agent: str
    created_us: int
    seen_us: int
    expires_us: int


class _Known(msgspec.Struct, frozen=True):
    """What the database said about a token (None: nothing), and when by the monotonic clock."""

    session: BrowserSession | None
    at_s: float


class BrowserSessions:
    """The log-ins of a database. `clock` is monotonic seconds, `now_us` the wall clock.

    What the database said is believed for FRESH_S, and a log-out is announced, so that it holds on all replicas within
    five seconds. While the database is away, sessions it has vouched for stay good for OUTAGE_S.
    """

    def __init__(
        self,
        database: Database,
        pepper: bytes,
        config: PeopleConfig,
        *,
        shared: SharedState | None = None,
        clock: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._database = database
        self._pepper = pepper
        self._idle_us = config.idle_timeout_s * 1_000_000
        self._lifetime_us = config.lifetime_s * 1_000_000
        self._shared = shared
        self._clock = clock
        self._now_us = now_us
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._unknown: OrderedDict[str, _Known] = OrderedDict()
        self._asking: dict[str, asyncio.Task[_Known]] = {}
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._fresh_from_s = clock()
        self._stop_listening = shared.listen(CHANNEL, self._announced) if shared is not None else None

    @property
    def lifetime_s(self) -> int:
        return self._lifetime_us // 1_000_000

    async def close(self) -> None:
        """Write what is under way. The database and the shared state belong to the caller."""
        if self._stop_listening is not None:
            self._stop_listening()
        await asyncio.gather(*self._writing.values())

    async def begin(
        self, inside: Statements, user_id: str, *, provider: str = "", address: str = "", agent: str = ""
    ) -> tuple[BrowserSession, str]:
        """A new session and its token, which is nowhere kept. Nothing of it was ever chosen by a client."""
        now_us, token = self._now_us(), secrets.token_urlsafe(TOKEN_BYTES)
        session = BrowserSession(
            id=f"login_{secrets.token_hex(12)}",
            user_id=user_id,
            provider=provider,
            address=_printable(address),
            agent=_printable(agent),
            created_us=now_us,
            seen_us=now_us,
            expires_us=now_us + self._lifetime_us,
        )
        await inside.execute(
            "DELETE FROM browser_sessions WHERE expires_us <= $1 OR seen_us <= $2", now_us, now_us - self._idle_us
        )
        await inside.execute(
            "DELETE FROM browser_sessions WHERE user_id = $1 AND id NOT IN (SELECT id FROM browser_sessions "
            "WHERE user_id = $1 ORDER BY seen_us DESC, id LIMIT $2)",
            user_id,
            SESSIONS_MAX - 1,
        )
        await inside.execute(
            f"INSERT INTO browser_sessions (digest, {_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            self._digest(token),
            *msgspec.structs.astuple(session),
        )
        return session, token

    async def find(self, token: str) -> BrowserSession | None:
        """The session behind a token while it is good; 503 when that cannot be known."""
        if not _TOKEN.fullmatch(token):
            return None
        digest = self._digest(token)
        session = (await self._look_up(digest)).session
        if session is None:
            return None
        now_us = self._now_us()
        if session.expires_us <= now_us or session.seen_us + self._idle_us <= now_us:
            self._known.pop(digest, None)
            return None
        if now_us - session.seen_us >= SEEN_EVERY_US:
            self._note_seen(digest, session, now_us)
        return session

    async def list(self, user_id: str) -> list[BrowserSession]:
        """A user's sessions that are good, the last used first."""
        now_us = self._now_us()
        rows = await self._database.query(
            f"SELECT {_COLUMNS} FROM browser_sessions WHERE user_id = $1 AND expires_us > $2 AND seen_us > $3 "
            "ORDER BY seen_us DESC, id",
            user_id,
            now_us,
            now_us - self._idle_us,
        )
        return msgspec.convert(rows, list[BrowserSession])

    async def end(self, user_id: str, session_id: str) -> bool:
        """Log one out, on all replicas; False when the user has no such session."""
        sql = "DELETE FROM browser_sessions WHERE user_id = $1 AND id = $2"
        ended = await self._database.execute(sql, user_id, session_id)
        await self.announce(user_id)
        return ended > 0

    async def end_all(self, inside: Statements, user_id: str, keep: str = "") -> int:
        """Log out all of a user's sessions but `keep`; how many. `announce` has to follow the commit."""
        sql = "DELETE FROM browser_sessions WHERE user_id = $1 AND id <> $2"
        return await inside.execute(sql, user_id, keep)

    async def announce(self, user_id: str) -> None:
        """Have all replicas ask the database anew about a user's sessions."""
        self._forget(user_id)
        if self._shared is not None:
            try:
                await self._shared.publish(CHANNEL, user_id.encode())
            except SharedStateUnavailable as error:
                log.warning("the other replicas learn of a log-out of %s within %g s: %s", user_id, FRESH_S, error)

    def _announced(self, message: bytes | None) -> None:
        """A user was logged out somewhere; or, with None, some may have been while nothing was heard."""
        if message is None:
            self._fresh_from_s = self._clock()
        else:
            self._forget(message.decode(errors="replace"))

    def _forget(self, user_id: str) -> None:
        for digest in [d for d, known in self._known.items() if known.session and known.session.user_id == user_id]:
            del self._known[digest]

    def _digest(self, token: str) -> str:
        return hmac.new(self._pepper, f"browser-session:{token}".encode(), hashlib.sha256).hexdigest()

    async def _look_up(self, digest: str) -> _Known:
        known = self._known.get(digest) or self._unknown.get(digest)
        if known is not None and self._clock() - known.at_s < FRESH_S and known.at_s >= self._fresh_from_s:
            return known
        task = self._asking.get(digest)
        if task is None:
            task = self._asking[digest] = asyncio.create_task(self._ask(digest))
            task.add_done_callback(lambda _: self._asking.pop(digest, None))
        # Not awaited itself: a caller that gives up must not take the answer from the others.
        await asyncio.wait([task], timeout=PATIENCE_S)
        if task.done() and not isinstance(task.exception(), DatabaseError):
            return task.result()
        if known is not None and known.session is not None and self._clock() - known.at_s < OUTAGE_S:
            return known
        raise errors.error("overloaded", "Log-ins cannot be checked right now. Try again shortly.", retry_after_s=1)

    async def _ask(self, digest: str) -> _Known:
        at_s = self._clock()
        rows = await self._database.query(f"SELECT {_COLUMNS} FROM browser_sessions WHERE digest = $1", digest)
        known = _Known(msgspec.convert(rows[0], BrowserSession) if rows else None, at_s)
        here, there = (self._known, self._unknown) if rows else (self._unknown, self._known)
        there.pop(digest, None)
        here[digest] = known
        here.move_to_end(digest)
        if len(here) > (CACHE_MAX if rows else REJECTED_MAX):
            here.popitem(last=False)
        return known

    def _note_seen(self, digest: str, session: BrowserSession, now_us: int) -> None:
        """Write the use behind the request's back, at most once a minute for each session."""
        if digest not in self._writing and len(self._writing) < WRITES_MAX:
            task = self._writing[digest] = asyncio.create_task(self._write_seen(session.id, now_us))
            task.add_done_callback(lambda _: self._writing.pop(digest, None))
            if (known := self._known.get(digest)) is not None:
                seen = msgspec.structs.replace(session, seen_us=now_us)
                self._known[digest] = _Known(seen, known.at_s)

    async def _write_seen(self, session_id: str, now_us: int) -> None:
        try:
            sql = "UPDATE browser_sessions SET seen_us = $1 WHERE id = $2 AND seen_us < $1"
            await self._database.execute(sql, now_us, session_id)
        except DatabaseError as error:
            log.warning("when log-in %s was last used could not be written: %s", session_id, error)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:AGENT_LENGTH_MAX])
