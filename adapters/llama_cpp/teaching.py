"""Explains tools in words to a model whose chat template knows none."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from adapters.types import Message, Tool, ToolCall

_INSTRUCTIONS = """\
You can call these functions. Each line is one of them, with a JSON Schema of its parameters:
{tools}

To call one, answer with this and nothing after it, an object for each call:
<tool_call>
{{"name": "the function's name", "arguments": {{"the parameter's name": "its value"}}}}
</tool_call>
What a function returned then follows between <tool_response> and </tool_response>. Answer in words where no function is
needed."""


def teach(messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[Message, ...]:
    """The conversation with the tools explained in its first system message, and calls and results written as text."""
    told = [_told(message) for message in messages]
    if tools:
        lines = "\n".join(_line(tool) for tool in tools)
        text = _INSTRUCTIONS.format(tools=lines)
        if told and told[0].role in ("system", "developer"):
            told[0] = msgspec.structs.replace(told[0], content=f"{told[0].text}\n\n{text}")
        else:
            told.insert(0, Message("system", text))
    return tuple(told)


def _line(tool: Tool) -> str:
    fields = {"name": tool.name, "description": tool.description, "parameters": msgspec.Raw(tool.parameters)}
    return msgspec.json.encode(fields).decode()


def _told(message: Message) -> Message:
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.text}\n</tool_response>")
    if not message.tool_calls:
        return message
    calls = [_call(call) for call in message.tool_calls]
    text = "\n".join([message.text, *calls] if message.text else calls)
    return msgspec.structs.replace(message, content=text, tool_calls=())


def _call(call: ToolCall) -> str:
    name = msgspec.json.encode(call.name).decode()
    return f'<tool_call>\n{{"name": {name}, "arguments": {call.arguments}}}\n</tool_call>'
