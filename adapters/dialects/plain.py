"""Large requests that are passed on: read once, for all that is asked of them later, and looked at once for anything
but text, so that nothing else has to be searched for in their long parts."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, TypeVar

import msgspec

from adapters.dialects import openai_wire as wire
from adapters.dialects.splicing import SEARCHED_BYTES_MAX, Members, members_decoder
from adapters.types import Inbound

T = TypeVar("T", bound=msgspec.Struct)
NOTHING = msgspec.Raw(b"null")


def fields_of(decoder: msgspec.json.Decoder[T], body: bytes) -> tuple[T, Members | None]:
    """What a head is made of and, of a large body, its members. Raises InvalidRequest."""
    if len(body) <= SEARCHED_BYTES_MAX:
        return wire.decode(decoder, body), None
    members = wire.decode(members_decoder, body)
    return wire.decode(decoder, object_of(members, decoder.type.__struct_fields__)), members


def object_of(members: Members, names: Iterable[str]) -> bytes:
    """An object with those of the members that are there."""
    return b"{%b}" % b",".join([b'"%b":%b' % (name.encode(), members[name]) for name in names if name in members])


def chosen(inbound: Inbound, names: Iterable[str]) -> bytes:
    """The body, or an object that has all that it has of these members."""
    members = inbound.head.members
    return inbound.body if members is None else object_of(members, names)


def searched(inbound: Inbound, said: Collection[str]) -> bytes:
    """The body to look for signs in: without what is `said` in it, where that is nothing but text."""
    head = inbound.head
    if not head.plain or head.members is None:
        return inbound.body
    return object_of(head.members, [name for name in head.members if name not in said])


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
