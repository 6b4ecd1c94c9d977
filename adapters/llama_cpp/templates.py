"""Turns a conversation into the prompt a model was trained on, by the chat template that came with the model."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import msgspec

from adapters.llama_cpp.sandbox import LIMITS, LimitError, Limits, Sandbox
from adapters.types import Message, Tool, ToolCall

CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
"""What is used for a model that brings no template."""

_REASON_CHARS_MAX = 500


class TemplateError(Exception):
    """A template that cannot be used (`code` model_invalid) or a request it cannot express (invalid_value, `param`)."""

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param


class _RefusalError(Exception):
    """The template called `raise_exception`."""


class _Shape(msgspec.Struct, frozen=True):
    """In what shape a template wants its input; found out once, by trying.

    `parts`: content as a list of parts. `empty_tools`: no tools are [] instead of None. `folds_system`: there is no
    system role, its text goes before the next user message. `argument_text`: arguments of tool calls stay JSON text.
    `short_ids`: ids of tool calls are nine letters and digits (Mistral's). `reasoning_key`: under which name a message
    carries what the assistant thought, empty where no name has an effect. `system_tools`: tools are read from the first
    system message, as text (Phi's).
    """

    parts: bool = False
    empty_tools: bool = False
    folds_system: bool = False
    argument_text: bool = False
    short_ids: bool = False
    reasoning_key: str = ""
    system_tools: bool = False


class ChatTemplate:
    """A compiled chat template. `now` gives the time to templates that ask for it.

    The constructor raises TemplateError (model_invalid) for a template that does not compile or that exceeds its limits
    on trivial conversations.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str,
        eos_token: str,
        limits: Limits = LIMITS,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._sandbox = Sandbox(limits)
        self._now = now
        self._variables = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "raise_exception": _refuse,
            "strftime_now": lambda layout: now().strftime(layout),
        }
        try:
            self._template = self._sandbox.template(source)
            self._shape = self._find_shape()
        except Exception as exc:
            raise TemplateError(f"the chat template is not usable: {_reason(exc)}", code="model_invalid") from exc

    def render(
        self,
        messages: tuple[Message, ...],
        tools: tuple[Tool, ...] = (),
        arguments: Mapping[str, str | bool | int] = MappingProxyType({}),
    ) -> str:
        """The prompt for the assistant's next message, or for the rest of it when the last message is an assistant's.
        `arguments` are values for the template's own switches.

        Raises TemplateError (invalid_value) when the template refuses the messages, breaks on them, or exceeds its
        limits with them.
        """
        given = [_tool(tool) for tool in tools]
        try:
            if messages and messages[-1].role == "assistant" and not messages[-1].tool_calls:
                return self._continued(messages, given, arguments)
            return self._apply(self._shape, messages, given, arguments)
        except Exception as exc:
            does = {LimitError: "needs too much for", _RefusalError: "refuses"}.get(type(exc), "fails on")
            message = f"the model's chat template {does} these messages: {_reason(exc)}"
            raise TemplateError(message, code="invalid_value", param="messages") from exc

    def _continued(
        self, messages: tuple[Message, ...], tools: list[dict[str, Any]], arguments: Mapping[str, str | bool | int]
    ) -> str:
        """A prompt that ends with the last message's content, as it is, and nothing after it."""
        *before, last = messages
        content = last.text
        marked = msgspec.structs.replace(last, content=content + _MARK)
        try:
            text = self._apply(self._shape, (*before, marked), tools, arguments, answer=False)
        except _RefusalError:
            text = ""
        end = text.rfind(_MARK)
        # A template that wants the last message to be the user's is asked for the start of an answer instead.
        return text[:end] if end >= 0 else self._apply(self._shape, before, tools, arguments) + content

    def _apply(
        self,
        shape: _Shape,
        messages: Sequence[Message],
        tools: list[dict[str, Any]],
        arguments: Mapping[str, str | bool | int] = MappingProxyType({}),
        *,
        answer: bool = True,
    ) -> str:
        if shape.folds_system:
            messages = _fold_system(messages)
        given = [_message(message, shape) for message in messages]
        described = msgspec.json.encode([tool["function"] for tool in tools]).decode()
        if shape.system_tools and tools:
            if not given or given[0]["role"] != "system":
                given.insert(0, _message(Message("system", ""), shape))
            given[0]["tools"] = described
        variables = {
            "messages": given,
            "tools": tools if tools or shape.empty_tools else None,
            "functions": described,
            "datetime": self._now().strftime("%B %d, %Y"),
            "add_generation_prompt": answer,
        }
        return self._sandbox.render(self._template, {**arguments, **self._variables, **variables})

    def _find_shape(self) -> _Shape:
        """The first shape in which each kind of message is accepted and shows up in the prompt."""
        shape = _Shape()
        user = Message("user", _PROBE)
        for parts, empty_tools in itertools.product((False, True), repeat=2):
            tried = _Shape(parts=parts, empty_tools=empty_tools)
            if self._shows(tried, (user,), _PROBE):
                shape = tried
                break
        folded = msgspec.structs.replace(shape, folds_system=True)
        conversation = (Message("system", _PROBE), Message("user", "Hello"))
        if not self._shows(shape, conversation, _PROBE) and self._shows(folded, conversation, _PROBE):
            shape = folded
        for short_ids, argument_text in itertools.product((False, True), repeat=2):
            tried = msgspec.structs.replace(shape, short_ids=short_ids, argument_text=argument_text)
            if self._shows(tried, _PROBE_CALL, _PROBE, (_PROBE_TOOL,)):
                shape = tried
                break
        tried = msgspec.structs.replace(shape, system_tools=True)
        description = _PROBE_TOOL.description
        if not self._shows(shape, (user,), description, (_PROBE_TOOL,)) and self._shows(
            tried, (user,), description, (_PROBE_TOOL,)
        ):
            shape = tried
        for key in _REASONING_KEYS:
            tried = msgspec.structs.replace(shape, reasoning_key=key)
            if any(self._shows(tried, thoughtful, _PROBE_THOUGHT) for thoughtful in _PROBE_REASONING):
                return tried
        return shape

    def _shows(self, shape: _Shape, messages: tuple[Message, ...], text: str, tools: tuple[Tool, ...] = ()) -> bool:
        try:
            return text in self._apply(shape, messages, [_tool(tool) for tool in tools])
        except LimitError:
            raise
        except Exception:
            # Whatever a template raises on a shape it does not know, the answer is that it does not know it.
            return False


_MARK = "\ue0f1the end\ue0f1"
_PROBE = "a probe of the template"
_PROBE_TOOL = Tool("probe", "A probe of tools.", b'{"type":"object","properties":{"text":{"type":"string"}}}')
_PROBE_THOUGHT = "a thought of the probe"
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_PROBE_CALL = (
    Message("user", "Hello"),
    Message("assistant", tool_calls=(ToolCall("call_0123456789abcdef", "probe", f'{{"text": "{_PROBE}"}}'),)),
    Message("tool", "Hello", name="probe", tool_call_id="call_0123456789abcdef"),
)
_PROBE_REASONING = (
    (*_PROBE_CALL[:1], msgspec.structs.replace(_PROBE_CALL[1], reasoning=_PROBE_THOUGHT), *_PROBE_CALL[2:]),
    (Message("user", "Hello"), Message("assistant", "Hello", reasoning=_PROBE_THOUGHT), Message("user", "Hello")),
)


def _refuse(message: object) -> None:
    raise _RefusalError(str(message))


def _reason(exc: Exception) -> str:
    text = " ".join(str(exc).split()) or type(exc).__name__
    return text if len(text) <= _REASON_CHARS_MAX else text[:_REASON_CHARS_MAX] + "..."


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


def _message(message: Message, shape: _Shape) -> dict[str, Any]:
    """A message as OpenAI clients write it. Content that is None becomes "", which templates can concatenate."""
    content = message.text
    value: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": [{"type": "text", "text": content}] if shape.parts else content,
    }
    if message.name is not None:
        value["name"] = message.name
    if shape.reasoning_key and message.reasoning:
        value[shape.reasoning_key] = message.reasoning
    if message.tool_calls:
        value["tool_calls"] = [_call(call, shape) for call in message.tool_calls]
    if message.tool_call_id is not None:
        value["tool_call_id"] = _id(message.tool_call_id, shape)
    return value


def _call(call: ToolCall, shape: _Shape) -> dict[str, Any]:
    arguments: object = call.arguments
    if not shape.argument_text:
        try:
            parsed = msgspec.json.decode(call.arguments)
        except msgspec.DecodeError:
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else call.arguments
    return {"id": _id(call.id, shape), "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _id(value: str, shape: _Shape) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:9] if shape.short_ids else value


def _tool(tool: Tool) -> dict[str, Any]:
    try:
        parameters = msgspec.json.decode(tool.parameters)
    except msgspec.DecodeError as exc:
        raise TemplateError(
            f"the parameters of tool {tool.name!r} are not JSON: {exc}", code="invalid_value", param="tools"
        ) from exc
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}
