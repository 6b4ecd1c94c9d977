"""Canonical requests in the words of the Responses API."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from adapters.conversation import OPENAI
from adapters.dialects.client import Style
from adapters.dialects.openai_tools import invalid
from adapters.errors import InvalidRequest
from adapters.types import (
    ChatRequest,
    Constraint,
    DocumentPart,
    Generation,
    ImagePart,
    ImageUrl,
    Message,
    NativePart,
    Part,
    TextPart,
    Tool,
)

Fields = dict[str, Any]

ENCRYPTED = "reasoning.encrypted_content"

_encode = msgspec.json.Encoder().encode


def render_request(request: ChatRequest, style: Style) -> bytes:
    """The body of a request for a stream, of which nothing is stored. Raises `InvalidRequest`."""
    _check(request.generation)
    generation, sampling = request.generation, request.generation.sampling
    given: Fields = {
        "model": request.model,
        "input": [item for message in request.messages for item in _items(message)],
        "max_output_tokens": generation.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_logprobs": generation.logprobs,
        "text": _text(generation.constraint),
        "reasoning": _reasoning(request),
        "safety_identifier": request.end_user,
        "stream": True,
        "store": False,
        "include": [
            *([ENCRYPTED] if thoughtful(request.model, style) else []),
            *([] if generation.logprobs is None else ["message.output_text.logprobs"]),
        ],
    }
    if request.tools:
        given |= {"tools": [_tool(tool) for tool in request.tools]} | _choice(request)
    return _encode({name: value for name, value in given.items() if value is not None})


def thoughtful(model: str, style: Style) -> bool:
    """Whether a model can be asked for its thoughts encrypted, to be sent back where nothing is kept of them."""
    return re.match(style.thoughtful, model) is not None


def _check(generation: Generation) -> None:
    """What would change the answer and has no field."""
    sampling = generation.sampling
    for param, wanted in (
        ("lora", bool(generation.loras)),
        ("n", generation.n > 1),
        ("stop", bool(generation.stop)),
        ("logit_bias", bool(sampling.logit_bias)),
    ):
        if wanted:
            message = f"Invalid value for '{param}': this model's API has no field for it."
            raise InvalidRequest(message, code="unsupported_parameter", param=param)


def _text(constraint: Constraint | None) -> Fields | None:
    match constraint:
        case None:
            return None
        case Constraint(kind="json_object"):
            return {"format": {"type": "json_object"}}
        case Constraint(kind="json_schema"):
            schema = msgspec.Raw(constraint.source.encode())
            return {"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": constraint.strict}}
    raise invalid(constraint.param, f"this model cannot hold its answer to a {constraint.kind}")


def _reasoning(request: ChatRequest) -> Fields | None:
    thinking = request.thinking
    if thinking.effort is None:
        return {"effort": "none"} if thinking.enabled is False else None
    shown = {} if thinking.shown is False else {"summary": "auto"}
    return {"effort": thinking.effort} | shown


def _tool(tool: Tool) -> Fields:
    fields: Fields = {
        "type": "function",
        "name": tool.name,
        "parameters": msgspec.Raw(tool.parameters),
        "strict": tool.strict,
    }
    return fields | ({"description": tool.description} if tool.description else {})


def _choice(request: ChatRequest) -> Fields:
    choice = request.tool_choice
    fields: Fields = {} if choice.parallel else {"parallel_tool_calls": False}
    if choice.mode == "required" and len(choice.names) == 1:
        return fields | {"tool_choice": {"type": "function", "name": choice.names[0]}}
    if choice.names:
        allowed = [{"type": "function", "name": name} for name in choice.names]
        return fields | {"tool_choice": {"type": "allowed_tools", "mode": choice.mode, "tools": allowed}}
    return fields | ({} if choice.mode == "auto" else {"tool_choice": choice.mode})


def _items(message: Message) -> Iterator[Fields]:
    """A turn as its thoughts, words, calls and results."""
    if message.role == "tool":
        output = message.content if isinstance(message.content, str) else _pieces(message.parts, "input_text")
        yield {"type": "function_call_output", "call_id": message.tool_call_id, "output": output or ""}
        return
    for thought in message.thoughts:
        if thought.signature is not None and thought.signature.startswith(OPENAI):
            summary = [{"type": "summary_text", "text": thought.text}] if thought.text else []
            encrypted = thought.signature.removeprefix(OPENAI)
            yield {"type": "reasoning", "summary": summary, "encrypted_content": encrypted}
    if message.content is not None:
        kind = "output_text" if message.role == "assistant" else "input_text"
        content = message.content if isinstance(message.content, str) else _pieces(message.content, kind)
        yield {"type": "message", "role": message.role, "content": content}
    for call in message.tool_calls:
        yield {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}


def _pieces(parts: Sequence[Part], text_kind: str) -> list[Fields]:
    return [_piece(part, text_kind) for part in parts]


def _piece(part: Part, text_kind: str) -> Fields:
    match part:
        case TextPart():
            return {"type": text_kind, "text": part.text}
        case ImagePart():
            return {"type": "input_image", "image_url": _data_url(part.media_type, part.data)}
        case ImageUrl():
            detail = {} if part.detail is None else {"detail": part.detail}
            return {"type": "input_image", "image_url": part.url} | detail
        case DocumentPart():
            name = {} if part.title is None else {"filename": part.title}
            if part.url is not None:
                return {"type": "input_file", "file_url": part.url} | name
            return {"type": "input_file", "file_data": _data_url(part.media_type, part.data)} | name
        case NativePart():
            raise invalid("messages", "this model's provider has no words for it")


def _data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{b64encode(data).decode()}"
