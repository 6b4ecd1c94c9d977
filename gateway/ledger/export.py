"""The ledger as CSV and JSON lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

import msgspec

from gateway.ledger import Entry

COLUMNS = tuple(name for name in Entry.__struct_fields__ if name not in ("price", "accounts"))
PRICE_COLUMNS = ("price_input", "price_cached_input", "price_output", "price_table")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_header() -> str:
    return _line((*COLUMNS, *PRICE_COLUMNS))


def csv_line(entry: Entry) -> str:
    """One entry. Text that a spreadsheet would compute gets an apostrophe in front; numbers stay numbers."""
    price = entry.price
    prices: tuple[object, ...] = ("", "", "", "")
    if price is not None:
        in_force = price.at(entry.prompt_tokens)
        prices = (in_force.input_nano, in_force.cached_nano, in_force.output_nano, price.table)
    return _line(tuple(_safe(value) for value in (*(getattr(entry, name) for name in COLUMNS), *prices)))


def csv_table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Any table, as safe as that of the entries."""
    return _line(tuple(names)) + "".join(_line(tuple(_safe(value) for value in row)) for row in rows)


def json_line(entry: Entry) -> str:
    """One entry as a JSON object on a line of its own."""
    return msgspec.json.encode(msgspec.structs.asdict(entry)).decode() + "\n"


def usd(nano: int) -> str:
    """Nano-USD as exact decimal dollars, `0.0000125`."""
    if nano == 0:
        return "0.0"
    if 0 < nano < 10**9:
        return "0." + f"{nano:09d}".rstrip("0")
    sign = "-" if nano < 0 else ""
    whole, fraction = divmod(abs(nano), 10**9)
    digits = f"{fraction:09d}".rstrip("0")
    return f"{sign}{whole}.{digits or '0'}"


def _safe(value: object) -> object:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return "" if value is None else value


def _line(values: tuple[object, ...]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue()
