"""Tool calls in model output: one table of the formats models use, and the parser that streams calls out of text."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeVar

import msgspec


class ToolFormat(msgspec.Struct, frozen=True):
    """How a family of models writes a call: `begin`, a JSON object with a name and arguments, `end`.

    A chat template that holds all of `marks` and none of `unless` teaches this format.
    """

    name: str
    marks: tuple[str, ...]
    unless: tuple[str, ...]
    begin: str
    end: str
    name_key: str = "name"
    arguments_key: str = "arguments"


FORMATS = (
    ToolFormat(
        name="hermes",
        marks=("<tool_call>", "</tool_call>"),
        # Others write XML or key-value pairs between the same tags.
        unless=("<function=", "<arg_key>", "<function name", "<|tool_call", "<tool_calls>", "<invoke"),
        begin="<tool_call>",
        end="</tool_call>",
    ),
)


def sniff(template_source: str) -> str | None:
    """The name of the format that a chat template teaches its model, None if no known one."""
    for row in FORMATS:
        if all(mark in template_source for mark in row.marks) and not any(
            mark in template_source for mark in row.unless
        ):
            return row.name
    return None


class TextPiece(msgspec.Struct, frozen=True):
    """Text that is not part of a call."""

    text: str


class CallPiece(msgspec.Struct, frozen=True):
    """A piece of the `index`-th call. The first has `id` and `name`; joined, `arguments` is what the model wrote."""

    index: int
    id: str | None
    name: str | None
    arguments: str


Decoded = TypeVar("Decoded")


class _MalformedError(Exception):
    """What was being read is not a call after all, or the text ended inside of it."""


_SPACE = " \t\r\n"
_STRING_STOP = re.compile(r'["\\]')
_VALUE_STOP = re.compile(r'["{}\[\],\s]|[^\w+\-.:]')


class ToolParser:
    """Separates one choice's text from its tool calls, piece by piece.

    Text passes at once, except for its last characters while they could begin a call, and spaces around calls are
    dropped. A call is announced when its name is known to be one of `known_tools` (empty: any) and its arguments have
    begun; from then on these stream as they come. Whatever turns out not to be a call before that point becomes text
    exactly as written. A call that is cut later keeps the arguments it got.
    """

    def __init__(self, format_name: str, known_tools: frozenset[str], new_id: Callable[[], str]) -> None:
        self._format = next(row for row in FORMATS if row.name == format_name)
        self._known_tools = known_tools
        self._new_id = new_id
        self._calls = 0
        self._pieces: list[TextPiece | CallPiece] = []
        # What is still to be read begins at `_at`; before it, `_buffer` keeps what may yet have to be given as text.
        self._buffer = ""
        self._at = 0
        self._start = 0
        self._after_call = False
        self._ended = False
        self._reading = self._read()

    @property
    def called(self) -> bool:
        """Whether a call was announced."""
        return self._calls > 0

    def push(self, text: str) -> list[TextPiece | CallPiece]:
        """What can be told after `text` has arrived."""
        self._buffer += text
        next(self._reading)
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> list[TextPiece | CallPiece]:
        """What was held back, when no more text comes."""
        self._ended = True
        next(self._reading, None)
        return self._pieces

    def _read(self) -> Generator[None]:
        """The whole grammar, as a coroutine that is resumed when there is more text."""
        while (yield from self._text()):
            calls = self._calls
            try:
                yield from self._call()
            except _MalformedError:
                if self._calls == calls:
                    self._pass(self._start)
                    continue
            yield from self._close()

    def _text(self) -> Generator[None, None, bool]:
        """Passes text on up to the beginning of a call, after which `_start` is then; False at the end."""
        begin = self._format.begin
        while True:
            found = self._buffer.find(begin)
            if found >= 0:
                size = len(self._buffer[:found].rstrip(_SPACE))
                self._pass(size)
                self._at = self._start = found - size + len(begin)
                return True
            if self._ended:
                self._pass(len(self._buffer))
                return False
            safe = len(self._buffer) - _overlap(self._buffer, begin)
            self._pass(len(self._buffer[:safe].rstrip(_SPACE)))
            yield

    def _call(self) -> Generator[None]:
        """Reads one object; announces the call as soon as it is certain."""
        name = arguments = None
        calls = self._calls
        yield from self._expect("{")
        while True:
            key = yield from self._string()
            yield from self._expect(":")
            first = yield from self._peek()
            if key == self._format.name_key and name is None:
                name = yield from self._string()
                if self._known_tools and name not in self._known_tools:
                    raise _MalformedError
                if arguments is not None:
                    self._announce(name, arguments)
            elif key == self._format.arguments_key and arguments is None:
                if first != "{":
                    raise _MalformedError
                if name is not None:
                    self._announce(name)
                    yield from self._value(streamed=True)
                    arguments = ""
                else:
                    arguments = yield from self._value()
                    _decode(arguments, dict)
            else:
                yield from self._value()
            if (yield from self._expect(",}")) == "}":
                break
        if name is None:
            raise _MalformedError
        if self._calls == calls:
            self._announce(name, "{}")

    def _close(self) -> Generator[None]:
        """Skips the end marker, even a cut one, and brackets too many before it."""
        end = self._format.end
        while True:
            self._drop(self._at)
            self._buffer = self._buffer.lstrip(_SPACE + "]},")
            if self._buffer.startswith(end):
                self._drop(len(end))
                return
            if not end.startswith(self._buffer):
                return
            if self._ended:
                self._drop(len(self._buffer))
                return
            yield

    def _peek(self) -> Generator[None, None, str]:
        """The next character that is not a space, left in place."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in _SPACE:
                    return self._buffer[self._at]
                self._at += 1
            yield from self._more()

    def _expect(self, characters: str) -> Generator[None, None, str]:
        found = yield from self._peek()
        if found not in characters:
            raise _MalformedError
        self._at += 1
        return found

    def _string(self) -> Generator[None, None, str]:
        """A JSON string, decoded."""
        if (yield from self._peek()) != '"':
            raise _MalformedError
        return _decode((yield from self._value()), str)

    def _value(self, *, streamed: bool = False) -> Generator[None, None, str]:
        """The text of the JSON value that begins here; only its structure is checked.

        `streamed` gives it on piece by piece as arguments, instead of keeping it, and returns its last piece.
        """
        start, depth, quoted = self._at, 0, False
        while True:
            stop = (_STRING_STOP if quoted else _VALUE_STOP).search(self._buffer, self._at)
            if stop is None or (stop[0] == "\\" and stop.end() == len(self._buffer)):
                self._at = stop.start() if stop else len(self._buffer)
                if streamed:
                    self._argue(len(self._buffer) if self._ended else self._at)
                yield from self._more()
                continue
            self._at = stop.end()
            match stop[0]:
                case "\\":
                    self._at += 1
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
                    self._at = stop.start()
                    break
            if not depth and not quoted:
                break
        text = self._buffer[start : self._at]
        if streamed:
            self._argue(self._at)
        if not text:
            raise _MalformedError
        return text

    def _more(self) -> Generator[None]:
        if self._ended:
            raise _MalformedError
        yield

    def _announce(self, name: str, arguments: str = "") -> None:
        self._drop(self._at)
        self._pieces.append(CallPiece(self._calls, self._new_id(), name, arguments))
        self._calls += 1
        self._after_call = True

    def _argue(self, size: int) -> None:
        """Gives the first `size` characters of the buffer as arguments."""
        if size:
            self._pieces.append(CallPiece(self._calls - 1, None, None, self._buffer[:size]))
            self._drop(size)

    def _pass(self, size: int) -> None:
        """Gives the first `size` characters of the buffer as text, without the space after a call."""
        text = self._buffer[:size]
        self._drop(size)
        if self._after_call:
            text = text.lstrip(_SPACE)
        if text:
            self._after_call = False
            self._pieces.append(TextPiece(text))

    def _drop(self, size: int) -> None:
        self._buffer = self._buffer[size:]
        self._at = 0


def _overlap(text: str, begin: str) -> int:
    """How many characters at the end of `text` could be the first ones of `begin`."""
    return next((size for size in range(len(begin) - 1, 0, -1) if text.endswith(begin[:size])), 0)


def _decode(text: str, kind: type[Decoded]) -> Decoded:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise _MalformedError from exc
