"""Wallets: prepaid credit in double entry. A balance is the sum of its transfers, at every commit.

A transfer takes from one account what it gives to another, so all accounts together are always zero. The accounts that
stand for the world outside of the wallets begin with `world:`. `balances` keeps the two sums of every account, of
budget periods too, and is written in the same transaction as what it sums up.
"""

from __future__ import annotations

import datetime
import functools
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from gateway import errors
from gateway.limits.limiter import Balance
from gateway.limits.plans import WALLET
from gateway.limits.windows import slot_is_over
from gateway.state.database import Database, Statements, Value

BONUS = "world:bonus"
FUNDING = "world:funding"
REVENUE = "world:revenue"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
STATEMENT_MAX = 1000
ROWS_MAX = 500


class Transfer(msgspec.Struct, frozen=True):
    """An amount above zero from one account to another. Its id makes it happen once.

    In a wallet's statement `balance_nano` is what the wallet had after it.
    """

    id: str
    debit: str
    credit: str
    amount_nano: int
    kind: str
    at_us: int
    note: str = ""
    balance_nano: int | None = None

    def gives(self, account: str) -> int:
        """What it changes an account's balance by."""
        return self.amount_nano if self.credit == account else -self.amount_nano


class Wallet(msgspec.Struct, frozen=True):
    """A wallet as it may be shown."""

    id: str
    tenant: str
    created_us: int
    debits_nano: int = 0
    credits_nano: int = 0

    @property
    def balance_nano(self) -> int:
        return self.credits_nano - self.debits_nano

    @property
    def paused(self) -> bool:
        """Keys that live on it are refused until it is topped up."""
        return self.balance_nano <= 0


def sums(transfers: Iterable[Transfer]) -> dict[str, Balance]:
    """What transfers add to the balance of each account they touch."""
    debits: dict[str, int] = {}
    credits: dict[str, int] = {}
    for transfer in transfers:
        debits[transfer.debit] = debits.get(transfer.debit, 0) + transfer.amount_nano
        credits[transfer.credit] = credits.get(transfer.credit, 0) + transfer.amount_nano
    return {name: Balance(debits.get(name, 0), credits.get(name, 0)) for name in sorted({*debits, *credits})}


async def post(inside: Statements, transfers: Sequence[Transfer], charges: Mapping[str, int]) -> None:
    """Write transfers, and charges to budget accounts, with their balances. The ids must be new."""
    for some in _batches(transfers):
        rows = [(one.id, one.debit, one.credit, one.amount_nano, one.kind, one.at_us, one.note) for one in some]
        sql = "INSERT INTO transfers (id, debit, credit, amount_nano, kind, at_us, note) VALUES "
        await inside.execute(sql + places(len(rows), 7), *_flat(rows))
    changes = sums(transfers)
    for account, nano in charges.items():
        known = changes.get(account, Balance())
        changes[account] = Balance(known.debits_nano + nano, known.credits_nano)
    for names in _batches(sorted(changes)):
        balances = [(name, changes[name].debits_nano, changes[name].credits_nano) for name in names]
        await inside.execute(
            f"INSERT INTO balances (account, debits_nano, credits_nano) VALUES {places(len(balances), 3)} "
            "ON CONFLICT (account) DO UPDATE SET debits_nano = balances.debits_nano + excluded.debits_nano, "
            "credits_nano = balances.credits_nano + excluded.credits_nano",
            *_flat(balances),
        )


async def money_epoch(database: Database) -> str:
    """A name for the history of this database's money: another one after it was put in the place of an earlier one."""
    sql = "INSERT INTO facts (name, value) VALUES ('money_epoch', $1) ON CONFLICT DO NOTHING"
    await database.execute(sql, secrets.token_hex(4))
    return str((await database.query("SELECT value FROM facts WHERE name = 'money_epoch'"))[0]["value"])


async def new_money_epoch(database: Database) -> None:
    """Tell everyone who starts from now on that shared counters belong to another history."""
    async with database.transaction() as inside:
        await inside.execute("DELETE FROM facts WHERE name = 'money_epoch'")
        sql = "INSERT INTO facts (name, value) VALUES ('money_epoch', $1)"
        await inside.execute(sql, secrets.token_hex(4))


async def condense(inside: Statements, ids: Sequence[str]) -> None:
    """Make one transfer of those of a day between the same two accounts. Balances stay as they are."""
    days: dict[tuple[str, str, str], tuple[int, int]] = {}
    for some in _batches(ids):
        deleted = await inside.query(
            f"DELETE FROM transfers WHERE id IN {places(1, len(some))} RETURNING debit, credit, amount_nano, at_us",
            *some,
        )
        for row in deleted:
            at_us = int(str(row["at_us"]))
            day = datetime.datetime.fromtimestamp(at_us // 1_000_000, datetime.UTC).date().isoformat()
            place = day, str(row["debit"]), str(row["credit"])
            nano, latest_us = days.get(place, (0, 0))
            days[place] = nano + int(str(row["amount_nano"])), max(latest_us, at_us)
    for (day, debit, credit), (nano, at_us) in sorted(days.items()):
        kind = "usage" if credit == REVENUE else "correction"
        await inside.execute(
            "INSERT INTO transfers (id, debit, credit, amount_nano, kind, at_us, note) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO UPDATE SET "
            "amount_nano = transfers.amount_nano + excluded.amount_nano, at_us = excluded.at_us",
            *(f"day:{day}:{debit}>{credit}", debit, credit, nano, kind, at_us, f"all of {day}"),
        )


async def sweep_windows(database: Database, now_us: int) -> int:
    """Delete the balances of slots that have left the windows of their budgets; how many there were."""
    count, after = 0, ""
    while True:
        rows = await database.query(
            "SELECT account FROM balances WHERE account > $1 AND account LIKE '%s:%' ORDER BY account LIMIT $2",
            *(after, ROWS_MAX),
        )
        over = [str(row["account"]) for row in rows if slot_is_over(str(row["account"]), now_us)]
        if over:
            async with database.transaction() as inside:
                await inside.execute(f"DELETE FROM balances WHERE account IN {places(1, len(over))}", *over)
            count += len(over)
        if len(rows) < ROWS_MAX:
            return count
        after = str(rows[-1]["account"])


@functools.lru_cache(maxsize=128)
def places(rows: int, columns: int) -> str:
    """The parameters of several rows: `($1,$2),($3,$4)`."""
    row = range(1, columns + 1)
    return ",".join("(" + ",".join(f"${i * columns + j}" for j in row) + ")" for i in range(rows))


class Wallets:
    """The wallets of a database. Amounts are nano-USD above zero; `key` is what makes a change happen only once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def balances(self, accounts: Sequence[str]) -> dict[str, Balance]:
        """The sums of the accounts that were ever used."""
        sql = f"SELECT * FROM balances WHERE account IN {places(1, len(accounts))}"
        rows = await self._database.query(sql, *accounts)
        return {str(row["account"]): msgspec.convert(row, Balance, strict=False) for row in rows}

    async def open(self, name: str, tenant: str, at_us: int, *, bonus_nano: int = 0) -> Wallet:
        """Make a wallet, with a bonus that it gets once. One that exists already stays as it is."""
        async with self._database.transaction() as inside:
            await self.open_in(inside, name, tenant, at_us, bonus_nano)
        return await self.get(name)

    async def open_in(self, inside: Statements, name: str, tenant: str, at_us: int, bonus_nano: int) -> None:
        """`open` as part of the caller's transaction."""
        if not NAME.fullmatch(name):
            raise ValueError("a wallet's name has 1 to 200 letters, digits and ._:/@+-")
        await inside.execute(
            "INSERT INTO wallets (id, tenant, created_us) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            name,
            tenant,
            at_us,
        )
        if bonus_nano > 0:
            bonus = Transfer(f"bonus:{name}", BONUS, WALLET + name, bonus_nano, "bonus", at_us, "opening bonus")
            await self._once(inside, bonus)

    async def get(self, name: str) -> Wallet:
        """A wallet and its balance; raises `not_found`."""
        found = await self.all(name)
        if not found:
            raise errors.error("not_found", f"There is no wallet {name!r}.")
        return found[0]

    async def all(self, name: str | None = None) -> list[Wallet]:
        """All wallets, or the one called `name`."""
        return await self._select("ORDER BY id") if name is None else await self._select("WHERE id = $1", name)

    async def page(self, tenant: str | None, limit: int, after: str | None = None) -> tuple[list[Wallet], bool]:
        """At most `limit` wallets of a tenant (None: of all) behind the one called `after`; whether there are more."""
        where = "WHERE id > $1" + ("" if tenant is None else " AND tenant = $2")
        values = (after or "", *(() if tenant is None else (tenant,)))
        found = await self._select(f"{where} ORDER BY id LIMIT {limit + 1}", *values)
        return found[:limit], len(found) > limit

    async def _select(self, rest: str, *values: Value) -> list[Wallet]:
        rows = await self._database.query(
            "SELECT id, tenant, created_us, COALESCE(debits_nano, 0) AS debits_nano, "
            f"COALESCE(credits_nano, 0) AS credits_nano FROM wallets LEFT JOIN balances ON account = '{WALLET}' || id "
            + rest,
            *values,
        )
        return msgspec.convert(rows, list[Wallet], strict=False)

    async def top_up(self, name: str, nano: int, key: str, at_us: int, note: str = "") -> bool:
        """Add credit; False when `key` did so before. Raises `idempotency_conflict` when it did something else."""
        await self.get(name)
        async with self._database.transaction() as inside:
            return await self._once(inside, Transfer(_chosen(key), FUNDING, WALLET + name, nano, "top-up", at_us, note))

    async def refund(self, name: str, nano: int, key: str, at_us: int, note: str = "") -> bool:
        """Give back to a wallet what requests had cost it; once per `key`, as `top_up`."""
        await self.get(name)
        async with self._database.transaction() as inside:
            return await self._once(inside, Transfer(_chosen(key), REVENUE, WALLET + name, nano, "refund", at_us, note))

    async def transfer(self, source: str, target: str, nano: int, key: str, at_us: int, note: str = "") -> bool:
        """Move credit to another wallet; once per `key`, as `top_up`. Raises `insufficient_quota`.

        The caller holds the amount in the limiter meanwhile, so that running requests cannot spend it as well.
        """
        await self.get(source)
        await self.get(target)
        move = _move(source, target, nano, key, at_us, note)
        async with self._database.transaction() as inside:
            done = await self._done(inside, move)
            if not done:
                sql = "SELECT credits_nano - debits_nano AS left_nano FROM balances WHERE account = $1"
                rows = await inside.query(sql, move.debit)
                if not rows or int(str(rows[0]["left_nano"])) < nano:
                    raise errors.error("insufficient_quota", f"The wallet {source!r} does not hold that much.")
                await post(inside, (move,), {})
            return not done

    async def transferred(self, source: str, target: str, nano: int, key: str) -> bool:
        """Whether this transfer was made; raises as `transfer` does when `key` made another one."""
        return await self._done(self._database, _move(source, target, nano, key, 0, ""))

    async def _once(self, inside: Statements, transfer: Transfer) -> bool:
        done = await self._done(inside, transfer)
        if not done:
            await post(inside, (transfer,), {})
        return not done

    async def _done(self, inside: Statements, transfer: Transfer) -> bool:
        """Whether a transfer of this id was made; raises when it was another one."""
        if transfer.amount_nano <= 0:
            raise errors.error("invalid_value", "The amount must be above zero.", param="amount")
        rows = await inside.query("SELECT * FROM transfers WHERE id = $1", transfer.id)
        if not rows:
            return False
        known = msgspec.convert(rows[0], Transfer, strict=False)
        same = ("debit", "credit", "amount_nano", "kind")
        if any(getattr(known, name) != getattr(transfer, name) for name in same):
            message = "This idempotency key was used for something else."
            raise errors.error("idempotency_conflict", message)
        return True

    async def statement(self, name: str, *, limit: int = 100, after: str | None = None) -> list[Transfer]:
        """What moved in and out of a wallet, the newest first, behind the transfer whose id is `after`."""
        account, mine = WALLET + name, "(debit = $1 OR credit = $1)"
        behind: tuple[Value, ...] = (2**62, "")
        if after is not None:
            sql = f"SELECT at_us, id FROM transfers WHERE {mine} AND id = $2"
            found = await self._database.query(sql, account, after)
            if not found:
                raise errors.error("invalid_value", "The statement has no such line.", param="after")
            behind = found[0]["at_us"], found[0]["id"]
        # In one statement, so that balance and lines are of one moment.
        rows = await self._database.query(
            "SELECT *, (SELECT credits_nano - debits_nano FROM balances WHERE account = $1) - "
            "(SELECT CAST(COALESCE(SUM(CASE WHEN credit = $1 THEN amount_nano ELSE -amount_nano END), 0) AS BIGINT) "
            f"FROM transfers WHERE {mine} AND (at_us > $2 OR (at_us = $2 AND id <= $3))) AS balance_nano "
            f"FROM transfers WHERE {mine} AND (at_us < $2 OR (at_us = $2 AND id > $3)) "
            "ORDER BY at_us DESC, id LIMIT $4",
            account,
            *behind,
            min(limit, STATEMENT_MAX),
        )
        found = msgspec.convert(rows, list[Transfer], strict=False)
        balance_nano = found[0].balance_nano or 0 if found else 0
        lines = []
        for one in found:
            lines.append(replace(one, balance_nano=balance_nano))
            balance_nano -= one.gives(account)
        return lines

    async def problems(self) -> list[str]:
        """Wallets whose kept balance is not the sum of their transfers."""
        rows = await self._database.query(
            "SELECT account, debits_nano, credits_nano, "
            "(SELECT COALESCE(SUM(amount_nano), 0) FROM transfers WHERE debit = account) AS debits, "
            "(SELECT COALESCE(SUM(amount_nano), 0) FROM transfers WHERE credit = account) AS credits "
            f"FROM balances WHERE account LIKE '{WALLET}%' OR account LIKE 'world:%'"
        )
        return [
            f"the balance of {row['account']!s} is not the sum of its transfers"
            for row in rows
            if (row["debits_nano"], row["credits_nano"]) != (row["debits"], row["credits"])
        ]


def _move(source: str, target: str, nano: int, key: str, at_us: int, note: str) -> Transfer:
    if source == target:
        raise errors.error("invalid_value", "A transfer goes to another wallet.", param="to")
    return Transfer(_chosen(key), WALLET + source, WALLET + target, nano, "transfer", at_us, note)


def _chosen(key: str) -> str:
    """The id of a change under a key that somebody chose; no such key can be the id of a request's transfer."""
    return f"key:{key}"


def _batches(items: Sequence[str] | Sequence[Transfer]) -> Iterable[Sequence]:  # type: ignore[type-arg]
    return (items[start : start + ROWS_MAX] for start in range(0, len(items), ROWS_MAX))


def _flat(rows: Iterable[tuple[Value, ...]]) -> list[Value]:
    return [value for row in rows for value in row]
