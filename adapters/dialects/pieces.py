"""Where texts lie in answers that are passed on, and which of them continue each other over the events of a stream.

As in requests every text is one, also in members that nobody here knows. Nothing is known of the shape of an answer but
what the names of its members say: texts under the same names, at the same index, are one text that goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from adapters.dialects.passing import decoded
from adapters.dialects.places import FIXED, TEXTS_MAX, Place, Sort, Walk
from adapters.errors import UpstreamInvalid

# What was said, the tokens of that, or what its maker signed it with.
Part = Literal["said", "tokens", "seal"]

_INDEXES = ("index", "output_index", "content_index", "summary_index")
_SEALS = ("signature", "thinking_signature")
_SEALED = re.compile(rb'"[A-Za-z0-9+/=_-]+"')
_INDEX = re.compile(rb"[0-9]{1,9}")
# Members in which an answer repeats its request.
_ECHOES = (
    *("instructions", "tools", "tool_choice", "metadata", "prompt"),
    *("user", "safety_identifier", "prompt_cache_key"),
)
# Names whose values are words of the dialect or refer to something. None of them may be that of a text that comes in
# pieces, as these often look like words.
_WORDS = frozenset(
    (
        *("model", "type", "role", "name", "id", "object", "status", "service_tier", "system_fingerprint"),
        *("finish_reason", "native_finish_reason", "stop_reason", "obfuscation"),
        *("tool_call_id", "call_id", "tool_use_id", "file_id", "item_id", "response_id", "previous_response_id"),
    )
)
_CHOICES = ("choices", "[]")
# So many levels tell texts from each other; those that lie deeper count as one that goes on. What leads to a text is
# kept with each, and of an answer that is deep it would be far more than the answer.
LEVELS_MAX = 16

_object = msgspec.json.Decoder(dict[str, Any])


class Piece(msgspec.Struct, frozen=True):
    """One text. `channel` is what it shares with those that continue it, `around` what it shares with all that stands
    beside it; `quoted` says that it is written as JSON itself."""

    place: Place
    part: Part
    choice: int
    channel: tuple[str, ...]
    around: tuple[str, ...]
    quoted: bool


class Pieces(msgspec.Struct, frozen=True):
    """The texts of an answer or an event in their order, and the choices that are in it."""

    found: list[Piece]
    choices: frozenset[int]

    @property
    def size_bytes(self) -> int:
        """What is said in all."""
        return sum(len(one.place.text.encode()) for one in self.found if one.part == "said")


def pieces(body: bytes) -> Pieces:
    """The texts of a body or of an event's payload; raises `UpstreamInvalid` for what is no JSON object."""
    decoded(_object, body)
    walk = _Answered(body)
    # What tells an object's texts from others' may stand behind them.
    found: list[tuple[Place, Part, str, list[str], list[dict[str, str]]]] = []
    for place in walk:
        if walk.echoed:
            continue
        if len(found) >= TEXTS_MAX:
            raise UpstreamInvalid("The provider's answer has too many texts.")
        found.append((place, walk.part, walk.names[-1], walk.names[:LEVELS_MAX], walk.marks[:LEVELS_MAX]))
    all = [_piece(*one) for one in found]
    choices = [int(marks.get("index", "0")) for marks in walk.choices] or [one.choice for one in all]
    return Pieces(all, frozenset(choices))


def _piece(place: Place, part: Part, leaf: str, names: list[str], marks: list[dict[str, str]]) -> Piece:
    of = tuple(f"{name}={value}" for one in marks for name, value in one.items())
    choice = int(marks[2].get("index", "0")) if tuple(names[:2]) == _CHOICES and len(marks) > 2 else 0
    quoted = leaf in ("arguments", "partial_json") or (leaf == "delta" and "arguments" in marks[0].get("type", ""))
    return Piece(place, part, choice, (*names, *of), (*names[:-1], *of), quoted)


class _Answered(Walk):
    identifiers = _WORDS
    fixed = FIXED - {"thinking"}

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self.marks: list[dict[str, str]] = []
        self.choices: list[dict[str, str]] = []
        self.part: Part = "said"

    @property
    def echoed(self) -> bool:
        names = self.names[1:] if self.names[0] == "response" else self.names
        return names[:1] != [] and names[0] in _ECHOES

    def __iter__(self) -> Iterator[Place]:
        for place in super().__iter__():
            # Seals are shown without their text; other texts that say nothing are none.
            self.part = "tokens" if place.tree and self.name == "logprobs" else "said" if place.text else "seal"
            yield place

    def _enter(self, opening: bytes) -> None:
        super()._enter(opening)
        self.marks.append({})
        if len(self.names) == 3 and tuple(self.names[:2]) == _CHOICES:
            self.choices.append(self.marks[-1])

    def _leave(self) -> None:
        super()._leave()
        self.marks.pop()

    def _said(self, token: re.Match[bytes]) -> Place | None:
        if self.names == ["type"]:
            self.marks[0]["type"] = msgspec.json.decode(token[1], type=str)
        if self.name in _SEALS and _SEALED.fullmatch(token[1]):
            return Place(*token.span(1), "", "fixed")
        return super()._said(token)

    def _tree_sort(self, opening: bytes) -> Sort | None:
        return "fixed" if self.name == "logprobs" else super()._tree_sort(opening)

    def _other(self, value: bytes) -> None:
        if self.names[-1] in _INDEXES and _INDEX.fullmatch(value):
            self.marks[-1][self.names[-1]] = value.decode()
