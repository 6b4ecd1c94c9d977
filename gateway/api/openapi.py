"""The OpenAPI 3.1 document of all routes, made from the types that they decode and encode."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args, get_origin

import msgspec
from starlette.requests import Request

from gateway.api.admin.routes import Moment
from gateway.api.http import Doc, Endpoint, Response, json_response
from gateway.api.log_ins import SESSION
from gateway.auth.roles import PUBLIC, TABLE

Schema = dict[str, Any]

COMPONENT = "#/components/schemas/{name}"
PARAMETER = re.compile(r"\{(\w+)\}")
BODY_METHODS = ("POST", "PUT", "PATCH")
PREFIXES = ("adapters.dialects.", "gateway.api.")
# Fields that requests are searched for in order to refuse them.
HIDDEN = ("api_base", "base_url", "api_key", "extra_headers")
ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "Which part of the request is wrong."},
                "code": {"type": "string"},
            },
        }
    },
}
ANTHROPIC_ERROR: Schema = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message", "details"],
            "properties": {
                "type": {"type": "string"},
                "message": {"type": "string"},
                "details": {
                    "type": "object",
                    "required": ["error_code"],
                    "properties": {"error_code": {"type": "string"}, "param": {"type": "string"}},
                },
            },
        },
        "request_id": {"type": "string"},
    },
}
ERRORS = {"Error": ERROR, "AnthropicError": ANTHROPIC_ERROR}


class OpenApi:
    """`GET /openapi.json`; the document is made when it is asked for first. `endpoints` are all, this one included."""

    def __init__(self, version: str, endpoints: Callable[[], Sequence[Endpoint]]) -> None:
        self._version = version
        self._endpoints = endpoints
        self._made: bytes | None = None

    def endpoints(self) -> tuple[Endpoint, ...]:
        about = Doc("server", answer={"type": "object"})
        return (Endpoint("/openapi.json", "GET", self.show, PUBLIC, "All of this as an OpenAPI 3.1 document", about),)

    async def show(self, request: Request) -> Response:
        if self._made is None:
            self._made = msgspec.json.encode(document(self._version, self._endpoints()))
        return json_response(self._made)


def document(version: str, endpoints: Sequence[Endpoint]) -> Schema:
    """The whole document. Raises TypeError where a type has no JSON Schema."""
    types = list(dict.fromkeys(kind for one in endpoints for kind in _types(one.doc)))
    schemas, components = _schemas(types)
    of = dict(zip(types, schemas, strict=True))
    paths: dict[str, Schema] = {}
    for endpoint in endpoints:
        operations = paths.setdefault(endpoint.shown, {})
        operations[endpoint.method.lower()] = _operation(endpoint, of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Inference gateway",
            "version": version,
            "description": "Inference as OpenAI's SDKs ask for it, and the administration of who may have how much.",
        },
        "servers": [{"url": "."}],
        "tags": [{"name": tag} for tag in dict.fromkeys(_tag(one) for one in sorted(endpoints, key=_last))],
        "paths": paths,
        "components": {
            "schemas": ERRORS | components,
            "responses": {
                name: {
                    "description": "What went wrong. `x-request-id` is the id to quote.",
                    "content": {"application/json": {"schema": {"$ref": COMPONENT.format(name=name)}}},
                }
                for name in ERRORS
            },
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key, or a token."},
                "login": {"type": "apiKey", "in": "cookie", "name": SESSION, "description": "Set by logging in."},
            },
        },
    }


def _types(doc: Doc) -> Iterable[Any]:
    """The types of a route that become components; those of queries become parameters."""
    for kind in (doc.body, _item(doc.answer)):
        if kind is not None and not isinstance(kind, dict):
            yield kind


def _item(answer: Any) -> Any:
    """What a page has many of, and anything else as it is."""
    return get_args(answer)[0] if get_origin(answer) is list else answer


def _schemas(types: Sequence[Any]) -> tuple[Sequence[Schema], dict[str, Schema]]:
    """The schemas of types, and the components that they refer to."""
    schemas, components = msgspec.json.schema_components(types, schema_hook=_custom, ref_template=COMPONENT)
    names = {name: _short(name) for name in components}
    schemas, components = _renamed((schemas, {names[name]: schema for name, schema in components.items()}), names)
    for component in components.values():
        for name in HIDDEN:
            component.get("properties", {}).pop(name, None)
    return schemas, components


def _short(name: str) -> str:
    """Types of one name are told apart by their modules, of which the last part is enough."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _renamed(part: Any, names: dict[str, str]) -> Any:
    if isinstance(part, dict):
        return {key: _renamed(value, names) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [_renamed(value, names) for value in part]
    if isinstance(part, str) and part.startswith(COMPONENT.format(name="")):
        return COMPONENT.format(name=names[part.rpartition("/")[2]])
    return part


def _custom(kind: type) -> Schema:
    if kind is Moment:
        return {"type": "string", "format": "date-time"}
    raise NotImplementedError


def _operation(endpoint: Endpoint, of: dict[Any, Schema]) -> Schema:
    doc = endpoint.doc
    error = "AnthropicError" if endpoint.path.startswith("/v1/messages") else "Error"
    operation: Schema = {
        "operationId": f"{endpoint.method.lower()}{re.sub(r'[^a-z0-9]+', '_', endpoint.shown.lower()).rstrip('_')}",
        "summary": endpoint.summary,
        "tags": [_tag(endpoint)],
        "responses": {str(doc.status): _answer(doc, of), "default": {"$ref": f"#/components/responses/{error}"}},
        "security": [] if endpoint.permission == PUBLIC else [{"key": []}, {"login": []}],
    }
    notes = [doc.description] if doc.description else []
    if endpoint.permission != PUBLIC:
        notes.append(f"Permission `{endpoint.permission}`: {TABLE[endpoint.permission].about}.")
    if notes:
        operation["description"] = " ".join(notes)
    if parameters := [*_path_parameters(endpoint.shown), *_query_parameters(doc), *_header_parameters(doc)]:
        operation["parameters"] = parameters
    if endpoint.method in BODY_METHODS and doc.body is not None:
        schema = doc.body if isinstance(doc.body, dict) else of[doc.body]
        content = {"schema": schema} | ({} if doc.example is None else {"example": doc.example})
        operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    return operation


def _last(endpoint: Endpoint) -> bool:
    """What is about the server itself comes after what it is for."""
    return _tag(endpoint) in ("server", "other")


def _tag(endpoint: Endpoint) -> str:
    return endpoint.doc.tag or "other"


def _answer(doc: Doc, of: dict[Any, Schema]) -> Schema:
    if doc.answer is None:
        return {"description": "Done."}
    item = _item(doc.answer)
    schema = item if isinstance(item, dict) else of[item]
    if item is not doc.answer:
        schema = {
            "type": "object",
            "required": ["object", "data", "has_more", "next_cursor"],
            "properties": {
                "object": {"const": "list"},
                "data": {"type": "array", "items": schema},
                "has_more": {"type": "boolean"},
                "next_cursor": {"type": ["string", "null"], "description": "The `after` of the next part."},
            },
        }
    content = {media: {"schema": schema if media == "application/json" else {"type": "string"}} for media in doc.media}
    return {"description": "The answer.", "content": content}


def _path_parameters(path: str) -> Iterable[Schema]:
    for name in PARAMETER.findall(path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query_parameters(doc: Doc) -> Iterable[Schema]:
    if doc.query is None:
        return
    _, components = _schemas([doc.query])
    schema = components[doc.query.__name__]
    for name, kind in schema["properties"].items():
        yield {"name": name, "in": "query", "required": name in schema["required"], "schema": _given(kind)}


def _given(schema: Schema) -> Schema:
    """The schema of a parameter that is sent: nobody sends null, he leaves it out."""
    if schema.get("default", "") is None:
        (schema,) = (one for one in schema["anyOf"] if one != {"type": "null"})
    return schema


def _header_parameters(doc: Doc) -> Iterable[Schema]:
    for name, about in doc.headers.items():
        yield {"name": name, "in": "header", "description": about, "schema": {"type": "string"}}
