"""Points in time as people write and read them. Everything else counts microseconds since 1970."""

from __future__ import annotations

import datetime


def moment_us(text: str) -> int:
    """A date or a time in ISO 8601, in UTC where it names no zone; ValueError says what is expected."""
    try:
        moment = datetime.datetime.fromisoformat(text)
        return round(moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp() * 1_000_000)
    except (ValueError, OverflowError):
        raise ValueError("expected a date such as 2030-12-31 or 2030-12-31T08:00:00Z") from None


def iso(time_us: int) -> str:
    """`2030-12-31T08:00:00.000+00:00`."""
    return datetime.datetime.fromtimestamp(time_us / 1e6, datetime.UTC).isoformat(timespec="milliseconds")
