"""Log-ins of browsers: an opaque random token in a cookie, of which only a keyed digest is kept, and its end."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable

import msgspec

from gateway.auth import Principal
from gateway.auth.records import CHANNEL, Directory
from gateway.auth.remembered import CACHE_MAX, Remembered
from gateway.auth.standing import Standing, of_user, user_principal
from gateway.config_people import PeopleConfig
from gateway.state.database import DatabaseError, Statements
from gateway.state.shared import SharedState

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


class LogIn(msgspec.Struct, frozen=True):
    """A session that is good, and what stands behind its user."""

    session: BrowserSession
    standing: Standing

    @property
    def principal(self) -> Principal:
        return user_principal(self.standing, self.session.user_id)


class BrowserSessions:
    """The log-ins of a database. `clock` is monotonic seconds.

    What the database said is believed for a moment, and a log-out announced, so that it holds on all replicas within
    five seconds. While the database is away, sessions it has vouched for stay good for a while.
    """

    def __init__(
        self,
        directory: Directory,
        pepper: bytes,
        config: PeopleConfig,
        *,
        shared: SharedState | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._database = directory.database
        self._now_us = directory.now_us
        self._pepper = pepper
        self._idle_us = config.idle_timeout_s * 1_000_000
        self._lifetime_us = config.lifetime_s * 1_000_000
        self._known: Remembered[LogIn] = Remembered("log-ins", clock)
        self._seen_us: dict[str, int] = {}
        self._writing: set[asyncio.Task[None]] = set()
        self._stop_listening = shared.listen(CHANNEL, self._announced) if shared is not None else None

    @property
    def lifetime_s(self) -> int:
        return self._lifetime_us // 1_000_000

    async def close(self) -> None:
        """Write what is under way. The database and the shared state belong to the caller."""
        if self._stop_listening is not None:
            self._stop_listening()
        await asyncio.gather(*self._writing)

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

    async def find(self, token: str) -> LogIn | None:
        """The log-in behind a token while it is good; 503 when that cannot be known."""
        if not _TOKEN.fullmatch(token):
            return None
        digest = self._digest(token)
        found = await self._known.get(digest, lambda: self._ask(digest))
        if found is None or self._closed(found.standing):
            return None
        session, now_us = found.session, self._now_us()
        seen_us = max(session.seen_us, self._seen_us.get(session.id, 0))
        if session.expires_us <= now_us or seen_us + self._idle_us <= now_us:
            return None
        if now_us - seen_us >= SEEN_EVERY_US:
            self._note_seen(session.id, now_us)
        return found

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

    async def drop(self, inside: Statements, session_id: str) -> None:
        """Log a session out. `announce` has to follow the commit."""
        await inside.execute("DELETE FROM browser_sessions WHERE id = $1", session_id)

    async def announce(self, user_id: str) -> None:
        """Have all replicas ask the database anew about a user's sessions."""
        self._forget(user_id)
        await self._directory.announce(user_id)

    def _announced(self, message: bytes | None) -> None:
        """Something was changed somewhere; or, with None, may have been while nothing was heard."""
        if message is None:
            self._known.doubt()
        else:
            self._forget(message.decode(errors="replace"))

    def _forget(self, identity: str) -> None:
        self._known.forget(lambda found: found.standing.concerns(identity))

    def _closed(self, standing: Standing) -> bool:
        """Whether the user may not be here any more."""
        user, org = standing.user, standing.org
        return user is None or user.disabled_us is not None or (org is not None and org.archived_us is not None)

    def _digest(self, token: str) -> str:
        return hmac.new(self._pepper, f"browser-session:{token}".encode(), hashlib.sha256).hexdigest()

    async def _ask(self, digest: str) -> LogIn | None:
        rows = await self._database.query(f"SELECT {_COLUMNS} FROM browser_sessions WHERE digest = $1", digest)
        if not rows:
            return None
        session = msgspec.convert(rows[0], BrowserSession)
        standing = await of_user(self._database, session.user_id)
        return None if standing is None else LogIn(session, standing)

    def _note_seen(self, session_id: str, now_us: int) -> None:
        """Write the use behind the request's back, at most once a minute for each session."""
        if len(self._writing) < WRITES_MAX:
            if len(self._seen_us) >= CACHE_MAX:
                self._seen_us.clear()
            self._seen_us[session_id] = now_us
            task = asyncio.create_task(self._write_seen(session_id, now_us))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    async def _write_seen(self, session_id: str, now_us: int) -> None:
        try:
            sql = "UPDATE browser_sessions SET seen_us = $1 WHERE id = $2 AND seen_us < $1"
            await self._database.execute(sql, now_us, session_id)
        except DatabaseError as error:
            log.warning("when log-in %s was last used could not be written: %s", session_id, error)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:AGENT_LENGTH_MAX])
