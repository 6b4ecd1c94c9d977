"""Requests of the Converse API in canonical form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from adapters.dialects import openai_wire as wire
from adapters.dialects.bedrock_converse.fields import (
    Additional,
    Block,
    Body,
    Document,
    Image,
    InferenceConfig,
    OutputConfig,
    ToolResult,
    WireMessage,
    WireTool,
)
from adapters.dialects.openai_parts import check_images, parse_base64, parse_image
from adapters.dialects.openai_reasoning import switches
from adapters.dialects.openai_tools import invalid, json_object
from adapters.dialects.structured import schema_text
from adapters.errors import InvalidRequest
from adapters.types import (
    CacheLifetime,
    ChatRequest,
    Constraint,
    DialectName,
    DocumentPart,
    Generation,
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

NAME: DialectName = "bedrock_converse"
DOCUMENTS: Mapping[str, str] = {
    "pdf": "application/pdf",
    "csv": "text/csv",
    "doc": "application/msword",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xls": "application/vnd.ms-excel",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "html": "text/html",
    "txt": "text/plain",
    "md": "text/markdown",
}
NAMELESS = re.compile(r"document-\d+")
_KNOWN = frozenset(Block.__struct_encode_fields__)

_body = msgspec.json.Decoder(Body)
_block = msgspec.json.Decoder(Block)
_tool = msgspec.json.Decoder(WireTool)
_names = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parse_request(body: bytes, model: str, *, stream: bool = True) -> wire.Inbound[ChatRequest]:
    """The request in canonical form; the model and whether to stream stand in its path.

    Raises `InvalidRequest` with the path of the field at fault.
    """
    fields = wire.decode(_body, body)
    system = _Parts([_read(raw, f"system[{index}]") for index, raw in enumerate(fields.system)], "system")
    messages = [Message("system", system.content())] if system.parts else []
    for index, message in enumerate(fields.messages):
        messages += _turn(message, f"messages[{index}]")
    check_images(messages)
    tools, native = _tools(fields.tool_config.tools if fields.tool_config is not None else [])
    config = fields.inference_config or InferenceConfig()
    more = fields.additional_model_request_fields or Additional()
    thinking = _thinking(more, fields.output_config)
    request = ChatRequest(
        model=model,
        messages=tuple(messages),
        tools=tools,
        tool_choice=_choice(fields),
        template_arguments=switches(thinking.enabled, thinking.effort),
        generation=Generation(
            max_tokens=config.max_tokens,
            stop=tuple(config.stop_sequences),
            sampling=Sampling(temperature=config.temperature, top_p=config.top_p, top_k=more.top_k),
            constraint=_constraint(fields.output_config),
            reasoning_tokens_max=0 if thinking.enabled is False else thinking.tokens_max,
        ),
        thinking=thinking,
        native_tools=native,
    )
    return wire.Inbound(request, stream=stream, include_usage=True)


def _thinking(more: Additional, config: OutputConfig | None) -> Thinking:
    effort = config.effort if config is not None else None
    given = more.thinking
    if given is None:
        return Thinking(effort=effort)
    shown = None if given.display is None else given.display != "omitted"
    return Thinking(given.type != "disabled", effort, given.budget_tokens, shown)


def _constraint(config: OutputConfig | None) -> Constraint | None:
    if config is None or config.text_format is None:
        return None
    schema = config.text_format.structure.json_schema
    if config.text_format.type != "json_schema" or schema is None:
        raise invalid("outputConfig.textFormat", "expected a JSON Schema")
    param = "outputConfig.textFormat"
    return Constraint("json_schema", schema_text(schema.schema, param), True, param)


# Messages

Read = tuple[Block | None, msgspec.Raw]


def _read(raw: msgspec.Raw, path: str) -> Read:
    """The block, None where it is of another kind than those that are known."""
    known = wire.decode(_names, raw, path).keys() <= _KNOWN
    return (wire.decode(_block, raw, path) if known else None), raw


class _Parts:
    """What blocks say, with each cache point as the marker of what stands before it."""

    def __init__(self, blocks: Sequence[Read], path: str) -> None:
        self.parts: list[Part] = []
        for index, (block, raw) in enumerate(blocks):
            if block is not None and block.cache_point is not None:
                self.mark(block.cache_point.ttl)
            else:
                self.parts.append(_part(block, raw, f"{path}[{index}]"))

    def mark(self, lifetime: CacheLifetime) -> None:
        """One that stands behind nothing which can be marked is left out."""
        if self.parts and not isinstance(last := self.parts[-1], NativePart):
            self.parts[-1] = replace(last, cache=lifetime)

    def content(self) -> str | tuple[Part, ...]:
        texts = [part.text for part in self.parts if isinstance(part, TextPart) and part.cache is None]
        return "\n".join(texts) if len(texts) == len(self.parts) else tuple(self.parts)


def _turn(message: WireMessage, path: str) -> list[Message]:
    if message.role not in ("user", "assistant", "system"):
        raise invalid(f"{path}.role", "expected 'user' or 'assistant'")
    blocks = [_read(raw, f"{path}.content[{index}]") for index, raw in enumerate(message.content)]
    if message.role == "assistant":
        return [_answer(blocks, f"{path}.content")]
    role: Role = "user" if message.role == "user" else "system"
    messages: list[Message] = []
    parts = _Parts((), "")
    for index, (block, raw) in enumerate(blocks):
        place = f"{path}.content[{index}]"
        if block is not None and block.cache_point is not None:
            if not parts.parts and messages:
                messages[-1] = replace(messages[-1], cache=block.cache_point.ttl)
            parts.mark(block.cache_point.ttl)
        elif block is not None and block.tool_result is not None:
            if parts.parts:
                messages.append(Message(role, parts.content()))
                parts = _Parts((), "")
            messages.append(_result(block.tool_result, place))
        else:
            parts.parts.append(_part(block, raw, place))
    return [*messages, Message(role, parts.content())] if parts.parts else messages


def _result(result: ToolResult, path: str) -> Message:
    blocks = [_read(raw, f"{path}.toolResult.content[{index}]") for index, raw in enumerate(result.content)]
    content = _Parts(blocks, f"{path}.toolResult.content").content()
    return Message("tool", content, tool_call_id=result.tool_use_id, is_error=result.status == "error")


def _answer(blocks: Sequence[Read], path: str) -> Message:
    thoughts: list[Thought] = []
    parts = _Parts((), "")
    calls: list[ToolCall] = []
    for index, (block, raw) in enumerate(blocks):
        place = f"{path}[{index}]"
        if block is not None and block.reasoning_content is not None:
            told, redacted = block.reasoning_content.reasoning_text, block.reasoning_content.redacted_content
            thoughts.append(Thought("", redacted=redacted) if told is None else Thought(told.text, told.signature))
        elif block is not None and block.tool_use is not None:
            use = block.tool_use
            json_object(bytes(use.input), f"{place}.toolUse.input", "expected an object")
            calls.append(ToolCall(use.tool_use_id, use.name, bytes(use.input).decode()))
        elif block is not None and block.cache_point is not None:
            if calls:
                calls[-1] = replace(calls[-1], cache=block.cache_point.ttl)
            else:
                parts.mark(block.cache_point.ttl)
        else:
            parts.parts.append(_part(block, raw, place))
    content = parts.content() if parts.parts else None if calls else ""
    reasoning = "\n".join(thought.text for thought in thoughts if thought.text) or None
    kept = tuple(thoughts) if any(thought.signature or thought.redacted for thought in thoughts) else ()
    return Message("assistant", content, tool_calls=tuple(calls), reasoning=reasoning, thoughts=kept)


def _part(block: Block | None, raw: msgspec.Raw, path: str) -> Part:
    if block is None:
        return NativePart(NAME, bytes(raw))
    if block.text is not None:
        return TextPart(block.text)
    if source := bytes(block.json):
        return TextPart(source.decode())
    if block.image is not None:
        return _image(block.image, raw, path)
    if block.document is not None:
        return _document(block.document, raw, path)
    raise invalid(path, "a block of this type is not possible here")


def _image(image: Image, raw: msgspec.Raw, path: str) -> Part:
    if image.source.bytes is None:
        return NativePart(NAME, bytes(raw))
    return parse_image(f"image/{image.format}", image.source.bytes, f"{path}.image.source.bytes")


def _document(document: Document, raw: msgspec.Raw, path: str) -> Part:
    if document.format not in DOCUMENTS:
        raise invalid(f"{path}.document.format", f"expected one of {', '.join(DOCUMENTS)}")
    if document.source.bytes is not None:
        data = parse_base64(document.source.bytes, f"{path}.document.source.bytes", "document")
    elif document.source.text is not None:
        data = document.source.text.encode()
    else:
        return NativePart(NAME, bytes(raw))
    title = None if NAMELESS.fullmatch(document.name) else document.name
    cite = document.citations is not None and document.citations.enabled
    return DocumentPart(data, DOCUMENTS[document.format], None, title, document.context, cite)


# Tools


def _tools(given: Sequence[msgspec.Raw]) -> tuple[tuple[Tool, ...], tuple[NativePart, ...]]:
    """The functions among the tools, and those that Amazon brings itself."""
    tools: list[Tool] = []
    native: list[NativePart] = []
    for index, raw in enumerate(given):
        path = f"toolConfig.tools[{index}]"
        tool = wire.decode(_tool, raw, path)
        if tool.cache_point is not None:
            if tools:
                tools[-1] = replace(tools[-1], cache=tool.cache_point.ttl)
        elif (spec := tool.tool_spec) is not None:
            parameters = bytes(spec.input_schema.json)
            json_object(parameters, f"{path}.toolSpec.inputSchema.json", "expected a JSON Schema object")
            if any(spec.name == other.name for other in tools):
                raise invalid(f"{path}.toolSpec.name", f"there is another tool {spec.name!r}")
            tools.append(Tool(spec.name, spec.description or "", parameters, bool(spec.strict)))
        else:
            native.append(NativePart(NAME, bytes(raw)))
    return tuple(tools), tuple(native)


def _choice(fields: Body) -> ToolChoice:
    choice = fields.tool_config.tool_choice if fields.tool_config is not None else None
    if choice is None or choice.auto is not None:
        return ToolChoice()
    if choice.any is not None:
        return ToolChoice("required")
    if choice.tool is not None:
        return ToolChoice("required", (choice.tool.name,))
    raise InvalidRequest("Missing required parameter: 'toolConfig.toolChoice.auto'.", param="toolConfig.toolChoice")
