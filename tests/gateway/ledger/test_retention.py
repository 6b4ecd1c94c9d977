from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit import CLI, Audit, Chain, Event, append, entry_of, verify
from gateway.catalog import Price
from gateway.config_money import RetentionConfig
from gateway.ledger.retention import drop_entries
from gateway.ledger.store import Ledger
from gateway.limits.wallets import Wallets, sweep_windows
from gateway.retention import DAY_US, Retention
from gateway.state.database import Database
from tests.databases import open_migrated
from tests.gateway.ledger.test_entries import PRICE, entry
from tests.gateway.ledger.test_store import ALL, Flaky, with_ledger

NOW_US = 1_800_000_000_000_000
MORE = {"prompt_tokens": 10, "price": PRICE, "cost_nano": 1500, "charged_nano": 1500}


async def sound(database: Database) -> bool:
    return await Ledger(database).problems() + await Wallets(database).problems() == []


def test_what_is_dropped_leaves_every_sum_as_it_was(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        wallets = Wallets(database)
        await wallets.open("w", "t", NOW_US - 90 * DAY_US, bonus_nano=10**9)
        accounts = ("key:k:total", "wallet:w", f"key:k:3600s:{NOW_US // 60_000_000}")
        old = [
            entry(f"o{n}", at_us=NOW_US - (60 - n) * DAY_US // 2, accounts=accounts, org_id="o", **MORE)
            for n in range(60)
        ]
        await ledger.commit(old)
        await ledger.reprice({"m": Price(100_000_000, 0, 0)}.get, ALL, NOW_US)
        before = await ledger.summary(("model", "org_id"), ALL), await wallets.all(), await wallets.balances(accounts)
        assert await drop_entries(database, NOW_US - 10 * DAY_US, NOW_US) == 40
        assert await sound(database)
        after = await ledger.summary(("model", "org_id"), ALL), await wallets.all(), await wallets.balances(accounts)
        assert before == after and before[0][0]["org_id"] == "o"
        assert len([one async for one in ledger.entries(ALL)]) == 20 + 60
        days = [one for one in await wallets.statement("w", limit=1000) if one.id.startswith("day:")]
        assert len(days) == 20 and sum(one.amount_nano for one in days) == 40 * 1500
        # An entry that comes late from an outbox is dropped in the next turn, into the transfer of its day.
        await ledger.commit([entry("late", at_us=old[0].at_us, accounts=accounts, **MORE)])
        assert await drop_entries(database, NOW_US - 10 * DAY_US, NOW_US) == 1
        assert await sound(database)
        assert len([one for one in await wallets.statement("w", limit=1000) if one.id.startswith("day:")]) == 20

    with_ledger(tmp_path, scenario)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 60),
            st.integers(-3, 9).filter(bool),
            st.sets(st.sampled_from(["key:k:total", "team:t:m2026-01-01", "wallet:w", "wallet:v"])),
        ),
        max_size=30,
    ),
    st.lists(st.integers(0, 60), max_size=4),
)
def test_balances_can_be_derived_after_any_drops(histories: list[tuple[int, int, set[str]]], drops: list[int]) -> None:
    async def run(folder: Path) -> None:
        database = await open_migrated(folder, serve=True)
        try:
            ledger, share = Ledger(database), max(1, len(histories) // (len(drops) + 1))
            entries = [
                entry(f"e{n}", at_us=day * DAY_US, charged_nano=nano, accounts=tuple(sorted(accounts)))
                for n, (day, nano, accounts) in enumerate(histories)
            ]
            for n, days in enumerate([*drops, 61]):
                if some := entries[n * share : (n + 1) * share]:
                    await ledger.commit(some)
                await drop_entries(database, days * DAY_US, NOW_US)
                assert await sound(database)
        finally:
            await database.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


def test_slots_that_left_their_windows_are_swept(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        slot = NOW_US // 60_000_000
        names = [f"key:k:3600s:{slot - back}" for back in (0, 60, 62 + 24 * 60, 5000)]
        names += ["tenant:3600s:1:total", "key:k:h5"]
        await ledger.commit([entry(name, at_us=NOW_US, accounts=(name,), charged_nano=7) for name in names])
        assert await sweep_windows(database, NOW_US) == 2
        assert sorted(await Wallets(database).balances(names)) == sorted([*names[:2], *names[4:]])
        assert await ledger.problems() == []

    with_ledger(tmp_path, scenario)


def test_the_audit_log_begins_at_an_anchor_that_an_entry_names(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = await open_migrated(tmp_path, serve=True)
        try:
            async with database.transaction() as inside:
                for day in range(100):
                    await append(
                        inside, [entry_of(Event(action="key.create", actor=CLI), NOW_US - (99 - day) * DAY_US)]
                    )
            whole = await verify(database)
            retention = Retention(database, Audit(None), RetentionConfig(audit_days=31), now_us=lambda: NOW_US)
            await retention.once()
            await retention.once()
            chain = await verify(database, whole.hash)
            assert (chain.count, chain.problem) == (101, None)
            (row,) = await database.query("SELECT COUNT(*) AS count, MIN(number) AS first FROM audit")
            assert (row["count"], row["first"]) == (33, 69)
            assert (await verify(database, "ab" * 32)).problem is not None
            await database.execute("DELETE FROM audit WHERE number <= 69")
            assert (await verify(database)).problem == "entry 69 is missing"
            (row,) = await database.query("SELECT hash FROM audit WHERE number = 70")
            await database.execute("UPDATE audit_anchor SET number = 70, hash = $1", row["hash"])
            await database.execute("DELETE FROM audit WHERE number <= 70")
            problem = "the entries up to 70 were removed, and no entry says so"
            assert await verify(database) == Chain(101, chain.hash, problem)
        finally:
            await database.close()

    asyncio.run(scenario())
