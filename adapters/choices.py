"""What may stand at a place of a body, for whoever wrote something else there."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

from msgspec import inspect

_STEP = re.compile(r"\.?([^.\[\]]+)|\[(?:\d+|\.\.\.)\]")


# How msgspec's complaint of such a text begins.
WRONG = "Invalid enum value "


def choices(kind: Any, path: str) -> list[str]:
    """The texts that may stand at a path such as `.messages[0].role` of a body of a type; none where that is not a
    matter of a few."""
    places = list(_plain(_inspected(kind)))
    for step in _STEP.finditer(path):
        places = [inner for place in places for inner in _inside(place, step[1])]
    return list(dict.fromkeys(text for place in places for text in _texts(place)))


@functools.lru_cache(maxsize=256)
def _inspected(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def _plain(kind: inspect.Type) -> Iterator[inspect.Type]:
    """The types that it is one of."""
    match kind:
        case inspect.Metadata(type=inner):
            yield from _plain(inner)
        case inspect.UnionType(types=types):
            for one in types:
                yield from _plain(one)
        case _:
            yield kind


def _inside(place: inspect.Type, name: str | None) -> Iterator[inspect.Type]:
    """What a member, or with None an element, may be."""
    match place:
        case inspect.StructType(fields=fields) | inspect.TypedDictType(fields=fields) if name is not None:
            for field in fields:
                if field.encode_name == name:
                    yield from _plain(field.type)
        case inspect.DictType(value_type=value):
            yield from _plain(value)
        case inspect.CollectionType(item_type=item) if name is None:
            yield from _plain(item)
        case inspect.TupleType(item_types=items) if name is None:
            for item in items:
                yield from _plain(item)


def _texts(place: inspect.Type) -> list[str]:
    match place:
        case inspect.LiteralType(values=values):
            return [str(value) for value in values]
        case inspect.EnumType(cls=cls) if issubclass(cls, Enum):
            return [str(one.value) for one in cls]
    return []
