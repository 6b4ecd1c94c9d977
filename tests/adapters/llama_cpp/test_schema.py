"""What a schema is checked for before it is compiled."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.llama_cpp.prompts import Refusal
from adapters.llama_cpp.schema import check_pattern, check_schema, has_finite_answer


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


@pytest.mark.parametrize(
    ("source", "code", "word"),
    [
        ("5", "invalid_schema", "object or a boolean"),
        ("{", "invalid_schema", "not JSON"),
        ('"object"', "invalid_schema", "object or a boolean"),
        (nested(200), "unsupported_schema", "levels"),
        (nested(2000), "unsupported_schema", "levels"),
        (nested(20_000), "unsupported_schema", "levels"),
        (json.dumps({"enum": [f"value {n}" for n in range(100_000)]}), "unsupported_schema", "KiB"),
        (json.dumps({"enum": list(range(20_000))}), "unsupported_schema", "'enum'"),
        (json.dumps({"enum": ["x" * 20_000]}), "unsupported_schema", "characters"),
        (json.dumps({"const": {"a": [2**53 + 1]}}), "unsupported_schema", "digits"),
        (json.dumps({"type": "string", "maxLength": 10**9}), "unsupported_schema", "'maxLength'"),
        (json.dumps({"type": "array", "minItems": 1e300}), "unsupported_schema", "'minItems'"),
        (json.dumps({"$ref": "http://127.0.0.1/x"}), "unsupported_schema", "'$ref'"),
        (json.dumps({"items": {"$ref": "file:///etc/passwd"}}), "unsupported_schema", "'$ref'"),
        (json.dumps({"$ref": "#"}), "invalid_schema", "without end"),
        ("false", "invalid_schema", "can match it."),
        (json.dumps({"pattern": "(a*)*b"}), "unsupported_schema", "quantifier"),
        (json.dumps({"patternProperties": {"(a+)+": {}}}), "unsupported_schema", "quantifier"),
    ],
)
def test_what_is_refused(source: str, code: str, word: str) -> None:
    with pytest.raises(Refusal) as caught:
        check_schema(source, "response_format")
    assert (caught.value.code, caught.value.param) == (code, "response_format")
    assert word in caught.value.message


def test_a_schema_that_anything_matches_is_an_object_for_the_compiler() -> None:
    assert check_schema("true", "x") == check_schema("{}", "x") == "{}"


def test_a_schema_cannot_choose_how_it_is_compiled() -> None:
    assert json.loads(check_schema('{"type": "string", "x-guidance": {"lenient": true}}', "x")) == {"type": "string"}


def test_values_are_not_taken_for_schemas() -> None:
    schema = {"default": {"$ref": "http://x"}, "enum": [{"maxLength": 10**9}], "const": {"pattern": "(a*)*"}}
    assert json.loads(check_schema(json.dumps(schema), "x")) == schema


@pytest.mark.parametrize(
    "pattern",
    ["(a*)*", "(a+)+$", "^((ab)*|c)+", "(?:[a-z]*){2,}", "((a{1,600}){1,600})", "(a{2,})*", "(((x+)))*", "a{999999}",
     "([0-9]*?)*", "([]a]*)+"],
)  # fmt: skip
def test_patterns_that_are_made_to_hang(pattern: str) -> None:
    with pytest.raises(Refusal):
        check_pattern(pattern, "x")


@pytest.mark.parametrize(
    "pattern",
    ["^[a-z]+$", r"^(\w+\.)*\w+$", "(a|b)*", r"\(a*\)*", "[(a*)]*", "^([0-9]{3}-){2}[0-9]{4}$", "(a?)?", "((a))*",
     r"(\d+,)*\d+", "a)b", "(", "(a{1,3}){2}", "x{0,65535}", "(ab*)*", "a{,5}", "]", "((foo|bar)+)?"],
)  # fmt: skip
def test_patterns_that_people_write(pattern: str) -> None:
    check_pattern(pattern, "x")


NODE: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#"}}}


@pytest.mark.parametrize(
    ("schema", "finite"),
    [
        (True, True),
        (False, False),
        ({"$ref": "#"}, False),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, False),
        (NODE, True),
        (NODE | {"required": ["next"]}, False),
        (NODE | {"required": ["next"], "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}, True),
        ({"type": "array", "items": {"$ref": "#"}}, True),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, False),
        ({"type": "array", "prefixItems": [{"type": "null"}], "items": {"$ref": "#"}, "minItems": 1}, True),
        ({"type": ["array", "null"], "items": {"$ref": "#"}, "minItems": 1}, True),
        ({"allOf": [{"type": "string"}, {"$ref": "#"}]}, False),
        ({"oneOf": [{"$ref": "#"}, {"const": 1}]}, True),
        ({"$ref": "#/$defs/no such thing"}, True),
        ({"type": [["string"], {}]}, True),
        ({"$ref": "#/a~1b", "a/b": {"enum": [1]}}, True),
    ],
)  # fmt: skip
def test_a_value_has_to_come_to_an_end(schema: dict[str, Any] | bool, finite: bool) -> None:
    assert has_finite_answer(schema) is finite


def test_a_long_chain_of_references_is_followed() -> None:
    chain: dict[str, Any] = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(3000)}
    assert has_finite_answer({"$ref": "#/$defs/a0", "$defs": chain | {"a3000": {"type": "string"}}})
    assert not has_finite_answer({"$ref": "#/$defs/a0", "$defs": chain | {"a3000": {"$ref": "#/$defs/a0"}}})


def test_times_have_no_leap_seconds() -> None:
    place = {"type": "string", "format": "date-time"}
    checked = json.loads(check_schema(json.dumps({"properties": {"at": place, "format": {}}, "enum": [place]}), "x"))
    assert checked["properties"] == {"at": {**place, "pattern": "^.{17}[0-5]"}, "format": {}}
    assert checked["enum"] == [place]
    own = {"format": "time", "pattern": "Z$"}
    assert json.loads(check_schema(json.dumps(own), "x")) == own


AB: Any = {"type": "object", "properties": {"a": {}, "b": {}}}
ONE: Any = {"type": "object", "properties": {"a": AB, "b": {"type": "array", "items": AB}}, "required": ["a"]}


def test_objects_that_name_their_properties_have_no_others() -> None:
    checked = json.loads(check_schema(json.dumps(ONE), "x"))
    closed = AB | {"additionalProperties": False}
    assert checked["additionalProperties"] is False
    assert checked["properties"] == {"a": closed, "b": {"type": "array", "items": closed}}
    either = json.loads(check_schema(json.dumps({"anyOf": [AB, {"$ref": "#/$defs/x"}], "$defs": {"x": AB}}), "x"))
    assert either["anyOf"][0] == either["$defs"]["x"] == closed
    assert json.loads(check_schema('{"type": "object", "properties": {}}', "x"))["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        AB | {"additionalProperties": True},
        AB | {"additionalProperties": {"type": "integer"}},
        AB | {"patternProperties": {"^x": {}}},
        AB | {"required": ["a", "c"]},
        AB | {"required": ["a", ["b"], {}]},
        AB | {"minProperties": 3},
        {"allOf": [AB, {"properties": {"c": {}}}]},
        AB | {"anyOf": [{"properties": {"c": {}}}, {"properties": {"d": {}}}]},
        AB | {"$ref": "#/$defs/x", "$defs": {"x": {"properties": {"c": {}}}}},
        {"not": AB},
        {"const": {"properties": {"a": {}}}},
        {"properties": {"properties": {"type": "string"}}, "required": ["x"]},
    ],
    ids=str,
)
def test_what_is_left_open(schema: Any) -> None:
    assert json.loads(check_schema(json.dumps(schema), "x")) == schema
