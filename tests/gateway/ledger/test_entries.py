from __future__ import annotations

import csv
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.types import Usage
from gateway.catalog import Price, nano_usd, price_table
from gateway.config import ModelConfig
from gateway.config_limits import PriceConfig
from gateway.ledger import Entry, believable, correction, fold
from gateway.ledger.export import csv_header, csv_line, json_line, usd

PRICE = Price(nano_usd("0.15"), nano_usd("0.075"), nano_usd("0.60"), "v1")


def entry(identity: str = "e", **more: Any) -> Entry:
    known = Entry(
        id=identity,
        request_id="r",
        at_us=3_600_000_001,
        status="posted",
        outcome="ok",
        tenant="t",
        key_id="k",
        model="m",
        target="m",
        provider="local",
        kind="chat",
    )
    return msgspec.structs.replace(known, **more)


@pytest.mark.parametrize(
    ("text", "nano"),
    [("0", 0), ("0.1", 100_000_000), ("15", 15 * 10**9), ("0.000000001", 1), ("999999.999999999", 10**15 - 1)],
)
def test_amounts_are_exact(text: str, nano: int) -> None:
    assert nano_usd(text) == nano
    assert nano_usd(usd(nano)) == nano


@pytest.mark.parametrize("text", ["", ".", "-1", "1e3", "0.0000000001", "1,5", "0x1", "\u0661"])
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        nano_usd(text)


def test_a_cost_is_rounded_up_once() -> None:
    assert PRICE.cost_nano(Usage(1000, 500, 400)) == 600 * 150 + 400 * 75 + 500 * 600
    assert Price(1, 1, 1).cost_nano(Usage(1, 1)) == 1
    assert Price(0, 0, 0).cost_nano(Usage(10**9, 10**9)) == 0


@given(
    st.tuples(*[st.integers(0, 10**11)] * 3),
    st.integers(0, 10**7),
    st.integers(0, 10**7),
    st.floats(0, 1),
    st.integers(1, 8),
)
def test_the_worst_case_is_never_below_the_cost(
    prices: tuple[int, int, int], prompt: int, output: int, cached: float, choices: int
) -> None:
    price = Price(*prices)
    usage = Usage(prompt, output * choices, int(prompt * cached))
    assert price.cost_nano(usage) <= price.input_cost_nano(prompt) + output * price.output_unit_nano(choices)


def test_the_version_of_the_price_table_follows_every_price() -> None:
    def model(name: str, usd_text: str) -> ModelConfig:
        return ModelConfig(name=name, path="/m", price=PriceConfig(input=usd_text))

    first = price_table([model("a", "1"), model("b", "2"), ModelConfig(name="c", path="/m")])
    assert first == price_table([model("b", "2"), model("a", "1")])
    assert first["a"].table != price_table([model("a", "1"), model("b", "3")])["a"].table
    assert (first["a"].input_nano, first["a"].cached_nano, first["a"].output_nano) == (10**9, 10**9, 0)


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        (None, Usage(10, 5)),
        (Usage(8, 3), Usage(8, 3)),
        (Usage(12), Usage(12, 5)),
        (Usage(12, 7, 4, 2), Usage(12, 7, 4, 2)),
        (Usage(-5, -5, -5, -5), Usage(10, 5)),
        (Usage(10, 5, 99, 99), Usage(10, 5, 10, 5)),
    ],
)
def test_what_was_not_reported_is_charged_as_it_was_counted(reported: Usage | None, expected: Usage) -> None:
    assert believable(reported, 10, 5) == expected


def test_a_batch_sums_up_charges_transfers_and_hours() -> None:
    batch = fold(
        [
            entry("a", cost_nano=7, charged_nano=5, accounts=("key:k:m", "wallet:w"), prompt_tokens=3),
            entry("b", cost_nano=2, charged_nano=2, accounts=("key:k:m",)),
            entry("c", status="voided", accounts=("key:k:m", "wallet:w")),
            entry("d", status="correction", cost_nano=-3, charged_nano=-1, accounts=("wallet:w",)),
        ]
    )
    assert batch.charges == {"key:k:m": 7}
    assert [(move.debit, move.credit, move.amount_nano) for move in batch.transfers] == [
        ("wallet:w", "world:revenue", 5),
        ("world:revenue", "wallet:w", 1),
    ]
    ((place, sums),) = batch.hours.items()
    assert (place[0], sums.requests, sums.cost_nano, sums.prompt_tokens) == (3_600_000_000, 3, 6, 3)


def test_corrections_give_back_but_never_take() -> None:
    posted = entry(prompt_tokens=10, price=PRICE, cost_nano=1500, charged_nano=1500, accounts=("wallet:w",))
    cheaper = correction(posted, [], Price(100_000_000, 0, 0, "v2"), 9)
    assert cheaper is not None
    assert (cheaper.id, cheaper.corrects, cheaper.cost_nano, cheaper.charged_nano) == ("e~1", "e", -500, -500)
    assert correction(posted, [cheaper], Price(100_000_000, 0, 0, "v2"), 9) is None
    dearer = correction(posted, [cheaper], Price(300_000_000, 0, 0, "v3"), 9)
    assert dearer is not None and (dearer.cost_nano, dearer.charged_nano) == (2000, 0)
    free = correction(posted, [cheaper, dearer], Price(0, 0, 0, "v4"), 9)
    assert free is not None and (free.id, free.cost_nano, free.charged_nano) == ("e~3", -3000, -1000)


def test_csv_is_safe_in_a_spreadsheet() -> None:
    line = csv_line(entry(request_id='=cmd("x")', model="+m", outcome='a,"b"\nc', cost_nano=-5, price=PRICE))
    (row,) = csv.DictReader([csv_header(), *line.splitlines(keepends=True)])
    assert row["request_id"] == '\'=cmd("x")' and row["model"] == "'+m"
    assert (row["cost_nano"], row["price_table"], row["outcome"]) == ("-5", "v1", 'a,"b"\nc')
    assert row["user_id"] == ""


def test_json_lines_hold_the_whole_entry() -> None:
    whole = entry(price=PRICE, accounts=("a",))
    assert msgspec.json.decode(json_line(whole), type=Entry) == whole


def test_a_correction_keeps_the_factor_of_the_price() -> None:
    half = PRICE.times(500_000)
    assert half.cost_nano(Usage(1000)) * 2 == PRICE.cost_nano(Usage(1000)) and half.table == PRICE.table
    posted = entry(price=half, cost_nano=half.cost_nano(Usage(1000)), prompt_tokens=1000)
    assert correction(posted, [], PRICE, 9) is None
    cheaper = correction(posted, [], Price(75_000_000, 0, 0, "v2"), 9)
    assert cheaper is not None and cheaper.cost_nano == -half.cost_nano(Usage(1000)) // 2
