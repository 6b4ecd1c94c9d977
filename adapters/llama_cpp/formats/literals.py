"""Calls written as code, `name(key=value)` or `name{key:value}`, converted to JSON while they are read."""

from __future__ import annotations

import re

import msgspec

from adapters.llama_cpp.formats.reader import CallPiece, MalformedError, Reader, Reading, overlap, quoted

DEPTH_MAX = 64
_WORD_END = re.compile(r"[\s,:=()\[\]{}\"'<]")
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_ESCAPES = {"n": "\\n", "t": "\\t", "r": "\\r", "b": "\\b", "f": "\\f", "\\": "\\\\", '"': '\\"', "'": "'", "/": "/"}
_ESCAPES |= {"0": "\\u0000", "a": "\\u0007", "v": "\\u000b", "\n": ""}
_CODES = {"x": 2, "u": 4, "U": 8}


class Style(msgspec.Struct, frozen=True):
    """How literals are written: what opens and closes a call's arguments, joins a key to its value, and encloses text.

    Text between anything but quotes has no escapes, and the keys of objects are then bare words. `constants` are what
    is true, false and nothing.
    """

    opening: str
    closing: str
    joint: str
    quotes: tuple[str, ...]
    constants: tuple[str, str, str] = ("true", "false", "null")

    @property
    def escapes(self) -> bool:
        return '"' in self.quotes


PYTHON = Style("(", ")", "=", ('"""', "'''", '"', "'"), ("True", "False", "None"))
PYTHON_OF_JSON = Style("(", ")", "=", ('"', "'"))
"""Calls as in Python, of values as in JSON."""


def read_code(reader: Reader, style: Style) -> Reading[None]:
    """A name and its arguments; unnamed ones belong to the parameters in order."""
    if style.escapes and (yield from reader.peek()) == "[":
        reader.at += 1
    name = yield from reader.name()
    reader.check(name)
    yield from reader.expect(style.opening)
    reader.announce(name, "{")
    names = iter(reader.schema())
    first = True
    while (yield from reader.peek()) != style.closing:
        if not first:
            yield from reader.expect(",")
            if (yield from reader.peek()) == style.closing:
                break
        key = yield from _argument_name(reader, style)
        if key is None:
            key = next(names, None)
            if key is None:
                raise MalformedError
        reader.argue(f'{"" if first else ", "}"{quoted(key)}": ')
        yield from _literal(reader, style, 0)
        first = False
    reader.at += 1
    reader.argue("}")


def python_as_json(text: str) -> str | None:
    """A literal of Python as JSON; None for what is none."""
    reader = Reader(None, str, None)
    reader.buffer = f"{text.strip()}\n"
    try:
        next(_literal(reader, PYTHON, 0), None)
    except MalformedError:
        return None
    # A literal that is cut waits for more; of one with something behind it that is left.
    written = "".join(piece.arguments for piece in reader.pieces if isinstance(piece, CallPiece))
    return written if reader.buffer[reader.at :] == "\n" else None


def _argument_name(reader: Reader, style: Style) -> Reading[str | None]:
    """The name before the joint; None, and nothing read, where a value stands by itself."""
    start = reader.at
    first = reader.buffer[start]
    if not (first.isalpha() or first == "_"):
        return (yield from _key(reader, style)) if style.joint == ":" else None
    word = yield from reader.name()
    if (yield from reader.peek()) != style.joint:
        reader.at = start
        return None
    reader.at += 1
    return word


def _key(reader: Reader, style: Style) -> Reading[str]:
    """A key that is enclosed as text is."""
    quote = yield from _quote(reader, style)
    if quote is None:
        raise MalformedError
    key = yield from reader.seek(quote)
    yield from reader.expect(style.joint)
    return key


def _quote(reader: Reader, style: Style) -> Reading[str | None]:
    """What encloses the text that begins here, read; None where something else begins."""
    while True:
        rest = reader.buffer[reader.at :]
        found = next((quote for quote in style.quotes if rest.startswith(quote)), None)
        longer = [quote for quote in style.quotes if quote != rest and quote.startswith(rest)]
        if not longer:
            if found is not None:
                reader.at += len(found)
            return found
        # Two quotes are empty text or the beginning of three; what comes next tells.
        yield from reader.more()


def _literal(reader: Reader, style: Style, depth: int) -> Reading[None]:
    """Gives the value that begins here as JSON."""
    if depth > DEPTH_MAX:
        raise MalformedError
    first = yield from reader.peek()
    quote = yield from _quote(reader, style)
    if quote is not None:
        yield from read_text(reader, quote, escapes=style.escapes)
    elif first == "{":
        yield from _object(reader, style, depth)
    elif first in "[(":
        yield from _items(reader, style, depth, "]" if first == "[" else ")")
    else:
        reader.argue((yield from _word(reader, style)))


def _object(reader: Reader, style: Style, depth: int) -> Reading[None]:
    reader.at += 1
    reader.argue("{")
    first = True
    while (yield from reader.peek()) != "}":
        if not first:
            yield from reader.expect(",")
            reader.argue(", ")
            yield from reader.peek()
        if (yield from _quoted_key(reader, style)):
            yield from reader.expect(":")
        else:
            key = (yield from reader.seek(":")).strip()
            reader.argue(f'"{quoted(key)}"')
        reader.argue(": ")
        yield from _literal(reader, style, depth + 1)
        first = False
    reader.at += 1
    reader.argue("}")


def _quoted_key(reader: Reader, style: Style) -> Reading[bool]:
    quote = yield from _quote(reader, style)
    if quote is not None:
        yield from read_text(reader, quote, escapes=style.escapes)
    return quote is not None


def _items(reader: Reader, style: Style, depth: int, closing: str) -> Reading[None]:
    reader.at += 1
    reader.argue("[")
    first = True
    while (yield from reader.peek()) != closing:
        if not first:
            yield from reader.expect(",")
            if (yield from reader.peek()) == closing:
                break
            reader.argue(", ")
        yield from _literal(reader, style, depth + 1)
        first = False
    reader.at += 1
    reader.argue("]")


def _word(reader: Reader, style: Style) -> Reading[str]:
    """A number or a constant; other words are text where text may be bare."""
    while True:
        end = _WORD_END.search(reader.buffer, reader.at)
        if end is not None:
            break
        yield from reader.more()
    word = reader.buffer[reader.at : end.start()]
    if word in _WORDS:
        reader.at = end.start()
        return _WORDS[word]
    if _NUMBER.fullmatch(word):
        reader.at = end.start()
        return word
    if style.escapes:
        raise MalformedError
    stop = re.compile(r"[,}\]]")
    while (found := stop.search(reader.buffer, reader.at)) is None:
        yield from reader.more()
    text = reader.buffer[reader.at : found.start()].strip()
    reader.at = found.start()
    return f'"{quoted(text)}"'


def read_text(reader: Reader, quote: str, *, escapes: bool) -> Reading[None]:
    """Gives the text up to `quote` as a JSON string, as it comes."""
    reader.argue('"')
    reader.drop(reader.at)
    while True:
        found = reader.buffer.find(quote)
        escape = reader.buffer.find("\\") if escapes else -1
        if escape >= 0 and (found < 0 or escape < found):
            reader.argue(quoted(reader.buffer[:escape]))
            reader.drop(escape)
            reader.argue((yield from _escape(reader)))
            reader.drop(reader.at)
            continue
        size = found if found >= 0 else len(reader.buffer) - overlap(reader.buffer, quote)
        reader.argue(quoted(reader.buffer[:size]))
        reader.drop(size)
        if found >= 0:
            reader.drop(len(quote))
            reader.argue('"')
            return
        yield from reader.more()


def _escape(reader: Reader) -> Reading[str]:
    """The JSON text of the escape that begins here; an unknown one stands for itself."""
    while len(reader.buffer) < 2:
        yield from reader.more()
    kind = reader.buffer[1]
    size = _CODES.get(kind, 0)
    while len(reader.buffer) < 2 + size:
        yield from reader.more()
    reader.at = 2 + size
    if not size:
        return _ESCAPES.get(kind) or ("" if kind == "\n" else "\\\\" + quoted(kind))
    try:
        code = int(reader.buffer[2 : 2 + size], 16)
    except ValueError:
        raise MalformedError from None
    if code > 0xFFFF:
        return quoted(chr(code)) if code <= 0x10FFFF else "\\ufffd"
    # A half of a pair is kept as an escape, and its other half follows as one.
    return f"\\u{code:04x}"
