"""Replacing members of a JSON object without touching a byte of the rest.

Whoever reads the object after us may take the first of two members of a name where our decoder took the last. So an
object that has a member twice which is replaced, in whatever spelling, is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from json.scanner import c_make_scanner  # type: ignore[attr-defined]

import msgspec

from adapters.errors import InvalidRequest
from adapters.members import Members

Parts = tuple[bytes | memoryview, ...]

# Below this a copy costs less than a view.
COPIED_BYTES_MAX = 16 * 1024

# Above this, looking for names in a body takes longer than decoding it once: each name that is looked for is a pass.
SEARCHED_BYTES_MAX = 8 * 1024

_NOTHING = msgspec.Raw(b"")
_KEY = re.compile(rb'[ \t\n\r]*("(?:[^"\\]|\\.)*")[ \t\n\r]*:[ \t\n\r]*')
_FOLLOWING = re.compile(rb"[ \t\n\r]*[,}]")
members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_name_decoder = msgspec.json.Decoder(str)
_SPACE = re.compile(r"[ \t\n\r]*")
# A letter in a name may be spelled like this.
_LETTER = re.compile(rb"\\u00[567]")
_TEXT = re.compile(rb'[ \t\n\r]*:[ \t\n\r]*("(?:[^"\\]|\\.)*")')
_scan = c_make_scanner(json.JSONDecoder(strict=False))


def splice(
    body: bytes, replaced: Mapping[str, bytes], added: Mapping[str, bytes], members: Members | None = None
) -> Parts:
    """`body`, a valid JSON object, with JSON texts as the values of members: `replaced` are there, `added` are not.

    Parts to be sent one after the other. Raises InvalidRequest when a member is there twice. `members` are those of a
    large body, where they are known.
    """
    if not added and len(replaced) == 1:
        ((name, value),) = replaced.items()
        return replace_one(body, name, value, members)
    view = memoryview(body)
    start = body.index(b"{") + 1
    parts: list[bytes | memoryview] = [view[:start], *(b'"%b":%b,' % (name.encode(), added[name]) for name in added)]
    for (begin, end), value in sorted((span, replaced[name]) for name, span in _spans(body, replaced, members).items()):
        parts += [view[start:begin], value]
        start = end
    return (*parts, view[start:])


def set_member(body: bytes, name: str, value: bytes) -> Parts:
    """`splice` for one member that may be there or not."""
    there = name in members_decoder.decode(body)
    return splice(body, {name: value}, {}) if there else splice(body, {}, {name: value})


def rename(body: bytes, name: str, new_name: str, value: bytes) -> Parts:
    """`body`, a valid JSON object, with another member, which it must not have, in the place of one that is there.

    Raises InvalidRequest when either is there otherwise.
    """
    found = _walked(body, {name: b"", new_name: b""})
    if new_name in found:
        raise InvalidRequest(f"Unknown parameter: '{new_name}'.", code="unknown_parameter", param=new_name)
    begin, end = found[name]
    quote = body.rindex(b'"', 0, body.rindex(b":", 0, begin))
    start = body.rindex(b'"', 0, quote)
    return _around(body, start, b'"%b":%b' % (new_name.encode(), value), end)


def replace_one(body: bytes, name: str, value: bytes, members: Members | None = None) -> Parts:
    """`splice` for one member that is there."""
    begin, end = _span(body, name) or _spans(body, {name: value}, members)[name]
    return (body[:begin], value, body[end:]) if len(body) <= COPIED_BYTES_MAX else _around(body, begin, value, end)


def _around(body: bytes, begin: int, value: bytes, end: int) -> Parts:
    view = memoryview(body)
    return view[:begin], value, view[end:]


def _spans(body: bytes, names: Mapping[str, bytes], read: Members | None) -> dict[str, tuple[int, int]]:
    """Where the values of members are that are known to be there.

    A name of letters that occurs once, quoted, can only be that member, unless some name is spelled with escapes.
    """
    if len(body) > SEARCHED_BYTES_MAX:
        return _measured(body, names, read or Members(members_decoder.decode(body), body))
    found: dict[str, tuple[int, int]] = {}
    for name in names:
        if (span := _span(body, name)) is None:
            return _walked(body, names)
        found[name] = span
    return found


def escaped(body: bytes) -> bool:
    """Whether a name or a value may be spelled with escapes."""
    return body.find(b"\\") >= 0 and body.find(b"\\u00") >= 0


def _span(body: bytes, name: str) -> tuple[int, int] | None:
    """Where the value of one member is, if it is a text and easily found."""
    if len(body) > SEARCHED_BYTES_MAX:
        return None
    if escaped(body) and _LETTER.search(body) is not None:
        return None
    quoted = b'"%b"' % name.encode()
    at = body.find(quoted)
    if at < 0:
        return None
    at += len(quoted)
    if body.find(quoted, at) >= 0:
        return None
    if body.startswith(b':"', at):
        end = body.find(b'"', at + 2) + 1
        if body.find(b"\\", at, end) < 0:
            return at + 1, end
    text = _TEXT.match(body, at)
    return None if text is None else text.span(1)


def _measured(body: bytes, names: Mapping[str, bytes], read: Members) -> dict[str, tuple[int, int]]:
    """The same for large bodies, by the lengths of all values, which takes one pass over them.

    Of two members of a name only the last one's length is known, so each has to be where its value is.
    """
    found: dict[str, tuple[int, int]] = {}
    outline = read.outline
    at = outline.index(b"{") + 1
    while (key := _KEY.match(outline, at)) is not None:
        name = _name_decoder.decode(key[1])
        value = memoryview(read.values.get(name, _NOTHING))
        begin, end = key.end(), key.end() + value.nbytes
        following = _FOLLOWING.match(outline, end)
        if following is None or not outline.startswith(value, begin):
            return _walked(body, names)
        if name in names and name in found:
            raise _twice(name)
        if name in names:
            found[name] = read.place(begin), read.place(end)
        at = following.end()
    return found if len(found) == len(names) else _walked(body, names)


def _twice(name: str) -> InvalidRequest:
    return InvalidRequest(f"The body of your request has '{name}' twice.", param=name)


def _walked(body: bytes, names: Mapping[str, bytes]) -> dict[str, tuple[int, int]]:
    """The same by walking over all members; much slower."""
    found: dict[str, tuple[int, int]] = {}
    for name, begin, end in members(body):
        if name in names and name in found:
            raise _twice(name)
        if name in names:
            found[name] = begin, end
    return found


def members(body: bytes) -> Iterator[tuple[str, int, int]]:
    """The members of a valid JSON object: name (garbled outside of ASCII), and where the value begins and ends."""
    # Latin-1 gives every byte a character, so that positions stay what they are.
    text = body.decode("latin-1")
    at = _SPACE.match(text, text.index("{") + 1).end()  # type: ignore[union-attr]
    while text[at] != "}":
        name, at = _scan(text, at)
        begin = _SPACE.match(text, _SPACE.match(text, at).end() + 1).end()  # type: ignore[union-attr]
        end = _scan(text, begin)[1]
        yield name, begin, end
        at = _SPACE.match(text, end).end()  # type: ignore[union-attr]
        if text[at] == ",":
            at = _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
