"""The ledger's tables: one writer that commits entries in groups, and the questions that are asked of them."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from gateway import errors
from gateway.catalog import Price
from gateway.ledger import HOUR_US, Batch, Entry, Sums, correction, fold
from gateway.ledger.retention import dropped_sums
from gateway.limits.limiter import wall_us
from gateway.limits.orphans import Charge
from gateway.limits.wallets import places, post
from gateway.limits.windows import slot_is_over
from gateway.state.database import Database, DatabaseUnavailable, Row, Statements, Value
from gateway.state.journal import Journal
from gateway.state.outbox import Outbox, OutboxError

GROUP_MAX = 400
PENDING_MAX = 20_000
RETRY_S = 0.5
# No request runs longer than this.
LONGEST_US = 2 * HOUR_US
PAGE = 1000
COLUMNS = Entry.__struct_fields__
_PRICE, _ACCOUNTS = COLUMNS.index("price"), COLUMNS.index("accounts")
HOUR_COLUMNS = ("hour_us", "tenant", "key_id", "user_id", "team_id", "model", "provider")
SUM_COLUMNS = Sums.__struct_fields__

FILTERED = ("tenant", "key_id", "user_id", "team_id", "org_id", "model", "provider")

GroupBy = Literal["hour", "day", "month", "tenant", "key_id", "user_id", "team_id", "org_id", "model", "provider"]

log = logging.getLogger(__name__)


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of the ledger is meant; None: all. Of `any_of`, columns and values, one has to hold."""

    since_us: int = 0
    until_us: int = 2**62
    tenant: str | None = None
    key_id: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    org_id: str | None = None
    model: str | None = None
    provider: str | None = None
    any_of: tuple[tuple[str, str], ...] | None = None


class Ledger:
    """Entries are durable before whoever waits for them goes on.

    While the database is away they go to the outbox, and from there to the database when it is back. Without an outbox,
    or when that is full too, they wait in memory and whoever waits for them with them; `full` then says that no more
    requests should be let in. `returned` is told what came out of the outbox.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox | None = None,
        journal: Journal | None = None,
        *,
        retry_s: float = RETRY_S,
    ) -> None:
        self.returned: Callable[[Sequence[Charge]], None] = lambda charges: None
        self._retry_s = retry_s
        self._journal = journal
        self._database = database
        self._outbox = outbox
        self._outbox_turn = asyncio.Lock()
        self._emptying: asyncio.Task[None] | None = None
        self._away = False
        self._stuck = False
        self._pending: deque[tuple[Entry, asyncio.Future[None]]] = deque()
        self._more = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._closing = False
        self.written = 0

    async def start(self) -> None:
        """Bring in what an earlier process left in the outbox, then begin to write what is added."""
        if self._outbox is not None and self._outbox.size_bytes:
            await self._empty_outbox()
        if self._journal is not None:
            await self._expire(self._journal)
        self._writer = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Write what is still in memory; what the database does not take stays in the outbox."""
        self._closing = True
        self._more.set()
        if self._writer is not None:
            await self._writer
        if self._emptying is not None:
            self._emptying.cancel()
            await asyncio.wait([self._emptying])
        if self._outbox is not None:
            self._outbox.close()
        if self._journal is not None:
            self._journal.close()

    async def _expire(self, journal: Journal) -> None:
        """Write an entry for each request that died with the process before: it cost nothing.

        That process is gone, and what it could still bring in is here already, so nobody will settle them later. Those
        that were settled before it died have their entry, and keep it.
        """
        lost = [msgspec.json.decode(record, type=Entry) for record in journal.left.values()]
        for start in range(0, len(lost), GROUP_MAX):
            await self.commit([replace(draft, status="expired", outcome="lost") for draft in lost[start:][:GROUP_MAX]])
        if lost:
            log.warning("%d requests had no end when the gateway before this one did", len(lost))
        journal.clear()

    def begin(self, draft: Entry) -> None:
        """A request is under way, and will be added under the same id; a plain call."""
        if self._journal is not None:
            self._journal.begin(draft.id, msgspec.json.encode(draft))

    @property
    def pending(self) -> int:
        """Entries that are not durable yet."""
        return len(self._pending)

    @property
    def waiting_bytes(self) -> int:
        """What is in the outbox."""
        return 0 if self._outbox is None else self._outbox.size_bytes

    @property
    def complete(self) -> bool:
        """Whether the database has all that was added."""
        return not self._pending and not self.waiting_bytes

    @property
    def full(self) -> bool:
        """Whether nothing can be recorded now, neither in the database nor in the outbox, or too much waits for it."""
        return self._stuck or len(self._pending) >= PENDING_MAX

    def add(self, entry: Entry) -> asyncio.Future[None]:
        """Record an entry; a plain call. The future is done once it is durable; shield it, others may wait for it."""
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((entry, durable))
        self._more.set()
        return durable

    async def _write(self) -> None:
        while self._pending or not self._closing:
            if not self._pending:
                self._more.clear()
                await self._more.wait()
                continue
            group = [self._pending[i] for i in range(min(len(self._pending), GROUP_MAX))]
            try:
                await self._keep([entry for entry, _ in group])
                self._stuck = False
            except (DatabaseUnavailable, OutboxError) as error:
                self._stuck = True
                log.error("%d entries of the ledger cannot be written yet: %s", len(self._pending), error)
                if self._closing:
                    return
                await asyncio.sleep(self._retry_s)
                continue
            except Exception:
                # A bug of ours must not end the writer: everybody would wait for it for ever.
                log.exception("%d entries of the ledger were refused by the database", len(group))
                if self._closing:
                    return
                await asyncio.sleep(self._retry_s)
                continue
            for entry, durable in group:
                assert self._pending.popleft()[0] is entry
                if self._journal is not None:
                    self._journal.end(entry.id)
                if not durable.done():
                    durable.set_result(None)

    async def _keep(self, entries: Sequence[Entry]) -> None:
        """Make entries durable: in the database, or in the outbox while that is away."""
        if self._emptying is None or not self._away:
            try:
                await self.commit(entries)
                return
            except DatabaseUnavailable as error:
                if self._outbox is None:
                    raise
                self._away = True
                log.error("the ledger goes to the outbox: %s", error)
        assert self._outbox is not None
        async with self._outbox_turn:
            await asyncio.to_thread(self._outbox.append, [msgspec.json.encode(entry) for entry in entries])
        if self._emptying is None:
            self._emptying = asyncio.create_task(self._return())

    async def _return(self) -> None:
        """Wait for the database to come back and bring it what it missed. As soon as it takes some of that, new entries
        go there directly: under load there would be no end to it otherwise."""
        while True:
            await asyncio.sleep(self._retry_s)
            try:
                await self._empty_outbox()
            except (DatabaseUnavailable, OutboxError) as error:
                log.info("the ledger stays in the outbox: %s", error)
                continue
            except Exception:
                # As in `_write`: a bug of ours must not leave the outbox full for ever.
                log.exception("the outbox was refused by the database")
                continue
            if not self.waiting_bytes:
                self._emptying = None
                log.warning("the ledger is in the database again")
                return

    async def _empty_outbox(self) -> None:
        assert self._outbox is not None
        segments = self._outbox.segments()
        while True:
            async with self._outbox_turn:
                segment = await asyncio.to_thread(next, segments, None)
            if segment is None:
                return
            entries = [msgspec.json.decode(record, type=Entry) for record in segment.records]
            for start in range(0, len(entries), GROUP_MAX):
                some = entries[start : start + GROUP_MAX]
                await self.commit(some)
                self._away = False
                self.returned([Charge(entry.id, entry.accounts, entry.charged_nano) for entry in some])
            async with self._outbox_turn:
                await asyncio.to_thread(self._outbox.remove, segment)

    async def commit(self, entries: Sequence[Entry]) -> None:
        """Write entries and everything summed up from them in one transaction; those that are there already are not
        written or summed up again."""
        entries = list({entry.id: entry for entry in reversed(entries)}.values())

        async def write(inside: Statements) -> int:
            rows = await inside.query(
                f"INSERT INTO ledger ({','.join(COLUMNS)}) VALUES {places(len(entries), len(COLUMNS))} "
                "ON CONFLICT (id) DO NOTHING RETURNING id",
                *(value for entry in entries for value in to_row(entry)),
            )
            new = {row["id"] for row in rows}
            batch = fold(entry for entry in entries if entry.id in new)
            await post(inside, batch.transfers, batch.charges)
            await _sum_up(inside, batch)
            return len(new)

        self.written += await self._database.run(write)

    async def find(self, request_id: str, *, tenant: str | None = None) -> list[Entry]:
        """The entries of a request, its corrections after it."""
        where, values = ("", ()) if tenant is None else (" AND tenant = $2", (tenant,))
        sql = f"SELECT {','.join(COLUMNS)} FROM ledger WHERE request_id = $1{where} ORDER BY at_us DESC, id LIMIT 100"
        return [from_row(row) for row in await self._database.query(sql, request_id, *values)]

    async def page(self, wanted: Filter, limit: int, after: str | None = None) -> tuple[list[Entry], bool]:
        """At most `limit` entries, the newest first, behind the one whose id is `after`; and whether there are more."""
        where, values = _where(wanted, "at_us")
        if after is not None:
            found = await self._database.query("SELECT at_us FROM ledger WHERE id = $1", after)
            if not found:
                raise errors.error("invalid_value", "There is no entry with this id.", param="after")
            n = len(values)
            where += f" AND (at_us < ${n + 1} OR (at_us = ${n + 1} AND id < ${n + 2}))"
            values += (found[0]["at_us"], after)
        sql = f"SELECT {','.join(COLUMNS)} FROM ledger WHERE {where} ORDER BY at_us DESC, id DESC LIMIT {limit + 1}"
        rows = [from_row(row) for row in await self._database.query(sql, *values)]
        return rows[:limit], len(rows) > limit

    async def entries(self, wanted: Filter) -> AsyncIterator[Entry]:
        """The entries of a part of the ledger in the order of their time."""
        after: tuple[int, str] = (-1, "")
        while True:
            where, values = _where(wanted, "at_us")
            n = len(values)
            rows = await self._database.query(
                f"SELECT {','.join(COLUMNS)} FROM ledger WHERE {where} AND (at_us > ${n + 1} OR "
                f"(at_us = ${n + 1} AND id > ${n + 2})) ORDER BY at_us, id LIMIT {PAGE}",
                *values,
                *after,
            )
            for row in rows:
                yield from_row(row)
            if len(rows) < PAGE:
                return
            after = int(str(rows[-1]["at_us"])), str(rows[-1]["id"])

    async def charges(self, prefix: str, since_us: int) -> list[Charge]:
        """What the requests whose ids begin with `prefix`, and which ended after `since_us`, took from accounts."""
        rows = await self._database.query(
            "SELECT id, accounts, charged_nano FROM ledger "
            "WHERE id >= $1 AND id < $2 AND at_us >= $3 AND at_us + latency_us >= $4",
            prefix,
            f"{prefix}~",
            since_us - LONGEST_US,
            since_us,
        )
        return [
            Charge(
                str(row["id"]),
                msgspec.json.decode(str(row["accounts"]), type=tuple[str, ...]),
                int(str(row["charged_nano"])),
            )
            for row in rows
        ]

    async def summary(self, by: Sequence[GroupBy], wanted: Filter) -> list[Row]:
        """Sums by time and dimension, from whole hours. `hour_us` is the first hour of a day or month (UTC)."""
        times = [name for name in by if name in ("hour", "day", "month")]
        names = [name for name in by if name in (*HOUR_COLUMNS, "org_id")]
        where, values = _where(wanted, "hour_us")
        columns = [*(["hour_us"] if times else []), *names]
        chosen = "".join(f"{column}, " for column in columns)
        sums = ", ".join(f"CAST(SUM({column}) AS BIGINT) AS {column}" for column in SUM_COLUMNS)
        grouped = f" GROUP BY {', '.join(columns)} ORDER BY {', '.join(columns)}" if columns else ""
        sql = f"SELECT {chosen}{sums} FROM usage_hours WHERE {where}{grouped}"
        rows = await self._database.query(sql, *values)
        if not columns:
            rows = [{name: value or 0 for name, value in row.items()} for row in rows]
        return regroup(rows, times[0]) if times and times[0] != "hour" else rows

    async def reprice(self, price_of: Callable[[str], Price | None], wanted: Filter, at_us: int) -> tuple[int, int]:
        """Write a correction for each entry that its model's price of today would have cost something else; how many
        were written, and the sum of the differences in nano-USD. `price_of` is asked for the model, and for the target
        of a route as the table of prices has it."""
        count = difference_nano = 0
        found: list[Entry] = []
        async for entry in self.entries(wanted):
            price = price_of(entry.model) or price_of(f"{entry.model} {entry.provider}/{entry.target}")
            if entry.status != "posted" or price is None:
                continue
            sql = f"SELECT {','.join(COLUMNS)} FROM ledger WHERE corrects = $1 ORDER BY id"
            earlier = [from_row(row) for row in await self._database.query(sql, entry.id)]
            if (fix := correction(entry, earlier, price, at_us)) is not None:
                found.append(fix)
                count += 1
                difference_nano += fix.cost_nano or 0
            if len(found) >= GROUP_MAX:
                await self.commit(found)
                found = []
        if found:
            await self.commit(found)
        return count, difference_nano

    async def problems(self) -> list[str]:
        """Accounts whose kept sum of charges is not the sum of the ledger's entries."""
        derived, now_us = await dropped_sums(self._database), wall_us()
        async for entry in self.entries(Filter()):
            for account in entry.accounts:
                derived[account] = derived.get(account, 0) + entry.charged_nano
        wrong = []
        for row in await self._database.query("SELECT account, debits_nano FROM balances"):
            account = str(row["account"])
            budget = not account.startswith(("wallet:", "world:"))
            if budget and not slot_is_over(account, now_us) and row["debits_nano"] != derived.get(account, 0):
                wrong.append(f"the balance of {account} is not the sum of the ledger's entries")
        return wrong


async def _sum_up(inside: Statements, batch: Batch) -> None:
    columns = (*HOUR_COLUMNS, "org_id", *SUM_COLUMNS)
    merged: dict[tuple[Value, ...], tuple[str, Sums]] = {}
    for place, sums in batch.hours.items():
        *key, org_id = msgspec.structs.astuple(place)
        merged.setdefault(tuple(key), (org_id, Sums()))[1].join(sums)
    rows = [(*key, org_id, *msgspec.structs.astuple(sums)) for key, (org_id, sums) in merged.items()]
    # Sorted, so that two writers of one database never wait for each other's rows crosswise.
    rows.sort()
    if rows:
        added = ", ".join(f"{column} = usage_hours.{column} + excluded.{column}" for column in SUM_COLUMNS)
        await inside.execute(
            f"INSERT INTO usage_hours ({','.join(columns)}) VALUES {places(len(rows), len(columns))} "
            f"ON CONFLICT ({','.join(HOUR_COLUMNS)}) DO UPDATE SET {added}",
            *(value for row in rows for value in row),
        )


def to_row(entry: Entry) -> tuple[Value, ...]:
    """The columns of an entry."""
    values: list[Value] = list(msgspec.structs.astuple(entry))
    values[_PRICE] = None if entry.price is None else msgspec.json.encode(entry.price).decode()
    values[_ACCOUNTS] = msgspec.json.encode(entry.accounts).decode()
    return tuple(values)


def from_row(row: Row) -> Entry:
    """The entry of a row."""
    price = None if row["price"] is None else msgspec.json.decode(str(row["price"]))
    accounts = msgspec.json.decode(str(row["accounts"]))
    return msgspec.convert({**row, "price": price, "accounts": accounts}, Entry, strict=False)


def _where(wanted: Filter, time: str) -> tuple[str, tuple[Value, ...]]:
    terms, values = [f"{time} >= $1", f"{time} < $2"], [wanted.since_us, wanted.until_us]
    given: list[Value] = list(values)
    for name in FILTERED:
        value = getattr(wanted, name)
        if value is not None:
            given.append(value)
            terms.append(f"{name} = ${len(given)}")
    if wanted.any_of is not None:
        choices = []
        for name, value in wanted.any_of:
            assert name in FILTERED
            given.append(value)
            choices.append(f"{name} = ${len(given)}")
        terms.append(f"({' OR '.join(choices)})" if choices else "1 = 0")
    return " AND ".join(terms), tuple(given)


def regroup(rows: Sequence[Row], time: str) -> list[Row]:
    """Hourly rows as those of days or months."""
    grouped: dict[tuple[Value, ...], Row] = {}
    for row in rows:
        start_us = _start_us(int(str(row["hour_us"])), time)
        place = (start_us, *(value for name, value in row.items() if name not in ("hour_us", *SUM_COLUMNS)))
        known = grouped.get(place)
        if known is None:
            grouped[place] = row | {"hour_us": start_us}
        else:
            for name in SUM_COLUMNS:
                known[name] = int(str(known[name])) + int(str(row[name]))
    return list(grouped.values())


def _start_us(hour_us: int, time: str) -> int:
    day = datetime.datetime.fromtimestamp(hour_us // 1_000_000, datetime.UTC).replace(hour=0, minute=0, second=0)
    return int((day.replace(day=1) if time == "month" else day).timestamp()) * 1_000_000
