"""Where texts lie in a request that is passed on: what somebody may have written, found by its bytes.

Every text of a body is one, also in members that nobody here knows, as the provider may know them. Left out are short
identifiers under the names of `IDENTIFIERS`, and what is encoded. Numbers and values of other kinds are no texts, but
for JSON that somebody wrote, such as schemas and arguments, which is one text each.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import re
from collections.abc import Iterator
from typing import Literal

import msgspec

from adapters.errors import InvalidRequest

# A text that may be replaced by any other, one that has to stay JSON, and one that cannot be changed at all.
Sort = Literal["plain", "json", "fixed"]

# Names whose values are words of the dialect, or refer to something: they are no texts while they look like that.
IDENTIFIERS = frozenset(
    (
        *("model", "type", "role", "name", "id", "object", "tool_call_id", "call_id", "tool_use_id", "file_id"),
        *("tool_choice", "mode", "status", "phase", "detail", "format", "media_type", "encoding_format", "modalities"),
        *("effort", "reasoning_effort", "verbosity", "summary", "service_tier", "truncation", "include", "voice"),
        *("ttl", "display", "syntax", "anthropic_version", "allowed_callers", "betas"),
    )
)
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.:/+-]{0,200}")
# Names under which something encoded may lie, or the address of something.
ENCODED = frozenset(
    ("data", "file_data", "url", "image_url", "file_url", "signature", "thinking_signature", "encrypted_content")
)
_ENCODED = re.compile(r"[A-Za-z0-9+/=_-]{64,}|(?:data:(?!text/)|https?://|gs://|s3://)\S*")
_TEXT_FILE = re.compile(r"(data:text/[^,]*;base64,)(.*)", re.DOTALL)
# JSON in a text, and JSON as it is: what a tool takes, and what it was called with.
ARGUMENTS = frozenset(("arguments",))
WRITTEN = frozenset(("parameters", "input_schema"))
# What an answer has to match, what its maker has signed, and who says something.
FIXED = frozenset(("grammar", "guided_regex", "guided_grammar", "definition", "thinking"))
FIXED_TREES = frozenset(("schema", "guided_json", "guided_choice", "structured_outputs"))
SPEAKER = ("messages", "[]", "name")

_TOKEN = re.compile(
    rb'[ \t\n\r]*(?:("[^"\\]*(?:\\.[^"\\]*)*")|([{\[])|([}\]])|([,:])|([^ \t\n\r,:{}\[\]"]+))', re.DOTALL
)


# Each text takes its time, however short it is, and 10 MB have millions of them.
TEXTS_MAX = 50_000


class Place(msgspec.Struct, frozen=True):
    """One text: `body[begin:end]` is its JSON. `before` stands before it in the same JSON text, where it is a file."""

    begin: int
    end: int
    text: str
    sort: Sort
    tree: bool = False
    before: str = ""

    def json(self, text: str) -> bytes:
        """The JSON of another text in its place."""
        if self.tree:
            return text.encode()
        if self.before:
            text = self.before + base64.b64encode(text.encode()).decode()
        return msgspec.json.encode(text)


class TokenIds(Exception):
    """There is text that only the model's tokeniser can read."""


def places(body: bytes) -> list[Place]:
    """The texts of a valid JSON object in their order. Raises `TokenIds`, `msgspec.DecodeError` for what is no text,
    such as half a surrogate, and `InvalidRequest` for too many."""
    found = list(itertools.islice(Walk(body), TEXTS_MAX + 1))
    if len(found) > TEXTS_MAX:
        raise too_many()
    return found


def too_many() -> InvalidRequest:
    return InvalidRequest(f"Guardrails apply, and no more than {TEXTS_MAX} texts in a request can be looked at.")


def put(body: bytes, changed: list[tuple[Place, str]]) -> bytes:
    """The body with other texts in these places, which are in their order."""
    parts, at = [], 0
    for place, text in changed:
        parts += [body[at : place.begin], place.json(text)]
        at = place.end
    return b"".join([*parts, body[at:]])


class Walk:
    """One pass over a body. `names` leads to where it is: the name of a member for each object, `[]` for each array."""

    identifiers = IDENTIFIERS
    fixed = FIXED

    def __init__(self, body: bytes) -> None:
        self.names: list[str] = []
        # For each of them the name of the innermost member around, which is not looked for anew for each text.
        self._around: list[str] = []
        self._body = body
        self._at = 0
        self._naming = False

    def __iter__(self) -> Iterator[Place]:
        while (token := _TOKEN.match(self._body, self._at)) is not None:
            text, opening, closing, between, other = token.groups()
            self._at = token.end()
            if text is not None:
                place = self._named(token) if self._naming else self._said(token)
                if place is not None:
                    yield place
            elif opening is not None:
                if (sort := self._tree_sort(opening)) is not None:
                    yield self._tree(token.start(2), sort)
                else:
                    self._enter(opening)
            elif closing is not None:
                self._leave()
            elif between is not None:
                self._naming = between == b"," and self.names[-1] != "[]"
            elif other is not None:
                self._other(other)

    def _enter(self, opening: bytes) -> None:
        self._around.append(self.name)
        self.names.append("[]" if opening == b"[" else "")
        self._naming = opening == b"{"

    def _leave(self) -> None:
        self._around.pop()
        self.names.pop()
        self._naming = False

    def _other(self, value: bytes) -> None:
        """What is neither a text nor a list nor an object."""
        if _holds_ids(self.names, value):
            raise TokenIds

    def _named(self, token: re.Match[bytes]) -> Place | None:
        """The name of a member, which is a text when it does not look like a name."""
        self._naming = False
        name: str = msgspec.json.decode(token[1], type=str)
        self.names[-1] = name
        return None if _IDENTIFIER.fullmatch(name) else Place(*token.span(1), name, "fixed")

    def _said(self, token: re.Match[bytes]) -> Place | None:
        text: str = msgspec.json.decode(token[1], type=str)
        name = self.name
        if not text or (name in ENCODED and _ENCODED.fullmatch(text)):
            return None
        if name == "name" and tuple(self.names) == SPEAKER:
            return Place(*token.span(1), text, "fixed")
        if name in self.identifiers and _IDENTIFIER.fullmatch(text):
            return None
        if name in ENCODED and (file := _TEXT_FILE.fullmatch(text)) is not None:
            return _file(token, file[1], file[2])
        sort: Sort = "json" if name in ARGUMENTS else "fixed" if name in self.fixed else "plain"
        return Place(*token.span(1), text, sort)

    @property
    def name(self) -> str:
        """The name of the innermost member."""
        if not self.names:
            return ""
        return self._around[-1] if self.names[-1] == "[]" else self.names[-1]

    def _tree_sort(self, opening: bytes) -> Sort | None:
        """Whether what begins here is one text, being JSON that somebody wrote."""
        name = self.names[-1] if self.names else ""
        if name in WRITTEN or (name == "input" and len(self.names) > 1 and opening == b"{"):
            return "json"
        return "fixed" if name in FIXED_TREES else None

    def _tree(self, begin: int, sort: Sort) -> Place:
        depth = 1
        while depth and (token := _TOKEN.match(self._body, self._at)) is not None:
            depth += (token[2] is not None) - (token[3] is not None)
            self._at = token.end()
        source = self._body[begin : self._at]
        # Without escapes, which could hide what it says.
        return Place(begin, self._at, msgspec.json.encode(msgspec.json.decode(source)).decode(), sort, tree=True)


def _holds_ids(names: list[str], value: bytes) -> bool:
    """Whether a value is a token of a prompt or an input."""
    return value[:1].isdigit() and len(names) > 1 and names[0] in ("prompt", "input") and set(names[1:]) == {"[]"}


def _file(token: re.Match[bytes], before: str, encoded: str) -> Place | None:
    try:
        return Place(*token.span(1), base64.b64decode(encoded).decode("utf-8", "replace"), "plain", before=before)
    except (binascii.Error, ValueError):
        return Place(*token.span(1), encoded, "fixed")
