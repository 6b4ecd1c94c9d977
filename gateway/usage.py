"""The commands about money: `gateway usage` reads the ledger, `gateway wallets` moves prepaid credit."""

from __future__ import annotations

import argparse
import datetime
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast, get_args
from urllib.parse import quote

import msgspec

from gateway.audit import note
from gateway.catalog import nano_usd, price_table
from gateway.config import Config
from gateway.config_limits import BudgetConfig, RateConfig, ScopeLimits
from gateway.errors import GatewayError
from gateway.ledger import Entry
from gateway.ledger.export import csv_header, csv_line, json_line, usd
from gateway.ledger.store import FILTERED, SUM_COLUMNS, Filter, GroupBy, Ledger
from gateway.limits.plans import WALLET
from gateway.limits.wallets import Transfer, Wallets
from gateway.served.stock import Stock
from gateway.state.database import Database

WINDOW_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
TIMES = {"hour": "%Y-%m-%d %H:%M", "day": "%Y-%m-%d", "month": "%Y-%m"}
GROUPS: tuple[str, ...] = get_args(GroupBy)


class UsageError(Exception):
    """What was asked for cannot be done; the message says why."""


def limits_of(options: argparse.Namespace) -> ScopeLimits | None:
    """The limits that a command was told; None when it was told none. Raises UsageError."""
    try:
        limits = msgspec.convert(
            {
                "requests_per_minute": options.rpm,
                "tokens_per_minute": options.tpm,
                "concurrent_requests": options.concurrent,
                "rates": [_rate(text) for text in options.rate],
                "budgets": [_budget(text) for text in options.budget],
                "wallet": options.wallet,
                "time_zone": options.time_zone,
            },
            ScopeLimits,
        )
    except msgspec.ValidationError as error:
        raise UsageError(f"these limits cannot be: {error}") from None
    return None if limits == ScopeLimits() else limits


def _rate(text: str) -> RateConfig:
    """`1000:requests:1h` in any hour, or `1000:requests:day` in each calendar day."""
    match = re.fullmatch(r"(\d{1,12}):(requests|tokens):(\w{1,7})", text)
    try:
        if match is None:
            raise ValueError
        return msgspec.convert({"unit": match[2], "limit": int(match[1]), **_window(match[3])}, RateConfig)
    except ValueError:
        example = "1000:requests:1h or 1000:requests:day"
        raise UsageError(f"a rate is LIMIT:requests|tokens:WINDOW such as {example}, not {text!r}") from None


def _window(text: str) -> dict[str, int | str]:
    """A length of time such as `24h`, or the name of a calendar period."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    return {"period": text} if match is None else {"window_s": int(match[1]) * WINDOW_UNITS_S[match[2]]}


def _budget(text: str) -> BudgetConfig:
    """`5` for a month, `5/day`, or `5/24h` in any 24 hours."""
    amount, _, window = text.partition("/")
    try:
        return msgspec.convert({"usd": amount, **_window(window or "month")}, BudgetConfig)
    except msgspec.ValidationError:
        form = "USD, USD/hour|day|week|month|year|total or USD/24h"
        raise UsageError(f"a budget is {form}, not {text!r}") from None


async def usage(database: Database, options: argparse.Namespace, config: Config) -> list[Sequence[str]]:
    """Do what `gateway usage` was told; the rows of a table, unless it wrote something else itself."""
    ledger = Ledger(database)
    given = {name: getattr(options, name) for name in FILTERED}
    wanted = Filter(since_us=options.since, until_us=options.until, **given)
    if options.csv or options.jsonl:
        await _export(ledger.entries(wanted), as_csv=options.csv)
        return []
    if options.reprice:
        served = await Stock(database, config).read()
        priced = served.config
        prices = price_table([*priced.models, *priced.routes], priced.providers, served.prices)
        count, difference_nano = await ledger.reprice(prices.get, wanted, time.time_ns() // 1000)
        await note(database, "ledger.reprice", options.model or "", corrections=count, usd=usd(difference_nano))
        print(f"{count} corrections, together {usd(difference_nano)} US dollars")
        return []
    by = [f"{name}_id" if name in ("key", "user", "team", "org") else name for name in options.by.split(",") if name]
    if unknown := [name for name in by if name not in GROUPS]:
        raise UsageError(f"cannot sum up by {unknown[0]}; possible: {', '.join(GROUPS)}")
    rows = await ledger.summary(cast(Sequence[GroupBy], by), wanted)
    if options.json:
        print(msgspec.json.encode(rows).decode())
        return []
    unit = next((name for name in by if name in TIMES), "hour")
    sums = [*dict.fromkeys("hour_us" if name in TIMES else name for name in by), *SUM_COLUMNS]
    names = list(rows[0]) if rows else sums
    called = {"hour_us": unit, "cost_nano": "cost_usd"}
    table: list[Sequence[str]] = [[called.get(name, name).upper() for name in names]]
    table += [[_cell(name, row[name], unit) for name in names] for row in rows]
    return table


def _cell(name: str, value: object, unit: str) -> str:
    if name == "hour_us":
        return _when(int(str(value)), unit)
    return usd(int(str(value))) if name == "cost_nano" else str(value)


def _when(at_us: int, unit: str = "hour") -> str:
    return datetime.datetime.fromtimestamp(at_us / 1e6, datetime.UTC).strftime(TIMES[unit])


async def _export(entries: AsyncIterator[Entry], *, as_csv: bool) -> None:
    if as_csv:
        sys.stdout.write(csv_header())
    async for entry in entries:
        sys.stdout.write(csv_line(entry) if as_csv else json_line(entry))


async def wallets(database: Database, options: argparse.Namespace) -> list[Sequence[str]]:
    """Do what `gateway wallets` was told; the rows of a table."""
    try:
        return await _wallets(database, options)
    except (GatewayError, ValueError) as error:
        raise UsageError(str(error)) from None


async def _wallets(database: Database, options: argparse.Namespace) -> list[Sequence[str]]:
    table = Wallets(database)
    now_us = time.time_ns() // 1000
    name, verb = options.name, options.verb
    if verb != "list" and name is None:
        raise UsageError(f"gateway wallets {verb} needs the name of a wallet")
    if verb in ("top-up", "refund"):
        if options.usd is None:
            raise UsageError(f"gateway wallets {verb} needs an amount in US dollars")
        key = options.idempotency_key or secrets.token_hex(12)
        change = table.top_up if verb == "top-up" else table.refund
        nano = nano_usd(options.usd)
        new = await change(name, nano, key, now_us, options.note)
        await note(database, f"wallet.{verb}", name, usd=usd(nano), note=options.note, new=new)
    elif verb == "open":
        nano = nano_usd(options.usd or "0")
        await table.open(name, options.tenant, now_us, bonus_nano=nano)
        await note(database, "wallet.open", name, tenant=options.tenant, usd=usd(nano))
    elif verb == "statement":
        await table.get(name)
        lines = await table.statement(name, limit=1000)
        return [
            ("AT", "KIND", "USD", "BALANCE", "FROM", "TO", "NOTE"),
            *(_statement_line(line, WALLET + name) for line in lines),
        ]
    found = await table.all(None if verb == "list" else name)
    return [
        ("NAME", "TENANT", "USD", "STATUS"),
        *((one.id, one.tenant, usd(one.balance_nano), "paused" if one.paused else "active") for one in found),
    ]


def _statement_line(line: Transfer, account: str) -> Sequence[str]:
    amounts = usd(line.gives(account)), usd(line.balance_nano or 0)
    return _when(line.at_us), line.kind, *amounts, line.debit, line.credit, line.note


def transfer(options: argparse.Namespace) -> str:
    """Have a running server move credit to another wallet; what it says of the wallet that paid, as JSON."""
    if options.name is None or options.usd is None or options.to is None:
        raise UsageError("say what goes where: gateway wallets transfer FROM USD --to NAME")
    from gateway.chat import administration

    key = options.idempotency_key or secrets.token_hex(12)
    body = {"to": options.to, "usd": options.usd, "note": options.note}
    with administration(options.url, options.key) as server:
        path = f"/wallets/{quote(options.name, safe='')}/transfer"
        moved = server.ask("POST", path, dict[str, Any], body, {"Idempotency-Key": key})
    return msgspec.json.encode(moved["wallet"]).decode()
