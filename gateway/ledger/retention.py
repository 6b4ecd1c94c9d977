"""Dropping the detail of old requests, the oldest first, in small transactions.

Balances and hourly sums stay as they are. What the dropped entries had charged is kept as one sum per account, and
their transfers become one per wallet and day, so every balance is still the sum of what it is derived from.
"""

from __future__ import annotations

import asyncio

import msgspec

from gateway.ledger import transfer_id
from gateway.limits.plans import WALLET
from gateway.limits.wallets import condense, places
from gateway.limits.windows import slot_is_over
from gateway.state.database import Database, Statements

BATCH = 500
PAUSE_S = 0.02


async def drop_entries(database: Database, before_us: int, now_us: int) -> int:
    """Drop the entries from before a moment; how many there were."""
    count = 0
    while dropped := await _drop_batch(database, before_us, now_us):
        count += dropped
        await asyncio.sleep(PAUSE_S)
    return count


async def _drop_batch(database: Database, before_us: int, now_us: int) -> int:
    async with database.transaction() as inside:
        rows = await inside.query(
            f"SELECT id, accounts, charged_nano FROM ledger WHERE at_us < $1 ORDER BY at_us, id LIMIT {BATCH}",
            before_us,
        )
        charges: dict[str, int] = {}
        transfers: list[str] = []
        for row in rows:
            for account in msgspec.json.decode(str(row["accounts"]), type=tuple[str, ...]):
                if account.startswith(WALLET):
                    transfers.append(transfer_id(str(row["id"]), account))
                elif not slot_is_over(account, now_us):
                    charges[account] = charges.get(account, 0) + int(str(row["charged_nano"]))
        await _keep_sums(inside, charges)
        await condense(inside, transfers)
        if rows:
            ids = [str(row["id"]) for row in rows]
            await inside.execute(f"DELETE FROM ledger WHERE id IN {places(1, len(ids))}", *ids)
    return len(rows)


async def _keep_sums(inside: Statements, charges: dict[str, int]) -> None:
    kept = [(account, nano) for account, nano in sorted(charges.items()) if nano]
    if kept:
        await inside.execute(
            f"INSERT INTO ledger_dropped (account, debits_nano) VALUES {places(len(kept), 2)} "
            "ON CONFLICT (account) DO UPDATE SET debits_nano = ledger_dropped.debits_nano + excluded.debits_nano",
            *(value for row in kept for value in row),
        )


async def dropped_sums(database: Database) -> dict[str, int]:
    """What entries that were dropped had charged each account."""
    rows = await database.query("SELECT account, debits_nano FROM ledger_dropped")
    return {str(row["account"]): int(str(row["debits_nano"])) for row in rows}
