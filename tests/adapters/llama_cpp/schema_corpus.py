"""Schemas as people publish them: written by hand for each keyword and shape, and drawn at random from all of them.

Strings and arrays are mostly bounded, because a model of random weights has no reason to end them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

SHORT: Schema = {"type": "string", "maxLength": 12}
INTEGER: Schema = {"type": "integer", "minimum": -1000, "maximum": 1000}
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "ipv6", "email", "hostname", "duration", "uri")


def closed(properties: Schema, *required: str, **more: Any) -> Schema:
    """An object with these properties only, all of them required unless some are named."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required or properties),
        "additionalProperties": False,
        **more,
    }


def listed(items: Schema | bool, least: int = 0, most: int = 3) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _scalars() -> Iterator[Schema]:
    yield from ({"type": kind} for kind in ("boolean", "null", "integer"))
    yield from ({"type": ["boolean", "null"]}, {"type": ["integer", "null", "boolean"]}, {"type": ["number", "null"]})
    values: tuple[Any, ...] = (
        "x",
        "",
        'a "quoted" \\ one',
        "line\nbreak\ttab",
        "größe 世界 🎉",
        0,
        -1,
        3.25,
        1e10,
        True,
        None,
    )
    for value in values:
        yield {"const": value}
    yield from ({"const": {"a": [1, {"b": None}]}}, {"const": []}, {"const": {}})
    yield {"enum": ["red", "green", "blue"]}
    yield {"enum": [1, 2.5, None, True, "1", [1], {"a": 1}]}
    yield {"enum": ["", "a", "aa", "aaa", "ab"]}
    yield {"enum": ["é", "e\u0301", "\u2028", "\x7f", "😀😀"]}
    yield {"enum": [f"value {n}" for n in range(400)]}
    yield {"type": "string", "enum": ["a", 1, None, "b"]}
    for least, most in ((0, 0), (0, 5), (3, 3), (1, 8), (10, 20)):
        yield {"type": "string", "minLength": least, "maxLength": most}
    for pattern in (
        "^[a-z]{3}$", "^[A-Z][a-z]{0,5}$", r"^\d{3}-\d{4}$", r"^\+?[0-9]{2,6}$", "^(yes|no|maybe)$", "^[0-9a-f]{8}$",
        r"^v[0-9]\.[0-9]{1,2}$", r"^[^\s@]{1,5}@[^\s@]{1,5}$", "^$", r"^[\w.-]{1,6}\.(js|py|rs)$", "^.{2}$", "^ä+ö?$",
        r"^\$[0-9]{1,3}\.[0-9]{2}$", r'^["\\]{1,2}$', "^[😀-😎]{1,2}$", "^(?:[a-z]{2}-)?[A-Z]{2}$",
        r"^/[a-z]{1,4}(/[a-z]{1,4}){0,2}$", "^(0|[1-9][0-9]{0,3})$",
    ):  # fmt: skip
        yield {"type": "string", "pattern": pattern}
    yield {"type": "string", "pattern": "^[a-z]+$", "maxLength": 6}
    yield {"type": "string", "pattern": "b", "maxLength": 5}
    yield from ({"type": "string", "format": name} for name in FORMATS)


def _numbers() -> Iterator[Schema]:
    for least, most in ((0, 10), (-5, 5), (0, 0), (99, 101), (-(10**9), 10**9), (1, 65535), (-7, -3), (1000, 1999)):
        yield {"type": "integer", "minimum": least, "maximum": most}
    yield {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}
    yield {"type": "integer", "minimum": 0, "exclusiveMaximum": 1}
    for low, high in ((0, 1), (-1.5, 1.5), (0.1, 0.2), (-90, 90), (-180.5, 180.5), (99.5, 100)):
        yield {"type": "number", "minimum": low, "maximum": high}
    yield {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    yield from ({"type": "integer", "multipleOf": step, "minimum": 0, "maximum": 500} for step in (2, 5, 7, 10, 25))
    yield {"type": "integer", "enum": [1, 3, 5]}


def _arrays() -> Iterator[Schema]:
    for least, most in ((0, 0), (0, 3), (1, 1), (2, 4), (5, 5)):
        yield listed(INTEGER, least, most)
    yield listed({"type": "string", "enum": ["a", "b"]}, 1, 3)
    yield listed(listed({"type": "boolean"}, 1, 2), 1, 2)
    yield listed(closed({"id": INTEGER, "tag": SHORT}), 0, 2)
    yield {"type": "array", "prefixItems": [INTEGER, SHORT], "items": False, "minItems": 2}
    yield {"type": "array", "prefixItems": [INTEGER, SHORT], "items": {"type": "null"}, "minItems": 2, "maxItems": 4}
    older = {"$schema": "http://json-schema.org/draft-07/schema#"}
    yield older | {"type": "array", "items": [INTEGER, {"type": "boolean"}], "additionalItems": False, "minItems": 1}
    yield listed({"anyOf": [INTEGER, {"type": "null"}, listed(INTEGER)]})
    yield listed({"type": "string", "format": "date"}, 1, 2)


def _objects() -> Iterator[Schema]:
    yield closed({})
    yield closed({"a": INTEGER})
    yield closed({"a": INTEGER, "b": SHORT}, "b")
    yield closed({"a": INTEGER, "b": SHORT, "c": {"type": "null"}, "d": {"type": "boolean"}}, "a", "d")
    yield {"type": "object", "properties": {"a": INTEGER}, "additionalProperties": False}
    yield {
        "type": "object",
        "properties": {"a": INTEGER},
        "required": ["a"],
        "additionalProperties": INTEGER,
        "maxProperties": 3,
    }
    yield {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 2}
    yield {"type": "object", "patternProperties": {"^x-[a-z]{1,3}$": INTEGER}, "additionalProperties": False}
    yield closed({"id": INTEGER}, patternProperties={"^[A-Z]{2}$": SHORT})
    yield closed({"名前": SHORT, "größe": INTEGER, "emoji 🎉": {"type": "boolean"}, 'quo"te': {"type": "null"}})
    yield closed({"a b": INTEGER, "a.b": INTEGER, "a/b": INTEGER, "": INTEGER, "$ref": INTEGER, "type": SHORT})
    yield closed({f"field_{n}": {"type": "boolean"} for n in range(30)})
    yield closed({f"field_{n}": INTEGER for n in range(12)}, "field_3", "field_7")
    deep: Schema = INTEGER
    for level in range(12):
        deep = closed({f"level{level}": deep})
    yield deep
    yield closed({"name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 150}, "tags": listed(SHORT)})
    yield closed(
        {"street": SHORT, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}, "country": {"enum": ["DE", "FR"]}}
    )
    yield closed(
        {
            "lat": {"type": "number", "minimum": -90, "maximum": 90},
            "lon": {"type": "number", "minimum": -180, "maximum": 180},
        }
    )
    yield closed(
        {
            "location": SHORT,
            "unit": {"type": "string", "enum": ["c", "f"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
        }
    )
    yield {"title": "T", "description": "d", "$comment": "c", "default": {}, "examples": [{}], **closed({"a": INTEGER})}
    yield {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/s",
        **closed({"a": INTEGER}),
    }
    yield {"$schema": "http://json-schema.org/draft-07/schema#", **closed({"a": {"type": ["integer", "null"]}})}


def _combined() -> Iterator[Schema]:
    yield {"anyOf": [INTEGER, SHORT]}
    yield {"anyOf": [closed({"a": INTEGER}), closed({"b": SHORT}), {"type": "null"}]}
    yield {"oneOf": [{"type": "boolean"}, {"type": "null"}]}
    yield {
        "oneOf": [
            closed({"kind": {"const": "cat"}, "lives": INTEGER}),
            closed({"kind": {"const": "dog"}, "breed": SHORT}),
        ]
    }
    yield {"oneOf": [closed({"t": {"const": n}, f"v{n}": INTEGER}) for n in range(5)]}
    yield {"allOf": [{"type": "integer", "minimum": 0}, {"maximum": 10}]}
    yield {"allOf": [closed({"a": INTEGER, "b": SHORT}), {"required": ["a"]}]}
    yield {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 4}, {"pattern": "^[a-f]+$"}]}
    yield {
        "type": "object",
        "allOf": [{"properties": {"a": INTEGER}, "required": ["a"]}, {"properties": {"b": SHORT}}],
        "maxProperties": 2,
        "required": ["b"],
    }
    yield {"anyOf": [{"allOf": [{"type": "integer"}, {"minimum": 5}, {"maximum": 9}]}, {"const": "none"}]}
    yield closed(
        {"value": {"anyOf": [{"type": "boolean"}, {"enum": ["auto"]}]}, "n": {"oneOf": [INTEGER, {"type": "null"}]}}
    )
    yield {"anyOf": [{"anyOf": [{"const": 1}, {"const": 2}]}, {"anyOf": [{"const": 3}, {"const": "4"}]}]}
    yield {
        "type": "object",
        "properties": {"a": INTEGER, "b": INTEGER},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        "additionalProperties": False,
    }
    yield {"type": "string", "anyOf": [{"pattern": "^a{1,3}$"}, {"enum": ["zzz"]}]}


def _references() -> Iterator[Schema]:
    yield {"$ref": "#/$defs/id", "$defs": {"id": INTEGER}}
    yield {"$ref": "#/definitions/id", "definitions": {"id": {"type": "string", "format": "uuid"}}}
    yield closed({"a": {"$ref": "#/$defs/p"}, "b": {"$ref": "#/$defs/p"}}) | {
        "$defs": {"p": closed({"x": INTEGER, "y": INTEGER})}
    }
    yield closed({"a": {"$ref": "#/$defs/a~1b"}, "c": {"$ref": "#/$defs/c%25d"}}) | {
        "$defs": {"a/b": INTEGER, "c%d": SHORT}
    }
    yield closed({"a": {"$ref": "#/properties/b"}, "b": INTEGER})
    chain: Schema = {f"s{n}": {"$ref": f"#/$defs/s{n + 1}"} for n in range(40)}
    yield {"$ref": "#/$defs/s0", "$defs": chain | {"s40": {"enum": ["end"]}}}
    node = closed({"value": INTEGER, "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}})
    yield node
    yield closed({"v": INTEGER, "kids": listed({"$ref": "#"}, 0, 1)})
    yield {
        "$ref": "#/$defs/t",
        "$defs": {
            "t": closed({"l": {"$ref": "#/$defs/o"}, "v": INTEGER}),
            "o": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/t"}]},
        },
    }
    yield {
        "$ref": "#/$defs/even",
        "$defs": {
            "even": {"anyOf": [{"type": "null"}, closed({"odd": {"$ref": "#/$defs/odd"}})]},
            "odd": closed({"even": {"$ref": "#/$defs/even"}}),
        },
    }
    yield {"anyOf": [INTEGER, listed({"$ref": "#"}, 0, 1)]}
    yield {
        "$ref": "#/$defs/e",
        "$defs": {
            "e": {
                "anyOf": [
                    INTEGER,
                    closed({"op": {"enum": ["+", "-"]}, "left": INTEGER, "right": {"$ref": "#/$defs/e"}}),
                ]
            }
        },
    }
    yield closed({"a": {"$ref": "#/$defs/x", "description": "with a sibling"}}) | {"$defs": {"x": {"type": "boolean"}}}


class _Drawing:
    """Random schemas of a bounded size; `depth` levels of nesting at most."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def schema(self, depth: int) -> Schema:
        chance = self._chance
        if depth == 0 or chance.random() < 0.25:
            return self._scalar()
        match chance.choice(("object", "object", "object", "array", "any", "one", "all")):
            case "object":
                return self._object(depth)
            case "array":
                least = chance.randrange(3)
                return listed(self.schema(depth - 1), least, least + chance.randrange(3))
            case "any":
                return {"anyOf": [self.schema(depth - 1) for _ in range(chance.randrange(1, 4))]}
            case "one":
                tags = chance.sample(["north", "south", "east", "west"], 2)
                return {"oneOf": [closed({"kind": {"const": tag}, tag: self.schema(depth - 1)}) for tag in tags]}
        first, second = self._object(depth), self._scalar()
        return {"allOf": [first, {"required": list(first["properties"])[:1]}], "description": str(second)}

    def _object(self, depth: int) -> Schema:
        chance = self._chance
        names = chance.sample(
            ["id", "name", "größe", "a b", "x-1", "items", "type", "名", "value", "n"], chance.randrange(1, 5)
        )
        schema = closed({name: self.schema(depth - 1) for name in names})
        schema["required"] = [name for name in names if chance.random() < 0.7]
        return schema

    def _scalar(self) -> Schema:
        chance = self._chance
        least = chance.randrange(-50, 50)
        return chance.choice(
            [
                {"type": "boolean"},
                {"type": "null"},
                {"type": "integer", "minimum": least, "maximum": least + chance.randrange(1000)},
                {"type": "number", "minimum": least, "maximum": least + 0.5},
                {"type": "string", "minLength": 1, "maxLength": chance.randrange(1, 15)},
                {"type": "string", "pattern": chance.choice(["^[a-z]{2,4}$", "^[A-Z]-[0-9]{2}$", "^(on|off)$"])},
                {"type": "string", "format": chance.choice(FORMATS)},
                {"enum": chance.sample(["low", "mid", "high", 0, 1, None, "ü"], 3)},
                {"const": chance.choice(["fixed", 7, False, None])},
            ]
        )


def corpus(drawn: int = 130) -> list[Schema]:
    """All of them, always the same."""
    written = [*_scalars(), *_numbers(), *_arrays(), *_objects(), *_combined(), *_references()]
    return written + [_Drawing(seed).schema(3) for seed in range(drawn)]
