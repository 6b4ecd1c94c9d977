"""The audit log: who administrated what and who was refused, in a chain of hashes that shows any later change."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import astuple, replace

from gateway import errors
from gateway.state.database import Database, Statements, Value

PENDING_MAX = 10_000
GROUP_MAX = 200
REPEATED_MAX = 100
TEXT_LENGTH_MAX = 200
DETAILS_MAX = 20
MINUTE_US = 60_000_000
TICK_S = 5.0
RETRY_S = 1.0
PAGE = 1000
START = "0" * 64
CLI = "cli"
GATEWAY = "gateway"
DROP = "audit.drop"

log = logging.getLogger(__name__)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be recorded; never a secret, a prompt or an answer.

    `actor` is the id of a key, `CLI`, `GATEWAY`, or empty where nobody was recognised. `outcome` is `ok` or the code of
    the error that the actor was told.
    """

    action: str
    actor: str = ""
    tenant: str = ""
    address: str = ""
    subject: str = ""
    outcome: str = "ok"
    request_id: str = ""
    details: dict[str, str | int | bool] = {}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """An event in its place of the chain. `details` is JSON. Replicas differ in their clocks and in how soon they
    write, so `number` is the order of the log and `at_us` need not rise with it."""

    number: int
    id: str
    at_us: int
    actor: str
    tenant: str
    address: str
    action: str
    subject: str
    outcome: str
    request_id: str
    details: str
    hash: str


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries are meant; None: all. `action` is the beginning of the action's name."""

    since_us: int = 0
    until_us: int = 2**62
    actor: str | None = None
    tenant: str | None = None
    action: str | None = None
    outcome: str | None = None


class Chain(msgspec.Struct, frozen=True):
    """How far the chain is sound, the hash of the last sound entry, and what is wrong behind it."""

    count: int
    hash: str
    problem: str | None = None


COLUMNS = Entry.__struct_fields__


def entry_of(event: Event, at_us: int) -> Entry:
    """The entry of an event, before it has a place. Texts become printable and short, as clients choose some."""
    details = dict(itertools.islice(event.details.items(), DETAILS_MAX))
    for name, value in details.items():
        details[name] = _clean(value) if isinstance(value, str) else value
    return Entry(
        number=0,
        id=f"audit_{os.urandom(12).hex()}",
        at_us=at_us,
        actor=_clean(event.actor),
        tenant=_clean(event.tenant),
        address=_clean(event.address),
        action=event.action,
        subject=_clean(event.subject),
        outcome=event.outcome,
        request_id=_clean(event.request_id),
        details=msgspec.json.encode(details).decode(),
        hash="",
    )


def _clean(text: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:TEXT_LENGTH_MAX])


def digest(previous: str, entry: Entry) -> str:
    """SHA-256 over the hash before and the JSON array of the entry's other fields in their order, in hexadecimal."""
    return hashlib.sha256(bytes.fromhex(previous) + msgspec.json.encode(astuple(entry)[:-1])).hexdigest()


async def append(inside: Statements, entries: Sequence[Entry]) -> None:
    """Add entries to the end of the chain, those that are there already left out.

    `inside` is a transaction that takes turns, so that there is one end.
    """
    rows = await inside.query("SELECT number, hash FROM audit_head")
    number, previous = (int(str(rows[0]["number"])), str(rows[0]["hash"])) if rows else (0, START)
    places = ",".join(f"${i}" for i in range(1, len(entries) + 1))
    known = await inside.query(f"SELECT id FROM audit WHERE id IN ({places})", *(entry.id for entry in entries))
    written = {row["id"] for row in known}
    places = ",".join(f"${i}" for i in range(1, len(COLUMNS) + 1))
    for entry in entries:
        if entry.id not in written:
            number += 1
            placed = replace(entry, number=number)
            previous = digest(previous, placed)
            sql = f"INSERT INTO audit ({','.join(COLUMNS)}) VALUES ({places})"
            await inside.execute(sql, *astuple(replace(placed, hash=previous)))
    await inside.execute(
        "INSERT INTO audit_head (name, number, hash) VALUES ('newest', $1, $2) "
        "ON CONFLICT (name) DO UPDATE SET number = excluded.number, hash = excluded.hash",
        number,
        previous,
    )


async def drop_before(database: Database, before_us: int, now_us: int) -> int:
    """Drop the oldest entries up to the first that is not from before a moment; how many.

    The last one dropped is the anchor at which the chain begins from then on, and an entry says so: without that entry
    the chain is not sound.
    """
    count = 0
    while dropped := await _drop_some(database, before_us, now_us):
        count += dropped
    return count


async def _drop_some(database: Database, before_us: int, now_us: int) -> int:
    async with database.transaction() as inside:
        rows = await inside.query("SELECT number FROM audit WHERE at_us >= $1 ORDER BY number LIMIT 1", before_us)
        first = await inside.query("SELECT MIN(number) AS number FROM audit")
        if not rows or first[0]["number"] is None:
            return 0
        oldest = int(str(first[0]["number"]))
        last = min(int(str(rows[0]["number"])) - 1, oldest + PAGE - 1)
        if last < oldest:
            return 0
        hash = str((await inside.query("SELECT hash FROM audit WHERE number = $1", last))[0]["hash"])
        await inside.execute("DELETE FROM audit WHERE number <= $1", last)
        await inside.execute(
            "INSERT INTO audit_anchor (name, number, hash) VALUES ('oldest', $1, $2) "
            "ON CONFLICT (name) DO UPDATE SET number = excluded.number, hash = excluded.hash",
            *(last, hash),
        )
        details: dict[str, str | int | bool] = {"entries": last - oldest + 1, "number": last, "hash": hash}
        await append(inside, [entry_of(Event(action=DROP, actor=GATEWAY, details=details), now_us)])
    return last - oldest + 1


async def note(database: Database, action: str, subject: str, **details: str | int | bool) -> None:
    """Record what a command did; durable when this returns."""
    entry = entry_of(Event(action=action, actor=CLI, subject=subject, details=details), time.time_ns() // 1000)
    async with database.transaction() as inside:
        await append(inside, [entry])


class Audit:
    """Records events behind the requests' backs, and answers what was recorded.

    Nothing waits for it. While the database is away up to PENDING_MAX entries wait in memory; further ones, and those
    that still wait at the end of the process, are counted in `lost`. Without a database nothing is kept.
    """

    def __init__(
        self,
        database: Database | None,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        retry_s: float = RETRY_S,
        tick_s: float = TICK_S,
    ) -> None:
        self._database = database
        self._now_us = now_us
        self._retry_s = retry_s
        self._tick_s = tick_s
        self._pending: deque[Entry] = deque()
        self._repeated: dict[tuple[str, ...], int] = {}
        self._minute = now_us() // MINUTE_US
        self._more = asyncio.Event()
        self._closing = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self.written = 0
        self.lost = 0

    @property
    def pending(self) -> int:
        """Entries that are not durable yet."""
        return len(self._pending)

    def start(self) -> None:
        self._writer = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Write what waits, once; what the database does not take now is lost."""
        self._closing.set()
        self._more.set()
        if self._writer is not None:
            await self._writer
        self._sum_up()
        if not await self._flush():
            self.lost += len(self._pending)
            log.error("%d entries of the audit log are lost", len(self._pending))

    def add(self, event: Event) -> None:
        """Record an event; a plain call."""
        if self._database is None:
            return
        if len(self._pending) >= PENDING_MAX:
            self.lost += 1
            return
        self._pending.append(entry_of(event, self._now_us()))
        self._more.set()

    def add_repeatable(self, event: Event) -> None:
        """Record an event that a client can bring about at any rate.

        Of those with the same actor, address, action and outcome the first in a minute is recorded at once, the others
        as one entry with their number. Beyond REPEATED_MAX different ones in a minute they are counted without actor
        and address, so a flood makes a bounded number of entries.
        """
        if self._now_us() // MINUTE_US != self._minute:
            self._sum_up()
        kind = (event.action, event.outcome, event.actor, event.tenant, event.address)
        if kind in self._repeated:
            self._repeated[kind] += 1
        elif len(self._repeated) < REPEATED_MAX:
            self._repeated[kind] = 0
            self.add(event)
        else:
            everybody = (event.action, event.outcome, "", "", "")
            self._repeated[everybody] = self._repeated.get(everybody, 0) + 1

    def _sum_up(self) -> None:
        """End the minute: record how often each event was repeated in it."""
        repeated, self._repeated = self._repeated, {}
        self._minute = self._now_us() // MINUTE_US
        for (action, outcome, actor, tenant, address), count in repeated.items():
            if count:
                kind = Event(action=action, outcome=outcome, actor=actor, tenant=tenant, address=address)
                self.add(replace(kind, details={"repeated": count}))

    async def _write(self) -> None:
        while not self._closing.is_set():
            await _wait(self._more, self._tick_s)
            self._more.clear()
            if self._now_us() // MINUTE_US != self._minute:
                self._sum_up()
            if not await self._flush():
                await _wait(self._closing, self._retry_s)
                self._more.set()

    async def _flush(self) -> bool:
        """Write what waits; False when the database did not take it."""
        while self._pending:
            assert self._database is not None
            group = list(itertools.islice(self._pending, GROUP_MAX))
            try:
                async with self._database.transaction() as inside:
                    await append(inside, group)
            except Exception as error:
                # Also for a bug of ours or a chain that somebody broke: the writer has to live, and the log to say so.
                log.error("%d entries of the audit log cannot be written yet: %r", len(self._pending), error)
                return False
            for _ in group:
                self._pending.popleft()
            self.written += len(group)
        return True

    async def page(self, wanted: Filter, limit: int, after: str | None = None) -> tuple[list[Entry], bool]:
        """At most `limit` entries, the newest first, behind the one whose id is `after`; and whether there are more."""
        if self._database is None:
            return [], False
        terms, values = ["at_us >= $1", "at_us < $2"], list[Value]((wanted.since_us, wanted.until_us))
        for name in ("actor", "tenant", "outcome"):
            if (value := getattr(wanted, name)) is not None:
                values.append(value)
                terms.append(f"{name} = ${len(values)}")
        if wanted.action is not None:
            values += [len(wanted.action), wanted.action]
            terms.append(f"substr(action, 1, ${len(values) - 1}) = ${len(values)}")
        if after is not None:
            found = await self._database.query("SELECT number FROM audit WHERE id = $1", after)
            if not found:
                raise errors.error("invalid_value", "There is no entry with this id.", param="after")
            values.append(found[0]["number"])
            terms.append(f"number < ${len(values)}")
        sql = (
            f"SELECT {','.join(COLUMNS)} FROM audit WHERE {' AND '.join(terms)} ORDER BY number DESC LIMIT {limit + 1}"
        )
        rows = msgspec.convert(await self._database.query(sql, *values), list[Entry])
        return rows[:limit], len(rows) > limit


async def verify(database: Database, remembered: str | None = None) -> Chain:
    """Follow the chain from its beginning, or from the last entry that was dropped, to its newest entry.

    Who can write to the database can also compute a whole new chain; a hash `remembered` elsewhere shows that too,
    because no entry has it then.
    """
    rows = await database.query("SELECT number, hash FROM audit_head")
    head = (int(str(rows[0]["number"])), str(rows[0]["hash"])) if rows else (0, START)
    last = head[0] if rows else 2**62
    anchors = await database.query("SELECT number, hash FROM audit_anchor")
    anchor = (int(str(anchors[0]["number"])), str(anchors[0]["hash"])) if anchors else (0, START)
    number, previous = anchor
    met, attested = remembered is None or (bool(anchors) and remembered == previous), not anchors
    sql = f"SELECT {','.join(COLUMNS)} FROM audit WHERE number > $1 AND number <= $2 ORDER BY number LIMIT {PAGE}"
    while page := msgspec.convert(await database.query(sql, number, last), list[Entry]):
        for entry in page:
            if entry.number != number + 1:
                return Chain(number, previous, f"entry {number + 1} is missing")
            if entry.hash != digest(previous, entry):
                return Chain(number, previous, f"entry {entry.number} is not as it was written")
            number, previous, met = entry.number, entry.hash, met or entry.hash == remembered
            attested = attested or (entry.action == DROP and _drops(entry, anchor))
    if (number, previous) != head:
        return Chain(number, previous, f"the newest entry should be {head[0]} and is {number}")
    if not attested:
        return Chain(number, previous, f"the entries up to {anchor[0]} were removed, and no entry says so")
    return Chain(number, previous, None if met else "no entry has the remembered hash: the chain was written anew")


def _drops(entry: Entry, anchor: tuple[int, str]) -> bool:
    """Whether an entry says that everything up to the anchor was dropped."""
    details = msgspec.json.decode(entry.details, type=dict[str, str | int | bool])
    return (details.get("number"), details.get("hash")) == anchor


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
