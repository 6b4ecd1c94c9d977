from __future__ import annotations

import datetime
from typing import get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.periods import PeriodName, period_at

UTC = ZoneInfo("UTC")
BERLIN = ZoneInfo("Europe/Berlin")


def us(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("name", "zone", "at", "expected", "starts", "ends"),
    [
        ("day", UTC, "2026-02-28T23:59:59Z", "d2026-02-28", "2026-02-28T00:00Z", "2026-03-01T00:00Z"),
        ("day", BERLIN, "2026-02-28T23:00:00Z", "d2026-03-01", "2026-02-28T23:00Z", "2026-03-01T23:00Z"),
        ("day", BERLIN, "2026-03-29T12:00:00Z", "d2026-03-29", "2026-03-28T23:00Z", "2026-03-29T22:00Z"),
        ("week", UTC, "2026-03-01T12:00:00Z", "w2026-02-23", "2026-02-23T00:00Z", "2026-03-02T00:00Z"),
        ("month", UTC, "2026-12-31T12:00:00Z", "m2026-12-01", "2026-12-01T00:00Z", "2027-01-01T00:00Z"),
        ("month", BERLIN, "2026-10-31T23:30:00Z", "m2026-11-01", "2026-10-31T23:00Z", "2026-11-30T23:00Z"),
        ("year", UTC, "2028-02-29T12:00:00Z", "y2028-01-01", "2028-01-01T00:00Z", "2029-01-01T00:00Z"),
    ],
)
def test_periods(name: PeriodName, zone: ZoneInfo, at: str, expected: str, starts: str, ends: str) -> None:
    period = period_at(name, us(at), zone)
    assert (period.name, period.starts_us, period.ends_us) == (expected, us(starts), us(ends))


def test_the_total_has_no_end() -> None:
    period = period_at("total", us("2026-01-01T00:00Z"), UTC)
    assert (period.name, period.ends_us, period.covers(2**60)) == ("total", None, True)


@given(
    st.sampled_from(get_args(PeriodName)[:-1]),
    st.sampled_from(["UTC", "Europe/Berlin", "America/Sao_Paulo", "Asia/Kathmandu", "Australia/Lord_Howe"]),
    st.integers(us("2000-01-01T00:00Z"), us("2100-01-01T00:00Z")),
)
def test_periods_tile_the_time_without_gap_or_overlap(name: PeriodName, zone: str, now_us: int) -> None:
    period = period_at(name, now_us, ZoneInfo(zone))
    assert period.covers(now_us) and period.ends_us is not None
    assert period_at(name, period.starts_us, ZoneInfo(zone)) == period
    assert period_at(name, period.ends_us - 1, ZoneInfo(zone)) == period
    after = period_at(name, period.ends_us, ZoneInfo(zone))
    assert after.starts_us == period.ends_us and after.name != period.name
