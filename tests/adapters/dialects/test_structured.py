"""Every spelling of a constraint, in both text dialects."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.dialects import openai_chat, openai_completions
from adapters.errors import InvalidRequest
from adapters.types import Constraint

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TEXT = json.dumps(SCHEMA)


def named(**more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA} | more}


def both(fields: dict[str, Any]) -> list[Constraint | None]:
    """The constraint of a chat and of a completion with these fields."""
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    completion = {"model": "m", "prompt": "hi", **fields}
    return [
        openai_chat.parse_request(json.dumps(chat).encode()).request.generation.constraint,
        openai_completions.parse_request(json.dumps(completion).encode()).request.generation.constraint,
    ]


OUTPUTS = "structured_outputs"


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({}, None),
        ({"response_format": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"json_schema": None, "grammar": None, "guided_json": None, OUTPUTS: None}, None),
        ({"response_format": {"type": "json_object"}}, Constraint("json_object")),
        ({"response_format": named()}, Constraint("json_schema", TEXT, False)),
        ({"response_format": named(strict=None)}, Constraint("json_schema", TEXT, False)),
        ({"response_format": named(strict=True, description="an x")}, Constraint("json_schema", TEXT, True)),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Constraint("json_schema", TEXT)),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, Constraint("json_schema", TEXT)),
        ({OUTPUTS: {"json": SCHEMA}}, Constraint("json_schema", TEXT, param=OUTPUTS)),
        ({OUTPUTS: {"json": TEXT}}, Constraint("json_schema", TEXT, param=OUTPUTS)),
        ({OUTPUTS: {"regex": "[0-9]+"}}, Constraint("regex", "[0-9]+", param=OUTPUTS)),
        ({OUTPUTS: {"choice": ["a", "é"]}}, Constraint("choice", '["a","é"]', param=OUTPUTS)),
        ({OUTPUTS: {"grammar": 'start: "a"'}}, Constraint("lark", 'start: "a"', param=OUTPUTS)),
        ({OUTPUTS: {"grammar": 'root ::= "a"'}}, Constraint("gbnf", 'root ::= "a"', param=OUTPUTS)),
        ({OUTPUTS: {"json_object": True}}, Constraint("json_object", param=OUTPUTS)),
        ({"guided_json": SCHEMA}, Constraint("json_schema", TEXT, param="guided_json")),
        ({"guided_regex": "a"}, Constraint("regex", "a", param="guided_regex")),
        ({"guided_choice": ["a"]}, Constraint("choice", '["a"]', param="guided_choice")),
        ({"guided_grammar": 'start: "a"'}, Constraint("lark", 'start: "a"', param="guided_grammar")),
        ({"json_schema": SCHEMA}, Constraint("json_schema", TEXT, param="json_schema")),
        ({"grammar": 'root ::= "a"'}, Constraint("gbnf", 'root ::= "a"', param="grammar")),
        ({"grammar": '%llguidance {}\nstart: "a"'}, Constraint("lark", '%llguidance {}\nstart: "a"', param="grammar")),
        ({"grammar": 'start: "a"'}, Constraint("gbnf", 'start: "a"', param="grammar")),
    ],
)
def test_spellings(fields: dict[str, Any], constraint: Constraint | None) -> None:
    assert both(fields) == [constraint, constraint]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": named(name="not a name")}, "response_format.json_schema.name"),
        ({"response_format": named(name="x" * 65)}, "response_format.json_schema.name"),
        ({"response_format": named(strict="yes")}, "response_format.json_schema.strict"),
        ({"response_format": named(description=1)}, "response_format.json_schema.description"),
        ({OUTPUTS: {}}, OUTPUTS),
        ({OUTPUTS: {"json_object": False}}, OUTPUTS),
        ({OUTPUTS: {"regex": "a", "choice": ["a"]}}, OUTPUTS),
        ({OUTPUTS: {"choice": []}}, OUTPUTS),
        ({OUTPUTS: {"choice": [1]}}, f"{OUTPUTS}.choice[0]"),
        ({OUTPUTS: {"regex": 1}}, f"{OUTPUTS}.regex"),
        ({OUTPUTS: {"grammar": " "}}, OUTPUTS),
        ({OUTPUTS: {"structural_tag": {}}}, f"{OUTPUTS}.structural_tag"),
        ({OUTPUTS: {"json": SCHEMA, "whitespace_pattern": "x"}}, f"{OUTPUTS}.whitespace_pattern"),
        ({OUTPUTS: {"json": "[]"}}, OUTPUTS),
        ({"guided_json": "not JSON"}, "guided_json"),
        # What would end the schema in the body of a provider, and go on with a field of its own.
        ({"response_format": named(schema='{}}},"model":"another","x":{"y":{"z":1')}, "response_format"),
        ({"response_format": named(schema='{"a":"\\q"}')}, "response_format"),
        ({"json_schema": "[" * 100_000}, "json_schema"),
        ({"grammar": ""}, "grammar"),
        ({"grammar": 5}, "grammar"),
        ({"guided_choice": []}, "guided_choice"),
        ({"grammar": 'root ::= "a"', "json_schema": {}}, "json_schema"),
        ({"response_format": named(), OUTPUTS: {"regex": "a"}}, OUTPUTS),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    ],
)
def test_what_is_refused_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        both(fields)
    assert caught.value.param == param
