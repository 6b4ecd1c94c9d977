"""Who is let in with an API key: kept as a keyed digest, checked mostly from memory."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import msgspec

from gateway import errors
from gateway.auth import Principal, key_text, standing
from gateway.auth.key_text import PepperError, key_id
from gateway.auth.keyring import Keyring, Place
from gateway.auth.records import CHANNEL, Directory, Key
from gateway.auth.remembered import CACHE_MAX, Remembered, keep
from gateway.auth.standing import Standing
from gateway.config import Secret
from gateway.networks import Networks
from gateway.state.database import Database, DatabaseError
from gateway.state.shared import SharedState

USE_WRITTEN_EVERY_S = 60.0

_HEADER_LENGTH_MAX = 512
# Whoever holds the key that the configuration names, and the gateway itself.
ADMIN = Principal(tenant="admin", key_id="admin", name="admin", admin=True, kind="admin")

log = logging.getLogger(__name__)


class _Known(msgspec.Struct, frozen=True):
    """A presented key that is in the database, and what follows from it."""

    key: Key
    standing: Standing
    principal: Principal
    networks: Networks

    def concerns(self, identity: str) -> bool:
        return identity == self.key.id or self.standing.concerns(identity)


class Keys:
    """`Authenticator` over the table of keys.

    What the database said of a key and of what stands behind it is believed for a few seconds (`Remembered`), so a
    change that another process makes takes effect within five, and sooner where `shared` announces it. `clock` is
    monotonic seconds, `now_us` the wall clock.
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
        self._keyring = Keyring(Directory(database, shared, now_us=now_us), pepper)
        self._known: Remembered[_Known] = Remembered("API keys", clock)
        self._stop_listening = shared.listen(CHANNEL, self._announced) if shared is not None else None
        # Which key and digest a header was, by its mark; only those of keys that were found.
        self._presented: OrderedDict[bytes, tuple[str, str]] = OrderedDict()
        # The digests of keys that were let in, by their ids.
        self._digests: OrderedDict[str, str] = OrderedDict()
        self._salt = secrets.token_bytes(32)
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

    def _announced(self, message: bytes | None) -> None:
        """Something about a key changed somewhere; or, with None, it may have while nothing was heard."""
        if message is None:
            self._known.doubt()
        else:
            identity = message.decode(errors="replace")
            self._known.forget(lambda known: known.concerns(identity))

    async def ensure_admin(self) -> str | None:
        """The text of a new admin key when none was ever made and none is configured; otherwise None."""
        if self._admin_digest is not None:
            return None
        if await self._database.query("SELECT id FROM keys WHERE admin LIMIT 1"):
            return None
        _, text = await self._keyring.create(ADMIN, "admin", Place(tenant="admin", admin=True))
        return text

    async def authenticate(self, authorization: str | None, address: str = "") -> Principal:
        """The principal behind `Bearer <key>` from `address`; raises GatewayError as `Authenticator` says."""
        presented = self._presented.get(mark := self._mark(authorization or ""))
        if presented is None:
            text = _bearer(authorization)
            digest = self._digest(text)
            if self._admin_digest is not None and hmac.compare_digest(digest, self._admin_digest):
                return ADMIN
            identity = key_id(text)
            if identity is None:
                raise _refusal("invalid_api_key", "The API key is malformed. Check that it was copied completely.")
            presented = identity, digest
        identity, digest = presented
        known = self._known.fresh(digest) or await self._known.get(digest, partial(self._ask, identity, digest))
        if known is None:
            raise _refusal("invalid_api_key", "The API key is not known here.")
        if mark not in self._presented:
            keep(self._presented, mark, presented, CACHE_MAX)
            keep(self._digests, identity, digest, CACHE_MAX)
        now_us = self._now_us()
        self._check(known.key, now_us)
        known.standing.check()
        if known.networks and address not in known.networks:
            raise errors.error("ip_denied", "The API key may not be used from this address.")
        self._note_use(known.key.id, now_us)
        return known.principal

    def recognises(self, principal: Principal) -> bool:
        """Whether who was let in with a key would be let in again with the same one from the same address, as nothing
        has changed. It counts as a use; False: ask again."""
        digest = self._digests.get(principal.key_id)
        known = None if digest is None else self._known.fresh(digest)
        if known is None or known.principal is not principal:
            return False
        now_us = self._now_us()
        if known.key.status(now_us) != "active":
            return False
        self._note_use(principal.key_id, now_us)
        return True

    def _mark(self, authorization: str) -> bytes:
        """What stands for a header in memory, which the key itself is kept out of; a digest is ten times the work."""
        return hashlib.blake2b(
            authorization.encode("utf-8", "surrogateescape"), key=self._salt, digest_size=16
        ).digest()

    def _check(self, key: Key, now_us: int) -> None:
        match key.status(now_us):
            case "revoked":
                raise _refusal("key_revoked", "The API key has been revoked.")
            case "expired":
                raise _refusal("key_expired", "The API key has expired.")

    def _digest(self, text: str) -> str:
        return key_text.digest(self._pepper, text)

    async def _ask(self, identity: str, digest: str) -> _Known | None:
        found = await standing.of_key(self._database, identity)
        if found is None or not hmac.compare_digest(found[2], digest):
            return None
        key, behind, _ = found
        return _Known(key, behind, standing.key_principal(key, behind), Networks(key.addresses))

    def _note_use(self, identity: str, now_us: int) -> None:
        """Remember the use; now and then write all of them behind the requests' backs."""
        if identity in self._used or len(self._used) < CACHE_MAX:
            self._used[identity] = now_us
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
