"""Tells one choice's text apart into reasoning, content and tool calls, as it arrives."""

from __future__ import annotations

import re
from collections.abc import Callable

from adapters.llama_cpp.formats import elements, json_calls, literals, tagged
from adapters.llama_cpp.formats.reader import SEEK_CHARS_MAX, SPACE, MalformedError, Piece, Reader, Reading, overlap
from adapters.llama_cpp.formats.row import NAME, ToolFormat
from adapters.llama_cpp.reasoning import ReasoningFormat
from adapters.types import Tool


class OutputParser:
    """Separates one choice's text from its tool calls and its thoughts, piece by piece.

    Text passes at once, except for its last characters while they could begin something else, and spaces around calls
    and thoughts are dropped. A call is announced when its name is known to be one of `tools` (None: any) and its
    arguments have begun; from then on these stream as they come. Whatever turns out not to be a call before that point
    becomes text exactly as written. A call that is cut later keeps the arguments it got. `thinking`: the prompt has
    already begun the thoughts.
    """

    def __init__(
        self,
        tool_format: ToolFormat | None,
        reasoning: ReasoningFormat | None,
        new_id: Callable[[], str],
        tools: tuple[Tool, ...] | None = None,
        *,
        parallel: bool = True,
        thinking: bool = False,
    ) -> None:
        self._format = tool_format
        self._reasoning = reasoning
        self._takes_calls = tool_format is not None and tools != ()
        self._reader = Reader(tools, new_id, None if parallel else 1)
        self._markers = self._find_markers()
        names = r"\w+" if tools is None else "|".join(re.escape(tool.name) for tool in tools)
        self._named = re.compile(rf"\b(?:{names})\b")
        self._search = re.compile("|".join(map(re.escape, sorted(self._markers, key=len, reverse=True))) or r"(?!)")
        self._thinking = thinking
        self._malformed = False
        self._reading = self._read()

    @property
    def called(self) -> bool:
        """Whether a call was announced."""
        return self._reader.calls > 0

    @property
    def malformed(self) -> bool:
        """Whether something began as a call and was not one, or was one that broke off."""
        return self._malformed

    def push(self, text: str) -> list[Piece]:
        """What can be told after `text` has arrived."""
        reader = self._reader
        reader.buffer += text
        next(self._reading)
        pieces, reader.pieces = reader.pieces, []
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back, when no more text comes."""
        self._reader.ended = True
        next(self._reading, None)
        return self._reader.pieces

    def _find_markers(self) -> tuple[str, ...]:
        """What is looked for in text, besides at its start."""
        row, reasoning = self._format, self._reasoning
        markers: tuple[str, ...] = ()
        if row is not None:
            markers += row.skips
            if self._takes_calls:
                markers += tuple(
                    text for text in (row.trigger, *row.triggers) if text and (len(text) > 1 or not row.anchored)
                )
        if reasoning is not None and reasoning.anywhere:
            markers += (reasoning.begin,)
        return tuple(dict.fromkeys(markers))

    # The whole grammar, as coroutines that are resumed when there is more text.

    def _read(self) -> Reading[None]:
        if self._thinking:
            yield from self._think()
        opening = True
        while True:
            marker = (yield from self._opening()) if opening else None
            if marker is None:
                if opening:
                    yield from self._address()
                marker = yield from self._text()
            if marker is None:
                return
            opening = yield from self._heed(marker)

    def _heed(self, marker: str) -> Reading[bool]:
        """Does what a marker asks for; whether an answer may start after it."""
        reader, row, reasoning = self._reader, self._format, self._reasoning
        if reasoning is not None and marker == reasoning.begin:
            reader.drop(reader.at)
            yield from self._think()
            return True
        assert row is not None
        if marker in (*row.skips, *row.opening_skips):
            reader.drop(reader.at)
            reader.gap = True
            return bool(row.address)
        yield from self._calls(row, marker)
        return False

    def _address(self) -> Reading[None]:
        """Drops whom a message is addressed to, where it begins with that."""
        reader, row = self._reader, self._format
        before, _, after = row.address.strip().partition(NAME) if row is not None else ("", "", "")
        while before:
            rest = reader.buffer.lstrip(SPACE)
            end = rest.find(after, 0, SEEK_CHARS_MAX)
            if rest.startswith(before) and end >= 0:
                reader.drop(len(reader.buffer) - len(rest) + end + len(after))
                reader.gap = True
                return
            begun = before.startswith(rest) or (rest.startswith(before) and len(rest) < SEEK_CHARS_MAX)
            if reader.ended or not begun:
                return
            yield

    def _opening(self) -> Reading[str | None]:
        """Which of the markers that count at the start of an answer it begins with, after spaces; it is read, and
        nothing is where there is none."""
        reader, row, reasoning = self._reader, self._format, self._reasoning
        openings = [reasoning.begin] if reasoning is not None and not reader.calls else []
        other = None
        if row is not None:
            openings += row.opening_skips
            if self._takes_calls:
                openings += [one for one in (row.trigger, *row.triggers) if one and one not in self._markers]
                other = "" if "" in row.triggers else None
        while openings:
            size = len(reader.buffer) - len(reader.buffer.lstrip(SPACE))
            rest = reader.buffer[size:]
            waiting = not rest
            for one in openings:
                bare = one.lstrip()
                if rest.startswith(bare):
                    reader.at = size + len(bare)
                    return one
                waiting = waiting or bare.startswith(rest)
            if not waiting or reader.ended:
                break
            yield
        return other

    def _text(self) -> Reading[str | None]:
        """Passes text on up to a marker, which is read; None at the end. What the marker stands after is dropped but
        for the text that has to be given back should the marker mean nothing."""
        reader = self._reader
        while True:
            found = self._search.search(reader.buffer)
            if found is not None and not self._undecided(found):
                size = len(reader.buffer[: found.start()].rstrip(SPACE))
                reader.say(size)
                reader.at = found.end() - size
                return found[0]
            if reader.ended:
                reader.say(len(reader.buffer))
                return None
            limit = found.start() if found else len(reader.buffer)
            safe = min([limit, *(len(reader.buffer) - overlap(reader.buffer, marker) for marker in self._markers)])
            reader.say(len(reader.buffer[:safe].rstrip(SPACE)))
            yield

    def _undecided(self, found: re.Match[str]) -> bool:
        """Whether more text could turn what was found into a longer marker."""
        rest = found.string[found.start() :]
        return not self._reader.ended and any(
            len(marker) > len(rest) and marker.startswith(rest) for marker in self._markers
        )

    def _think(self) -> Reading[None]:
        """Gives what the model thinks up to the end marker. Some models go from thoughts to calls without one, so what
        looks like a call is held back; it was a thought when the marker comes after it."""
        reader, reasoning = self._reader, self._reasoning
        assert reasoning is not None
        reader.gap = True
        while True:
            found = reader.buffer.find(reasoning.end)
            if found >= 0:
                reader.think(len(reader.buffer[:found].rstrip(SPACE)))
                reader.drop(reader.buffer.find(reasoning.end) + len(reasoning.end))
                reader.gap = True
                return
            called = self._call_among_thoughts()
            if reader.ended:
                reader.think(len(reader.buffer) if called is None else len(reader.buffer[:called].rstrip(SPACE)))
                reader.gap = True
                return
            safe = len(reader.buffer) - overlap(reader.buffer, reasoning.end)
            safe = safe if called is None else min(safe, called)
            reader.think(len(reader.buffer[:safe].rstrip(SPACE)))
            yield

    def _call_among_thoughts(self) -> int | None:
        """Where in the buffer a call seems to begin, or may begin when more text comes."""
        buffer, row = self._reader.buffer, self._format
        if row is None or not self._takes_calls or row.trigger not in self._markers:
            return None
        start = buffer.find(row.trigger)
        while start >= 0:
            near = buffer[start : start + SEEK_CHARS_MAX]
            if (len(near) < SEEK_CHARS_MAX and not self._reader.ended) or self._named.search(near):
                return start
            start = buffer.find(row.trigger, start + 1)
        begun = overlap(buffer, row.trigger)
        return len(buffer) - begun if begun and not self._reader.ended else None

    def _calls(self, row: ToolFormat, marker: str) -> Reading[None]:
        """Reads the calls after a marker; what begins as one and is none becomes text."""
        reader = self._reader
        follows = True
        start = reader.at
        while follows:
            calls = reader.calls
            try:
                if marker == row.trigger:
                    yield from self._begin(row)
                marker = ""
                yield from self._call(row)
            except MalformedError:
                self._malformed = self._malformed or reader.calls > 0 or start > 1
                if reader.calls == calls:
                    reader.say(start)
                    return
                if reader.ended:
                    # What is left is a piece of the call that was cut.
                    reader.drop(len(reader.buffer))
                    return
            follows = yield from self._close(row)
            start = reader.at

    def _begin(self, row: ToolFormat) -> Reading[None]:
        """What of `open` and `begin` follows the trigger, as far as a call cannot be recognised without it."""
        if len(row.trigger) == 1:
            self._reader.at -= 1
            return
        rest = (row.open + row.begin).partition(row.trigger)[2].strip(SPACE if row.body == "json" else SPACE + "[")
        if rest:
            yield from self._reader.choose(rest)

    def _call(self, row: ToolFormat) -> Reading[None]:
        if row.label_end:
            yield from self._reader.seek(row.label_end)
        match row.body:
            case "object":
                yield from json_calls.read_object(self._reader)
            case "json":
                yield from json_calls.read_named(self._reader, row.middle_end or row.middle)
            case "tagged":
                assert row.tags is not None
                yield from tagged.read_tagged(self._reader, row.middle, row.middle_end, row.tags, row.end.split()[0])
            case "elements":
                yield from elements.read_elements(self._reader, row.middle, row.prefix)
            case "code":
                assert row.style is not None
                yield from literals.read_code(self._reader, row.style)

    def _close(self, row: ToolFormat) -> Reading[bool]:
        """Skips the end markers, even cut ones, and brackets too many before them; whether another call follows."""
        reader = self._reader
        ends = row.end.split()
        brackets = "" if row.body == "elements" else "]},;)"
        close = row.close.strip(SPACE + brackets[:1])
        last = close or (ends[-1] if ends and not row.open else "")
        ends += [close] if close else []
        closed = False
        while True:
            reader.drop(reader.at)
            loose = reader.buffer.lstrip(SPACE + brackets)
            closed = closed or "]" in reader.buffer[: len(reader.buffer) - len(loose)]
            reader.drop(len(reader.buffer) - len(loose))
            found = next((end for end in ends if loose.startswith(end)), None)
            if found is not None:
                reader.drop(len(found))
                if found == last:
                    return False
            elif not loose or any(end.startswith(loose) for end in (*ends, row.begin.strip())):
                if reader.ended:
                    reader.drop(len(loose))
                    return False
                yield
            else:
                return not closed and self._follows(row)

    def _follows(self, row: ToolFormat) -> bool:
        """Whether another call begins here without a trigger; its beginning is then read."""
        reader = self._reader
        begin = row.begin.strip()
        if begin:
            reader.at = len(begin) if row.open and reader.buffer.startswith(begin) else 0
            return reader.at > 0
        if row.body == "code":
            return reader.buffer[0].isalpha() or reader.buffer[0] == "_"
        return reader.buffer[0] == "{"
