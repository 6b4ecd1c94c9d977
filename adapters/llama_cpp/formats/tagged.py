"""Calls whose arguments stand one by one between tags, converted to a JSON object typed by the tool's schema."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from adapters.llama_cpp.formats.literals import python_as_json
from adapters.llama_cpp.formats.reader import MalformedError, Reader, Reading, decode, overlap, quoted

VALUE_CHARS_MAX = 1 << 20
STRING_FLAG = "{string}"
"""Stands in the middle marker of a parameter for `true` where its value is text, and `false` where it is JSON."""
TYPE_FLAG = "{type}"
"""Stands there for the JSON type of the value."""

Kinds = frozenset[str] | None
TEXT = frozenset({"string"})


class Tags(msgspec.Struct, frozen=True):
    """What stands before a parameter's key, between key and value, and after the value; and what may stand around a
    value that holds such marks itself."""

    begin: str
    middle: str
    end: str
    wrap: tuple[str, str] | None = None

    @property
    def flag(self) -> str:
        """What in `middle` stands for the kind of the value, empty where nothing does."""
        return next((flag for flag in (STRING_FLAG, TYPE_FLAG) if flag in self.middle), "")


def read_tagged(reader: Reader, middle: str, middle_end: str, tags: Tags, end: str) -> Reading[None]:
    """A name, `middle` or whatever ends with `middle_end`, and parameters until `end`, which is left to be read."""
    name = yield from reader.name()
    reader.check(name)
    closed = not middle.strip()
    if middle_end:
        yield from reader.seek(middle_end)
    elif not closed:
        yield from reader.choose(middle)
    # A tag must follow, since the name alone could as well be text.
    if closed:
        yield from _next(reader, tags, end)
    reader.announce(name, "{")
    schemas = reader.schema()
    first = True
    while (yield from _next(reader, tags, end)):
        yield from reader.choose(tags.begin)
        key, kinds = yield from _key(reader, tags)
        if kinds is None:
            kinds = kinds_of(schemas.get(key, {}))
        reader.drop(reader.at)
        reader.argue(f'{"" if first else ", "}"{quoted(key)}": ')
        first = False
        yield from _value(reader, tags, kinds)
    reader.argue("}")


def _next(reader: Reader, tags: Tags, end: str) -> Reading[bool]:
    """Whether a parameter follows, and not the end; both stay to be read."""
    yield from reader.peek()
    start = reader.at
    found = yield from reader.choose(tags.begin, end)
    reader.at = start
    return found == tags.begin


def _key(reader: Reader, tags: Tags) -> Reading[tuple[str, Kinds]]:
    """A parameter's key, and the kind of its value where the tag tells it."""
    if tags.flag:
        key, _, attributes = (yield from reader.seek(tags.middle.rpartition(tags.flag)[2])).partition('"')
        is_text = "false" not in attributes if tags.flag == STRING_FLAG else "string" in attributes
        return key, TEXT if is_text else frozenset({"json"})
    first, *others = tags.middle.split()
    key = (yield from reader.seek(first)).strip()
    for other in others:
        yield from reader.choose(other)
    return key, None


def _value(reader: Reader, tags: Tags, kinds: Kinds) -> Reading[None]:
    """Gives the value that begins here as JSON; text is given as it comes, anything else when it is complete."""
    wrapped = tags.wrap is not None and (yield from reader.comes(tags.wrap[0]))
    end = tags.wrap[1] if tags.wrap and wrapped else tags.end.strip()
    padded = tags.end.startswith("\n")
    if kinds == TEXT:
        reader.argue('"')
    text = ""
    begun = False
    while True:
        if padded and not begun and reader.buffer:
            reader.buffer = reader.buffer.removeprefix("\n")
            begun = True
        found = reader.buffer.find(end)
        size = found if found >= 0 else len(reader.buffer) - overlap(reader.buffer, end)
        # One line end before the end tag belongs to the tag.
        if padded and reader.buffer[:size].endswith("\n"):
            size -= 1
        text += reader.buffer[:size]
        reader.drop(size)
        if kinds == TEXT:
            reader.argue(quoted(text))
            text = ""
        if found >= 0 and kinds != TEXT and _in_string(text):
            # The tag is part of a string of JSON.
            text += reader.buffer[: found - size + len(end)]
            reader.drop(found - size + len(end))
            continue
        if found >= 0:
            reader.drop(found - size + len(end))
            break
        if len(text) > VALUE_CHARS_MAX:
            raise MalformedError
        yield from reader.more()
    if wrapped:
        yield from reader.choose(tags.end)
    reader.argue('"' if kinds == TEXT else as_json(text, kinds))


def _in_string(text: str) -> bool:
    """Whether JSON that is an array or an object is inside of a string at the end of `text`."""
    return text.lstrip()[:1] in ("[", "{") and re.sub(r"\\.", "", text).count('"') % 2 == 1


def kinds_of(schema: Any) -> Kinds:
    """The JSON types a schema allows, numbers under one name; None where it does not tell."""
    if not isinstance(schema, dict):
        return None
    types = schema.get("type")
    if isinstance(types, str):
        types = [types]
    if isinstance(types, list):
        return frozenset("number" if kind == "integer" else str(kind) for kind in types)
    if isinstance(schema.get("enum"), list):
        return frozenset(map(kind_of, schema["enum"]))
    if "const" in schema:
        return frozenset({kind_of(schema["const"])})
    several = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(several, list):
        known = [kinds_of(one) for one in several]
        return None if None in known else frozenset(kind for kinds in known if kinds for kind in kinds)
    return None


def as_json(text: str, kinds: Kinds) -> str:
    """A parameter's text as JSON of one of `kinds`: itself where it is such JSON, or a literal of Python for it, else a
    string."""
    bare = {"True": "true", "False": "false", "None": "null"}.get(text.strip(), text.strip())
    try:
        kind = kind_of(decode(bare, object))
    except MalformedError:
        kind = "string"
        literal = python_as_json(bare) if bare[:1] in ("[", "{") and (kinds is None or "string" not in kinds) else None
        if literal is not None:
            return literal
    if kind == "string" and (kinds is None or "string" in kinds or not bare.startswith('"')):
        return f'"{quoted(text)}"'
    return f'"{quoted(text)}"' if kinds is not None and "string" in kinds and kind not in kinds else bare


def kind_of(value: object) -> str:
    """The JSON type of a value, numbers under one name."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"
