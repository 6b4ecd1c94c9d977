"""Exact prices of all kinds of tokens, and which price is in force."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.types import ChatRequest, Message, TextPart, Usage
from gateway.config import Config
from gateway.config_limits import PriceConfig
from gateway.known_prices import TABLE, VERSION, known_price
from gateway.ledger import believable
from gateway.metering import forecast_nano, need_at
from gateway.prices import Price, dearest, in_force, nano_usd, price_of, price_table


def priced(**prices: Any) -> Price:
    return price_of(msgspec.convert(prices, PriceConfig), "t")


CLAUDE = priced(
    input="3",
    output="15",
    cached_input="0.30",
    cache_write="3.75",
    cache_write_1h="6",
    long_prompts={"above_tokens": 200_000, "input": "6", "output": "22.50"},
)
SPEAKING = priced(input="2.5", output="10", audio_input="40", audio_output="80")


@pytest.mark.parametrize(
    ("price", "usage", "cost"),
    [
        (CLAUDE, Usage(1_000_000 // 10), 300_000_000),
        # A part of the prompt was read from the provider's cache, a part is kept for five minutes, a part for an hour.
        (CLAUDE, Usage(1000, 100, 200, 0, 300, 100), 500 * 3000 + 200 * 300 + 200 * 3750 + 100 * 6000 + 100 * 15000),
        (CLAUDE, Usage(200_000, 10), 200_000 * 3000 + 10 * 15000),
        (CLAUDE, Usage(200_001, 10), 200_001 * 6000 + 10 * 22500),
        (SPEAKING, Usage(100, 50, 0, 0, 0, 0, 40, 30), 60 * 2500 + 40 * 40000 + 20 * 10000 + 30 * 80000),
        # Without a price of their own, kept tokens and audio are input and output like any other.
        (priced(input="1", output="2"), Usage(10, 10, 0, 0, 5, 5, 5, 5), 10 * 1000 + 10 * 2000),
        (priced(input="1", cache_write="2"), Usage(10, 0, 0, 0, 5, 5), 5 * 1000 + 5 * 2000),
    ],
)
def test_each_kind_of_token_has_its_price(price: Price, usage: Usage, cost: int) -> None:
    assert price.cost_nano(usage) == cost
    lines = price.at(usage.prompt_tokens).lines(usage)
    assert sum(tokens for _, tokens, _ in lines) == usage.prompt_tokens + usage.completion_tokens
    assert msgspec.json.decode(msgspec.json.encode(price), type=Price) == price


AMOUNT = st.integers(0, 10**11)
MAYBE = st.none() | AMOUNT
SHORT = st.builds(Price, AMOUNT, AMOUNT, AMOUNT, st.just(""), MAYBE, MAYBE, MAYBE, MAYBE)
PRICES = SHORT | st.builds(
    lambda price, above, beyond: msgspec.structs.replace(price, above_tokens=above, beyond=beyond),
    SHORT,
    st.integers(1, 10**6),
    SHORT,
)
COUNT = st.integers(0, 2 * 10**6)
USAGES = st.builds(Usage, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT)


@given(PRICES, USAGES)
def test_no_usage_that_can_be_costs_more_than_is_held(price: Price, reported: Usage) -> None:
    usage = believable(reported, reported.prompt_tokens, 0)
    at = price.at(usage.prompt_tokens)
    kept, audio = usage.cache_write_tokens > 0, usage.prompt_audio_tokens > 0 or usage.completion_audio_tokens > 0
    held = at.input_cost_nano(usage.prompt_tokens, kept=kept, audio=audio)
    held += usage.completion_tokens * at.output_unit_nano(1, audio=audio)
    assert 0 <= price.cost_nano(usage) <= held
    assert all(tokens >= 0 for _, tokens, _ in at.lines(usage))


@given(st.lists(PRICES, min_size=1, max_size=4), USAGES)
def test_the_dearest_price_is_above_all(prices: list[Price], reported: Usage) -> None:
    usage, most = believable(reported, 0, 0), dearest(prices)
    assert most is not None
    assert all(price.cost_nano(usage) <= most.cost_nano(usage) for price in prices)
    assert dearest([*prices, None]) is None


def test_only_requests_that_may_use_it_are_held_at_the_price_of_it() -> None:
    plain = ChatRequest("m", (Message("user", "hello"),))
    marked = ChatRequest("m", (Message("user", (TextPart("hello", cache="1h"),)),))
    assert forecast_nano(plain, CLAUDE, None) < forecast_nano(marked, CLAUDE, None)
    assert need_at(CLAUDE, marked, None).kept and not need_at(CLAUDE, plain, None).kept
    assert not need_at(priced(input="1"), marked, None).kept, "nobody looks where it does not matter"


CONFIG = msgspec.convert(
    {
        "models": [{"name": "here", "path": "/m", "price": {"input": "1"}}],
        "providers": [
            {"name": "far", "kind": "openai", "api_key_file": "/k"},
            {"name": "own", "kind": "vllm", "base_url": "http://a"},
        ],
        "routes": [
            {
                "name": "r",
                "groups": [
                    [
                        {"provider": "far", "model": "gpt-4o"},
                        {"provider": "far", "model": "gpt-4o-mini", "price": {"input": "9"}},
                        {"provider": "far", "model": "gpt-5"},
                        {"provider": "far", "model": "gpt-4o-2024-05-13"},
                        {"provider": "far", "model": "gpt-4.1-2025-04-14"},
                        {"provider": "far", "model": "unheard-of"},
                        {"provider": "own", "model": "gpt-4o"},
                        {"provider": "local", "model": "here"},
                    ]
                ],
            }
        ],
    },
    Config,
)


def test_what_is_configured_comes_first_then_what_was_set_then_what_is_known() -> None:
    overrides = {"far/gpt-5": PriceConfig(input="5"), "far/gpt-4o-mini": PriceConfig(input="6")}
    found = in_force([*CONFIG.models, *CONFIG.routes], CONFIG.providers, overrides)
    assert {place: (known.source, known.price.input_nano / 10**9) for place, known in found.items()} == {
        "here": ("config", 1),
        "r far/gpt-4o": ("table", 2.5),
        "r far/gpt-4o-mini": ("config", 9),
        "r far/gpt-5": ("api", 5),
        "r far/gpt-4o-2024-05-13": ("table", 5),
        "r far/gpt-4.1-2025-04-14": ("table", 2),
        "r local/here": ("config", 1),
    }
    assert found["r far/gpt-4o"].price.table == VERSION != found["here"].price.table


def test_the_version_follows_what_is_written_down_only() -> None:
    before = price_table([*CONFIG.models, *CONFIG.routes], CONFIG.providers)
    after = price_table([*CONFIG.models, *CONFIG.routes], CONFIG.providers, {"far/gpt-5": PriceConfig(input="5")})
    assert before["here"].table != after["here"].table
    assert before["r far/gpt-4o"].table == after["r far/gpt-4o"].table


@pytest.mark.parametrize("place", TABLE, ids="/".join)
def test_the_known_prices_are_well_formed(place: Any) -> None:
    row = TABLE[place]
    assert re.fullmatch(r"20\d\d-[01]\d-[0-3]\d", row.checked) and row.source.startswith("https://")
    assert not row.model.endswith("-latest"), "another model may stand behind the name tomorrow"
    assert re.fullmatch(r"[!-~]+", row.model) and known_price(*place) is row
    price = price_of(row.price, VERSION)
    assert 0 < price.input_nano <= 1000 * 10**9 and price.cached_nano <= price.input_nano
    assert price.output_nano == 0 or price.output_nano >= price.input_nano
    for nano in (price.write_nano, price.write_1h_nano, price.audio_input_nano):
        assert nano is None or nano > price.input_nano
    if price.beyond is not None:
        assert price.beyond.input_nano > price.input_nano and price.beyond.output_nano > price.output_nano
        assert price.beyond.cached_nano <= price.beyond.input_nano
    assert nano_usd(row.price.input) == price.input_nano


def test_only_kinds_of_providers_that_have_a_price_list_have_known_prices() -> None:
    assert known_price("vllm", "gpt-4o") is None and known_price(None, "gpt-4o") is None
    assert known_price("anthropic", "claude-haiku-4-5-20251001") is known_price("anthropic", "claude-haiku-4-5")
    assert known_price("openai", "gpt-4o-2024-05-13-extra") is None
