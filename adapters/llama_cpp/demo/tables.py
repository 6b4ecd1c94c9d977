"""How the corpus writes its tables: words separated by spaces, or rows of text that may go on in indented lines."""

from __future__ import annotations

import re


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def rows(text: str) -> tuple[str, ...]:
    """The lines of a text; an indented line continues the one above, without a space when that one ends in `|`."""
    return tuple(re.sub(r"(\|?)\n +", lambda border: border[1] or " ", text.strip()).split("\n"))


def pairs(table: str) -> list[tuple[str, ...]]:
    """Rows of `a:b` words; an underscore stands for a space."""
    return [tuple(part.replace("_", " ") for part in row.split(":")) for row in table.split()]
