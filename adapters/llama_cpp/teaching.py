"""Tells a model in words what its chat template leaves out: the tools there are, and the calls it made before."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from adapters.llama_cpp.formats.row import ToolFormat
from adapters.llama_cpp.tools import GENERIC
from adapters.llama_cpp.writing import written
from adapters.types import Message, Tool, ToolCall

_INSTRUCTIONS = """\
You can call these functions. Each line is one of them, with a JSON Schema of its parameters:
{tools}

To call one, answer with this and nothing after it, once for each call:
{example}
{results}Answer in words where no function is needed."""
_RESULTS = "What a function returned then follows between <tool_response> and </tool_response>. "
_EXAMPLE = ToolCall("call_1", "the_function", '{"the_parameter": "its value"}')


def teach(messages: Sequence[Message], tools: Sequence[Tool], row: ToolFormat) -> tuple[Message, ...]:
    """The conversation with the tools explained in its first system message, to be called as `row` has it."""
    if not tools:
        return tuple(messages)
    text = _INSTRUCTIONS.format(
        tools="\n".join(_line(tool) for tool in tools),
        example=written(row, [_EXAMPLE]).strip(),
        results=_RESULTS if row is GENERIC else "",
    )
    if messages and messages[0].role in ("system", "developer"):
        return (msgspec.structs.replace(messages[0], content=f"{messages[0].text}\n\n{text}"), *messages[1:])
    return (Message("system", text), *messages)


def spell(messages: Sequence[Message], row: ToolFormat) -> tuple[Message, ...]:
    """The conversation with calls written as text, as `row` has it. For the generic row results are text as well, those
    of several calls one message, since many templates want users and assistants to take turns."""
    spelt: list[Message] = []
    after_result = False
    for message in messages:
        is_result = message.role == "tool" and row is GENERIC
        if is_result:
            text = f"<tool_response>\n{message.text}\n</tool_response>"
            spelt.append(Message("user", f"{spelt.pop().text}\n{text}" if after_result else text))
        else:
            spelt.append(_spelt(message, row))
        after_result = is_result
    return tuple(spelt)


def _line(tool: Tool) -> str:
    fields = {"name": tool.name, "description": tool.description, "parameters": msgspec.Raw(tool.parameters)}
    return msgspec.json.encode(fields).decode()


def _spelt(message: Message, row: ToolFormat) -> Message:
    if not message.tool_calls:
        return message
    calls = written(row, message.tool_calls)
    text = f"{message.text}\n{calls}" if message.text else calls
    return msgspec.structs.replace(message, content=text, tool_calls=())
