"""Tools as OpenAI writes them: definitions, the choice among them, calls and pieces of calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from adapters.dialects.openai_thoughts import signature_fields
from adapters.errors import InvalidRequest
from adapters.types import Tool, ToolCall, ToolCallDelta, ToolChoice

SCHEMA_DEPTH_MAX = 64
TOOLS_MAX = 128

ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]


class FunctionDefinition(msgspec.Struct):
    name: ToolName
    description: str | None = None
    parameters: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    strict: bool | None = None


class WireTool(msgspec.Struct):
    type: str
    function: FunctionDefinition | None = None


class FunctionName(msgspec.Struct):
    name: str


class AllowedTool(msgspec.Struct):
    type: str
    function: FunctionName | None = None
    name: str | None = None


class AllowedTools(msgspec.Struct):
    mode: str
    tools: Annotated[list[AllowedTool], Meta(min_length=1, max_length=TOOLS_MAX)]


class ChosenTool(AllowedTool):
    """A choice that is not one of the words: a function, or several to choose from."""

    allowed_tools: AllowedTools | None = None


def parse_tools(tools: list[WireTool]) -> tuple[Tool, ...]:
    """The functions in canonical form; also what the token-counting endpoints take."""
    return distinct([_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)], "function.name")


def distinct(tools: Sequence[Tool], field: str) -> tuple[Tool, ...]:
    """The tools; raises where two have one name, which `field` of each says."""
    names = [tool.name for tool in tools]
    twice = next((index for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise invalid(f"tools[{twice}].{field}", f"there is another function {names[twice]!r}")
    return tuple(tools)


def _tool(tool: WireTool, path: str) -> Tool:
    if tool.type != "function":
        raise invalid(f"{path}.type", "expected 'function'")
    function = tool.function
    if function is None:
        raise InvalidRequest(f"Missing required parameter: '{path}.function'.", param=f"{path}.function")
    parameters = object_schema(function.parameters, f"{path}.function.parameters")
    return Tool(function.name, function.description or "", parameters, bool(function.strict))


def object_schema(given: msgspec.Raw, path: str) -> bytes:
    """What a function takes, which is an object; null is any."""
    parameters = bytes(given)
    if parameters == b"null":
        return b"{}"
    schema = json_object(parameters, path, "expected a JSON Schema object")
    if schema.get("type", "object") != "object":
        raise invalid(path, "expected a schema of type 'object'")
    return parameters


def parse_choice(choice: str | ChosenTool | None, parallel: bool | None, tools: Sequence[Tool]) -> ToolChoice:
    """What `tool_choice` and `parallel_tool_calls` ask for; raises `InvalidRequest` where no tool can do it."""
    at_once = parallel is not False
    if isinstance(choice, ChosenTool):
        if choice.type == "allowed_tools" and choice.allowed_tools is not None:
            allowed = choice.allowed_tools
            path = "tool_choice.allowed_tools"
            names = tuple(_name(one, f"{path}.tools[{index}]", tools) for index, one in enumerate(allowed.tools))
            return _mode(allowed.mode, f"{path}.mode", names, at_once)
        return ToolChoice("required", (_name(choice, "tool_choice", tools),), at_once)
    parsed = _mode("auto" if choice is None else choice, "tool_choice", (), at_once)
    if parsed.mode == "required" and not tools:
        raise invalid("tool_choice", "a call is only possible when 'tools' are given")
    return parsed


def _mode(mode: str, path: str, names: tuple[str, ...], parallel: bool) -> ToolChoice:
    match mode:
        case "none" if not names:
            return ToolChoice("none")
        case "auto":
            return ToolChoice("auto", names, parallel)
        case "required":
            return ToolChoice("required", names, parallel)
    raise invalid(path, "expected 'none', 'auto' or 'required'")


def _name(chosen: AllowedTool, path: str, tools: Sequence[Tool]) -> str:
    if chosen.type != "function":
        raise invalid(f"{path}.type", "expected 'function'")
    name = chosen.name if chosen.function is None else chosen.function.name
    if name is None:
        raise InvalidRequest(f"Missing required parameter: '{path}.function.name'.", param=f"{path}.function.name")
    if not any(tool.name == name for tool in tools):
        raise invalid(f"{path}.function.name", "it is not among 'tools'")
    return name


def parse_arguments(text: str, path: str) -> str:
    """The arguments of a call as they came; some models leave them empty when a function takes none."""
    if not text.strip():
        return "{}"
    json_object(text, path, "expected a JSON object as text")
    return text


def arguments_json(arguments: str) -> msgspec.Raw:
    """A model's arguments as JSON; those that broke off, which a stream would have shown as they are, are none."""
    try:
        msgspec.json.decode(arguments, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return msgspec.Raw(b"{}")
    return msgspec.Raw(arguments.encode())


def json_object(text: str | bytes, path: str, expected: str) -> dict[str, Any]:
    """`text` decoded; raises unless it is one JSON object of bearable depth, as templates walk it recursively."""
    try:
        decoded: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise invalid(path, expected) from None
    if _deeper_than(decoded, SCHEMA_DEPTH_MAX):
        raise invalid(path, f"expected at most {SCHEMA_DEPTH_MAX} levels of nesting")
    return decoded


def _deeper_than(value: object, depth_max: int) -> bool:
    level: list[object] = [value]
    for _ in range(depth_max + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def invalid(param: str, reason: str) -> InvalidRequest:
    """A refusal of the field at `param`."""
    return InvalidRequest(f"Invalid value for '{param}': {reason}.", param=param)


def call_fields(call: ToolCall) -> dict[str, object]:
    """A whole call."""
    fields = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    return fields | signature_fields(call.signature)


def delta_fields(event: ToolCallDelta) -> dict[str, object]:
    """A piece of a call."""
    if event.name is None:
        return {"index": event.index, "function": {"arguments": event.arguments}}
    function = {"name": event.name, "arguments": event.arguments}
    fields = {"index": event.index, "id": event.id, "type": "function", "function": function}
    return fields | signature_fields(event.signature)
