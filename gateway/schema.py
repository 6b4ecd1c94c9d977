"""What the types of the settings say about themselves: where settings are, what they take, in words."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect


def unwrap(kind: inspect.Type) -> tuple[inspect.Type, bool]:
    """The type without `| None` and metadata, and whether it is a path of a local file."""
    is_path = False
    while isinstance(kind, inspect.Metadata | inspect.UnionType):
        if isinstance(kind, inspect.Metadata):
            is_path = is_path or bool((kind.extra or {}).get("path"))
            kind = kind.type
        else:
            kind = next(inner for inner in kind.types if not isinstance(inner, inspect.NoneType))
    return kind, is_path


def only_empty(kind: inspect.Type) -> bool:
    """Whether there is nothing to set."""
    return kind in (inspect.NoneType(), inspect.TupleType(item_types=()))


def leaves(kind: inspect.Type, path: str) -> Iterator[tuple[str, inspect.Type]]:
    """Every setting outside of lists, as (path, type)."""
    inner, _ = unwrap(kind)
    if not isinstance(inner, inspect.StructType):
        yield path, inner
        return
    for field in inner.fields:
        yield from leaves(field.type, f"{path}.{field.name}" if path else field.name)


def describe(kind: inspect.Type) -> str:
    """What a value has to be, in words."""
    match kind:
        case inspect.Metadata(extra={"words": str() as text}):
            return text
        case inspect.Metadata():
            return describe(kind.type)
        case inspect.UnionType():
            return " or ".join(describe(inner) for inner in kind.types)
        case inspect.IntType():
            return f"int between {kind.ge} and {kind.le}"
        case inspect.FloatType():
            low = f"above {kind.gt:g}" if kind.ge is None else f"at least {kind.ge:g}"
            return f"number {low} and at most {kind.le:g}"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType():
            return "one of " + ", ".join(str(value) for value in kind.values)
        case inspect.StrType(pattern=r"^[!-~]+\Z" | r"^[ -~]+\Z"):
            return "text of visible ASCII characters"
        case inspect.StrType(pattern=str()):
            return "a name of at most 200 letters, digits and ._:/@+- that starts with a letter or digit"
        case inspect.StrType():
            return "text"
        case inspect.VarTupleType():
            return "a list"
        case inspect.DictType():
            return f"names with {describe(kind.value_type)}"
        case inspect.StructType():
            return "settings as `name: value` lines"
        case inspect.NoneType():
            return "null"
    return "another type"


def show(value: Any) -> str:
    """A value as it was given, if it is short."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    text = str(value) if isinstance(value, float) else msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else text[:77] + "..."


def suggest(name: str, known: list[str]) -> str:
    """The end of a message about an unknown name."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(sorted(known))}"
