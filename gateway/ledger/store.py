"""The ledger's tables: what is written to them, and the questions that are asked of them."""

from __future__ import annotations

import datetime
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Literal

import msgspec

from gateway import errors
from gateway.catalog import Price
from gateway.ledger import HOUR_US, Batch, Durable, Entry, Sums, correction, fold
from gateway.ledger.disk_first import DiskFirst
from gateway.ledger.refused import Refused
from gateway.ledger.retention import dropped_sums
from gateway.ledger.writer import RETRY_S, DatabaseFirst, Keeper, Writer
from gateway.limits.limiter import wall_us
from gateway.limits.orphans import Charge
from gateway.limits.wallets import places, post
from gateway.limits.windows import slot_is_over
from gateway.state.database import Conflict, Database, Row, Statements, Value
from gateway.state.journal import Journal
from gateway.state.outbox import Outbox

# Corrections that are written together, and entries of which some may be there already.
FIXES_MAX = KNOWN_MAX = 400
# No request runs longer than this.
LONGEST_US = 2 * HOUR_US
PAGE = 1000
COLUMNS = Entry.__struct_fields__
_PRICE, _ACCOUNTS = COLUMNS.index("price"), COLUMNS.index("accounts")
HOUR_COLUMNS = ("hour_us", "tenant", "key_id", "user_id", "team_id", "model", "provider")
SUM_COLUMNS = Sums.__struct_fields__

FILTERED = ("tenant", "key_id", "user_id", "team_id", "org_id", "model", "provider")

GroupBy = Literal["hour", "day", "month", "tenant", "key_id", "user_id", "team_id", "org_id", "model", "provider"]


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
    """What is written of it, and the questions that are asked of it, which know of all that was added before.

    `disk_first` is for a gateway that is alone with a database on the disk of the outbox.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox | None = None,
        journal: Journal | None = None,
        *,
        disk_first: bool = False,
        retry_s: float = RETRY_S,
    ) -> None:
        self._database = database
        self._refused = None if outbox is None else Refused(self.commit, outbox.path)
        commit = self.commit if self._refused is None else self._refused.commit
        if disk_first:
            assert outbox is not None
            self.keeper: Keeper = DiskFirst(commit, outbox, retry_s)
        else:
            self.keeper = DatabaseFirst(commit, outbox, retry_s)
        self.writer = Writer(self.keeper, commit, journal, retry_s)
        self.written = 0

    async def start(self) -> None:
        """Bring in what an earlier process left behind, then begin to write what is added."""
        if self._refused is not None:
            await self._refused.start()
        await self.writer.start()

    async def close(self) -> None:
        """Write what is still in memory; what the database does not take stays in the outbox."""
        await self.writer.close()
        if self._refused is not None:
            self._refused.close()

    def begin(self, entry: Entry) -> None:
        """A request is under way, and will be added under the same id; a plain call. `entry` is what is known of it."""
        self.writer.begin(entry)

    def show(self, id: str) -> None:
        """Something of a request that is under way is about to be seen, so that it has to be known from now on even if
        this process dies."""
        self.writer.show(id)

    def add(self, entry: Entry) -> Durable:
        """Record an entry; a plain call."""
        return self.writer.add(entry)

    @property
    def pending(self) -> int:
        """Entries that are not durable yet."""
        return self.writer.pending

    @property
    def waiting_bytes(self) -> int:
        """What waits on the local disk for the database."""
        return self.keeper.waiting_bytes

    @property
    def refused(self) -> int:
        """Entries that the database does not take for what is in them."""
        return 0 if self._refused is None else self._refused.count

    @property
    def complete(self) -> bool:
        """Whether the database has all that was added."""
        return not self.pending and not self.waiting_bytes

    @property
    def full(self) -> bool:
        """Whether nothing can be recorded now, or too much waits for it."""
        return self.writer.full

    async def commit(self, entries: Sequence[Entry]) -> None:
        """Write entries and everything summed up from them in one transaction; those that are there already are not
        written or summed up again."""
        entries = list({entry.id: entry for entry in reversed(entries)}.values())[::-1]

        async def write(inside: Statements) -> None:
            await inside.insert("ledger", COLUMNS, map(to_row, entries))
            await _sum_up(inside, fold(entries))

        async def write_new(some: Sequence[Entry], inside: Statements) -> int:
            rows = await inside.query(
                f"INSERT INTO ledger ({','.join(COLUMNS)}) VALUES {places(len(some), len(COLUMNS))} "
                "ON CONFLICT (id) DO NOTHING RETURNING id",
                *(value for entry in some for value in to_row(entry)),
            )
            new = {row["id"] for row in rows}
            await _sum_up(inside, fold(entry for entry in some if entry.id in new))
            return len(new)

        try:
            await self._database.run(write)
            self.written += len(entries)
        except Conflict:
            # Several rows of one statement cost much more, but it says which of them are new.
            for start in range(0, len(entries), KNOWN_MAX):
                self.written += await self._database.run(partial(write_new, entries[start:][:KNOWN_MAX]))

    async def _query(self, sql: str, *parameters: Value) -> list[Row]:
        await self.keeper.caught_up()
        return await self._database.query(sql, *parameters)

    async def find(self, request_id: str, *, tenant: str | None = None) -> list[Entry]:
        """The entries of a request, its corrections after it."""
        where, values = ("", ()) if tenant is None else (" AND tenant = $2", (tenant,))
        sql = f"SELECT {','.join(COLUMNS)} FROM ledger WHERE request_id = $1{where} ORDER BY at_us DESC, id LIMIT 100"
        return [from_row(row) for row in await self._query(sql, request_id, *values)]

    async def page(self, wanted: Filter, limit: int, after: str | None = None) -> tuple[list[Entry], bool]:
        """At most `limit` entries, the newest first, behind the one whose id is `after`; and whether there are more."""
        where, values = _where(wanted, "at_us")
        if after is not None:
            found = await self._query("SELECT at_us FROM ledger WHERE id = $1", after)
            if not found:
                raise errors.error("invalid_value", "There is no entry with this id.", param="after")
            n = len(values)
            where += f" AND (at_us < ${n + 1} OR (at_us = ${n + 1} AND id < ${n + 2}))"
            values += (found[0]["at_us"], after)
        sql = f"SELECT {','.join(COLUMNS)} FROM ledger WHERE {where} ORDER BY at_us DESC, id DESC LIMIT {limit + 1}"
        rows = [from_row(row) for row in await self._query(sql, *values)]
        return rows[:limit], len(rows) > limit

    async def entries(self, wanted: Filter) -> AsyncIterator[Entry]:
        """The entries of a part of the ledger in the order of their time."""
        after: tuple[int, str] = (-1, "")
        while True:
            where, values = _where(wanted, "at_us")
            n = len(values)
            rows = await self._query(
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
        rows = await self._query(
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
        rows = await self._query(sql, *values)
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
            price = price_of(f"{entry.model} {entry.provider}/{entry.target}") or price_of(entry.model)
            if entry.status != "posted" or price is None:
                continue
            sql = f"SELECT {','.join(COLUMNS)} FROM ledger WHERE corrects = $1 ORDER BY id"
            earlier = [from_row(row) for row in await self._query(sql, entry.id)]
            if (fix := correction(entry, earlier, price, at_us)) is not None:
                found.append(fix)
                count += 1
                difference_nano += fix.cost_nano or 0
            if len(found) >= FIXES_MAX:
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
        for row in await self._query("SELECT account, debits_nano FROM balances"):
            account = str(row["account"])
            budget = not account.startswith(("wallet:", "world:"))
            if budget and not slot_is_over(account, now_us) and row["debits_nano"] != derived.get(account, 0):
                wrong.append(f"the balance of {account} is not the sum of the ledger's entries")
        return wrong


async def _sum_up(inside: Statements, batch: Batch) -> None:
    await post(inside, batch.transfers, batch.charges)
    columns = (*HOUR_COLUMNS, "org_id", *SUM_COLUMNS)
    merged: dict[tuple[Value, ...], tuple[str, Sums]] = {}
    for place, sums in batch.hours.items():
        merged.setdefault(place[:-1], (place[-1], Sums()))[1].join(sums)
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
    values[_PRICE] = None if entry.price is None else _json(entry.price)
    values[_ACCOUNTS] = _json(entry.accounts)
    return tuple(values)


@functools.lru_cache(maxsize=1024)
def _json(value: Price | tuple[str, ...]) -> str:
    """Many entries have the same prices and accounts."""
    return msgspec.json.encode(value).decode()


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
