"""Anthropic's requests in canonical form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from adapters.dialects import openai_wire as wire
from adapters.dialects.anthropic_messages.fields import (
    Body,
    CacheControl,
    Choice,
    CountBody,
    DocumentBlock,
    ImageBlock,
    Kind,
    OutputConfig,
    RedactedBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    WireMessage,
    WireTool,
)
from adapters.dialects.openai_parts import check_images, check_url, parse_base64, parse_image, parse_image_url
from adapters.dialects.openai_reasoning import switches
from adapters.dialects.openai_tools import invalid, json_object
from adapters.errors import InvalidRequest
from adapters.types import (
    CacheLifetime,
    ChatRequest,
    Constraint,
    DialectName,
    DocumentPart,
    Generation,
    ImagePart,
    ImageUrl,
    Message,
    NativePart,
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

NAME: DialectName = "anthropic_messages"
PDF = "application/pdf"
TEXT = "text/plain"

_ROLES: Mapping[str, Role] = {"user": "user", "assistant": "assistant", "system": "system"}
# Only Anthropic holds its customers' files, and only it splits documents into blocks.
_NATIVE_SOURCES = ("file", "content")


_body = msgspec.json.Decoder(Body)
_count_body = msgspec.json.Decoder(CountBody)
_kind = msgspec.json.Decoder(Kind)
_tool = msgspec.json.Decoder(WireTool)
_text = msgspec.json.Decoder(TextBlock)
_blocks: Mapping[str, msgspec.json.Decoder[Any]] = {
    "text": _text,
    "image": msgspec.json.Decoder(ImageBlock),
    "document": msgspec.json.Decoder(DocumentBlock),
    "thinking": msgspec.json.Decoder(ThinkingBlock),
    "redacted_thinking": msgspec.json.Decoder(RedactedBlock),
    "tool_use": msgspec.json.Decoder(ToolUseBlock),
    "tool_result": msgspec.json.Decoder(ToolResultBlock),
}


def parse_request(body: bytes) -> wire.Inbound[ChatRequest]:
    """The request in canonical form; raises `InvalidRequest` with the path of the field at fault."""
    fields = wire.decode(_body, body)
    request = _conversation(fields)
    thinking = request.thinking
    if thinking.tokens_max is not None and thinking.tokens_max >= fields.max_tokens:
        raise invalid("thinking.budget_tokens", "it has to be less than 'max_tokens'")
    generation = replace(
        request.generation,
        max_tokens=fields.max_tokens,
        stop=tuple(fields.stop_sequences or ()),
        sampling=_sampling(fields),
    )
    user = fields.metadata.user_id if fields.metadata is not None else None
    request = replace(request, generation=generation, end_user=user)
    return wire.Inbound(request, stream=bool(fields.stream), include_usage=True, session_key=user or None)


def parse_count(body: bytes) -> ChatRequest:
    """A conversation whose tokens are to be counted."""
    return _conversation(wire.decode(_count_body, body))


def _conversation(fields: CountBody) -> ChatRequest:
    wire.refuse_redirects(fields)
    messages = [*_system(fields.system)]
    for index, message in enumerate(fields.messages):
        messages += _turn(message, f"messages[{index}]")
    if fields.cache_control is not None:
        messages[-1] = _marked(messages[-1], fields.cache_control.ttl or "5m")
    check_images(messages)
    tools, native = _tools(fields.tools or [])
    arguments, thinking = _thinking(fields)
    budget = 0 if thinking.enabled is False else thinking.tokens_max
    return ChatRequest(
        model=fields.model,
        messages=tuple(messages),
        tools=tools,
        tool_choice=_choice(fields.tool_choice, tools, native),
        template_arguments=arguments,
        generation=Generation(constraint=_constraint(fields.output_config), reasoning_tokens_max=budget),
        thinking=thinking,
        native_tools=native,
    )


def _sampling(fields: Body) -> Sampling:
    """A `top_p` of 0 leaves only the likeliest token, which is what greedy means here."""
    greedy = fields.top_p == 0
    return Sampling(
        temperature=0.0 if greedy else fields.temperature,
        top_p=None if greedy else fields.top_p,
        top_k=None if fields.top_k is None else max(0, fields.top_k),
    )


def _thinking(fields: CountBody) -> tuple[dict[str, str | bool | int], Thinking]:
    """Values for the switches of a model's template, and the same for providers."""
    given, effort = fields.thinking, fields.output_config.effort if fields.output_config is not None else None
    if given is None:
        return switches(None, effort), Thinking(effort=effort)
    if given.type not in ("enabled", "disabled", "adaptive", "between_tools"):
        raise invalid("thinking.type", "expected 'enabled', 'disabled' or 'adaptive'")
    if given.type == "enabled" and given.budget_tokens is None:
        param = "thinking.budget_tokens"
        raise InvalidRequest(f"Missing required parameter: '{param}'.", param=param)
    enabled = given.type != "disabled"
    budget = given.budget_tokens if given.type == "enabled" else None
    shown = None if given.display is None else given.display != "omitted"
    return switches(enabled, effort), Thinking(enabled, effort, budget, shown)


def _constraint(config: OutputConfig | None) -> Constraint | None:
    if config is None or config.format is None:
        return None
    param = "output_config.format"
    if config.format.type != "json_schema":
        raise invalid(f"{param}.type", "expected 'json_schema'")
    schema = bytes(config.format.schema)
    if schema == b"null":
        raise InvalidRequest(f"Missing required parameter: '{param}.schema'.", param=f"{param}.schema")
    return Constraint("json_schema", schema.decode(), True, param)


# Messages


def _system(system: str | list[TextBlock] | None) -> list[Message]:
    if isinstance(system, str):
        return [Message("system", system)] if system else []
    wrong = next((index for index, block in enumerate(system or []) if block.type != "text"), None)
    if wrong is not None:
        raise invalid(f"system[{wrong}].type", "expected 'text'")
    return [Message("system", _content([_text_part(block) for block in system]))] if system else []


def _turn(message: WireMessage, path: str) -> list[Message]:
    role = _ROLES.get(message.role)
    if role is None:
        raise invalid(f"{path}.role", "expected 'user' or 'assistant'")
    if isinstance(message.content, str):
        return [Message(role, message.content)]
    if not message.content and role != "assistant":
        raise invalid(f"{path}.content", "expected at least one block")
    blocks = [_block(raw, f"{path}.content[{index}]") for index, raw in enumerate(message.content)]
    if role == "assistant":
        return [_answer(blocks, f"{path}.content")]
    return _asked(role, blocks, f"{path}.content")


def _block(raw: msgspec.Raw, path: str) -> Any:
    kind = wire.decode(_kind, raw, path).type
    if kind is None:
        raise InvalidRequest(f"Missing required parameter: '{path}.type'.", param=f"{path}.type")
    decoder = _blocks.get(kind)
    block = None if decoder is None else wire.decode(decoder, raw, path)
    if block is None or (isinstance(block, ImageBlock | DocumentBlock) and block.source.type in _NATIVE_SOURCES):
        return NativePart(NAME, bytes(raw))
    return block


def _asked(role: Role, blocks: Sequence[Any], path: str) -> list[Message]:
    """What a user says, in the order of its blocks: results of tools are messages of their own."""
    messages: list[Message] = []
    parts: list[Part] = []
    for index, block in enumerate(blocks):
        if not isinstance(block, ToolResultBlock):
            parts.append(_part(block, f"{path}[{index}]"))
            continue
        if parts:
            messages.append(Message(role, _content(parts)))
            parts = []
        messages.append(_result(block, f"{path}[{index}]"))
    return [*messages, Message(role, _content(parts))] if parts else messages


def _result(block: ToolResultBlock, path: str) -> Message:
    given = block.content or ""
    inner = () if isinstance(given, str) else tuple(given)
    places = [f"{path}.content[{index}]" for index in range(len(inner))]
    parts = [_part(_block(raw, place), place) for raw, place in zip(inner, places, strict=True)]
    return Message(
        "tool",
        given if isinstance(given, str) else _content(parts),
        tool_call_id=block.tool_use_id,
        is_error=bool(block.is_error),
        cache=_lifetime(block.cache_control),
    )


def _answer(blocks: Sequence[Any], path: str) -> Message:
    """What an assistant said before: its thoughts, its words, its calls."""
    thoughts: list[Thought] = []
    parts: list[Part] = []
    calls: list[ToolCall] = []
    for index, block in enumerate(blocks):
        place = f"{path}[{index}]"
        match block:
            case ThinkingBlock():
                thoughts.append(Thought(block.thinking, block.signature or None))
            case RedactedBlock():
                thoughts.append(Thought("", redacted=block.data))
            case ToolUseBlock():
                json_object(bytes(block.input), f"{place}.input", "expected an object")
                arguments = bytes(block.input).decode()
                calls.append(ToolCall(block.id, block.name, arguments, cache=_lifetime(block.cache_control)))
            case ToolResultBlock():
                raise invalid(place, "results of tools belong into user messages")
            case _:
                parts.append(_part(block, place))
    content = _content(parts) if parts else None if calls else ""
    reasoning = "\n".join(thought.text for thought in thoughts if thought.text) or None
    kept = tuple(thoughts) if any(thought.signature or thought.redacted for thought in thoughts) else ()
    return Message("assistant", content, tool_calls=tuple(calls), reasoning=reasoning, thoughts=kept)


def _part(block: Any, path: str) -> Part:
    match block:
        case TextBlock():
            return _text_part(block)
        case ImageBlock():
            return _image(block, path)
        case DocumentBlock():
            return _document(block, path)
        case NativePart():
            return block
    raise invalid(f"{path}.type", "blocks of this type are not possible here")


def _text_part(block: TextBlock) -> TextPart:
    return TextPart(block.text, _lifetime(block.cache_control))


def _image(block: ImageBlock, path: str) -> Part:
    source = block.source
    match source.type:
        case "base64":
            payload = _given(source.data, f"{path}.source.data")
            media_type = _given(source.media_type, f"{path}.source.media_type")
            image: ImagePart | ImageUrl = parse_image(media_type, payload, f"{path}.source")
        case "url":
            image = parse_image_url(_given(source.url, f"{path}.source.url"), f"{path}.source.url")
        case _:
            raise invalid(f"{path}.source.type", "expected 'base64' or 'url'")
    return replace(image, cache=_lifetime(block.cache_control))


def _document(block: DocumentBlock, path: str) -> Part:
    source, url = block.source, None
    match source.type:
        case "base64":
            data = parse_base64(_given(source.data, f"{path}.source.data"), f"{path}.source", "document")
        case "text":
            data = _given(source.data, f"{path}.source.data").encode()
        case "url":
            data, url = b"", check_url(_given(source.url, f"{path}.source.url"), f"{path}.source.url")
        case _:
            raise invalid(f"{path}.source.type", "expected 'base64', 'text' or 'url'")
    media_type = source.media_type or (TEXT if source.type == "text" else PDF)
    if media_type not in (PDF, TEXT):
        raise invalid(f"{path}.source.media_type", f"expected '{PDF}' or '{TEXT}'")
    cite = block.citations is not None and bool(block.citations.enabled)
    return DocumentPart(data, media_type, url, block.title, block.context, cite, _lifetime(block.cache_control))


def _given(value: str | None, path: str) -> str:
    if value is None:
        raise InvalidRequest(f"Missing required parameter: '{path}'.", param=path)
    return value


def _lifetime(control: CacheControl | None) -> CacheLifetime | None:
    return None if control is None else control.ttl or "5m"


def _content(parts: Sequence[Part]) -> str | tuple[Part, ...]:
    """Texts joined by line ends where nothing but text is lost by it."""
    texts = [part.text for part in parts if isinstance(part, TextPart) and part.cache is None]
    return "\n".join(texts) if len(texts) == len(parts) else tuple(parts)


def _marked(message: Message, lifetime: CacheLifetime) -> Message:
    """The message with a cache marker at its end, unless one is there."""
    if message.role == "tool":
        return replace(message, cache=message.cache or lifetime)
    if message.tool_calls:
        *calls, last = message.tool_calls
        return replace(message, tool_calls=(*calls, replace(last, cache=last.cache or lifetime)))
    *parts, end = message.parts or (None,)
    if end is None or isinstance(end, NativePart):
        return message
    return replace(message, content=(*parts, replace(end, cache=end.cache or lifetime)))


# Tools


def _tools(given: Sequence[msgspec.Raw]) -> tuple[tuple[Tool, ...], tuple[NativePart, ...]]:
    """The functions among the tools, and those that Anthropic brings itself."""
    tools: list[Tool] = []
    native: list[NativePart] = []
    for index, raw in enumerate(given):
        path = f"tools[{index}]"
        if wire.decode(_kind, raw, path).type not in (None, "custom"):
            native.append(NativePart(NAME, bytes(raw)))
            continue
        tool = wire.decode(_tool, raw, path)
        schema = json_object(bytes(tool.input_schema), f"{path}.input_schema", "expected a JSON Schema object")
        if schema.get("type", "object") != "object":
            raise invalid(f"{path}.input_schema", "expected a schema of type 'object'")
        if any(tool.name == other.name for other in tools):
            raise invalid(f"{path}.name", f"there is another tool {tool.name!r}")
        cache = _lifetime(tool.cache_control)
        tools.append(Tool(tool.name, tool.description or "", bytes(tool.input_schema), bool(tool.strict), cache))
    return tuple(tools), tuple(native)


def _choice(choice: Choice | None, tools: Sequence[Tool], native: Sequence[NativePart]) -> ToolChoice:
    if choice is None:
        return ToolChoice()
    parallel = not choice.disable_parallel_tool_use
    match choice.type:
        case "auto":
            return ToolChoice("auto", (), parallel)
        case "none":
            return ToolChoice("none")
        case "any":
            if not tools and not native:
                raise invalid("tool_choice", "a call is only possible when 'tools' are given")
            return ToolChoice("required", (), parallel)
        case "tool":
            name = _given(choice.name, "tool_choice.name")
            if not native and not any(tool.name == name for tool in tools):
                raise invalid("tool_choice.name", "it is not among 'tools'")
            return ToolChoice("required", (name,), parallel)
    raise invalid("tool_choice.type", "expected 'auto', 'any', 'tool' or 'none'")
