"""Requests that happen once: who names a request with a key gets its first result again instead of a second execution.

A row is claimed in one statement, so of all replicas one runs the request. A claim is a lease that its process renews;
when the process dies, the next request with the key takes over, unless the ledger says that the dead one was charged.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable

import msgspec

from gateway import errors
from gateway.config import IdempotencyConfig
from gateway.ledger.store import Ledger
from gateway.limits.limiter import wall_us
from gateway.state.database import Database, DatabaseError, DatabaseUnavailable

LEASE_S = 30
RENEW_S = 10
SWEEP_S = 60
SWEEP_ROWS = 500
POLL_S_MIN, POLL_S_MAX = 0.05, 1.0
# What a row occupies beside its result, about.
ROW_BYTES = 1024

log = logging.getLogger(__name__)


class Claim(msgspec.Struct, frozen=True):
    """The named request: whose it is, what was asked, and under which request id it runs."""

    id: str
    tenant: str
    key_id: str
    digest: str
    request_id: str


class Result(msgspec.Struct, frozen=True):
    """A whole answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class _Row(msgspec.Struct, frozen=True):
    digest: str
    request_id: str
    owner: str
    claimed_us: int
    lease_us: int
    status: int | None
    headers: str | None
    body: bytes | None


def claim_of(scope: tuple[str, str, str], key: str, body: bytes, request_id: str) -> Claim:
    """`scope` is tenant, id of the API key, and route: the same key elsewhere is another key."""
    id = hashlib.sha256("\0".join((*scope, key)).encode()).hexdigest()
    return Claim(id, scope[0], scope[1], hashlib.sha256(body).hexdigest(), request_id)


class Idempotency:
    """The claims and results of a database. `alone`: no other process uses it, so what an earlier one ran is over."""

    def __init__(
        self,
        database: Database,
        ledger: Ledger | None,
        config: IdempotencyConfig,
        *,
        alone: bool,
        now_us: Callable[[], int] = wall_us,
    ) -> None:
        self.config = config
        self._database = database
        self._ledger = ledger
        self._alone = alone
        self._now_us = now_us
        self._owner = os.urandom(12).hex()
        self._running: set[str] = set()
        self._held_bytes: dict[str, int] = {}
        self._upkeep: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to renew claims and to sweep results."""
        if self._alone:
            await self._database.execute("UPDATE idempotency SET lease_us = 0 WHERE status IS NULL")
        await self.sweep()
        self._upkeep = asyncio.create_task(self._keep_up())

    async def close(self) -> None:
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.wait([self._upkeep])

    async def begin(self, claim: Claim) -> Result | None:
        """The result of the request when it ran already; None: it is the caller's to run, then `keep` or `release`.

        Waits while somebody else runs it. Raises `idempotency_conflict`, `idempotency_in_progress` when the wait was
        too long, and `idempotency_result_lost`.
        """
        deadline_us = self._now_us() + round(self.config.wait_timeout_s * 1e6)
        pause_s = POLL_S_MIN
        try:
            while True:
                if await self._claim(claim):
                    return None
                row = await self._read(claim)
                if row is not None and row.status is not None:
                    return _result(row)
                if row is not None and row.lease_us <= self._now_us() and await self._take_over(claim, row):
                    return None
                if self._now_us() >= deadline_us:
                    message = "The first request with this Idempotency-Key is still running. Try again shortly."
                    raise errors.error("idempotency_in_progress", message)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, POLL_S_MAX)
        except DatabaseUnavailable:
            message = "The Idempotency-Key cannot be checked right now. Try again shortly."
            raise errors.error("overloaded", message) from None

    async def _claim(self, claim: Claim) -> bool:
        """Whether the request is new, or so old that it counts as new."""
        now_us = self._now_us()
        columns = "tenant, key_id, digest, request_id, owner, claimed_us, lease_us, expires_us"
        sets = ", ".join(f"{name} = excluded.{name}" for name in columns.split(", "))
        changed = await self._database.execute(
            f"INSERT INTO idempotency (id, {columns}, size_bytes) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0) "
            f"ON CONFLICT (id) DO UPDATE SET {sets}, size_bytes = 0, status = NULL, headers = NULL, body = NULL "
            "WHERE idempotency.expires_us <= excluded.claimed_us",
            *(claim.id, claim.tenant, claim.key_id, claim.digest, claim.request_id, self._owner),
            *(now_us, now_us + LEASE_S * 1_000_000, now_us + round(self.config.ttl_s * 1e6)),
        )
        return changed > 0 and self._own(claim)

    def _own(self, claim: Claim) -> bool:
        self._running.add(claim.id)
        return True

    async def _read(self, claim: Claim) -> _Row | None:
        sql = f"SELECT {', '.join(_Row.__struct_fields__)} FROM idempotency WHERE id = $1"
        rows = await self._database.query(sql, claim.id)
        if not rows:
            return None
        row = msgspec.convert(rows[0], _Row, strict=False)
        if row.digest != claim.digest:
            message = "This Idempotency-Key was used for another body. Use a new key for a new request."
            raise errors.error("idempotency_conflict", message)
        return row

    async def _take_over(self, claim: Claim, row: _Row) -> bool:
        """Continue a claim whose process is gone; when the ledger has a charge for it, mark its result as lost."""
        if claim.id in self._running:
            return False
        if self._ledger is not None:
            await self._ledger.keeper.caught_up()
            if self._ledger.waiting_bytes:
                return False  # Its entry may be in the outbox.
            entries = await self._ledger.find(row.request_id, tenant=claim.tenant)
            if any(
                entry.key_id == claim.key_id and entry.status == "posted" and entry.at_us >= row.claimed_us
                for entry in entries
            ):
                await self._finish(claim.id, row.owner, None)
                raise _lost()
        now_us = self._now_us()
        changed = await self._database.execute(
            "UPDATE idempotency SET owner = $1, request_id = $2, claimed_us = $3, lease_us = $4 "
            "WHERE id = $5 AND owner = $6 AND lease_us = $7 AND status IS NULL",
            *(self._owner, claim.request_id, now_us, now_us + LEASE_S * 1_000_000),
            *(claim.id, row.owner, row.lease_us),
        )
        return changed > 0 and self._own(claim)

    async def keep(self, claim: Claim, result: Result | None) -> None:
        """The request ran. Without a result, or when there is no room for it, a retry is told that it is lost."""
        if result is not None:
            size = len(result.body) + ROW_BYTES
            held = self._held_bytes.get(claim.tenant, 0) + size
            total = sum(self._held_bytes.values()) + size
            if held > self.config.tenant_bytes_max or total > self.config.bytes_max:
                log.warning("no room to keep the result of request %s for its retries", claim.request_id)
                result = None
            else:
                self._held_bytes[claim.tenant] = held
        await self._end(claim, lambda: self._finish(claim.id, self._owner, result))

    async def release(self, claim: Claim) -> None:
        """The request failed: a retry runs it again."""
        sql = "DELETE FROM idempotency WHERE id = $1 AND owner = $2 AND status IS NULL"
        await self._end(claim, lambda: self._database.execute(sql, claim.id, self._owner))

    async def _end(self, claim: Claim, change: Callable[[], Awaitable[object]]) -> None:
        """Without the database the claim runs out by itself, and the ledger decides what a retry may do."""
        try:
            await change()
        except DatabaseError as error:
            log.error("what became of request %s could not be kept for its retries: %s", claim.request_id, error)
        finally:
            self._running.discard(claim.id)

    async def _finish(self, id: str, owner: str, result: Result | None) -> None:
        await self._database.execute(
            "UPDATE idempotency SET status = $1, headers = $2, body = $3, size_bytes = $4, expires_us = $5 "
            "WHERE id = $6 AND owner = $7 AND status IS NULL",
            result.status if result is not None else 0,
            None if result is None else msgspec.json.encode(result.headers).decode(),
            None if result is None else result.body,
            0 if result is None else len(result.body) + ROW_BYTES,
            self._now_us() + round(self.config.ttl_s * 1e6),
            id,
            owner,
        )

    async def _keep_up(self) -> None:
        turn = 0
        while True:
            await asyncio.sleep(RENEW_S)
            turn += 1
            try:
                await self.renew()
                if turn % (SWEEP_S // RENEW_S) == 0:
                    await self.sweep()
            except DatabaseError as error:
                log.warning("claims of idempotency keys could not be renewed: %s", error)

    async def renew(self) -> None:
        """Prolong the claims of what runs in this process."""
        if self._running:
            lease_us = self._now_us() + LEASE_S * 1_000_000
            sql = "UPDATE idempotency SET lease_us = $1 WHERE owner = $2 AND status IS NULL"
            await self._database.execute(sql, lease_us, self._owner)

    async def sweep(self) -> None:
        """Delete what has expired and count what is kept. Between two sweeps replicas do not see each other's sizes."""
        sql = (
            "DELETE FROM idempotency WHERE id IN (SELECT id FROM idempotency WHERE expires_us <= $1 LIMIT $2) "
            "AND expires_us <= $1"
        )
        while await self._database.execute(sql, self._now_us(), SWEEP_ROWS) >= SWEEP_ROWS:
            pass
        rows = await self._database.query(
            "SELECT tenant, CAST(SUM(size_bytes) AS BIGINT) AS held FROM idempotency GROUP BY tenant"
        )
        self._held_bytes = {str(row["tenant"]): int(str(row["held"])) for row in rows}


def _result(row: _Row) -> Result:
    if row.body is None or row.status is None or row.headers is None:
        raise _lost()
    return Result(row.status, msgspec.json.decode(row.headers, type=tuple[tuple[str, str], ...]), row.body)


def _lost() -> errors.GatewayError:
    message = "This request ran, but its result was too large or broke off. It is not run again: use a new key."
    return errors.error("idempotency_result_lost", message)
