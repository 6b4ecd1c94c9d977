from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.errors import GatewayError
from gateway.limits.wallets import Wallets, money_epoch, new_money_epoch
from tests.databases import open_migrated


def with_wallets(data_dir: Path, scenario: Callable[[Wallets], Awaitable[None]]) -> None:
    async def run() -> None:
        database = await open_migrated(data_dir, serve=True)
        try:
            wallets = Wallets(database)
            await scenario(wallets)
            assert await wallets.problems() == []
            rows = await database.query("SELECT SUM(credits_nano - debits_nano) AS total FROM balances")
            assert rows[0]["total"] in (0, None), "what one account gave another one got"
        finally:
            await database.close()

    asyncio.run(run())


def test_the_opening_bonus_is_given_once(tmp_path: Path) -> None:
    async def scenario(wallets: Wallets) -> None:
        for bonus in (500, 500):
            wallet = await wallets.open("w", "t", 1, bonus_nano=bonus)
        assert (wallet.balance_nano, wallet.paused) == (500, False)
        assert (await wallets.open("empty", "t", 1)).paused
        with pytest.raises(ValueError):
            await wallets.open("a b", "t", 1)

    with_wallets(tmp_path, scenario)


def test_a_top_up_is_idempotent_by_its_key(tmp_path: Path) -> None:
    async def scenario(wallets: Wallets) -> None:
        await wallets.open("w", "t", 1)
        assert [await wallets.top_up("w", 70, "invoice-1", at) for at in (2, 3)] == [True, False]
        for nano in (71, 0, -5):
            with pytest.raises(GatewayError) as refused:
                await wallets.top_up("w", nano, "invoice-1", 4)
            assert refused.value.code == ("idempotency_conflict" if nano > 0 else "invalid_value")
        with pytest.raises(GatewayError) as missing:
            await wallets.top_up("nobody", 1, "x", 4)
        assert missing.value.status == 404
        assert (await wallets.get("w")).balance_nano == 70
        assert await wallets.balances(["wallet:w", "wallet:nobody"]) == {
            "wallet:w": (await wallets.balances(["wallet:w"]))["wallet:w"]
        }

    with_wallets(tmp_path, scenario)


def test_transfers_and_refunds(tmp_path: Path) -> None:
    async def scenario(wallets: Wallets) -> None:
        await wallets.open("a", "t", 1, bonus_nano=100)
        await wallets.open("b", "t", 1)
        assert await wallets.transfer("a", "b", 60, "m1", 2, "lunch")
        assert not await wallets.transfer("a", "b", 60, "m1", 2)
        with pytest.raises(GatewayError) as refused:
            await wallets.transfer("a", "b", 41, "m2", 3)
        assert refused.value.code == "insufficient_quota"
        await wallets.refund("a", 5, "r1", 4)
        assert [wallet.balance_nano for wallet in await wallets.all()] == [45, 60]
        statement = await wallets.statement("a")
        newest = statement[0].id
        lines = [(line.kind, line.amount_nano) for line in statement]
        assert lines == [("refund", 5), ("transfer", 60), ("bonus", 100)]
        assert [line.kind for line in await wallets.statement("a", after=newest, limit=1)] == ["transfer"]

    with_wallets(tmp_path, scenario)


def test_a_statement_has_the_balance_after_each_line_on_every_page(tmp_path: Path) -> None:
    async def scenario(wallets: Wallets) -> None:
        await wallets.open("a", "t", 1, bonus_nano=100)
        await wallets.open("b", "t", 1)
        for n in range(4):
            await wallets.top_up("a", 10 + n, f"k{n}", 2 + n // 2)
            await wallets.transfer("a", "b", 5, f"m{n}", 2 + n // 2)
        lines, after = [], None
        while page := await wallets.statement("a", limit=2, after=after):
            lines += page
            after = page[-1].id
        assert [line.balance_nano for line in await wallets.statement("a")] == [line.balance_nano for line in lines]
        assert lines[0].balance_nano == (await wallets.get("a")).balance_nano == 126
        for newer, older in itertools.pairwise(lines):
            assert newer.balance_nano is not None and newer.balance_nano - newer.gives("wallet:a") == older.balance_nano
        assert lines[-1].balance_nano == 100

    with_wallets(tmp_path, scenario)


def test_a_restored_database_has_another_money_epoch(tmp_path: Path) -> None:
    async def scenario(wallets: Wallets) -> None:
        database = wallets._database
        first = await money_epoch(database)
        assert await money_epoch(database) == first
        await new_money_epoch(database)
        assert await money_epoch(database) != first

    with_wallets(tmp_path, scenario)
