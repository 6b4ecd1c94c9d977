"""Canonical requests in the words of the Converse API."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from adapters.dialects.anthropic_messages.request_out import MAX_TOKENS, adapts, thinking_field
from adapters.dialects.bedrock_converse.request_in import DOCUMENTS, NAME
from adapters.dialects.client import Style
from adapters.dialects.unsayable import check_sayable, chosen, own_source, schema_only, unsupported
from adapters.types import (
    CacheLifetime,
    ChatRequest,
    DocumentPart,
    Effort,
    ImagePart,
    ImageUrl,
    Message,
    NativePart,
    Part,
    TextPart,
    Thought,
    Tool,
    ToolCall,
)

Fields = dict[str, Any]

ID_CHARS_MAX = 64
IMAGES = ("png", "jpeg", "gif", "webp")
_FORMATS = {media_type: name for name, media_type in DOCUMENTS.items()}
_LOW: tuple[Effort, ...] = ("minimal",)

_encode = msgspec.json.Encoder().encode


def render_request(request: ChatRequest, style: Style | None = None) -> bytes:
    """The body of a request, whose model and wish for a stream stand in its path; raises `InvalidRequest` for what the
    dialect cannot say."""
    check_sayable(request)
    documents = _Documents()
    system = [part for message in request.messages if message.role in ("system", "developer") for part in message.parts]
    fields: Fields = {
        "messages": list(_turns(request.messages, documents)),
        "system": list(documents.blocks(system)) or None,
        "toolConfig": _tool_config(request),
        **_model_fields(request),
        "outputConfig": _output_config(request),
    }
    return _encode({name: value for name, value in fields.items() if value is not None})


def claude(model: str) -> bool:
    """Whether a model takes Anthropic's own fields beside those of all."""
    return "anthropic." in model or "claude" in model


def _model_fields(request: ChatRequest) -> Fields:
    """How the answer is drawn; for Claude also how it is thought about and which stop sequence ended it."""
    generation, sampling = request.generation, request.generation.sampling
    thinking, budget = thinking_field(request) if claude(request.model) else (None, 0)
    thinks = thinking is not None and thinking["type"] != "disabled"
    max_tokens = generation.max_tokens
    if max_tokens is None and budget:
        max_tokens = MAX_TOKENS + budget
    config: Fields = {
        "maxTokens": max_tokens,
        "temperature": None if sampling.temperature is None or thinks else min(sampling.temperature, 1.0),
        "topP": sampling.top_p if sampling.temperature is None and not thinks else None,
        "stopSequences": list(generation.stop) or None,
    }
    more: Fields = {"thinking": thinking}
    if claude(request.model) and not thinks:
        more["top_k"] = sampling.top_k
    return {
        "inferenceConfig": _given(config),
        "additionalModelRequestFields": _given(more),
        "additionalModelResponseFieldPaths": ["/stop_sequence"] if generation.stop and claude(request.model) else None,
    }


def _given(fields: Fields) -> Fields | None:
    return {name: value for name, value in fields.items() if value is not None} or None


def _output_config(request: ChatRequest) -> Fields | None:
    config: Fields = {}
    effort = request.thinking.effort
    if effort is not None and effort != "none" and adapts(request.model):
        config["effort"] = "low" if effort in _LOW else effort
    if (schema := schema_only(request.generation.constraint)) is not None:
        named = {"name": "answer", "schema": bytes(schema).decode()}
        config["textFormat"] = {"type": "json_schema", "structure": {"jsonSchema": named}}
    return config or None


# Messages


def _turns(messages: Iterable[Message], documents: _Documents) -> Iterator[Fields]:
    """Turns of one side that follow each other are one message: users and assistants have to take turns."""
    role, content = "", list[Any]()
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        blocks = list(_blocks(message, documents))
        side = "assistant" if message.role == "assistant" else "user"
        if side == role:
            content += blocks
        elif blocks:
            if content:
                yield {"role": role, "content": content}
            role, content = side, blocks
    if content:
        yield {"role": role, "content": content}


def _blocks(message: Message, documents: _Documents) -> Iterator[Fields]:
    if message.role == "tool":
        content = list(documents.blocks(message.parts, markers=False))
        result: Fields = {"toolUseId": _id(message.tool_call_id or ""), "content": content or [{"text": ""}]}
        if message.is_error:
            result["status"] = "error"
        yield {"toolResult": result}
        yield from _cached(message.cache)
        return
    for thought in message.thoughts:
        yield from _thought(thought)
    yield from documents.blocks(message.parts)
    for call in message.tool_calls:
        yield _call(call)
        yield from _cached(call.cache)


def _thought(thought: Thought) -> Iterator[Fields]:
    """Signatures of Claude hold on all platforms; those of others are not sent."""
    if thought.redacted is not None:
        yield {"reasoningContent": {"redactedContent": thought.redacted}}
    elif thought.is_anthropics:
        yield {"reasoningContent": {"reasoningText": {"text": thought.text, "signature": thought.signature}}}


def _call(call: ToolCall) -> Fields:
    arguments = msgspec.Raw(call.arguments.encode() or b"{}")
    return {"toolUse": {"toolUseId": _id(call.id), "name": call.name, "input": arguments}}


def _id(id: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_.:-]", "_", id)[:ID_CHARS_MAX]


def _cached(lifetime: CacheLifetime | None) -> Iterator[Fields]:
    if lifetime is not None:
        yield {"cachePoint": {"type": "default"} | ({"ttl": lifetime} if lifetime != "5m" else {})}


class _Documents:
    """Parts as blocks. Documents have to have names, of which no two are the same."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def blocks(self, parts: Iterable[Part], *, markers: bool = True) -> Iterator[Fields]:
        """A text that is empty is not taken; a marker stands behind what it marks."""
        for part in parts:
            if isinstance(part, TextPart) and not part.text:
                continue
            yield self._block(part)
            if markers and not isinstance(part, NativePart):
                yield from _cached(part.cache)

    def _block(self, part: Part) -> Any:
        match part:
            case TextPart():
                return {"text": part.text}
            case ImagePart():
                name = part.media_type.removeprefix("image/").replace("jpg", "jpeg")
                if name not in IMAGES:
                    raise unsupported("messages", f"this model takes no images of the type {part.media_type}")
                return {"image": {"format": name, "source": {"bytes": b64encode(part.data).decode()}}}
            case ImageUrl():
                raise unsupported("messages", "this model takes no web addresses of images")
            case DocumentPart():
                return self._document(part)
            case NativePart():
                return own_source(part, NAME, "messages")

    def _document(self, part: DocumentPart) -> Fields:
        if part.url is not None:
            raise unsupported("messages", "this model takes no web addresses of documents")
        if part.media_type not in _FORMATS:
            raise unsupported("messages", f"this model takes no documents of the type {part.media_type}")
        document: Fields = {
            "format": _FORMATS[part.media_type],
            "name": self._name(part.title),
            "source": {"bytes": b64encode(part.data).decode()},
        }
        if part.context is not None:
            document["context"] = part.context
        if part.cite:
            document["citations"] = {"enabled": True}
        return {"document": document}

    def _name(self, title: str | None) -> str:
        name = " ".join(re.sub(r"[^a-zA-Z0-9\s()\[\]-]", " ", title or "").split())[:200]
        if not name or name in self._names:
            name = f"document-{len(self._names) + 1}"
        self._names.add(name)
        return name


# Tools


def _tool_config(request: ChatRequest) -> Fields | None:
    """Converse cannot forbid calls: tools are left out then, unless calls in the conversation need them."""
    choice = request.tool_choice
    called = any(message.tool_calls or message.role == "tool" for message in request.messages)
    if choice.mode == "none" and not called:
        return None
    tools: list[Any] = [block for tool in chosen(request) for block in _tool(tool)]
    tools += [own_source(part, NAME, "tools") for part in request.native_tools]
    if not tools:
        return None
    config: Fields = {"tools": tools}
    if choice.mode == "required":
        config["toolChoice"] = {"tool": {"name": choice.names[0]}} if len(choice.names) == 1 else {"any": {}}
    return config


def _tool(tool: Tool) -> Iterator[Fields]:
    spec: Fields = {"name": tool.name, "inputSchema": {"json": msgspec.Raw(tool.parameters)}}
    if tool.description:
        spec["description"] = tool.description
    if tool.strict:
        spec["strict"] = True
    yield {"toolSpec": spec}
    yield from _cached(tool.cache)
