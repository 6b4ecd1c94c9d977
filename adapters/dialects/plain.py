"""Large requests that are passed on: read once, for all that is asked of them later, and looked at once for anything
but text, so that nothing else has to be searched for in their long parts."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from adapters.dialects import openai_wire as wire
from adapters.dialects.splicing import SEARCHED_BYTES_MAX, members_decoder
from adapters.errors import InvalidRequest
from adapters.members import KEPT_BYTES, Members, outlined
from adapters.types import Inbound

T = TypeVar("T", bound=msgspec.Struct)
NOTHING = msgspec.Raw(b"null")


def fields_of(decoder: msgspec.json.Decoder[T], body: bytes) -> tuple[T, Members | None]:
    """What a head is made of and, of a large body, its members. Raises InvalidRequest."""
    if len(body) <= SEARCHED_BYTES_MAX:
        return wire.decode(decoder, body), None
    members = _members_of(body)
    return wire.decode(decoder, _taken(members, decoder.type.__struct_fields__, body)), members


def _members_of(body: bytes) -> Members:
    outline, cuts = outlined(body)
    if cuts:
        with contextlib.suppress(InvalidRequest):  # What is wrong is told of the body itself.
            return Members(wire.decode(members_decoder, outline), outline, cuts)
    return Members(wire.decode(members_decoder, body), body)


def _taken(members: Members, names: Iterable[str], body: bytes) -> bytes:
    """An object with those of the members that are there, or all of the body where one of them may be cut."""
    taken = object_of(members, names)
    return body if members.cuts and len(taken) > KEPT_BYTES else taken


def object_of(members: Members, names: Iterable[str]) -> bytes:
    """An object with those of the members that are there."""
    values = members.values
    return b"{%b}" % b",".join([b'"%b":%b' % (name.encode(), values[name]) for name in names if name in values])


def chosen(inbound: Inbound, names: Iterable[str]) -> bytes:
    """The body, or an object that has all that it has of these members."""
    members = inbound.head.members
    return inbound.body if members is None else _taken(members, names, inbound.body)


def searched(inbound: Inbound, said: Collection[str]) -> bytes:
    """What of the body to look for signs in: not its long texts, nor what is `said` in it where that is nothing but
    text."""
    members = inbound.head.members
    if members is None:
        return inbound.body
    if not inbound.head.plain:
        return members.outline
    return object_of(members, [name for name in members.values if name not in said])


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects inside of what was decoded, which may be one itself."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from objects(one)


def all_text(contents: Iterable[msgspec.Raw], parts: msgspec.json.Decoder[Any]) -> bool:
    """Whether each content is a text, nothing, or a list of what `parts` decodes, which are parts that are nothing but
    text."""
    try:
        return all(_is_text(content, parts) for content in contents)
    except (msgspec.DecodeError, RecursionError):
        return False


def _is_text(content: msgspec.Raw, parts: msgspec.json.Decoder[Any]) -> bool:
    first = bytes(memoryview(content)[:1])
    if first == b"[":
        parts.decode(content)
    return first in (b'"', b"n", b"[")
