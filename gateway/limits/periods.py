"""Calendar periods of budgets, in the operator's time zone."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Literal, get_args
from zoneinfo import ZoneInfo

import msgspec

PeriodName = Literal["hour", "day", "week", "month", "year", "total"]
PERIOD_LETTERS: Mapping[str, str] = {name[0]: name for name in get_args(PeriodName)}


class Period(msgspec.Struct, frozen=True):
    """One period: `name` tells it from every other; it lasts from `starts_us` up to `ends_us`, None for always."""

    name: str
    starts_us: int
    ends_us: int | None

    def covers(self, now_us: int) -> bool:
        return self.starts_us <= now_us and (self.ends_us is None or now_us < self.ends_us)


def period_at(name: PeriodName, now_us: int, zone: ZoneInfo) -> Period:
    """The period around a moment. Days of 23 or 25 hours are what the zone makes of them; weeks begin on Monday."""
    if name == "total":
        return Period("total", 0, None)
    if name == "hour":
        # Hours are counted, not read off a clock: the one that a change of time repeats is two periods.
        hour = now_us // 3_600_000_000
        return Period(f"h{hour}", hour * 3_600_000_000, (hour + 1) * 3_600_000_000)
    day = datetime.datetime.fromtimestamp(now_us // 1_000_000, zone).date()
    match name:
        case "day":
            first, after = day, day + datetime.timedelta(days=1)
        case "week":
            first = day - datetime.timedelta(days=day.weekday())
            after = first + datetime.timedelta(days=7)
        case "month":
            first = day.replace(day=1)
            after = (first + datetime.timedelta(days=32)).replace(day=1)
        case "year":
            first, after = day.replace(month=1, day=1), day.replace(year=day.year + 1, month=1, day=1)
    return Period(f"{name[0]}{first.isoformat()}", _midnight_us(first, zone), _midnight_us(after, zone))


def _midnight_us(day: datetime.date, zone: ZoneInfo) -> int:
    moment = datetime.datetime(day.year, day.month, day.day, tzinfo=zone)
    return int(moment.timestamp()) * 1_000_000
