"""Writes calls as the models of each format do: what the parser is held against."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from adapters.llama_cpp.formats.literals import Style
from adapters.llama_cpp.formats.tagged import STRING_FLAG, Tags
from adapters.llama_cpp.tools import NUMBER, ToolFormat

Call = tuple[str, dict[str, Any]]


def written(row: ToolFormat, calls: Sequence[Call]) -> str:
    """`calls` as a model of the format `row` writes them, from where its prompt ends."""
    texts = [
        row.begin + _call(row, name, arguments, number) + row.end for number, (name, arguments) in enumerate(calls)
    ]
    return (row.open + row.between.join(texts) + row.close).removeprefix(row.primed)


def _call(row: ToolFormat, name: str, arguments: dict[str, Any], number: int) -> str:
    middle = row.middle.replace(NUMBER, str(number))
    match row.body:
        case "object":
            prefix = row.prefix.replace(NUMBER, str(number))
            return f'{{{prefix}"{row.name_key}": "{name}", "{row.arguments_key}": {_json(arguments)}}}'
        case "json":
            return name + middle + _json(arguments)
        case "tagged":
            assert row.tags is not None
            return name + middle + "".join(_parameter(row.tags, key, value) for key, value in arguments.items())
    assert row.style is not None
    pairs = [f"{key}{row.style.joint}{literal(value, row.style)}" for key, value in arguments.items()]
    comma = ", " if row.style.escapes else ","
    return f"{name}{row.style.opening}{comma.join(pairs)}{row.style.closing}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _parameter(tags: Tags, key: str, value: Any) -> str:
    text = value if isinstance(value, str) else _json(value)
    flag = "true" if isinstance(value, str) else "false"
    return tags.begin + key + tags.middle.replace(STRING_FLAG, flag) + text + tags.end


def literal(value: Any, style: Style) -> str:
    """A value in a style's own spelling."""
    comma, colon = (", ", ": ") if style.escapes else (",", ":")
    match value:
        case str():
            quote = style.quotes[0]
            return json.dumps(value, ensure_ascii=False) if style.escapes else quote + value + quote
        case list():
            return "[" + comma.join(literal(one, style) for one in value) + "]"
        case dict():
            members = [(json.dumps(key) if style.escapes else key, one) for key, one in value.items()]
            return "{" + comma.join(key + colon + literal(one, style) for key, one in members) + "}"
        case bool() | None if style.escapes:
            return repr(value)
    return json.dumps(value)
