"""What is asked of a model: checked against what it is, and put in the worker's words."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec

from adapters.errors import InvalidRequest
from adapters.llama_cpp.messages import ChatPrompt, ModelInfo, Prompt, TextPrompt, TokenPrompt
from adapters.llama_cpp.output import OutputParser
from adapters.llama_cpp.reasoning import named as reasoning_named
from adapters.llama_cpp.tools import named as format_named
from adapters.types import ChatRequest, DocumentPart, ImagePart, ImageUrl, Message, NativePart, Part, TextPart


def chat_prompt(request: ChatRequest) -> ChatPrompt:
    tools = request.tools if request.tool_choice.mode != "none" else ()
    messages = tuple(map(_told, request.messages))
    return ChatPrompt(messages, tools, request.tool_choice, request.template_arguments)


def _told(message: Message) -> Message:
    """The message with its documents written out; what only a provider reads of it stays behind."""
    if not isinstance(message.content, tuple):
        return message
    parts = [TextPart(_document_text(part)) if isinstance(part, DocumentPart) else part for part in message.content]
    return msgspec.structs.replace(message, content=tuple(parts))


def _document_text(part: DocumentPart) -> str:
    return "\n".join(filter(None, (part.title, part.context, part.data.decode("utf-8", "replace"))))


def parser_of(info: ModelInfo, prompt: ChatPrompt) -> Callable[[bool], OutputParser] | None:
    """What makes a choice's parser, given whether its prompt has begun to think; None where all text is content."""
    choice = prompt.tool_choice
    tools = tuple(tool for tool in prompt.tools if tool.name in choice.names or not choice.names)
    tool_format = format_named(info.tool_format)
    reasoning = reasoning_named(info.reasoning_format) if info.reasoning_format else None
    if not tools and reasoning is None and not tool_format.skips:
        return None
    return lambda thinking: OutputParser(
        tool_format, reasoning, _new_call_id, tools, parallel=choice.parallel, thinking=thinking
    )


def check_parts(request: ChatRequest, info: ModelInfo) -> None:
    """Only a vision model takes images, and only those that are here; no model here takes what is neither."""
    if request.native_tools:
        raise InvalidRequest("Invalid value for 'tools': this model only takes functions.", param="tools")
    for i, message in enumerate(request.messages):
        for j, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
            if (reason := _part_problem(part, info)) is not None:
                param = f"messages[{i}].content[{j}]"
                raise InvalidRequest(f"Invalid value for '{param}': {reason}.", param=param)


def _part_problem(part: Part, info: ModelInfo) -> str | None:
    match part:
        case TextPart():
            return None
        case ImagePart():
            return None if info.vision else "this model does not take images"
        case ImageUrl():
            return "images have to be data: URLs here"
        case DocumentPart():
            is_text = part.media_type == "text/plain" and part.url is None
            return None if is_text else "this model only takes documents that are text"
        case NativePart():
            return "this model does not take parts of this type"


def _new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def embedding_prompt(one: str | tuple[int, ...]) -> Prompt:
    return TextPrompt(one) if isinstance(one, str) else TokenPrompt(one)
