"""Structured output as clients ask for it: OpenAI's `response_format`, vLLM's `structured_outputs` and the `guided_*`
fields before it, llama-server's `grammar` and `json_schema`; all to one canonical constraint."""

from __future__ import annotations

import re
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from adapters.errors import InvalidRequest
from adapters.types import Constraint

ABSENT = msgspec.Raw(b"null")


def absent() -> msgspec.Raw:
    """The default of fields that are kept as they came; as a function, because a JSON Schema cannot show such a one."""
    return ABSENT


SchemaName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]


class JsonSchema(msgspec.Struct):
    """OpenAI's named schema."""

    name: SchemaName
    description: str | None = None
    schema: msgspec.Raw = msgspec.field(default_factory=absent)
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """`schema` beside `json_object` is how llama-server and others spell a schema."""

    type: str
    json_schema: JsonSchema | None = None
    schema: msgspec.Raw = msgspec.field(default_factory=absent)


class StructuredOutputs(msgspec.Struct):
    """vLLM's; exactly one of the first five."""

    json: msgspec.Raw = msgspec.field(default_factory=absent)
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: msgspec.Raw = msgspec.field(default_factory=absent)
    whitespace_pattern: str | None = None


class ConstraintFields(Protocol):
    """Every field by which a request can hold its answer to a form."""

    response_format: ResponseFormat | None
    structured_outputs: StructuredOutputs | None
    grammar: str | None
    json_schema: msgspec.Raw
    guided_json: msgspec.Raw
    guided_regex: str | None
    guided_grammar: str | None
    guided_choice: list[str] | None


def parse_constraint(body: ConstraintFields) -> Constraint | None:
    """The one constraint of a request, None without any; raises `InvalidRequest` for several or a broken one."""
    found = [
        *_response_format(body.response_format),
        *_structured_outputs(body.structured_outputs),
        *_grammar(body.grammar, "grammar"),
        *_schema(body.json_schema, "json_schema"),
        *_schema(body.guided_json, "guided_json"),
        *_regex(body.guided_regex, "guided_regex"),
        *_grammar(body.guided_grammar, "guided_grammar"),
        *_choice(body.guided_choice, "guided_choice"),
    ]
    if len(found) > 1:
        raise _invalid(found[1].param, f"only one constraint is possible, and '{found[0].param}' is one")
    return found[0] if found else None


def _invalid(param: str, reason: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{param}': {reason}.", code=code, param=param)


def _missing(param: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{param}'.", param=param)


def _response_format(given: ResponseFormat | None) -> list[Constraint]:
    match given:
        case None | ResponseFormat(type="text"):
            return []
        case ResponseFormat(type="json_object"):
            return _schema(given.schema, "response_format") or [Constraint("json_object")]
        case ResponseFormat(type="json_schema", json_schema=None):
            schemas = _schema(given.schema, "response_format")
            if not schemas:
                raise _missing("response_format.json_schema")
            return schemas
        case ResponseFormat(type="json_schema", json_schema=JsonSchema() as named):
            schemas = _schema(named.schema, "response_format", strict=bool(named.strict))
            if not schemas:
                raise _missing("response_format.json_schema.schema")
            return schemas
    raise _invalid("response_format.type", "expected 'text', 'json_object' or 'json_schema'")


def _structured_outputs(given: StructuredOutputs | None) -> list[Constraint]:
    if given is None:
        return []
    param = "structured_outputs"
    if given.structural_tag != ABSENT:
        raise _invalid(f"{param}.structural_tag", "it is not offered; tools are, through 'tools'")
    if given.whitespace_pattern is not None:
        raise _invalid(f"{param}.whitespace_pattern", "the blanks of JSON cannot be chosen")
    found = [
        *_schema(given.json, param),
        *_regex(given.regex, param),
        *_choice(given.choice, param),
        *_grammar(given.grammar, param),
        *([Constraint("json_object", param=param)] if given.json_object else []),
    ]
    if len(found) != 1:
        raise _invalid(param, "expected exactly one of json, regex, choice, grammar and json_object")
    return found


def _schema(raw: msgspec.Raw, param: str, *, strict: bool = True) -> list[Constraint]:
    """A JSON Schema, which some send as text in a string."""
    source = bytes(raw)
    if source == b"null":
        return []
    text = schema_text(msgspec.json.decode(source, type=str), param) if source.startswith(b'"') else source.decode()
    return [Constraint("json_schema", text, strict, param)]


def schema_text(text: str, param: str) -> str:
    """A JSON Schema that came as text, as it is. It is put into bodies for providers, where anything else than a whole
    object could say what the client may not."""
    try:
        msgspec.json.decode(text, type=dict[str, Any] | bool)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise _invalid(param, "expected a JSON Schema", "invalid_schema") from None
    return text


def _regex(pattern: str | None, param: str) -> list[Constraint]:
    return [] if pattern is None else [Constraint("regex", pattern, param=param)]


def _choice(options: list[str] | None, param: str) -> list[Constraint]:
    if options is None:
        return []
    if not options:
        raise _invalid(param, "expected at least one choice")
    return [Constraint("choice", msgspec.json.encode(options).decode(), param=param)]


def _grammar(source: str | None, param: str) -> list[Constraint]:
    """GBNF and Lark are told apart by how they write a rule."""
    if source is None:
        return []
    if not source.strip():
        raise _invalid(param, "the grammar is empty", "invalid_schema")
    lark = source.lstrip().startswith("%llguidance") or (param != "grammar" and not re.search("::=", source))
    return [Constraint("lark" if lark else "gbnf", source, param=param)]
