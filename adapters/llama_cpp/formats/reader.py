"""Text that arrives in pieces and is read by coroutines, and the pieces of output they tell apart in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar

import msgspec

from adapters.types import Tool

SPACE = " \t\r\n"
SEEK_CHARS_MAX = 200
_STRING_STOP = re.compile(r'["\\]')
_VALUE_STOP = re.compile(r'["{}\[\],\s]|[^\w+\-.:]')
_NAME = re.compile(r"[\w.\-]+")

T = TypeVar("T")
Reading = Generator[None, None, T]
"""A reading is resumed whenever more text has come, and returns what it read."""


class TextPiece(msgspec.Struct, frozen=True):
    """Text that is not part of a call."""

    text: str


class ReasoningPiece(msgspec.Struct, frozen=True):
    """What the model thinks before it answers."""

    text: str


class CallPiece(msgspec.Struct, frozen=True):
    """A piece of the `index`-th call. The first has `id` and `name`; joined, `arguments` is JSON text."""

    index: int
    id: str | None
    name: str | None
    arguments: str


Piece = TextPiece | ReasoningPiece | CallPiece


class MalformedError(Exception):
    """What was being read is not a call after all, or the text ended inside of it."""


class Reader:
    """A buffer of text that was not told apart yet: `buffer[at:]` is still to be read.

    Before `at` it keeps what may have to be given as text after all. Calls are announced under the names in `tools`
    only (None: under any), and no more than `calls_max` of them.
    """

    def __init__(self, tools: tuple[Tool, ...] | None, new_id: Callable[[], str], calls_max: int | None) -> None:
        self.buffer = ""
        self.at = 0
        self.ended = False
        self.calls = 0
        self.pieces: list[Piece] = []
        self.gap = False
        self._new_id = new_id
        self._calls_max = calls_max
        self._schemas = None if tools is None else {tool.name: tool.parameters for tool in tools}
        self._called = ""

    # Reading

    def more(self) -> Reading[None]:
        """Waits for more text."""
        if self.ended:
            raise MalformedError
        yield

    def peek(self) -> Reading[str]:
        """The next character that is not a space, left in place."""
        while True:
            while self.at < len(self.buffer):
                if self.buffer[self.at] not in SPACE:
                    return self.buffer[self.at]
                self.at += 1
            yield from self.more()

    def expect(self, characters: str) -> Reading[str]:
        """The next character that is not a space; it must be one of `characters`."""
        found = yield from self.peek()
        if found not in characters:
            raise MalformedError
        self.at += 1
        return found

    def choose(self, *markers: str) -> Reading[str]:
        """Which of `markers`, whose outer spaces do not count, comes next; it is read."""
        while True:
            yield from self.peek()
            rest = self.buffer[self.at :]
            waiting = False
            for marker in markers:
                bare = marker.strip()
                if rest.startswith(bare):
                    self.at += len(bare)
                    return marker
                waiting = waiting or bare.startswith(rest)
            if not waiting:
                raise MalformedError
            yield from self.more()

    def comes(self, marker: str) -> Reading[bool]:
        """Whether `marker` stands at the start of the buffer; it is dropped then."""
        while len(self.buffer) < len(marker) and marker.startswith(self.buffer):
            yield from self.more()
        found = self.buffer.startswith(marker)
        self.drop(len(marker) if found else 0)
        return found

    def seek(self, marker: str, chars_max: int = SEEK_CHARS_MAX) -> Reading[str]:
        """The text up to `marker`, whose outer spaces do not count; both are read."""
        bare = marker.strip()
        while True:
            found = self.buffer.find(bare, self.at)
            if found >= 0:
                text = self.buffer[self.at : found]
                self.at = found + len(bare)
                return text
            if len(self.buffer) - self.at > chars_max + len(bare):
                raise MalformedError
            yield from self.more()

    def name(self) -> Reading[str]:
        """A word of letters, digits, `_`, `.` and `-` that ends before another character."""
        yield from self.peek()
        while True:
            found = _NAME.match(self.buffer, self.at)
            if found is None:
                raise MalformedError
            if found.end() < len(self.buffer):
                self.at = found.end()
                return found[0]
            yield from self.more()

    def string(self) -> Reading[str]:
        """A JSON string, decoded."""
        if (yield from self.peek()) != '"':
            raise MalformedError
        return decode((yield from self.value()), str)

    def value(self, *, streamed: bool = False) -> Reading[str]:
        """The text of the JSON value that begins here; only its structure is checked.

        `streamed` gives it on piece by piece as arguments, instead of keeping it, and returns its last piece.
        """
        start, depth, quoted = self.at, 0, False
        while True:
            stop = (_STRING_STOP if quoted else _VALUE_STOP).search(self.buffer, self.at)
            if stop is None or (stop[0] == "\\" and stop.end() == len(self.buffer)):
                self.at = stop.start() if stop else len(self.buffer)
                if streamed:
                    self._argue_buffer(len(self.buffer) if self.ended else self.at)
                yield from self.more()
                continue
            self.at = stop.end()
            match stop[0]:
                case "\\":
                    self.at += 1
                case '"':
                    quoted = not quoted
                case "{" | "[":
                    depth += 1
                case "}" | "]" if depth:
                    depth -= 1
                case "," | " " | "\t" | "\r" | "\n" if depth:
                    pass
                case _:
                    # A number or a word ends before this; anything else that does is not JSON.
                    self.at = stop.start()
                    break
            if not depth and not quoted:
                break
        text = self.buffer[start : self.at]
        if streamed:
            self._argue_buffer(self.at)
        if not text:
            raise MalformedError
        return text

    # Giving

    def announce(self, name: str, arguments: str = "") -> None:
        """A call of the function `name` begins; what was read so far is done with. Raises MalformedError if there is no
        such function."""
        self.check(name)
        self.drop(self.at)
        self._called = name
        self._call(CallPiece(self.calls, self._new_id(), name, arguments))
        self.calls += 1
        self.gap = True

    def check(self, name: str) -> None:
        """Raises MalformedError when there is no function `name`."""
        if self._schemas is not None and name not in self._schemas:
            raise MalformedError

    def argue(self, arguments: str) -> None:
        """More of the arguments of the call that was announced last."""
        if arguments:
            self._call(CallPiece(self.calls - 1, None, None, arguments))

    def schema(self) -> Mapping[str, Any]:
        """The schema of each parameter of the function that was announced last, in order."""
        parameters = decode((self._schemas or {}).get(self._called, b"{}"), dict)
        properties = parameters.get("properties")
        return properties if isinstance(properties, dict) else {}

    def say(self, size: int) -> None:
        """Gives the first `size` characters of the buffer as text, without the spaces after a call or thoughts."""
        text = self.take(size)
        if text:
            self.pieces.append(TextPiece(text))

    def think(self, size: int) -> None:
        """Gives the first `size` characters of the buffer as reasoning, without the spaces it begins with."""
        text = self.take(size)
        if text:
            self.pieces.append(ReasoningPiece(text))

    def take(self, size: int) -> str:
        """The first `size` characters of the buffer, which are dropped, without the spaces after a gap."""
        text = self.buffer[:size]
        self.drop(size)
        if self.gap:
            text = text.lstrip(SPACE)
            self.gap = not text
        return text

    def drop(self, size: int) -> None:
        """Forgets the first `size` characters of the buffer; what is left is still to be read."""
        self.buffer = self.buffer[size:]
        self.at = 0

    def _argue_buffer(self, size: int) -> None:
        self.argue(self.buffer[:size])
        self.drop(size)

    def _call(self, piece: CallPiece) -> None:
        if self._calls_max is None or piece.index < self._calls_max:
            self.pieces.append(piece)


def overlap(text: str, marker: str) -> int:
    """How many characters at the end of `text` could be the first ones of `marker`."""
    return next((size for size in range(len(marker) - 1, 0, -1) if text.endswith(marker[:size])), 0)


def decode(text: str | bytes, kind: type[T]) -> T:
    """JSON text as a value; raises MalformedError."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise MalformedError from exc


def quoted(text: str) -> str:
    """`text` as a JSON string without its quotes."""
    return msgspec.json.encode(text)[1:-1].decode()
