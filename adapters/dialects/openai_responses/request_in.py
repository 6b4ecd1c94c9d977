"""Requests of the Responses API in canonical form."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from adapters.conversation import OPENAI
from adapters.dialects import openai_wire as wire
from adapters.dialects.openai_parts import check_images, check_url, parse_document, parse_image_url
from adapters.dialects.openai_reasoning import switches
from adapters.dialects.openai_responses.fields import Body, Choice, CompactBody, Format, Item, Piece, WireFunction
from adapters.dialects.openai_tools import distinct, invalid, object_schema, parse_arguments
from adapters.errors import InvalidRequest
from adapters.types import (
    ChatRequest,
    Constraint,
    DocumentPart,
    Generation,
    ImageUrl,
    Message,
    Part,
    Role,
    Sampling,
    TextPart,
    Thinking,
    Thought,
    Tool,
    ToolCall,
    ToolChoice,
)

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "developer"}


class ResponsesInbound(wire.Inbound[ChatRequest], frozen=True, kw_only=True):
    """A parsed request, and what the server must know beside it.

    `store` None: it did not say. `previous_response_id` and `conversation` name what is to come before its messages;
    `thoughts` asks for them to be given back to be kept by the client. `format_name`, `summary` and `verbosity` are
    told again in the answer.
    """

    previous_response_id: str | None = None
    conversation: str | None = None
    store: bool | None = None
    background: bool = False
    thoughts: bool = False
    metadata: dict[str, str] = {}
    instructions: str | None = None
    format_name: str | None = None
    summary: str | None = None
    verbosity: str | None = None


_decoder = msgspec.json.Decoder(Body)
_compaction_decoder = msgspec.json.Decoder(CompactBody)


def parse_request(body: bytes) -> ResponsesInbound:
    """The request in canonical form; raises `InvalidRequest` with the path of the field at fault."""
    fields = wire.decode(_decoder, body)
    wire.refuse_redirects(fields)
    if fields.prompt is not None:
        raise invalid("prompt", "prompts are not kept here; send their text")
    tools = distinct([_tool(tool, f"tools[{index}]") for index, tool in enumerate(fields.tools or [])], "name")
    reasoning, text = fields.reasoning, fields.text
    effort = None if reasoning is None else reasoning.effort
    enabled = None if effort is None else effort != "none"
    include = fields.include or []
    logprobs = fields.top_logprobs
    if logprobs is None and "message.output_text.logprobs" in include:
        logprobs = 0
    request = ChatRequest(
        model=fields.model,
        messages=_messages(fields),
        tools=tools,
        tool_choice=_choice(fields.tool_choice, fields.parallel_tool_calls is not False, tools),
        template_arguments=switches(enabled, effort),
        generation=Generation(
            max_tokens=fields.max_output_tokens,
            logprobs=logprobs,
            sampling=Sampling(
                temperature=0.0 if fields.top_p == 0 else fields.temperature,
                top_p=None if fields.top_p == 0 else fields.top_p,
            ),
            constraint=_constraint(None if text is None else text.format),
            reasoning_tokens_max=0 if enabled is False else None,
        ),
        thinking=Thinking(enabled, None if effort == "none" else effort),
        end_user=fields.safety_identifier or fields.user,
    )
    return ResponsesInbound(
        request=request,
        stream=bool(fields.stream),
        session_key=fields.prompt_cache_key or None,
        previous_response_id=fields.previous_response_id,
        conversation=_conversation(fields.conversation),
        store=fields.store,
        background=bool(fields.background),
        thoughts="reasoning.encrypted_content" in include,
        metadata=fields.metadata or {},
        instructions=fields.instructions,
        format_name=None if text is None or text.format is None else text.format.name,
        summary=None if reasoning is None else reasoning.summary,
        verbosity=None if text is None else text.verbosity,
    )


def parse_compaction(body: bytes) -> CompactBody:
    """A request to compact a conversation; raises `InvalidRequest` for what is none, or is about a kept response."""
    fields = wire.decode(_compaction_decoder, body)
    wire.refuse_redirects(fields)
    refuse_kept(None, fields.previous_response_id, None, None)
    return fields


def refuse_kept(
    store: bool | None, previous_response_id: str | None, conversation: object, background: bool | None
) -> None:
    """Raise for what can only be done with responses that are kept."""
    for param, given in (
        ("store", store),
        ("previous_response_id", previous_response_id is not None),
        ("conversation", conversation is not None),
        ("background", background),
    ):
        if given:
            message = f"'{param}' is not supported: responses are not kept here. Send the earlier turns in 'input'."
            raise InvalidRequest(message, code="unsupported_parameter", param=param)


def _conversation(given: object) -> str | None:
    if isinstance(given, dict):
        given = given.get("id")
    if given is not None and not isinstance(given, str):
        raise invalid("conversation", "expected an id")
    return given


def _messages(fields: Body) -> tuple[Message, ...]:
    messages = [] if fields.instructions is None else [Message("developer", fields.instructions)]
    if isinstance(fields.input, str):
        messages.append(Message("user", fields.input))
    else:
        messages += _turns(fields.input)
    if not messages and fields.previous_response_id is None and fields.conversation is None:
        raise InvalidRequest("Missing required parameter: 'input'.", param="input")
    check_images(messages)
    return tuple(messages)


def _turns(items: Sequence[Item]) -> list[Message]:
    """What an assistant thought, said and called in a row is one turn."""
    messages: list[Message] = []
    for index, item in enumerate(items):
        path = f"input[{index}]"
        message = _turn(item, path)
        last = messages[-1] if messages else None
        if last is not None and last.role == message.role == "assistant" and _continues(last, message):
            messages[-1] = Message(
                "assistant",
                last.content if message.content is None else message.content,
                tool_calls=last.tool_calls + message.tool_calls,
                reasoning=_joined(last.reasoning, message.reasoning),
                thoughts=last.thoughts + message.thoughts,
            )
        else:
            messages.append(message)
    return messages


def _continues(last: Message, message: Message) -> bool:
    if message.tool_calls:
        return True
    return not last.tool_calls and (message.content is None or last.content is None) and last.content is None


def _joined(one: str | None, other: str | None) -> str | None:
    return "\n".join(text for text in (one, other) if text) or None


def _turn(item: Item, path: str) -> Message:
    match item.type:
        case "message":
            return _message(item, path)
        case "function_call":
            arguments = parse_arguments(item.arguments or "", f"{path}.arguments")
            name = _given(item.name, f"{path}.name")
            return Message(
                "assistant", tool_calls=(ToolCall(_given(item.call_id, f"{path}.call_id"), name, arguments),)
            )
        case "function_call_output":
            if item.output is None:
                raise _missing(f"{path}.output")
            content = _content(item.output, "tool", f"{path}.output")
            return Message("tool", content, tool_call_id=_given(item.call_id, f"{path}.call_id"))
        case "reasoning":
            return _thought(item)
        case "item_reference":
            raise invalid(path, "items are not kept here; send the item itself")
    raise invalid(f"{path}.type", "expected 'message', 'function_call', 'function_call_output' or 'reasoning'")


def _thought(item: Item) -> Message:
    pieces = item.content if isinstance(item.content, list) and item.content else item.summary or []
    text = "\n".join(piece.text for piece in pieces if piece.text)
    thoughts = () if item.encrypted_content is None else (Thought(text, OPENAI + item.encrypted_content),)
    return Message("assistant", None, reasoning=text or None, thoughts=thoughts)


def _message(item: Item, path: str) -> Message:
    role = _ROLES.get(item.role or "")
    if role is None:
        raise invalid(f"{path}.role", f"expected one of {', '.join(map(repr, _ROLES))}")
    if item.content is None:
        raise _missing(f"{path}.content")
    return Message(role, _content(item.content, role, f"{path}.content"))


def _content(given: str | list[Piece], role: Role, path: str) -> str | tuple[Part, ...]:
    if isinstance(given, str):
        return given
    parts = tuple(_part(piece, role, f"{path}[{index}]") for index, piece in enumerate(given))
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return "\n".join(texts) if len(texts) == len(parts) else parts


def _part(piece: Piece, role: Role, path: str) -> Part:
    match piece.type:
        case "input_text" | "output_text" | "text" | "summary_text":
            return TextPart(_given(piece.text, f"{path}.text", empty=True))
        case "refusal":
            return TextPart(_given(piece.refusal, f"{path}.refusal", empty=True))
        case "input_image" | "input_file" if role not in ("user", "tool"):
            raise invalid(path, "images and files are only possible in messages of the user and results of tools")
        case "input_image":
            image = parse_image_url(_given(piece.image_url, f"{path}.image_url"), path)
            return replace(image, detail=piece.detail) if isinstance(image, ImageUrl) else image
        case "input_file":
            return _file(piece, path)
    raise invalid(f"{path}.type", "expected 'input_text', 'input_image' or 'input_file'")


def _file(piece: Piece, path: str) -> DocumentPart:
    if piece.file_url is not None:
        url = check_url(piece.file_url, f"{path}.file_url")
        return DocumentPart(b"", "application/pdf", url=url, title=piece.filename)
    return parse_document(_given(piece.file_data, f"{path}.file_data"), piece.filename, path)


def _tool(tool: WireFunction, path: str) -> Tool:
    if tool.type != "function":
        raise invalid(f"{path}.type", "expected 'function'; no other tools are run here")
    name = _given(tool.name, f"{path}.name")
    parameters = object_schema(tool.parameters, f"{path}.parameters")
    return Tool(name, tool.description or "", parameters, tool.strict is not False)


def _choice(choice: str | Choice | None, parallel: bool, tools: Sequence[Tool]) -> ToolChoice:
    known = {tool.name for tool in tools}
    match choice:
        case None | "auto":
            return ToolChoice("auto", (), parallel)
        case "none":
            return ToolChoice("none")
        case "required" if tools:
            return ToolChoice("required", (), parallel)
        case Choice(type="function", name=str() as name) if name in known:
            return ToolChoice("required", (name,), parallel)
        case Choice(type="allowed_tools", mode="auto" | "required" as mode, tools=list() as allowed):
            names = tuple(one.name for one in allowed if one.name in known)
            if len(names) == len(allowed):
                return ToolChoice("required" if mode == "required" else "auto", tuple(map(str, names)), parallel)
    raise invalid("tool_choice", "expected 'none', 'auto', 'required', or functions that are among 'tools'")


def _constraint(given: Format | None) -> Constraint | None:
    match given:
        case None | Format(type="text"):
            return None
        case Format(type="json_object"):
            return Constraint("json_object", param="text.format")
        case Format(type="json_schema", schema=schema) if bytes(schema) != b"null":
            return Constraint("json_schema", bytes(schema).decode(), bool(given.strict), "text.format")
        case Format(type="json_schema"):
            raise _missing("text.format.schema")
    raise invalid("text.format.type", "expected 'text', 'json_object' or 'json_schema'")


def _given(value: str | None, path: str, *, empty: bool = False) -> str:
    if value is None or (not value and not empty):
        raise _missing(path)
    return value


def _missing(path: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{path}'.", param=path)
