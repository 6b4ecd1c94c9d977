"""Signed thoughts in OpenAI's chats, in the ways others have found for them, so that a client can give them back.

`reasoning_details` is OpenRouter's list beside a message's `reasoning_content`; a signature of Gemini stands with the
call it belongs to, under `extra_content`, as in Google's own version of this dialect.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from adapters.conversation import GEMINI
from adapters.types import ReasoningDelta, Thought


class WireDetail(msgspec.Struct):
    """One block of thinking."""

    type: str
    text: str | None = None
    summary: str | None = None
    signature: str | None = None
    data: str | None = None


class GoogleContent(msgspec.Struct):
    thought_signature: str | None = None


class ExtraContent(msgspec.Struct):
    google: GoogleContent | None = None


def parse_details(details: Iterable[WireDetail]) -> tuple[Thought, ...]:
    """The thoughts that somebody wants back; those without a signature are in the message's text of them."""
    thoughts = []
    for detail in details:
        if detail.data is not None:
            thoughts.append(Thought("", redacted=detail.data))
        elif detail.signature is not None:
            thoughts.append(Thought(detail.text or detail.summary or "", detail.signature))
    return tuple(thoughts)


def details_of(thoughts: Iterable[Thought]) -> list[dict[str, Any]]:
    """The same as they are written."""
    return [_detail(thought, index) for index, thought in enumerate(thoughts)]


def _detail(thought: Thought, index: int) -> dict[str, Any]:
    if thought.redacted is not None:
        return {"type": "reasoning.encrypted", "data": thought.redacted, "index": index}
    return {"type": "reasoning.text", "text": thought.text, "signature": thought.signature, "index": index}


def whole(pieces: Iterable[ReasoningDelta]) -> Iterator[Thought]:
    """The thoughts of an answer out of their pieces, those that nobody signed as well."""
    texts: list[str] = []
    for piece in pieces:
        if piece.redacted is not None:
            yield from _unsigned(texts)
            texts = []
            yield Thought("", redacted=piece.redacted)
            continue
        texts.append(piece.text)
        if piece.signature is not None:
            yield Thought("".join(texts), piece.signature)
            texts = []
    yield from _unsigned(texts)


def _unsigned(texts: Sequence[str]) -> Iterator[Thought]:
    if text := "".join(texts):
        yield Thought(text)


def signed(pieces: Iterable[ReasoningDelta]) -> list[Thought]:
    """The signed and the redacted ones among the thoughts of an answer."""
    return [one for one in whole(pieces) if one.signature is not None or one.redacted is not None]


class ThoughtWriter:
    """Notices where a signed thought ends."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.count = 0

    def add(self, piece: ReasoningDelta) -> Thought | None:
        """Take in the next piece; the thought that it ends, if that is one to be given back."""
        self._texts.append(piece.text)
        if piece.redacted is None and piece.signature is None:
            return None
        text, self._texts = "".join(self._texts), []
        self.count += 1
        if piece.redacted is not None:
            return Thought("", redacted=piece.redacted)
        return Thought(text, piece.signature)

    def detail(self, thought: Thought) -> dict[str, Any]:
        """The thought that `add` gave, as it is written."""
        return _detail(thought, self.count - 1)


def parse_signature(extra: ExtraContent | None) -> str | None:
    """The signature that stands with a call."""
    given = extra.google.thought_signature if extra is not None and extra.google is not None else None
    return None if given is None else GEMINI + given


def signature_fields(signature: str | None) -> dict[str, Any]:
    """The same as it is written."""
    if signature is None or not signature.startswith(GEMINI):
        return {}
    return {"extra_content": {"google": {"thought_signature": signature.removeprefix(GEMINI)}}}
