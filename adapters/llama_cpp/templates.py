"""Turns a conversation into the prompt a model was trained on, by the chat template that came with the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec.structs import replace

from adapters.llama_cpp.sandbox import LIMITS, LimitError, Limits, Sandbox
from adapters.llama_cpp.shapes import Shape, shaped, shaped_tool
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

Switches = Mapping[str, str | bool | int]
"""Values of a template's own switches."""

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

    @property
    def shows_tools(self) -> bool:
        """Whether it tells the model of tools."""
        return self._shape.shows_tools

    @property
    def shows_calls(self) -> bool:
        """Whether it has a place for the calls of earlier messages."""
        return self._shape.shows_calls

    def render(
        self,
        messages: tuple[Message, ...],
        tools: tuple[Tool, ...] = (),
        arguments: Switches = MappingProxyType({}),
    ) -> str:
        """The prompt for the assistant's next message, or for the rest of it when the last message is an assistant's.
        `arguments` are values for the template's own switches.

        Raises TemplateError (invalid_value) when the template refuses the messages, breaks on them, or exceeds its
        limits with them.
        """
        given = self._tools(tools)
        arguments = _spelt(arguments, self._shape)
        try:
            if messages and messages[-1].role == "assistant" and not messages[-1].tool_calls:
                return self._continued(messages, given, arguments)
            return self._apply(self._shape, messages, given, arguments)
        except Exception as exc:
            does = {LimitError: "needs too much for", _RefusalError: "refuses"}.get(type(exc), "fails on")
            message = f"the model's chat template {does} these messages: {_reason(exc)}"
            raise TemplateError(message, code="invalid_value", param="messages") from exc

    def _continued(self, messages: tuple[Message, ...], tools: list[dict[str, Any]], arguments: Switches) -> str:
        """A prompt that ends with the last message's content, as it is, and nothing after it."""
        *before, last = messages
        content = last.text
        marked = replace(last, content=content + _MARK)
        try:
            text = self._apply(self._shape, (*before, marked), tools, arguments, answer=False)
        except _RefusalError:
            text = ""
        end = text.rfind(_MARK)
        # A template that wants the last message to be the user's is asked for the start of an answer instead.
        return text[:end] if end >= 0 else self._apply(self._shape, before, tools, arguments) + content

    def _apply(
        self,
        shape: Shape,
        messages: Sequence[Message],
        tools: list[dict[str, Any]],
        arguments: Switches = MappingProxyType({}),
        *,
        answer: bool = True,
    ) -> str:
        given = shaped(messages, shape)
        described = msgspec.json.encode([tool["function"] for tool in tools]).decode()
        if shape.system_tools and tools:
            if not given or given[0]["role"] != "system":
                given[:0] = shaped([Message("system", "")], shape)
            given[0]["tools"] = described
        variables = {
            "messages": given,
            "tools": tools if tools or shape.empty_tools else None,
            "functions": described,
            "datetime": self._now().strftime("%B %d, %Y"),
            "add_generation_prompt": answer,
        }
        return self._sandbox.render(self._template, {**arguments, **self._variables, **variables})

    def _tools(self, tools: Sequence[Tool], shape: Shape | None = None) -> list[dict[str, Any]]:
        given = []
        for tool in tools:
            try:
                given.append(shaped_tool(tool, shape or self._shape))
            except msgspec.DecodeError as exc:
                message = f"the parameters of tool {tool.name!r} are not JSON: {exc}"
                raise TemplateError(message, code="invalid_value", param="tools") from exc
        return given

    def _find_shape(self) -> Shape:
        """The first shape in which each kind of message is accepted and shows up in the prompt."""
        user = Message("user", _PROBE)
        plain = [Shape(parts=parts, empty_tools=empty) for parts, empty in itertools.product((False, True), repeat=2)]
        shape = self._first(plain, (user,), _PROBE) or plain[0]
        system = (Message("system", _PROBE), Message("user", "Hello"))
        shape = self._first([shape, replace(shape, folds_system=True)], system, _PROBE) or shape
        told = replace(shape, shows_tools=True)
        ways = [told, replace(told, described=True), replace(told, system_tools=True)]
        shape = self._first(ways, (user,), _PROBE_TOOL.description, (_PROBE_TOOL,)) or shape
        shape = self._find_calls(shape)
        shape = replace(shape, no_medium=self._refuses(shape, user, {"reasoning_effort": "medium"}))
        for key in _REASONING_KEYS:
            tried = replace(shape, reasoning_key=key)
            if any(self._shows(tried, thoughtful, _PROBE_THOUGHT) for thoughtful in _PROBE_REASONING):
                return tried
        return shape

    def _refuses(self, shape: Shape, message: Message, arguments: Switches) -> bool:
        """Whether the template refuses a conversation with these arguments that it takes without them."""
        try:
            self._apply(shape, (message,), [], arguments)
        except _RefusalError:
            return self._shows(shape, (message,), message.text)
        except LimitError:
            raise
        except Exception:
            return False
        return False

    def _find_calls(self, shape: Shape) -> Shape:
        """How calls of earlier messages are to be given. Where content beside them may be None as well, it is if that
        makes the prompt shorter: something was written around an empty text."""
        flags = itertools.product((False, True), repeat=3)
        tried = [
            replace(shape, no_content=no_content, short_ids=short, argument_text=text, shows_calls=True)
            for no_content, short, text in flags
        ]
        found = self._first(tried, _probe_calls(1), _PROBE, (_PROBE_TOOL,))
        if found is None:
            return shape
        bare = replace(found, no_content=True)
        texts = [self._tried(one, _probe_calls(1), (_PROBE_TOOL,)) for one in (found, bare)]
        if _PROBE in texts[1] and len(texts[1]) < len(texts[0]):
            found = bare
        second = f"{_PROBE} 1"
        return self._first([found, replace(found, one_call=True)], _probe_calls(2), second, (_PROBE_TOOL,)) or found

    def _first(
        self, shapes: Sequence[Shape], messages: tuple[Message, ...], text: str, tools: tuple[Tool, ...] = ()
    ) -> Shape | None:
        """The first of the shapes in which `text` shows."""
        return next((shape for shape in shapes if self._shows(shape, messages, text, tools)), None)

    def _shows(self, shape: Shape, messages: tuple[Message, ...], text: str, tools: tuple[Tool, ...] = ()) -> bool:
        return text in self._tried(shape, messages, tools)

    def _tried(self, shape: Shape, messages: tuple[Message, ...], tools: tuple[Tool, ...]) -> str:
        """The prompt, empty where the template fails."""
        try:
            return self._apply(shape, messages, self._tools(tools, shape))
        except LimitError:
            raise
        except Exception:
            # Whatever a template raises on a shape it does not know, the answer is that it does not know it.
            return ""


_MARK = "\ue0f1the end\ue0f1"
_PROBE = "a probe of the template"
_PROBE_TOOL = Tool("probe", "A probe of tools.", b'{"type":"object","properties":{"text":{"type":"string"}}}')
_PROBE_THOUGHT = "a thought of the probe"
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


def _probe_calls(count: int) -> tuple[Message, ...]:
    """A conversation with that many calls at once, and their results."""
    calls = [
        ToolCall(f"call_{number}0123456789abcdef", "probe", f'{{"text": "{_PROBE} {number}"}}')
        for number in range(count)
    ]
    results = [Message("tool", "Hello", name="probe", tool_call_id=call.id) for call in calls]
    return Message("user", "Hello"), Message("assistant", tool_calls=tuple(calls)), *results


_ASKED, _CALLING, _TOLD = _probe_calls(1)
_PROBE_REASONING = (
    (_ASKED, replace(_CALLING, reasoning=_PROBE_THOUGHT), _TOLD),
    (_ASKED, Message("assistant", "Hello", reasoning=_PROBE_THOUGHT), _ASKED),
)


def _spelt(arguments: Switches, shape: Shape) -> Switches:
    """The switches of thinking under all the names and values that templates know them by."""
    spelt = dict(arguments)
    effort = spelt.get("reasoning_effort")
    if effort == "medium" and shape.no_medium:
        spelt["reasoning_effort"] = "high"
    if isinstance(effort, str):
        spelt |= {"reasoning_strength": effort, "thinking_effort": "low" if effort == "low" else "high"}
    if "enable_thinking" in spelt:
        spelt["thinking_mode"] = "enabled" if spelt["enable_thinking"] else "disabled"
    return spelt


def _refuse(message: object) -> None:
    raise _RefusalError(str(message))


def _reason(exc: Exception) -> str:
    text = " ".join(str(exc).split()) or type(exc).__name__
    return text if len(text) <= _REASON_CHARS_MAX else text[:_REASON_CHARS_MAX] + "..."
