"""Calls whose arguments are elements named after them, with more elements inside of objects and arrays."""

from __future__ import annotations

from typing import Any

from adapters.llama_cpp.formats.literals import DEPTH_MAX, read_text
from adapters.llama_cpp.formats.reader import MalformedError, Reader, Reading, overlap, quoted
from adapters.llama_cpp.formats.tagged import TEXT, VALUE_CHARS_MAX, Kinds, as_json, kinds_of

ITEM = "item"
"""The name of an element of an array."""


def read_elements(reader: Reader, middle: str, prefix: str) -> Reading[None]:
    """A name, `middle`, and elements until a tag ends something, which is left to be read. `prefix` stands before each
    tag, so that no text can be mistaken for one."""
    name = yield from reader.name()
    reader.check(name)
    yield from reader.choose(middle)
    reader.announce(name)
    yield from _children(reader, prefix, {"type": "object", "properties": reader.schema()}, 0)


def _children(reader: Reader, prefix: str, schema: Any, depth: int) -> Reading[None]:
    """Gives the elements up to an end tag as an object, or as an array where they are items."""
    if depth > DEPTH_MAX:
        raise MalformedError
    within = schema if isinstance(schema, dict) else {}
    properties = within.get("properties")
    kinds = kinds_of(schema) or frozenset()
    is_array = kinds == {"array"}
    count = 0
    while not (yield from _ends(reader, prefix)):
        tag = yield from reader.seek(">")
        reader.drop(reader.at)
        if not count:
            is_array = is_array or (tag == ITEM and kinds != {"object"})
            reader.argue("[" if is_array else "{")
        reader.argue(", " if count else "")
        reader.argue("" if is_array else f'"{quoted(tag)}": ')
        count += 1
        inner = within.get("items") if is_array else (properties.get(tag) if isinstance(properties, dict) else None)
        yield from _value(reader, prefix, inner, depth)
    opened = "" if count else "[" if is_array else "{"
    reader.argue(opened + ("]" if is_array else "}"))


def _ends(reader: Reader, prefix: str) -> Reading[bool]:
    """Whether an end tag comes, which is left to be read, or else a tag, of which what stands before its name is."""
    yield from reader.peek()
    start = reader.at
    yield from reader.choose(f"{prefix}<")
    while reader.at == len(reader.buffer):
        yield from reader.more()
    if reader.buffer[reader.at] != "/":
        return False
    reader.at = start
    return True


def _value(reader: Reader, prefix: str, schema: Any, depth: int) -> Reading[None]:
    """Gives what stands between two tags as JSON: text as it comes, elements one by one. The end tag is read; it is
    the next one there is, since elements are named by what begins them."""
    kinds = kinds_of(schema)
    end = f"{prefix}</"
    if kinds == TEXT:
        yield from read_text(reader, end, escapes=False)
    else:
        text = yield from _leading(reader, prefix)
        if reader.buffer.startswith(end):
            reader.drop(len(end))
            reader.argue(_leaf(text, kinds))
        elif text.strip():
            raise MalformedError
        else:
            yield from _children(reader, prefix, schema, depth + 1)
            yield from reader.choose(end)
    yield from reader.seek(">")
    reader.drop(reader.at)


def _leading(reader: Reader, prefix: str) -> Reading[str]:
    """The text before the next tag; the tag is left to be read, as far as `<` and what follows."""
    text = ""
    while True:
        found = reader.buffer.find(prefix)
        size = found if found >= 0 else len(reader.buffer) - overlap(reader.buffer, prefix)
        text += reader.buffer[:size]
        reader.drop(size)
        if found >= 0 and len(reader.buffer) >= len(prefix) + 2:
            return text
        if len(text) > VALUE_CHARS_MAX:
            raise MalformedError
        yield from reader.more()


def _leaf(text: str, kinds: Kinds) -> str:
    """Text as JSON; nothing at all is an empty value of its kind."""
    if text.strip() or kinds is None or "string" in kinds:
        return as_json(text, kinds)
    return next((empty for kind, empty in (("array", "[]"), ("object", "{}")) if kind in kinds), "null")
