"""The commands about money, run on a data directory of their own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from gateway import cli
from gateway.ledger.store import Ledger
from tests.databases import open_migrated
from tests.gateway.ledger.test_entries import PRICE, entry


def run(tmp_path: Path, *arguments: str) -> int:
    config = tmp_path / "config.yaml"
    if not config.exists():
        config.write_text("{}")
    return cli.main([*arguments, "--config", str(config), "--data-dir", str(tmp_path / "state")])


def fill(tmp_path: Path) -> None:
    async def write() -> None:
        database = await open_migrated(tmp_path / "state", serve=True)
        more = {"prompt_tokens": 10, "price": PRICE, "cost_nano": 1500, "charged_nano": 1500}
        entries = [entry(f"{n}", at_us=n, accounts=("a",), model="=demo" if n else "demo", **more) for n in range(3)]
        await Ledger(database).commit(entries)
        await database.close()

    asyncio.run(write())


def test_sums_exports_and_corrections(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    assert run(tmp_path, "usage", "--by", "day,model") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["DAY", "MODEL", "REQUESTS", "PROMPT_TOKENS", "CACHED_TOKENS", "COMPLETION_TOKENS", "COST_USD"],
        ["1970-01-01", "=demo", "2", "20", "0", "0", "0.000003"],
        ["1970-01-01", "demo", "1", "10", "0", "0", "0.0000015"],
    ]
    for time, began in (("hour", "HOUR 1970-01-01 00:00 3"), ("month", "MONTH 1970-01 3")):
        assert run(tmp_path, "usage", "--by", time) == 0
        (head, *_), row = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert " ".join([head, *row]).startswith(began)
    assert run(tmp_path, "usage", "--by", "key,user,team,org") == 0
    assert capsys.readouterr().out.split()[:4] == ["KEY_ID", "USER_ID", "TEAM_ID", "ORG_ID"]
    assert run(tmp_path, "usage", "--csv") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and ",'=demo," in lines[2]
    assert run(tmp_path, "usage", "--jsonl", "--model", "demo") == 0
    assert json.loads(capsys.readouterr().out)["cost_nano"] == 1500
    (tmp_path / "config.yaml").write_text('models: [{name: demo, path: /m.gguf, price: {input: "0.10"}}]')
    assert run(tmp_path, "usage", "--reprice") == 0
    assert capsys.readouterr().out == "1 corrections, together -0.0000005 US dollars\n"
    assert run(tmp_path, "usage", "--by", "model", "--json", "--model", "demo") == 0
    assert json.loads(capsys.readouterr().out)[0]["cost_nano"] == 1000
    assert run(tmp_path, "usage", "--by", "colour") == 1
    assert "cannot sum up by colour" in capsys.readouterr().err


def test_without_usage_there_are_headings_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    assert run(tmp_path, "usage", "--by", "day,model") == 0
    headings, *_ = capsys.readouterr().out.splitlines()
    assert run(tmp_path, "usage", "--by", "day,model", "--model", "another") == 0
    assert capsys.readouterr().out.split() == headings.split()


def test_keys_get_limits_and_refuse_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--rpm", "5", "--tpm", "1000", "--concurrent", "2", "--rate", "10:requests:1h", "--rate", "9:tokens:day")
    assert (
        run(
            tmp_path,
            "keys",
            "create",
            "a",
            *options,
            "--budget",
            "5",
            "--budget",
            "0.5/day",
            "--budget",
            "1/24h",
            "--wallet",
            "w",
        )
        == 0
    )
    capsys.readouterr()
    assert run(tmp_path, "keys", "list", "--json") == 0
    (key,) = json.loads(capsys.readouterr().out)
    limits = key["limits"]
    assert (limits["requests_per_minute"], limits["tokens_per_minute"], limits["wallet"]) == (5, 1000, "w")
    assert [(one["limit"], one["window_s"], one["period"]) for one in limits["rates"]] == [
        (10, 3600, None),
        (9, None, "day"),
    ]
    budgets = [(one["usd"], one["period"], one["window_s"]) for one in limits["budgets"]]
    assert budgets == [("5", "month", None), ("0.5", "day", None), ("1", None, 86_400)]
    for wrong in (
        ("--rate", "10/h"),
        ("--rate", "1:tokens:total"),
        ("--budget", "5/1s"),
        ("--time-zone", "Mars"),
        ("--budget", "1e3"),
        ("--budget", "5/decade"),
        ("--wallet", ""),
    ):
        assert run(tmp_path, "keys", "create", "b", *wrong) == 1
        assert capsys.readouterr().err.startswith("gateway: ")
    for count in ("-1", "1.5", "ten", "9" * 13):
        with pytest.raises(SystemExit):
            run(tmp_path, "keys", "create", "b", "--rpm", count)
        assert f"--rpm: expected a whole number of at most 12 digits, not '{count}'" in capsys.readouterr().err


def test_wallets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "wallets", "open", "w", "2.5", "--tenant", "acme") == 0
    for _ in range(2):
        assert run(tmp_path, "wallets", "top-up", "w", "10", "--idempotency-key", "k") == 0
    assert run(tmp_path, "wallets", "refund", "w", "0.000000001") == 0
    capsys.readouterr()
    assert run(tmp_path, "wallets", "list", "--json") == 0
    expected = {"name": "w", "tenant": "acme", "usd": "12.500000001", "status": "active"}
    assert json.loads(capsys.readouterr().out) == [expected]
    assert run(tmp_path, "wallets", "statement", "w") == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    for wrong in (("top-up", "w"), ("top-up", "w", "-1"), ("top-up", "x", "1"), ("statement",), ("open", "a b", "1")):
        assert run(tmp_path, "wallets", *wrong) in (1, 2)
        capsys.readouterr()
    assert run(tmp_path, "wallets", "top-up", "w", "11", "--idempotency-key", "k") == 1
