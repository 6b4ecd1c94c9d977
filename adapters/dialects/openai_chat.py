"""OpenAI chat completions: requests to canonical form, events to `chat.completion` objects and chunks."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta

from adapters.dialects import openai_wire as wire
from adapters.dialects.openai_parts import Part, check_images, parse_content
from adapters.dialects.openai_reasoning import ReasoningFields, parse_reasoning, parse_thinking
from adapters.dialects.openai_thoughts import (
    ExtraContent,
    ThoughtWriter,
    WireDetail,
    details_of,
    parse_details,
    parse_signature,
    signed,
)
from adapters.dialects.openai_tools import (
    TOOLS_MAX,
    ChosenTool,
    WireTool,
    call_fields,
    delta_fields,
    invalid,
    parse_arguments,
    parse_choice,
    parse_tools,
)
from adapters.dialects.openai_wire import ResponseHead
from adapters.errors import InvalidRequest
from adapters.types import (
    ChatRequest,
    ChoiceFinished,
    Event,
    Finished,
    Message,
    ReasoningDelta,
    RefusalDelta,
    Role,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

Name = Annotated[str, Meta(max_length=256)]

MALFORMED_CALL: dict[str, object] = {"gateway": {"malformed_tool_call": True}}
"""What a choice holds besides OpenAI's fields when the model began a call that was none: it is in the text."""

_ROLES: dict[str, Role] = {**{role: role for role in get_args(Role)}, "function": "tool"}

_encode = msgspec.json.Encoder().encode


class Function(msgspec.Struct):
    name: Name
    arguments: str


class WireToolCall(msgspec.Struct):
    id: Annotated[str, Meta(min_length=1, max_length=256)]
    function: Function
    type: str = "function"
    extra_content: ExtraContent | None = None


class WireMessage(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None
    name: Name | None = None
    tool_calls: Annotated[list[WireToolCall], Meta(max_length=128)] | None = None
    tool_call_id: Name | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: Annotated[list[WireDetail], Meta(max_length=256)] | None = None
    refusal: str | None = None
    function_call: Function | None = None


class Body(ReasoningFields, kw_only=True):
    messages: Annotated[list[WireMessage], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: wire.Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[WireTool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: str | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    functions: Any = None
    function_call: Any = None
    chat_template: Any = None


_REFUSED = {
    "functions": "it is deprecated; send 'tools' instead",
    "function_call": "it is deprecated; send 'tool_choice' instead",
    "chat_template": wire.NO_TEMPLATES,
}

_decoder = msgspec.json.Decoder(Body)


def parse_request(body: bytes) -> wire.Inbound[ChatRequest]:
    """The request in canonical form; raises `InvalidRequest` with the path of the field at fault."""
    fields = wire.decode(_decoder, body)
    for name, reason in _REFUSED.items():
        if getattr(fields, name):
            raise invalid(name, reason)
    if fields.modalities and fields.modalities != ["text"]:
        raise invalid("modalities", "this model only answers in text")
    if fields.top_logprobs is not None and not fields.logprobs:
        raise invalid("top_logprobs", "it is only allowed when 'logprobs' is true")
    max_tokens = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
    logprobs = (fields.top_logprobs or 0) if fields.logprobs else None
    tools = parse_tools(fields.tools or [])
    arguments, reasoning_tokens_max = parse_reasoning(fields)
    generation = wire.parse_generation(fields, max_tokens=max_tokens, logprobs=logprobs)
    request = ChatRequest(
        model=fields.model,
        messages=parse_messages(fields.messages),
        tools=tools,
        tool_choice=parse_choice(fields.tool_choice, fields.parallel_tool_calls, tools),
        template_arguments=arguments,
        generation=msgspec.structs.replace(generation, reasoning_tokens_max=reasoning_tokens_max),
        thinking=parse_thinking(fields),
        end_user=fields.user,
    )
    return wire.inbound(fields, request)


def parse_messages(messages: list[WireMessage]) -> tuple[Message, ...]:
    """The turns in canonical form; also what the token-counting endpoints take."""
    parsed = tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))
    check_images(parsed)
    return parsed


def _message(message: WireMessage, path: str) -> Message:
    role = _ROLES.get(message.role)
    if role is None:
        raise invalid(f"{path}.role", f"expected one of {', '.join(map(repr, _ROLES))}")
    content = parse_content(message.content, role, f"{path}.content")
    calls = _tool_calls(message, path) if role == "assistant" else ()
    if content is None and role == "assistant":
        content = message.refusal
    if content is None and not calls:
        raise invalid(f"{path}.content", "expected a string or an array of parts, but got null")
    call_id = message.tool_call_id
    if message.role == "function":
        call_id = _legacy_call_id(message.name or "")
    if role == "tool" and not call_id:
        raise InvalidRequest(f"Missing required parameter: '{path}.tool_call_id'.", param=f"{path}.tool_call_id")
    reasoning = (message.reasoning_content or message.reasoning) if role == "assistant" else None
    thoughts = parse_details(message.reasoning_details or ()) if role == "assistant" else ()
    if thoughts and not reasoning:
        reasoning = "\n".join(thought.text for thought in thoughts if thought.text)
    answers = call_id if role == "tool" else None
    return Message(role, content, message.name, calls, answers, reasoning or None, thoughts)


def _legacy_call_id(name: str) -> str:
    """The id that joins a legacy `function_call` to the `function` message that answers it."""
    return f"call_{name}" if name else ""


def _tool_calls(message: WireMessage, path: str) -> tuple[ToolCall, ...]:
    calls = []
    for index, call in enumerate(message.tool_calls or []):
        place = f"{path}.tool_calls[{index}]"
        if call.type != "function":
            raise invalid(f"{place}.type", "expected 'function'")
        arguments = parse_arguments(call.function.arguments, f"{place}.function.arguments")
        calls.append(ToolCall(call.id, call.function.name, arguments, parse_signature(call.extra_content)))
    if message.function_call is not None:
        name = message.function_call.name
        arguments = parse_arguments(message.function_call.arguments, f"{path}.function_call.arguments")
        calls.append(ToolCall(_legacy_call_id(name), name, arguments))
    return tuple(calls)


class ChunkRenderer:
    """The events of one stream as `chat.completion.chunk` frames."""

    def __init__(self, head: ResponseHead, inbound: wire.Inbound[ChatRequest]) -> None:
        self._chunks = chunks = wire.Chunks(head, "chat.completion.chunk", inbound.include_usage)
        self._logprobs = inbound.request.generation.logprobs is not None
        self._shows_thoughts = inbound.request.thinking.shown is not False
        choices = range(inbound.request.generation.n)
        self._opening = [chunks.before + b'{"index":%d,"delta":{' % choice for choice in choices]
        self._thoughts = [ThoughtWriter() for _ in choices]
        self._before_text = [opening + b'"content":' for opening in self._opening]
        self._open_end = b'},"logprobs":null,"finish_reason":null}'
        self._closing = self._open_end + chunks.after

    def render(self, event: Event) -> bytes:
        """The frames of the next event."""
        if type(event) is TextDelta:
            if event.text and not event.logprobs:
                return self._before_text[event.choice] + wire.quoted(event.text) + self._closing
            return self._text(event)
        match event:
            case Started():
                closing = self._open_end + self._chunks.after_first(event.cache)
                return b"".join(
                    opening + b'"role":"assistant","content":"","refusal":null' + closing for opening in self._opening
                )
            case ReasoningDelta():
                return self._reasoning(event) if self._shows_thoughts else b""
            case RefusalDelta():
                return self._opening[event.choice] + b'"refusal":' + wire.quoted(event.text) + self._closing
            case ToolCallDelta():
                calls = wire.one_line(_encode({"tool_calls": [delta_fields(event)]}))[1:-1]
                return self._opening[event.choice] + calls + self._closing
            case ChoiceFinished():
                flag = b"," + _encode(MALFORMED_CALL)[1:-1] if event.malformed_call else b""
                end = b'},"logprobs":null,"finish_reason":"%b"%b}' % (event.reason.encode(), flag)
                return self._opening[event.choice] + end + self._chunks.after
            case Finished():
                return self._chunks.end(event.usage)
            case _:
                return b""

    def _reasoning(self, event: ReasoningDelta) -> bytes:
        """A signed thought is written once more as a whole, because a client has to give it back as a whole."""
        frame, writer = b"", self._thoughts[event.choice]
        if event.text:
            frame = self._opening[event.choice] + b'"reasoning_content":' + wire.quoted(event.text) + self._closing
        if (thought := writer.add(event)) is not None:
            details = wire.one_line(_encode({"reasoning_details": [writer.detail(thought)]}))[1:-1]
            frame += self._opening[event.choice] + details + self._closing
        return frame

    def _text(self, event: TextDelta) -> bytes:
        if self._logprobs and event.logprobs:
            logprobs = wire.one_line(_encode(_logprobs(event.logprobs)))
            end = b'},"logprobs":%b,"finish_reason":null}' % logprobs + self._chunks.after
            return self._before_text[event.choice] + wire.quoted(event.text) + end
        if not event.text:
            return b""
        return self._before_text[event.choice] + wire.quoted(event.text) + self._closing


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
    choices = [_choice(index, choice, request) for index, choice in enumerate(folded.choices)]
    fields = wire.head_fields(head, "chat.completion")
    usage = wire.usage_fields(folded.usage)
    return _encode({**fields, "choices": choices, "usage": usage, **wire.gateway_fields(folded.cache)})


def _choice(index: int, choice: wire.FoldedChoice, request: ChatRequest) -> dict[str, object]:
    calls = [call_fields(call) for _, call in sorted(choice.calls.items())]
    text = choice.text
    message: dict[str, object] = {
        "role": "assistant",
        "content": None if (calls or choice.refusal) and not text else text,
        "refusal": choice.refusal or None,
        "annotations": [],
    }
    if request.thinking.shown is not False:
        message |= _thoughts(choice)
    if calls:
        message["tool_calls"] = calls
    fields = {
        "index": index,
        "message": message,
        "logprobs": None if request.generation.logprobs is None else _logprobs(choice.logprobs),
        "finish_reason": choice.reason,
    }
    return fields | MALFORMED_CALL if choice.malformed_call else fields


def _thoughts(choice: wire.FoldedChoice) -> dict[str, object]:
    fields: dict[str, object] = {"reasoning_content": choice.reasoning} if choice.reasoning else {}
    thoughts = signed(choice.thoughts)
    return fields | {"reasoning_details": details_of(thoughts)} if thoughts else fields
