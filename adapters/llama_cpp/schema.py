"""What a JSON Schema must keep to before native code sees it: bounded, self-contained, and with a finite answer.

The compiler behind it has limits of its own; these are the ones it lacks, or where its complaint comes too late.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import msgspec

from adapters.llama_cpp.prompts import Refusal

SOURCE_BYTES_MAX = 256 << 10
DEPTH_MAX = 96
VALUES_MAX = 50_000
ENUM_MAX = 10_000
TEXT_MAX = 16 << 10
INTEGER_MAX = 1 << 53
COUNT_MAX = 1 << 18
SWEEPS_MAX = 32

_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
# A key of the compiler's own, with which a schema could change how it is compiled.
_COMPILER_OPTIONS = "x-guidance"

# Leap seconds are a few moments in decades: as a time that a model makes up, most parsers refuse one.
_NO_LEAP_SECOND = {"time": "^.{6}[0-5]", "date-time": "^.{17}[0-5]"}

_ABOUT_ONE_OBJECT = frozenset(
    (
        "allOf",
        "if",
        "then",
        "else",
        "not",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "propertyNames",
        "unevaluatedProperties",
        "$dynamicRef",
        "$recursiveRef",
    )
)
_ALTERNATIVES = frozenset(("anyOf", "oneOf", "$ref"))
_OTHERS = frozenset(("additionalProperties", "patternProperties"))

Schema = dict[str, Any] | bool


def check_schema(source: str, param: str) -> str:
    """The schema as it is to be compiled; raises Refusal with `invalid_schema` or `unsupported_schema`."""
    if len(source) > SOURCE_BYTES_MAX:
        raise unsupported(f"it is larger than {SOURCE_BYTES_MAX >> 10} KiB", param)
    try:
        schema = msgspec.json.decode(source)
    except RecursionError:
        raise unsupported(f"it is nested deeper than {DEPTH_MAX} levels", param) from None
    except msgspec.DecodeError as error:
        raise invalid(f"it is not JSON: {error}", param) from None
    if not isinstance(schema, dict | bool):
        raise invalid("it must be an object or a boolean", param)
    _check_size(schema, param)
    for place in _objects(schema):
        _check_keywords(place, param)
        name = place.get("format")
        if isinstance(name, str) and name in _NO_LEAP_SECOND:
            place.setdefault("pattern", _NO_LEAP_SECOND[name])
    if not has_finite_answer(schema):
        endless = ": a '$ref' needs itself without end" if '"$ref"' in source else ""
        raise invalid(f"no finite value can match it{endless}", param)
    if not isinstance(schema, dict):
        # `true`, which is matched by anything; the compiler takes objects only.
        schema = {}
    schema.pop(_COMPILER_OPTIONS, None)
    close_objects(schema)
    return msgspec.json.encode(schema).decode()


def close_objects(schema: object) -> None:
    """Keep objects that name their properties to these, where the schema leaves open whether there may be others.

    What matches then matches the schema too, and a small model does not go on inventing properties. Whoever wants
    others says `additionalProperties`. A schema of which several parts have a say about one object is left as it is,
    because closing one of them could leave nothing that matches all.
    """
    places = list(_objects(schema))
    if any(not _ABOUT_ONE_OBJECT.isdisjoint(place) for place in places):
        return
    closing = [place for place in places if _names_properties(place)]
    if any(not _ALTERNATIVES.isdisjoint(place) for place in closing):
        return
    for place in closing:
        properties, least = place["properties"], place.get("minProperties", 0)
        enough = isinstance(least, int) and least <= len(properties)
        known = all(isinstance(name, str) and name in properties for name in _list(place.get("required")))
        if enough and known and _OTHERS.isdisjoint(place):
            place["additionalProperties"] = False


def _names_properties(place: dict[str, Any]) -> bool:
    properties = place.get("properties")
    return isinstance(properties, dict) and all(isinstance(one, dict | bool) for one in properties.values())


def invalid(reason: str, param: str) -> Refusal:
    return Refusal("invalid_schema", f"Invalid schema for '{param}': {reason}.", param)


def unsupported(reason: str, param: str) -> Refusal:
    return Refusal("unsupported_schema", f"Unsupported schema for '{param}': {reason}.", param)


def _check_size(schema: Schema, param: str) -> None:
    """Walks level by level, so that depth costs no stack."""
    level: list[Any] = [schema]
    depth = values = 0
    while level:
        depth, values = depth + 1, values + len(level)
        if depth > DEPTH_MAX:
            raise unsupported(f"it is nested deeper than {DEPTH_MAX} levels", param)
        if values > VALUES_MAX:
            raise unsupported(f"it has more than {VALUES_MAX} values", param)
        if any(isinstance(one, str) and len(one) > TEXT_MAX for one in level):
            raise unsupported(f"it has a text of more than {TEXT_MAX >> 10} Ki characters", param)
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]


def _objects(value: object) -> Iterator[dict[str, Any]]:
    """All objects that can be schemas: those in `enum`, `const`, `default` and `examples` are values."""
    if isinstance(value, dict):
        yield value
        for key, inner in value.items():
            if key not in ("enum", "const", "default", "examples"):
                yield from _objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _objects(inner)


def _check_keywords(schema: dict[str, Any], param: str) -> None:
    for keyword in _COUNTS:
        count = schema.get(keyword)
        if isinstance(count, int | float) and count > COUNT_MAX:
            raise unsupported(f"'{keyword}' is more than {COUNT_MAX}", param)
    reference = schema.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise unsupported("'$ref' may only point into the schema itself; nothing is fetched", param)
    options = [*_list(schema.get("enum")), schema.get("const")]
    if len(options) > ENUM_MAX:
        raise unsupported(f"'enum' has more than {ENUM_MAX} values", param)
    if not all(map(_is_exact, options)):
        raise unsupported("a number in 'enum' or 'const' has more digits than can be told apart", param)
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        check_pattern(pattern, param)
    named = schema.get("patternProperties")
    if isinstance(named, dict):
        for pattern in named:
            check_pattern(pattern, param)


def _is_exact(value: object) -> bool:
    """Whether all integers of a value survive as the double that the compiler makes of them."""
    if isinstance(value, dict | list):
        return all(map(_is_exact, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int) or abs(value) <= INTEGER_MAX


# Patterns


class _Frame:
    """An open group: what its alternatives hold so far."""

    def __init__(self) -> None:
        self.items = 0
        self.size = 1
        self.loops = False
        self.last_size = 0
        self.last_loops = False

    def add(self, size: int, loops: bool) -> None:
        self.items += 1
        self.last_size, self.last_loops = size, loops

    def end_item(self) -> None:
        self.size += self.last_size
        self.last_size = 0

    def end_alternative(self) -> None:
        self.end_item()
        self.loops |= self.items == 1 and self.last_loops
        self.items, self.last_loops = 0, False


_ATOM = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\((?:\?(?:P?<\w+>|[a-z-]*:))?|[|)]|[^|()\[\\]", re.DOTALL)
_QUANTIFIER = re.compile(r"(?:[*+?]|\{(\d+)(,)?(\d+)?\})[?+]?")


def check_pattern(pattern: str, param: str) -> None:
    """Refuses a quantifier over a quantifier, as in `(a*)*`, and repetitions that multiply past COUNT_MAX.

    The first says nothing that one quantifier does not, and is the mark of a pattern made to hang; what else is wrong
    with a pattern is the compiler's to say.
    """
    stack = [_Frame()]
    at = 0
    while found := _ATOM.match(pattern, at):
        at = found.end()
        token = found[0]
        if token.startswith("(") and not token.startswith("\\"):
            stack[-1].end_item()
            stack.append(_Frame())
            continue
        if token == "|":
            stack[-1].end_alternative()
            continue
        size, loops = 1, False
        if token == ")":
            if len(stack) == 1:
                return
            closed = stack.pop()
            closed.end_alternative()
            size, loops = closed.size, closed.loops
        else:
            stack[-1].end_item()
        quantifier = _QUANTIFIER.match(pattern, at)
        if quantifier:
            at = quantifier.end()
            size, loops = _repeated(quantifier, size, loops, param)
        stack[-1].add(size, loops)


def _repeated(quantifier: re.Match[str], size: int, loops: bool, param: str) -> tuple[int, bool]:
    """Size and looseness of a quantified atom."""
    least, comma, most = quantifier.groups()
    endless = quantifier[0][0] in "*+" or bool(comma and most is None)
    count = int((most or least or "1")[:12])
    if loops and (endless or count > 1):
        raise unsupported("a pattern puts a quantifier directly over another, as in '(a*)*'", param)
    size *= max(1, count)
    if size > COUNT_MAX:
        raise unsupported(f"a pattern repeats more than {COUNT_MAX} times", param)
    return size, endless or loops


# Finiteness


def has_finite_answer(schema: Schema) -> bool:
    """Whether some finite value can match, as far as `$ref`, `required`, `items` and the combinations decide it.

    A least fixed point over the sub-schemas that a value cannot avoid. False is certain, True only likely.
    """
    order = _reachable(schema)
    finite: dict[int, bool] = {}
    for _ in range(SWEEPS_MAX):
        changed = False
        for one in order:
            if not finite.get(id(one)) and _is_finite(one, schema, finite):
                finite[id(one)] = changed = True
        if not changed:
            return finite.get(id(schema), False)
    return True


def _reachable(root: Schema) -> list[Any]:
    """All sub-schemas that `root` needs, those needed by others first as far as there is an order."""
    found: dict[int, Any] = {}
    stack: list[tuple[Any, bool]] = [(root, False)]
    order = []
    while stack:
        schema, left = stack.pop()
        if left:
            order.append(schema)
        elif id(schema) not in found:
            found[id(schema)] = schema
            stack.append((schema, True))
            if isinstance(schema, dict):
                stack += [(inner, False) for inner in _needed(schema, root)]
    return order


def _needed(schema: dict[str, Any], root: Schema) -> list[Any]:
    branches = [one for key in ("anyOf", "oneOf", "allOf") for one in _list(schema.get(key))]
    target = resolve(schema["$ref"], root) if isinstance(schema.get("$ref"), str) else None
    return [*([] if target is None else [target]), *branches, *_properties(schema), *_items(schema)]


def _is_finite(schema: Any, root: Schema, finite: dict[int, bool]) -> bool:
    if not isinstance(schema, dict):
        return schema is not False

    def known(inner: Any) -> bool:
        return finite.get(id(inner), False)

    if isinstance(schema.get("$ref"), str):
        target = resolve(schema["$ref"], root)
        if target is not None and not known(target):
            return False
    if not all(map(known, _list(schema.get("allOf")))):
        return False
    for key in ("anyOf", "oneOf"):
        if schema.get(key) and not any(map(known, _list(schema[key]))):
            return False
    types = schema.get("type")
    types = types if isinstance(types, list) else [types]
    if "enum" in schema or "const" in schema or any(one not in ("object", "array") for one in types):
        return True
    return ("object" in types and all(map(known, _properties(schema)))) or (
        "array" in types and all(map(known, _items(schema)))
    )


def _properties(schema: dict[str, Any]) -> list[Any]:
    """The schemas of the properties that an object must have."""
    properties, others = schema.get("properties"), schema.get("additionalProperties", True)
    known = properties if isinstance(properties, dict) else {}
    return [known.get(name, others) for name in _list(schema.get("required")) if isinstance(name, str)]


def _items(schema: dict[str, Any]) -> list[Any]:
    """The schemas of the items that an array must have."""
    least, items = schema.get("minItems", 0), schema.get("items", True)
    if not isinstance(least, int) or least < 1:
        return []
    first = _list(schema.get("prefixItems")) or (items if isinstance(items, list) else [])
    rest = schema.get("additionalItems", True) if isinstance(items, list) else items
    return [*first[:least], *([rest] if least > len(first) else [])]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def resolve(reference: str, root: Schema) -> Any:
    """What a local reference points at; None where it leads nowhere or does not go by path."""
    if reference == "#":
        return root
    if not reference.startswith("#/"):
        return None
    at: Any = root
    for part in unquote(reference[2:]).split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(at, dict):
            at = at.get(key)
        elif isinstance(at, list) and key.isdecimal() and int(key) < len(at):
            at = at[int(key)]
        else:
            return None
    return at
