"""Regular expressions over texts that arrive in pieces, in time linear in the text.

RE2 never backtracks, so that no pattern hangs on any text. What a pattern finds must not depend on how a stream was
cut, and what it may find must not be sent before it is decided. Both follow from one rule: a match is looked for at
each place, from left to right, in the next `reach_bytes` only. A place is decided once so much text is there, or once a
byte has come that no match can contain; everything before the first undecided place may go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from gateway.guardrails import GuardrailFailed, Scanned, Span, united

# What may be searched of a text in bytes, as a multiple of its own, before its patterns count as failed.
WORK_FACTOR = 64
WORK_BYTES_MIN = 16 << 20
MEMORY_BYTES_MAX = 8 << 20
# From here on the event loop is not kept waiting.
THREAD_CHARS = 32 * 1024


class Detector(msgspec.Struct, frozen=True):
    """A pattern, the longest match it can have, and what more is known of its matches.

    `alphabet` are the only bytes a match can contain (None: any). `accept` takes what matched and says how many bytes
    of it are a finding; `opens` says where in a text, from a place on, the first match may begin that is not decided.
    """

    kind: str
    pattern: Any
    reach_bytes: int
    alphabet: bytes | None = None
    accept: Callable[[bytes], int] = len
    opens: Callable[[bytes, int], int] | None = None

    def first_open(self, text: bytes, at: int) -> int:
        """The first place from `at` on that more text may decide otherwise."""
        first = max(at, len(text) - self.reach_bytes)
        if self.alphabet is not None:
            first = max(first, len(text.rstrip(self.alphabet)))
        return first if self.opens is None else max(first, self.opens(text, first))


def compiled(pattern: str) -> Any:
    """The pattern for RE2; raises `re2.error`."""
    import re2

    options = re2.Options()
    options.never_capture = True
    options.log_errors = False
    options.max_mem = MEMORY_BYTES_MAX
    return re2.compile(pattern, options)


class Matching:
    """The scan of one text."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self._detectors = detectors
        self._text = b""
        self._base = 0  # Where `_text` begins in the whole text, in bytes and in characters.
        self._base_chars = 0
        self._places = [0] * len(detectors)
        self._waiting: list[Span] = []

    async def feed(self, piece: str, *, last: bool) -> Scanned:
        if len(piece) > THREAD_CHARS:
            return await asyncio.to_thread(self.look, piece, last)
        return self.look(piece, last)

    def look(self, piece: str, last: bool) -> Scanned:
        """The same at once."""
        self._text += piece.encode("utf-8", "surrogatepass")
        work = max(WORK_BYTES_MIN, WORK_FACTOR * len(self._text))
        for i, detector in enumerate(self._detectors):
            at, spans, work = _advance(detector, self._text, self._places[i] - self._base, last, work)
            self._places[i] = self._base + at
            ruler = _Ruler(self._text, self._base_chars)
            self._waiting += [Span(ruler.chars(start), ruler.chars(end), detector.kind) for start, end in spans]
        decided = min(self._places, default=self._base + len(self._text))
        decided -= _inside(self._text, decided - self._base)
        settled = _Ruler(self._text, self._base_chars).chars(decided - self._base)
        found = united(self._waiting)
        ready = [span for span in found if span.end <= settled]
        self._waiting = found[len(ready) :]
        if self._waiting:
            settled = min(settled, self._waiting[0].start)
        self._forget(decided)
        return Scanned(settled, ready)

    def _forget(self, decided: int) -> None:
        """Drop what no pattern looks at again; one character before stays, which word boundaries ask for."""
        at = decided - self._base - 1
        at -= _inside(self._text, at)
        if at > 0:
            self._base_chars = _Ruler(self._text, self._base_chars).chars(at)
            self._text = self._text[at:]
            self._base += at


def _inside(text: bytes, at: int) -> int:
    """How many bytes of a character lie before the place `at`, when that is inside of one."""
    begin = at
    while 0 < begin < len(text) and text[begin] & 0xC0 == 0x80:
        begin -= 1
    return at - begin


class _Ruler:
    """Turns places of a text, in rising order, from bytes into characters; its first character has number `base`."""

    def __init__(self, text: bytes, base: int) -> None:
        self._text = text
        self._ascii = text.isascii()
        self._at = 0
        self._chars = base

    def chars(self, at: int) -> int:
        passed = at - self._at if self._ascii else len(self._text[self._at : at].decode("utf-8", "surrogatepass"))
        self._at, self._chars = at, self._chars + passed
        return self._chars


def _advance(detector: Detector, text: bytes, at: int, last: bool, work: int) -> tuple[int, list[tuple[int, int]], int]:
    """The first undecided place from `at` on, the matches before it, and what is left of the work allowed."""
    search, match, end = detector.pattern.search, detector.pattern.match, len(text)
    first_open = end if last else detector.first_open(text, at)
    spans: list[tuple[int, int]] = []
    # A search goes on a little further each time that nothing is found, so that a near miss at each place costs little.
    further = 2 * detector.reach_bytes
    while at < first_open:
        stop = min(end, at + further)
        work -= stop - at
        if work < 0:
            raise GuardrailFailed("its patterns take too long on this text")
        near = search(text, at, stop)
        if stop < end and (near is None or near.start() > stop - detector.reach_bytes):
            # A match that began earlier than this one could go on behind where the search ended.
            at, further = stop - detector.reach_bytes, 2 * further
            continue
        if near is None or near.start() >= first_open:
            break
        start, further = near.start(), 2 * detector.reach_bytes
        found = match(text, start, min(end, start + detector.reach_bytes))
        size = 0 if found is None else detector.accept(text[start : found.end()])
        if size:
            spans.append((start, start + size))
        at = start + (size or 1)
    return max(at, first_open), spans, work


class Patterns:
    """A guardrail of detectors."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self._detectors = tuple(detectors)

    async def find(self, texts: Sequence[str]) -> list[Sequence[Span]]:
        def all_at_once() -> list[Sequence[Span]]:
            return [self._spans(text) for text in texts]

        if sum(map(len, texts)) > THREAD_CHARS:
            return await asyncio.to_thread(all_at_once)
        return all_at_once()

    def _spans(self, text: str) -> Sequence[Span]:
        """What is in one text. Of many short ones most have nothing, which one search shows where all is in reach."""
        raw = text.encode("utf-8", "surrogatepass")
        at_work = [one for one in self._detectors if len(raw) > one.reach_bytes or one.pattern.search(raw) is not None]
        return Matching(at_work).look(text, True).spans if at_work else ()

    def scan(self) -> Matching:
        return Matching(self._detectors)

    async def close(self) -> None:
        """Nothing is open."""


def regexes(patterns: Mapping[str, str], window_chars: int) -> Patterns:
    """An operator's patterns by name; a match is at most `window_chars` long (in bytes of UTF-8)."""
    return Patterns([Detector(name, compiled(pattern), window_chars) for name, pattern in patterns.items()])
