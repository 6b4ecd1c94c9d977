"""What may pass: guardrails look at requests and answers, and say what they found where, never what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class Span(msgspec.Struct, frozen=True, order=True):
    """What was found in `text[start:end]` (characters), by its name such as `email`. `put` takes its place where it is
    masked; None: its name."""

    start: int
    end: int
    kind: str
    put: str | None = None

    @property
    def placeholder(self) -> str:
        """What stands in its place. It is safe inside of JSON texts."""
        return f"[{self.kind.upper()}]" if self.put is None else self.put


class Scanned(msgspec.Struct, frozen=True):
    """How far a text that goes on is decided, in characters from its beginning, and what was found since the last time.

    No span that is still to be found begins before `settled`, and none of those found reaches beyond it.
    """

    settled: int
    spans: Sequence[Span] = ()


class GuardrailFailed(Exception):
    """A guardrail cannot say what it has to; the message is for log lines and holds nothing of the text."""


class Scan(Protocol):
    """One text that arrives in pieces. What is found does not depend on where it is cut into pieces."""

    async def feed(self, piece: str, *, last: bool) -> Scanned:
        """Raises GuardrailFailed."""
        ...


class Guardrail(Protocol):
    """Looks for something in texts."""

    async def find(self, texts: Sequence[str]) -> list[Sequence[Span]]:
        """What is in each of these texts, in order and without overlaps; raises GuardrailFailed."""
        ...

    def scan(self) -> Scan:
        """The same for a text that is still being written."""
        ...

    async def close(self) -> None: ...


def masked(text: str, spans: Sequence[Span]) -> str:
    """The text with a placeholder for each span."""
    parts, at = [], 0
    for span in spans:
        parts += [text[at : span.start], span.placeholder]
        at = span.end
    return "".join([*parts, text[at:]])


def united(spans: Sequence[Span]) -> list[Span]:
    """Spans in order, those that overlap as one, by the name of the one that begins first and is the longest."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.start, -one.end, one.kind)):
        if found and span.start < found[-1].end:
            last = found[-1]
            found[-1] = last if span.end <= last.end else Span(last.start, span.end, last.kind, last.put)
        else:
            found.append(span)
    return found
