"""Alerts about money: each is told once, to the log and to every channel, through a queue in the database.

An alert's id names what happened. Whoever inserts it first logs it and makes one row per channel; a row is tried with
growing pauses until its channel takes it or it is too old. A process leases a row while it tries, so of several
replicas one does; one that dies in between is followed by another, so a channel may hear an alert twice but not never.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import re
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from gateway.ledger.export import usd
from gateway.limits.limiter import Alert, Balance, wall_us
from gateway.limits.periods import PERIOD_LETTERS
from gateway.limits.wallets import places
from gateway.state.database import Database, DatabaseError, Value
from gateway.telemetry import Telemetry

PENDING_MAX = 1000
# Of one channel.
WAITING_MAX = 10_000
TOLD_MAX = 10_000
BATCH = 20
POLL_S = 5.0
LEASE_US = 120_000_000
PAUSE_FIRST_US = 15_000_000
PAUSE_MAX_US = 3600_000_000
# With these pauses it is given up after about a day.
ATTEMPTS_MAX = 30
KEPT_US = 400 * 86_400_000_000
SWEEP_US = 86_400_000_000

Balances = Callable[[Sequence[str]], Awaitable[dict[str, Balance]]]

log = logging.getLogger(__name__)


class Channel(Protocol):
    """Takes an alert, or raises `NotDelivered`."""

    async def send(self, id: str, subject: str, payload: bytes) -> None: ...


class _Row(msgspec.Struct, frozen=True):
    id: str
    channel: str
    payload: str
    created_us: int
    next_us: int
    attempts: int


class Told(msgspec.Struct, frozen=True):
    """An alert as channels hear it."""

    id: str
    type: str
    created_at: str
    text: str
    subject: str
    account: str
    percent: int
    spent_usd: str
    limit_usd: str


class Alerts:
    """The queue. Without a database alerts are only logged."""

    def __init__(
        self,
        database: Database | None,
        channels: Mapping[str, Channel],
        balances: Balances,
        telemetry: Telemetry,
        *,
        now_us: Callable[[], int] = wall_us,
        poll_s: float = POLL_S,
    ) -> None:
        self._database = database
        self._channels = channels
        self._balances = balances
        self._telemetry = telemetry
        self._now_us = now_us
        self._poll_s = poll_s
        self._pending: deque[Alert] = deque(maxlen=PENDING_MAX)
        self._told: OrderedDict[str, None] = OrderedDict()
        self._more = asyncio.Event()
        self._working: asyncio.Task[None] | None = None
        self._swept_us = 0

    def start(self) -> None:
        self._working = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Stop; what is in the database is told after the next start."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.wait([self._working])
        with contextlib.suppress(DatabaseError):
            await self.store()

    def add(self, alert: Alert) -> None:
        """Tell an alert, unless that was done; a plain call."""
        if alert.id in self._told:
            return
        self._told[alert.id] = None
        if len(self._told) > TOLD_MAX:
            self._told.popitem(last=False)
        self._pending.append(alert)
        self._more.set()

    async def _work(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._more.wait()
            self._more.clear()
            try:
                await self.store()
                await self.deliver()
                await self._sweep()
            except DatabaseError as error:
                log.warning("alerts wait for the database: %s", error)
                await asyncio.sleep(self._poll_s)
            except Exception:
                # A bug of ours must not end the telling of all others.
                log.exception("alerts could not be told; they will be tried again")
                await asyncio.sleep(self._poll_s)

    async def store(self) -> None:
        """Bring what was added into the database, and log what nobody had told."""
        while self._pending:
            alert = self._pending[0]
            if await self._holds(alert) and await self._first(told(alert, self._now_us())):
                self._telemetry.alert(alert.percent)
                log.warning("%s", text_of(alert))
            # While it was stored the oldest may have had to make room.
            if self._pending and self._pending[0] is alert:
                self._pending.popleft()

    async def _holds(self, alert: Alert) -> bool:
        """Whether it is still so: a wallet may have been topped up by another process."""
        if alert.kind == "budget":
            return True
        balance = (await self._balances((alert.account,))).get(alert.account)
        return balance is None or balance.credits_nano == alert.limit_nano

    async def _first(self, alert: Told) -> bool:
        """Whether this process is the one that tells it; then it waits for every channel."""
        if self._database is None:
            return True
        now_us, payload = self._now_us(), msgspec.json.encode(alert).decode()
        async with self._database.transaction() as inside:
            columns = "id, channel, payload, created_us, next_us, attempts, done_us, outcome"
            insert = f"INSERT INTO alerts ({columns}) VALUES {places(1, 8)} ON CONFLICT DO NOTHING"
            row: tuple[Value, ...] = (alert.id, "log", payload, now_us, now_us, 1, now_us, "sent")
            if not await inside.execute(insert, *row):
                return False
            for channel in self._channels:
                counting = "SELECT COUNT(*) AS waiting FROM alerts WHERE done_us IS NULL AND channel = $1"
                (counted,) = await inside.query(counting, channel)
                full = int(str(counted["waiting"])) >= WAITING_MAX
                row = (alert.id, channel, payload, now_us, now_us, 0, now_us if full else None, "full" if full else "")
                await inside.execute(insert, *row)
        return True

    async def deliver(self) -> None:
        """Try what is due by the channels there are; what others were to tell waits for them to come back."""
        if self._database is None or not self._channels:
            return
        count = len(self._channels)
        rows = await self._database.query(
            f"SELECT {', '.join(_Row.__struct_fields__)} FROM alerts WHERE done_us IS NULL "
            f"AND channel IN {places(1, count)} AND next_us <= ${count + 1} ORDER BY next_us LIMIT {BATCH}",
            *self._channels,
            self._now_us(),
        )
        due = msgspec.convert(rows, list[_Row], strict=False)
        await asyncio.gather(*(self._try(row, self._database) for row in due))

    async def _try(self, row: _Row, database: Database) -> None:
        where = "WHERE id = $1 AND channel = $2 AND next_us = $3 AND done_us IS NULL"
        lease_us = self._now_us() + LEASE_US
        sql = f"UPDATE alerts SET next_us = $4, attempts = attempts + 1 {where}"
        if not await database.execute(sql, row.id, row.channel, row.next_us, lease_us):
            return
        try:
            await self._channels[row.channel].send(row.id, _text(row.payload), row.payload.encode())
            outcome = "sent"
        except Exception as error:
            # Whatever a channel stumbles over must not keep the others from being told.
            log.warning("an alert could not be told by %s: %s", row.channel, error)
            outcome = "failed"
        self._telemetry.alert_told(row.channel, outcome)
        attempts, now_us = row.attempts + 1, self._now_us()
        over = outcome == "sent" or attempts >= ATTEMPTS_MAX
        next_us = now_us + min(PAUSE_FIRST_US << min(attempts - 1, 20), PAUSE_MAX_US)
        sql = f"UPDATE alerts SET next_us = $4, done_us = $5, outcome = $6 {where}"
        await database.execute(sql, row.id, row.channel, lease_us, next_us, now_us if over else None, outcome)

    async def _sweep(self) -> None:
        """Once a day forget what was told long ago, or is to be told by a channel that has been gone for so long."""
        now_us = self._now_us()
        if self._database is not None and now_us - self._swept_us >= SWEEP_US:
            self._swept_us = now_us
            await self._database.execute("DELETE FROM alerts WHERE created_us < $1", now_us - KEPT_US)


def told(alert: Alert, now_us: int) -> Told:
    moment = datetime.datetime.fromtimestamp(now_us / 1e6, datetime.UTC)
    return Told(
        id=alert.id,
        type={"budget": "budget.threshold", "low": "wallet.low", "paused": "wallet.paused"}[alert.kind],
        created_at=moment.isoformat(timespec="seconds"),
        text=text_of(alert),
        subject=alert.subject,
        account=alert.account,
        percent=alert.percent,
        spent_usd=usd(alert.spent_nano),
        limit_usd=usd(alert.limit_nano),
    )


def text_of(alert: Alert) -> str:
    """An alert in a sentence."""
    spent, limit = usd(alert.spent_nano), usd(alert.limit_nano)
    match alert.kind:
        case "low":
            return f"{alert.subject} is low: {usd(alert.limit_nano - alert.spent_nano)} US dollars are left"
        case "paused":
            return f"{alert.subject} has no credit left: its keys are paused until it is topped up"
    return (
        f"{alert.subject} has used {alert.percent} % of its budget: {spent} of {limit} US dollars{_when(alert.account)}"
    )


def _when(account: str) -> str:
    """The period of a budget in words, where it is one of the calendar."""
    period = account.rpartition(":")[2]
    found = re.fullmatch(r"([dwmy])(\d{4}-\d\d-\d\d)", period)
    return "" if found is None else f" in the {PERIOD_LETTERS[found[1]]} from {found[2]}"


def _text(payload: str) -> str:
    return msgspec.json.decode(payload, type=Told).text
