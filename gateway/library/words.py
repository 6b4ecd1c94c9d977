"""The words of files, for searching: an index of the database's own, SQLite's FTS5 or PostgreSQL's tsvector.

It is made and brought up to date from the files, so it is no part of a copy of the database. Words are found here and
not by the databases, whose ideas of them differ.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from gateway.state.database import Database, Statements
from gateway.state.sqlite import Sqlite

WORDS_MAX = 200
WORD_LENGTH_MAX = 64
TERMS_MAX = 16

_WORD = re.compile(r"\w+")
_FTS5 = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS library_words USING fts5(id UNINDEXED, version UNINDEXED, words, "
    "tokenize = \"unicode61 remove_diacritics 0 tokenchars '_'\", prefix = '2 3 4')",
)
_TSVECTOR = (
    "CREATE TABLE IF NOT EXISTS library_words (id TEXT PRIMARY KEY, version BIGINT NOT NULL, words TSVECTOR NOT NULL)",
    "CREATE INDEX IF NOT EXISTS library_words_index ON library_words USING GIN (words)",
)


class Words:
    """The index of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sqlite = isinstance(database, Sqlite)

    async def open(self) -> None:
        """Make the index where there is none yet."""
        async with self._database.transaction() as inside:
            for statement in _FTS5 if self._sqlite else _TSVECTOR:
                await inside.execute(statement)

    async def put(self, inside: Statements, identity: str, version: int, texts: Iterable[str]) -> None:
        """Let a file be found by the words of these texts and no others."""
        await self.remove(inside, identity)
        value = "$3" if self._sqlite else "array_to_tsvector(string_to_array(CAST($3 AS text), ' '))"
        words = " ".join(words_of(" ".join(texts)))
        sql = f"INSERT INTO library_words (id, version, words) VALUES ($1, $2, {value})"
        await inside.execute(sql, identity, version, words)

    async def remove(self, inside: Statements, identity: str) -> None:
        await inside.execute("DELETE FROM library_words WHERE id = $1", identity)

    def condition(self, place: int) -> str:
        """SQL that holds for the files whose words `query` describes, given as the parameter of this number."""
        match = f"library_words MATCH ${place}" if self._sqlite else f"words @@ CAST(CAST(${place} AS text) AS tsquery)"
        return f"id IN (SELECT id FROM library_words WHERE {match})"

    def query(self, text: str) -> str | None:
        """Every word of the text, each as the beginning of one of the file's; None when it has none."""
        terms = words_of(text, parts=False)[:TERMS_MAX]
        if not terms:
            return None
        return " ".join(f'"{term}"*' for term in terms) if self._sqlite else " & ".join(f"'{term}':*" for term in terms)


def words_of(text: str, *, parts: bool = True) -> list[str]:
    """The different words of a text, without case and accents; with `parts` also what underscores join."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    found = dict[str, None]()
    for word in _WORD.findall(plain):
        found[word[:WORD_LENGTH_MAX]] = None
        if parts and "_" in word:
            found.update(dict.fromkeys(part[:WORD_LENGTH_MAX] for part in word.split("_") if part))
    return list(found)[:WORDS_MAX]
