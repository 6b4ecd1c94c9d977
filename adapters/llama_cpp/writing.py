"""Writes calls as the models of each format do: history for a template that cannot, and the example they learn from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from adapters.llama_cpp.formats.elements import ITEM
from adapters.llama_cpp.formats.literals import Style
from adapters.llama_cpp.formats.row import LABEL_CHARS, NAME, NUMBER, ToolFormat
from adapters.llama_cpp.formats.tagged import STRING_FLAG, TYPE_FLAG, Tags, kind_of
from adapters.types import ToolCall


def written(row: ToolFormat, calls: Sequence[ToolCall]) -> str:
    """`calls` as a model of the format `row` writes them, from where its prompt ends.

    Arguments that are no JSON object are written as they are where the format has JSON, and left out elsewhere.
    """
    texts = [
        row.address.replace(NAME, call.name) + row.begin + _label(row, number) + _call(row, call, number) + row.end
        for number, call in enumerate(calls)
    ]
    return (row.open + row.between.join(texts) + row.close).removeprefix(row.primed)


def _label(row: ToolFormat, number: int) -> str:
    return f"{number:0{LABEL_CHARS}}{row.label_end}" if row.label_end else ""


def _call(row: ToolFormat, call: ToolCall, number: int) -> str:
    middle = row.middle.replace(NUMBER, str(number))
    match row.body:
        case "object":
            prefix = row.prefix.replace(NUMBER, str(number))
            return f'{{{prefix}"{row.name_key}": {_json(call.name)}, "{row.arguments_key}": {call.arguments}}}'
        case "json":
            return call.name + middle + call.arguments
        case "tagged":
            assert row.tags is not None
            parameters = [_parameter(row.tags, key, value) for key, value in _arguments(call).items()]
            return call.name + middle + "".join(parameters)
        case "elements":
            elements = [_element(row.prefix, key, value) for key, value in _arguments(call).items()]
            return call.name + middle + "".join(elements)
    assert row.style is not None
    pairs = [f"{key}{row.style.joint}{literal(value, row.style)}" for key, value in _arguments(call).items()]
    comma = ", " if row.style.escapes else ","
    return f"{call.name}{row.style.opening}{comma.join(pairs)}{row.style.closing}"


def _arguments(call: ToolCall) -> dict[str, Any]:
    try:
        return msgspec.json.decode(call.arguments, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _parameter(tags: Tags, key: str, value: Any) -> str:
    text = value if isinstance(value, str) else _json(value)
    flag = "true" if isinstance(value, str) else "false"
    middle = tags.middle.replace(STRING_FLAG, flag).replace(TYPE_FLAG, kind_of(value))
    return tags.begin + key + middle + text + tags.end


def _element(prefix: str, tag: str, value: Any) -> str:
    """What elements cannot show, an empty object or array and null, is written as JSON."""
    match value:
        case str():
            inner = value
        case {}:
            inner = "".join(_element(prefix, key, one) for key, one in value.items()) or "{}"
        case []:
            inner = "[]"
        case [*items]:
            inner = "".join(_element(prefix, ITEM, one) for one in items)
        case _:
            inner = _json(value)
    return f"{prefix}<{tag}>{inner}{prefix}</{tag}>"


def literal(value: Any, style: Style) -> str:
    """A value in a style's own spelling."""
    comma, colon = (", ", ": ") if style.escapes else (",", ":")
    match value:
        case str():
            quote = style.quotes[0]
            return _json(value) if style.escapes else quote + value + quote
        case list():
            return "[" + comma.join(literal(one, style) for one in value) + "]"
        case dict():
            members = [(json.dumps(key) if style.escapes else key, one) for key, one in value.items()]
            return "{" + comma.join(key + colon + literal(one, style) for key, one in members) + "}"
        case bool() | None:
            return style.constants[(True, False, None).index(value)]
    return json.dumps(value)
