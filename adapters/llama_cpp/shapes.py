"""In what shape a chat template wants its input, and messages given in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from adapters.types import Message, Tool, ToolCall


class Shape(msgspec.Struct, frozen=True):
    """In what shape a template wants its input; found out once, by trying.

    `parts`: content as a list of parts. `empty_tools`: no tools are [] instead of None. `folds_system`: there is no
    system role, its text goes before the next user message. `argument_text`: arguments of tool calls stay JSON text.
    `short_ids`: ids of tool calls are nine letters and digits (Mistral's). `no_content`: beside tool calls, content
    that is empty is None. `one_call`: a message has one tool call at most. `reasoning_key`: under which name a message
    carries what the assistant thought, empty where no name has an effect. `system_tools`: tools are read from the first
    system message, as text (Phi's). `described`: each parameter of a tool has a description. `no_medium`: it
    refuses to think with medium effort. `shows_tools` and `shows_calls`: whether tools and the calls of earlier
    messages get into the prompt at all.
    """

    parts: bool = False
    empty_tools: bool = False
    folds_system: bool = False
    argument_text: bool = False
    short_ids: bool = False
    no_content: bool = False
    one_call: bool = False
    reasoning_key: str = ""
    system_tools: bool = False
    described: bool = False
    no_medium: bool = False
    shows_tools: bool = False
    shows_calls: bool = False


def shaped(messages: Sequence[Message], shape: Shape) -> list[dict[str, Any]]:
    """Messages as OpenAI clients write them. Content that is None becomes "", which templates can concatenate, unless
    the shape says otherwise."""
    if shape.folds_system:
        messages = _fold_system(messages)
    if shape.one_call:
        messages = _one_by_one(messages)
    return [_message(message, shape) for message in messages]


def shaped_tool(tool: Tool, shape: Shape) -> dict[str, Any]:
    """A tool as OpenAI clients write it. Raises msgspec.DecodeError where its parameters are not JSON."""
    parameters = msgspec.json.decode(tool.parameters)
    if shape.described and isinstance(parameters, dict) and isinstance(parameters.get("properties"), dict):
        properties = {key: _described(one) for key, one in parameters["properties"].items()}
        parameters = {**parameters, "properties": properties}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _described(parameter: Any) -> Any:
    return {"description": "", **parameter} if isinstance(parameter, dict) else parameter


def _fold_system(messages: Sequence[Message]) -> list[Message]:
    """Each system text put before the next user message, or made one where none follows."""
    folded: list[Message] = []
    texts: list[str] = []
    for message in messages:
        if message.role in ("system", "developer"):
            texts.append(message.text)
        elif message.role == "user" and texts:
            texts.append(message.text)
            folded.append(msgspec.structs.replace(message, content="\n\n".join(texts)))
            texts = []
        else:
            folded.append(message)
    return [*folded, Message("user", "\n\n".join(texts))] if texts else folded


def _one_by_one(messages: Iterable[Message]) -> list[Message]:
    """Each call in a message of its own, with its result right behind it."""
    placed: list[tuple[int, Message]] = []
    calls_at: dict[str | None, int] = {}
    for message in messages:
        if message.role == "tool":
            placed.append((calls_at.get(message.tool_call_id, len(placed)), message))
            continue
        if not message.tool_calls:
            placed.append((len(placed), message))
        for call in message.tool_calls:
            calls_at[call.id] = len(placed)
            placed.append((len(placed), msgspec.structs.replace(message, tool_calls=(call,))))
            message = Message("assistant")
    return [message for _, message in sorted(placed, key=lambda one: one[0])]


def _message(message: Message, shape: Shape) -> dict[str, Any]:
    content = message.text
    value: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": [{"type": "text", "text": content}] if shape.parts else content,
    }
    if shape.no_content and message.tool_calls and not content:
        value["content"] = None
    if message.name is not None:
        value["name"] = message.name
    if shape.reasoning_key and message.reasoning:
        value[shape.reasoning_key] = message.reasoning
    if message.tool_calls:
        value["tool_calls"] = [_call(call, shape) for call in message.tool_calls]
    if message.tool_call_id is not None:
        value["tool_call_id"] = _id(message.tool_call_id, shape)
    return value


def _call(call: ToolCall, shape: Shape) -> dict[str, Any]:
    arguments: object = call.arguments
    if not shape.argument_text:
        try:
            parsed = msgspec.json.decode(call.arguments)
        except msgspec.DecodeError:
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else call.arguments
    return {"id": _id(call.id, shape), "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _id(value: str, shape: Shape) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:9] if shape.short_ids else value
