"""OpenAI chat completions: requests to canonical form, events to `chat.completion` objects and chunks."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta

from adapters.dialects import openai_wire as wire
from adapters.dialects.openai_wire import ResponseHead
from adapters.errors import InvalidRequest
from adapters.types import (
    ChatRequest,
    ChoiceFinished,
    Event,
    Finished,
    Message,
    Role,
    Started,
    TextDelta,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)

SCHEMA_DEPTH_MAX = 64

ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
Name = Annotated[str, Meta(max_length=256)]

_ROLES: dict[str, Role] = {**{role: role for role in get_args(Role)}, "function": "tool"}
_NOT_TEXT = {
    "image_url": "this model does not take images",
    "input_audio": "this model does not take audio",
    "file": "this model does not take files",
}

_encode = msgspec.json.Encoder().encode


class Function(msgspec.Struct):
    name: Name
    arguments: str


class WireToolCall(msgspec.Struct):
    id: Annotated[str, Meta(min_length=1, max_length=256)]
    function: Function
    type: str = "function"


class Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None


class WireMessage(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None
    name: Name | None = None
    tool_calls: Annotated[list[WireToolCall], Meta(max_length=128)] | None = None
    tool_call_id: Name | None = None
    refusal: str | None = None
    function_call: Function | None = None


class FunctionDefinition(msgspec.Struct):
    name: ToolName
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw(b"{}")


class WireTool(msgspec.Struct):
    type: str
    function: FunctionDefinition | None = None


class NamedChoice(msgspec.Struct):
    type: str


class Body(wire.GenerationFields, kw_only=True):
    messages: Annotated[list[WireMessage], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: wire.Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[WireTool], Meta(max_length=128)] | None = None
    tool_choice: str | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    functions: Any = None
    function_call: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None


_REFUSED = {
    "functions": "it is deprecated; send 'tools' instead",
    "function_call": "it is deprecated; send 'tool_choice' instead",
    "chat_template": "the template comes with the model and cannot be replaced",
    "chat_template_kwargs": "no template argument is open to requests",
}

_decoder = msgspec.json.Decoder(Body)


def parse_request(body: bytes) -> wire.Inbound[ChatRequest]:
    """The request in canonical form; raises `InvalidRequest` with the path of the field at fault."""
    fields = wire.decode(_decoder, body)
    for name, reason in _REFUSED.items():
        if getattr(fields, name):
            raise _invalid(name, reason)
    if fields.modalities and fields.modalities != ["text"]:
        raise _invalid("modalities", "this model only answers in text")
    if fields.top_logprobs is not None and not fields.logprobs:
        raise _invalid("top_logprobs", "it is only allowed when 'logprobs' is true")
    max_tokens = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
    logprobs = (fields.top_logprobs or 0) if fields.logprobs else None
    request = ChatRequest(
        model=fields.model,
        messages=parse_messages(fields.messages),
        tools=parse_tools(fields.tools or []),
        tool_choice=_tool_choice(fields.tool_choice),
        generation=wire.parse_generation(fields, max_tokens=max_tokens, logprobs=logprobs),
    )
    return wire.inbound(fields, request)


def _invalid(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{param}': {reason}.", param=param)


def parse_messages(messages: list[WireMessage]) -> tuple[Message, ...]:
    """The turns in canonical form; also what the token-counting endpoints take."""
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def _message(message: WireMessage, path: str) -> Message:
    role = _ROLES.get(message.role)
    if role is None:
        raise _invalid(f"{path}.role", f"expected one of {', '.join(map(repr, _ROLES))}")
    content = _content(message.content, f"{path}.content")
    calls = _tool_calls(message, path) if role == "assistant" else ()
    if content is None and role == "assistant":
        content = message.refusal
    if content is None and not calls:
        raise _invalid(f"{path}.content", "expected a string or an array of parts, but got null")
    call_id = message.tool_call_id
    if message.role == "function":
        call_id = _legacy_call_id(message.name or "")
    if role == "tool" and not call_id:
        raise InvalidRequest(f"Missing required parameter: '{path}.tool_call_id'.", param=f"{path}.tool_call_id")
    return Message(role, content, message.name, calls, call_id if role == "tool" else None)


def _content(content: str | list[Part] | None, path: str) -> str | None:
    """Text as it is, parts joined by line ends: each part is a block of its own."""
    if content is None or isinstance(content, str):
        return content
    if not content:
        raise _invalid(path, "expected at least one part")
    return "\n".join(_part(part, f"{path}[{index}]") for index, part in enumerate(content))


def _part(part: Part, path: str) -> str:
    if part.type not in ("text", "refusal"):
        reason = _NOT_TEXT.get(part.type, "this model only takes parts of type 'text'")
        raise _invalid(path, reason)
    text = part.text if part.type == "text" else part.refusal
    if text is None:
        raise InvalidRequest(f"Missing required parameter: '{path}.{part.type}'.", param=f"{path}.{part.type}")
    return text


def _legacy_call_id(name: str) -> str:
    """The id that joins a legacy `function_call` to the `function` message that answers it."""
    return f"call_{name}" if name else ""


def _tool_calls(message: WireMessage, path: str) -> tuple[ToolCall, ...]:
    calls = []
    for index, call in enumerate(message.tool_calls or []):
        place = f"{path}.tool_calls[{index}]"
        if call.type != "function":
            raise _invalid(f"{place}.type", "expected 'function'")
        calls.append(ToolCall(call.id, call.function.name, _arguments(call.function, f"{place}.function.arguments")))
    if message.function_call is not None:
        name = message.function_call.name
        arguments = _arguments(message.function_call, f"{path}.function_call.arguments")
        calls.append(ToolCall(_legacy_call_id(name), name, arguments))
    return tuple(calls)


def _arguments(function: Function, path: str) -> str:
    """The arguments as they came; some models leave them empty when a function takes none."""
    if not function.arguments.strip():
        return "{}"
    _json_object(function.arguments, path, "expected a JSON object as text")
    return function.arguments


def parse_tools(tools: list[WireTool]) -> tuple[Tool, ...]:
    """The functions in canonical form; also what the token-counting endpoints take."""
    return tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools))


def _tool(tool: WireTool, path: str) -> Tool:
    if tool.type != "function":
        raise _invalid(f"{path}.type", "expected 'function'")
    function = tool.function
    if function is None:
        raise InvalidRequest(f"Missing required parameter: '{path}.function'.", param=f"{path}.function")
    parameters = bytes(function.parameters)
    if parameters == b"null":
        parameters = b"{}"
    where = f"{path}.function.parameters"
    schema = _json_object(parameters, where, "expected a JSON Schema object")
    if schema.get("type", "object") != "object":
        raise _invalid(where, "expected a schema of type 'object'")
    return Tool(function.name, function.description or "", parameters)


def _json_object(text: str | bytes, path: str, expected: str) -> dict[str, Any]:
    """`text` decoded; raises unless it is one JSON object of bearable depth, as templates walk it recursively."""
    try:
        decoded: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise _invalid(path, expected) from None
    if _deeper_than(decoded, SCHEMA_DEPTH_MAX):
        raise _invalid(path, f"expected at most {SCHEMA_DEPTH_MAX} levels of nesting")
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


def _tool_choice(choice: str | NamedChoice | None) -> ToolChoice:
    if choice is None or choice == "auto":
        return ToolChoice()
    if choice == "none":
        return ToolChoice("none")
    if choice == "required" or isinstance(choice, NamedChoice):
        raise _invalid("tool_choice", "this server cannot force a tool call yet; expected 'none' or 'auto'")
    raise _invalid("tool_choice", "expected 'none' or 'auto'")


class ChunkRenderer:
    """The events of one stream as `chat.completion.chunk` frames."""

    def __init__(self, head: ResponseHead, inbound: wire.Inbound[ChatRequest]) -> None:
        self._chunks = chunks = wire.Chunks(head, "chat.completion.chunk", inbound.include_usage)
        self._logprobs = inbound.request.generation.logprobs is not None
        choices = range(inbound.request.generation.n)
        self._opening = [chunks.before + b'{"index":%d,"delta":{' % choice for choice in choices]
        self._before_text = [opening + b'"content":' for opening in self._opening]
        self._closing = b'},"logprobs":null,"finish_reason":null}' + chunks.after

    def render(self, event: Event) -> bytes:
        """The frames of the next event."""
        if type(event) is TextDelta:
            return self._text(event)
        match event:
            case Started():
                return b"".join(
                    opening + b'"role":"assistant","content":"","refusal":null' + self._closing
                    for opening in self._opening
                )
            case ToolCallDelta():
                calls = _encode({"tool_calls": [_call_delta(event)]})[1:-1]
                return self._opening[event.choice] + calls + self._closing
            case ChoiceFinished():
                end = b'},"logprobs":null,"finish_reason":"%b"}' % event.reason.encode()
                return self._opening[event.choice] + end + self._chunks.after
            case Finished():
                return self._chunks.end(event.usage)
            case _:
                return b""

    def _text(self, event: TextDelta) -> bytes:
        if self._logprobs and event.logprobs:
            logprobs = _encode(_logprobs(event.logprobs))
            end = b'},"logprobs":%b,"finish_reason":null}' % logprobs + self._chunks.after
            return self._before_text[event.choice] + wire.quoted(event.text) + end
        if not event.text:
            return b""
        return self._before_text[event.choice] + wire.quoted(event.text) + self._closing


def _call_delta(event: ToolCallDelta) -> dict[str, object]:
    if event.name is None:
        return {"index": event.index, "function": {"arguments": event.arguments}}
    function = {"name": event.name, "arguments": event.arguments}
    return {"index": event.index, "id": event.id, "type": "function", "function": function}


def _logprobs(tokens: tuple[TokenLogprob, ...] | list[TokenLogprob]) -> dict[str, object]:
    content = [
        {**_token(token.raw, token.logprob), "top_logprobs": [_token(top.raw, top.logprob) for top in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _token(raw: bytes, logprob: float | None) -> dict[str, object]:
    """An impossible token has a log-probability that JSON cannot hold; OpenAI writes -9999."""
    value = wire.LOGPROB_MIN if logprob is None else max(logprob, wire.LOGPROB_MIN)
    return {"token": wire.token_text(raw), "logprob": value, "bytes": list(raw)}


def render_answer(head: ResponseHead, request: ChatRequest, folded: wire.Folded) -> bytes:
    """The whole answer as a `chat.completion`."""
    with_logprobs = request.generation.logprobs is not None
    choices = [_choice(index, choice, with_logprobs) for index, choice in enumerate(folded.choices)]
    fields = wire.head_fields(head, "chat.completion")
    return _encode({**fields, "choices": choices, "usage": wire.usage_fields(folded.usage)})


def _choice(index: int, choice: wire.FoldedChoice, with_logprobs: bool) -> dict[str, object]:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for _, call in sorted(choice.calls.items())
    ]
    text = choice.text
    message: dict[str, object] = {
        "role": "assistant",
        "content": None if calls and not text else text,
        "refusal": None,
        "annotations": [],
    }
    if calls:
        message["tool_calls"] = calls
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(choice.logprobs) if with_logprobs else None,
        "finish_reason": choice.reason,
    }
