"""What was used and what it cost: sums, single entries, files of them, and corrections after a price was wrong."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Annotated, Any, Literal, cast, get_args

import msgspec
from msgspec import Meta

from gateway import errors
from gateway.api.admin.routes import Body, Call, Moment, Page, Paging, Route, encode, kept, shown, since_us, until_us
from gateway.api.http import Download, Response, respond
from gateway.api.usage import items
from gateway.auth.roles import Reach
from gateway.catalog import Price
from gateway.ledger import Entry
from gateway.ledger.export import csv_header, csv_line, csv_table, json_line, usd
from gateway.ledger.store import FILTERED, SUM_COLUMNS, Filter, GroupBy, Ledger

GROUPS = cast(tuple[GroupBy, ...], get_args(GroupBy))
TIMES = frozenset({"hour", "day", "month"})
CHUNK_BYTES = 1 << 16
CSV, JSON_LINES = "text/csv; charset=utf-8", "application/x-ndjson"
MEDIA = ("application/json", "text/csv", "application/x-ndjson")
FILES = "As a file with everything that was asked for with `format=csv` or `jsonl`, or by `Accept`."

Format = Literal["json", "csv", "jsonl"]


class Part(Paging, kw_only=True, frozen=True):
    """Which part of the ledger is meant."""

    since: Moment | None = None
    until: Moment | None = None
    tenant: str | None = None
    key_id: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    org_id: str | None = None
    model: str | None = None
    provider: str | None = None
    format: Format | None = None


class SumsQuery(Part, kw_only=True, frozen=True):
    """`by` is a list with commas: one of hour, day and month, and any of the other dimensions."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    by: str = "model"


class SumsShown(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sums, with the dimensions they are told apart by. `start` is the beginning of the hour, day or month."""

    start: Moment | None = None
    tenant: str | None = None
    key_id: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    org_id: str | None = None
    model: str | None = None
    provider: str | None = None
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_usd: str


class EntryShown(msgspec.Struct, frozen=True, kw_only=True):
    """One entry. The amounts of a correction are differences to what it `corrects`."""

    object: str = "ledger.entry"
    id: str
    request_id: str
    at: Moment
    status: str
    outcome: str
    corrects: str | None
    tenant: str
    key_id: str
    user_id: str | None
    team_id: str | None
    org_id: str | None
    model: str
    target: str
    provider: str
    kind: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    estimated: bool
    cost_usd: str | None
    charged_usd: str
    accounts: tuple[str, ...]
    items: list[dict[str, Any]]
    price_table: str | None
    latency_ms: float
    first_token_ms: float | None
    cache: str
    attempts: int


class Corrections(Body, frozen=True, kw_only=True):
    """Which entries are to cost what their models cost now."""

    since: Moment | None = None
    until: Moment | None = None
    tenant: str | None = None
    key_id: str | None = None
    model: str | None = None


class Corrected(msgspec.Struct, frozen=True, kw_only=True):
    """How many entries were corrected, and what that changed altogether."""

    object: str = "ledger.corrections"
    corrections: int
    usd: str


class LedgerRoutes:
    """The ledger over HTTP, each caller's part of it. `price_of` says what a model costs now."""

    def __init__(
        self, ledger: Ledger | None, price_of: Callable[[str], Price | None], now_us: Callable[[], int]
    ) -> None:
        self._maybe = ledger
        self._price_of = price_of
        self._now_us = now_us

    @property
    def _ledger(self) -> Ledger:
        return kept(self._maybe)

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET",
                "/admin/v1/usage",
                "usage.read",
                self.sums,
                "What was used and what it cost, summed up",
                query=SumsQuery,
                answer=list[SumsShown],
                media=MEDIA,
                description=FILES,
            ),
            Route(
                "GET",
                "/admin/v1/ledger",
                "usage.read",
                self.entries,
                "Single requests and corrections, the newest first",
                query=Part,
                answer=list[EntryShown],
                media=MEDIA,
                description=FILES,
            ),
            Route(
                "POST",
                "/admin/v1/ledger/corrections",
                "ledger.write",
                self.correct,
                "Correct past requests to the prices of now",
                body=Corrections,
                answer=Corrected,
                action="ledger.reprice",
            ),
        )

    async def sums(self, call: Call[SumsQuery, None]) -> Page[SumsShown] | Response:
        query, by, start = call.query, _groups(call.query.by), _offset(call.query.after)
        rows = [_summed(row) for row in await self._ledger.summary(by, _wanted(query, call.reach))]
        match _format(call, query.format):
            case "csv":
                return respond(_table(rows, by).encode(), CSV, headers=_named("usage.csv"))
            case "jsonl":
                lines = b"".join(encode(row) + b"\n" for row in rows)
                return respond(lines, JSON_LINES, headers=_named("usage.jsonl"))
        end = start + query.limit
        return Page(rows[start:end], str(end) if len(rows) > end else None)

    async def entries(self, call: Call[Part, None]) -> Page[EntryShown] | Response:
        query, wanted = call.query, _wanted(call.query, call.reach)
        match _format(call, query.format):
            case "csv":
                return Download(_written(self._ledger.entries(wanted), csv_line, csv_header()), CSV, "ledger.csv")
            case "jsonl":
                return Download(_written(self._ledger.entries(wanted), json_line), JSON_LINES, "ledger.jsonl")
        found, has_more = await self._ledger.page(wanted, query.limit, query.after)
        return Page([_shown(entry) for entry in found], found[-1].id if has_more else None)

    async def correct(self, call: Call[None, Corrections]) -> Corrected:
        body = call.body
        wanted = Filter(
            since_us=since_us(body.since),
            until_us=until_us(body.until),
            tenant=body.tenant,
            key_id=body.key_id,
            model=body.model,
        )
        count, difference_nano = await self._ledger.reprice(self._price_of, wanted, self._now_us())
        call.note(body.model or "", corrections=count, usd=usd(difference_nano))
        return Corrected(corrections=count, usd=usd(difference_nano))


def _shown(entry: Entry) -> EntryShown:
    """An entry with its amounts in dollars."""
    price = entry.price
    return shown(
        EntryShown,
        entry,
        cost_usd=None if entry.cost_nano is None else usd(entry.cost_nano),
        charged_usd=usd(entry.charged_nano),
        items=[] if price is None else items(price, entry.usage),
        price_table=None if price is None else price.table,
        latency_ms=entry.latency_us / 1000,
        first_token_ms=None if entry.first_token_us is None else entry.first_token_us / 1000,
    )


def _wanted(query: Part, reach: Reach) -> Filter:
    """The part of the ledger that was asked for, as far as the caller sees it."""
    given = {name: getattr(query, name) for name in FILTERED}
    return Filter(since_us=since_us(query.since), until_us=until_us(query.until), any_of=_any_of(reach), **given)


def _any_of(reach: Reach) -> tuple[tuple[str, str], ...] | None:
    if reach.everything:
        return None
    own = (
        ("org_id", reach.org_id),
        *(("team_id", team_id) for team_id in reach.team_ids),
        ("user_id", reach.user_id),
        ("key_id", reach.key_id),
        ("tenant", reach.tenant),
    )
    return tuple((name, value) for name, value in own if value is not None)


def _groups(text: str) -> Sequence[GroupBy]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in GROUPS]:
        raise _invalid("by", f"{unknown[0][:40]!r} is none of {', '.join(GROUPS)}")
    if len(TIMES & set(names)) > 1:
        raise _invalid("by", "choose one of hour, day and month")
    return cast(Sequence[GroupBy], tuple(dict.fromkeys(names)))


def _offset(after: str | None) -> int:
    if after is None:
        return 0
    if not (after.isascii() and after.isdecimal() and len(after) <= 9):
        raise _invalid("after", "expected the next_cursor of an earlier answer")
    return int(after)


def _summed(row: dict[str, Any]) -> SumsShown:
    fields = {name: value for name, value in row.items() if name not in ("hour_us", "cost_nano")}
    start = Moment(int(row["hour_us"])) if "hour_us" in row else None
    return SumsShown(start=start, cost_usd=usd(int(row["cost_nano"] or 0)), **fields)


def _table(rows: Sequence[SumsShown], by: Sequence[GroupBy]) -> str:
    names = ["start"] if TIMES & set(by) else []
    names += [name for name in by if name not in TIMES]
    names += [name.replace("cost_nano", "cost_usd") for name in SUM_COLUMNS]
    values = ([getattr(row, name) for name in names] for row in rows)
    return csv_table(names, ([one.iso if isinstance(one, Moment) else one for one in row] for row in values))


def _format(call: Call[Any, Any], asked: Format | None) -> Format:
    """What the query says, else what the client accepts first."""
    if asked is not None:
        return asked
    kinds: dict[str, Format] = {"text/csv": "csv", "application/x-ndjson": "jsonl", "application/jsonl": "jsonl"}
    first = call.request.headers.get("accept", "").partition(",")[0].partition(";")[0]
    return kinds.get(first.strip().lower(), "json")


async def _written(
    entries: AsyncIterator[Entry], line: Callable[[Entry], str], header: str = ""
) -> AsyncGenerator[bytes, None]:
    """Lines in pieces of a size that is worth sending."""
    lines, size = [header], len(header)
    async for entry in entries:
        text = line(entry)
        lines.append(text)
        size += len(text)
        if size >= CHUNK_BYTES:
            yield "".join(lines).encode()
            lines, size = [], 0
    yield "".join(lines).encode()


def _named(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{name}"'}


def _invalid(param: str, problem: str) -> errors.GatewayError:
    return errors.error("invalid_value", f"Invalid value for {param!r}: {problem}.", param=param)
