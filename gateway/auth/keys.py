"""API keys: made once, kept only as a keyed digest, checked mostly from memory."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from gateway import errors
from gateway.auth import Kind, Principal, key_text
from gateway.auth.key_text import PepperError, key_id, new_key
from gateway.config import Secret
from gateway.config_auth import TENANT
from gateway.config_limits import ScopeLimits
from gateway.networks import Networks
from gateway.state.database import Database, DatabaseError, Row
from gateway.state.shared import SharedState, SharedStateUnavailable

CACHE_MAX = 10_000
REJECTED_MAX = 10_000
# With the time a query may take, five seconds until a change made elsewhere is noticed.
FRESH_S = 4.0
OUTAGE_S = 300.0
RETRY_S = 1.0
PATIENCE_S = 2.0
CHANNEL = "keys"
USE_WRITTEN_EVERY_S = 60.0

NAME_LENGTH_MAX = 100

_HEADER_LENGTH_MAX = 512
_COLUMNS = (
    "id, name, tenant, admin, created_us, expires_us, revoked_us, revoked_reason, last_used_us, limits, org_id, "
    "team_id, user_id, CASE WHEN admin THEN 'admin' WHEN user_id IS NULL THEN 'service' ELSE 'user' END AS kind, "
    "scopes, models, addresses, tags, metadata, weight, priority, successor, counted_as, version"
)
_JSON = ("limits", "scopes", "models", "addresses", "tags", "metadata")

log = logging.getLogger(__name__)


class InvalidName(ValueError):
    """A name or tenant that would break a log line, a header or a table."""


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it may be shown: everything but the secret. Times are microseconds since 1970.

    `scopes` and `models` None: as much as what stands behind the key. `addresses` are the networks it may be used from
    (none: all), `tags` are scopes of limits, `successor` is the id of the key that takes this one's place, and
    `counted_as` that of the first key in such a row, whose limits go on.
    """

    id: str
    name: str
    tenant: str
    admin: bool
    created_us: int
    expires_us: int | None = None
    revoked_us: int | None = None
    revoked_reason: str | None = None
    last_used_us: int | None = None
    limits: ScopeLimits | None = None
    org_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    kind: Kind = "service"
    scopes: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    addresses: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    weight: float = 1.0
    priority: int = 0
    successor: str | None = None
    counted_as: str | None = None
    version: int = 1

    def status(self, now_us: int) -> str:
        """`active`, `revoked` or `expired`."""
        if self.revoked_us is not None:
            return "revoked"
        return "expired" if self.expires_us is not None and self.expires_us <= now_us else "active"

    def principal(self) -> Principal:
        return Principal(
            tenant=self.tenant,
            key_id=self.id,
            name=self.name,
            admin=self.admin,
            weight=self.weight,
            limits=self.limits,
            user_id=self.user_id,
            team_id=self.team_id,
            org_id=self.org_id,
            tags=self.tags,
            models=() if self.models is None else (self.models,),
            scopes=None if self.scopes is None else frozenset(self.scopes),
            kind=self.kind,
            priority=self.priority,
            counted_as=self.counted_as,
        )


class _Checked(msgspec.Struct, frozen=True):
    """What the database said about a presented key (None: unknown), and when by the monotonic clock."""

    key: Key | None
    at_s: float
    networks: Networks


class Keys:
    """The table of keys, and `Authenticator` over it.

    What the database said is believed for FRESH_S, so a key that another process creates or revokes takes effect within
    that time, and sooner where `shared` announces it; when the database does not answer, keys it has vouched for stay
    good for OUTAGE_S. `clock` is monotonic seconds, `now_us` the wall clock.
    """

    def __init__(
        self,
        database: Database,
        pepper: bytes,
        *,
        admin_key: Secret | None = None,
        shared: SharedState | None = None,
        clock: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._database = database
        self._pepper = pepper
        self._clock = clock
        self._now_us = now_us
        self._admin_digest = None if admin_key is None else self._digest(admin_key.reveal())
        self._accepted: OrderedDict[str, _Checked] = OrderedDict()
        self._rejected: OrderedDict[str, _Checked] = OrderedDict()
        self._asking: dict[str, asyncio.Task[_Checked]] = {}
        self._shared = shared
        self._stop_listening = shared.listen(CHANNEL, self._announced) if shared is not None else None
        self._fresh_from_s = clock()
        self._down = False
        self._asked_again_s = clock()
        self._used: dict[str, int] = {}
        self._used_written_s = clock()
        self._writing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Check that the database's keys were made with this pepper; raises PepperError."""
        mark = self._digest("pepper")
        async with self._database.transaction() as inside:
            await inside.execute("INSERT INTO facts (name, value) VALUES ('pepper', $1) ON CONFLICT DO NOTHING", mark)
            rows = await inside.query("SELECT value FROM facts WHERE name = 'pepper'")
        if rows[0]["value"] != mark:
            raise PepperError(
                "the keys in this database were made with another pepper: restore the file `pepper` of the data "
                "directory (or auth.pepper) that belongs to it"
            )

    async def close(self) -> None:
        """Write the last uses that are still in memory. The database and the shared state belong to the caller."""
        if self._stop_listening is not None:
            self._stop_listening()
        if self._writing is not None:
            await self._writing
        if self._used:
            await self._write_used()

    async def create(
        self,
        name: str,
        tenant: str | None = None,
        *,
        admin: bool = False,
        expires_us: int | None = None,
        limits: ScopeLimits | None = None,
    ) -> tuple[Key, str]:
        """A new key and its text, which is nowhere kept. Without a `tenant` the key is a tenant of its own. Its own
        `limits` take the place of those that the configuration has for keys.

        Raises InvalidName.
        """
        if not 0 < len(name) <= NAME_LENGTH_MAX or not name.isprintable():
            raise InvalidName(f"a key's name has 1 to {NAME_LENGTH_MAX} printable characters")
        if tenant is not None and not TENANT.fullmatch(tenant):
            raise InvalidName("a tenant has 1 to 100 letters, digits and ._:@- and starts with a letter or digit")
        identity, text = new_key()
        key = Key(
            id=identity,
            name=name,
            tenant=tenant or identity,
            admin=admin,
            created_us=self._now_us(),
            expires_us=expires_us,
            limits=limits,
            kind="admin" if admin else "service",
        )
        await self._database.execute(
            "INSERT INTO keys (id, name, tenant, admin, digest, created_us, expires_us, limits) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            key.id,
            key.name,
            key.tenant,
            key.admin,
            self._digest(text),
            key.created_us,
            key.expires_us,
            None if limits is None else msgspec.json.encode(limits).decode(),
        )
        return key, text

    async def list(self) -> list[Key]:
        """All keys, the oldest first."""
        rows = await self._database.query(f"SELECT {_COLUMNS} FROM keys ORDER BY created_us, id")
        return [_key(row) for row in rows]

    async def revoke(self, identity: str, reason: str = "") -> bool:
        """Withdraw a key for good; False when there is no such active key."""
        changed = await self._database.execute(
            "UPDATE keys SET revoked_us = $1, revoked_reason = $2 WHERE id = $3 AND revoked_us IS NULL",
            self._now_us(),
            reason,
            identity,
        )
        self._forget(identity)
        if self._shared is not None:
            try:
                await self._shared.publish(CHANNEL, identity.encode())
            except SharedStateUnavailable as error:
                log.warning("the other replicas learn that key %s is revoked within %g s: %s", identity, FRESH_S, error)
        return changed > 0

    def _announced(self, message: bytes | None) -> None:
        """A key was revoked somewhere; or, with None, some may have been while nothing was heard."""
        if message is None:
            self._fresh_from_s = self._clock()
        else:
            self._forget(message.decode(errors="replace"))

    def _forget(self, identity: str) -> None:
        for digest in [digest for digest, seen in self._accepted.items() if seen.key and seen.key.id == identity]:
            del self._accepted[digest]

    async def ensure_admin(self) -> str | None:
        """The text of a new admin key when none was ever made and none is configured; otherwise None."""
        if self._admin_digest is not None:
            return None
        if await self._database.query("SELECT id FROM keys WHERE admin LIMIT 1"):
            return None
        _, text = await self.create("admin", "admin", admin=True)
        return text

    async def authenticate(self, authorization: str | None, address: str = "") -> Principal:
        """The principal behind `Bearer <key>` from `address`; raises GatewayError as `Authenticator` says."""
        text = _bearer(authorization)
        digest = self._digest(text)
        if self._admin_digest is not None and hmac.compare_digest(digest, self._admin_digest):
            return Principal(tenant="admin", key_id="admin", name="admin", admin=True, kind="admin")
        identity = key_id(text)
        if identity is None:
            raise _refusal("invalid_api_key", "The API key is malformed. Check that it was copied completely.")
        seen = await self._look_up(identity, digest)
        if seen.key is None:
            raise _refusal("invalid_api_key", "The API key is not known here.")
        self._check(seen.key)
        if seen.networks and address not in seen.networks:
            raise errors.error("ip_denied", "The API key may not be used from this address.")
        self._note_use(seen.key.id)
        return seen.key.principal()

    def _check(self, key: Key) -> None:
        match key.status(self._now_us()):
            case "revoked":
                raise _refusal("key_revoked", "The API key has been revoked.")
            case "expired":
                raise _refusal("key_expired", "The API key has expired.")

    def _digest(self, text: str) -> str:
        return key_text.digest(self._pepper, text)

    async def _look_up(self, identity: str, digest: str) -> _Checked:
        """What is known about a presented key, asking the database once for all who wait for the same answer.

        While the database is known to be away, an earlier answer is used at once, and the database asked again behind
        the request's back.
        """
        seen = self._accepted.get(digest) or self._rejected.get(digest)
        if seen is not None and self._clock() - seen.at_s < FRESH_S and seen.at_s >= self._fresh_from_s:
            return seen
        if self._down and self._clock() - self._asked_again_s < RETRY_S:
            return self._without_database(seen)
        task = self._asking.get(digest)
        if task is None:
            task = self._asking[digest] = asyncio.create_task(self._ask(identity, digest))
            task.add_done_callback(lambda task: self._answered(digest, task))
        if self._down:
            self._asked_again_s = self._clock()
            if seen is not None and self._may_stand_in(seen):
                return seen
        # Not awaited itself: a caller that gives up must not take the answer from the others.
        await asyncio.wait([task], timeout=PATIENCE_S)
        if not task.done():
            self._note_outage("no answer yet")
        elif not isinstance(task.exception(), DatabaseError):
            return task.result()
        return self._without_database(seen)

    def _answered(self, digest: str, task: asyncio.Task[_Checked]) -> None:
        del self._asking[digest]
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, DatabaseError):
            self._note_outage(str(error))
        else:
            self._down = False

    def _note_outage(self, reason: str) -> None:
        if not self._down:
            log.warning("keys cannot be checked: %s", reason)
        self._down = True
        self._asked_again_s = self._clock()

    def _may_stand_in(self, seen: _Checked) -> bool:
        return seen.key is not None and self._clock() - seen.at_s < OUTAGE_S

    def _without_database(self, seen: _Checked | None) -> _Checked:
        """An earlier answer while it may still be used; otherwise a 503, because an outage of ours is never a 401."""
        if seen is not None and self._may_stand_in(seen):
            return seen
        raise errors.error("overloaded", "API keys cannot be checked right now. Try again shortly.", retry_after_s=1)

    async def _ask(self, identity: str, digest: str) -> _Checked:
        at_s = self._clock()
        rows = await self._database.query(f"SELECT digest, {_COLUMNS} FROM keys WHERE id = $1", identity)
        key = None
        if rows and hmac.compare_digest(str(rows[0]["digest"]), digest):
            key = _key(rows[0])
        seen = _Checked(key, at_s, Networks(key.addresses if key else ()))
        if key is None:
            self._accepted.pop(digest, None)
            _remember(self._rejected, digest, seen, REJECTED_MAX)
        else:
            self._rejected.pop(digest, None)
            _remember(self._accepted, digest, seen, CACHE_MAX)
        return seen

    def _note_use(self, identity: str) -> None:
        """Remember the use; now and then write all of them behind the requests' backs."""
        if identity in self._used or len(self._used) < CACHE_MAX:
            self._used[identity] = self._now_us()
        if self._clock() - self._used_written_s >= USE_WRITTEN_EVERY_S and self._writing is None:
            self._writing = asyncio.create_task(self._write_used())

    async def _write_used(self) -> None:
        used, self._used = self._used, {}
        self._used_written_s = self._clock()
        try:
            async with self._database.transaction() as inside:
                for identity, used_us in used.items():
                    await inside.execute("UPDATE keys SET last_used_us = $1 WHERE id = $2", used_us, identity)
        except DatabaseError as error:
            log.warning("when %d keys were last used could not be written: %s", len(used), error)
        finally:
            self._writing = None


def _key(row: Row) -> Key:
    values: dict[str, Any] = {name: value for name, value in row.items() if value is not None}
    for name in _JSON:
        if name in values:
            values[name] = msgspec.json.decode(values[name])
    return msgspec.convert(values, Key, strict=False)


def _bearer(authorization: str | None) -> str:
    """The credential in an `Authorization` header."""
    if not authorization:
        raise _refusal("invalid_api_key", "No API key was sent. Send it as `Authorization: Bearer <key>`.")
    scheme, _, text = authorization.strip().partition(" ")
    text = text.strip()
    if scheme.lower() != "bearer" or not text or len(text) > _HEADER_LENGTH_MAX:
        raise _refusal("invalid_api_key", "The Authorization header must be `Bearer <key>`.")
    return text


def _refusal(code: str, message: str) -> errors.GatewayError:
    return errors.error(code, message, headers={"WWW-Authenticate": "Bearer"})


def _remember(cache: OrderedDict[str, _Checked], digest: str, seen: _Checked, size_max: int) -> None:
    """Keep `seen` as the newest entry; the oldest leaves when there is no room."""
    cache[digest] = seen
    cache.move_to_end(digest)
    if len(cache) > size_max:
        cache.popitem(last=False)
