"""Canonical requests in Anthropic's words."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from adapters.dialects.anthropic_messages.request_in import NAME
from adapters.dialects.client import Style
from adapters.dialects.openai_tools import invalid
from adapters.dialects.unsayable import check_sayable, chosen, own_source, schema_only
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

MAX_TOKENS = 8192
BUDGET_MIN = 1024
MEDIA_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
# What an effort is worth in tokens to models that only know budgets, and how models that know efforts call it.
BUDGETS: Mapping[Effort, int] = {
    "minimal": 1024,
    "low": 2048,
    "medium": 8192,
    "high": 16_384,
    "xhigh": 24_576,
    "max": 32_000,
}
_EFFORTS: Mapping[Effort, Effort] = {"minimal": "low"}
_VERSION = re.compile(r"claude-(?:[a-z]+-)?(\d)(?:[-.](\d)(?!\d))?")

_encode = msgspec.json.Encoder().encode


def render_request(request: ChatRequest, style: Style | None = None) -> bytes:
    """The body of a request for a stream; raises `InvalidRequest` for what the dialect cannot say."""
    generation, sampling = request.generation, request.generation.sampling
    check_sayable(request)
    thinking, budget = thinking_field(request)
    max_tokens = generation.max_tokens if generation.max_tokens is not None else MAX_TOKENS + budget
    thinks = thinking is not None and thinking["type"] != "disabled"
    system = [part for message in request.messages if _is_system(message) for part in message.parts]
    fields: Fields = {
        "model": request.model,
        "max_tokens": max_tokens,
        "messages": list(_turns(request.messages)),
        "system": _system(system),
        "stop_sequences": list(generation.stop) or None,
        "temperature": None if sampling.temperature is None or thinks else min(sampling.temperature, 1.0),
        "top_p": sampling.top_p if sampling.temperature is None and not thinks else None,
        "top_k": None if thinks else sampling.top_k,
        "thinking": thinking,
        "output_config": _output_config(request),
        "metadata": {"user_id": request.end_user} if request.end_user is not None else None,
        **_tools(request),
        "stream": True,
    }
    if style is not None and style.anthropic_version:
        fields |= {"model": None, "anthropic_version": style.anthropic_version}
    return _encode({name: value for name, value in fields.items() if value is not None})


def _is_system(message: Message) -> bool:
    return message.role in ("system", "developer")


def _system(parts: Sequence[Part]) -> Any:
    """Plain text where there is one text without a marker."""
    if len(parts) == 1 and isinstance(part := parts[0], TextPart) and part.cache is None:
        return part.text
    return _blocks(parts) or None


def adapts(model: str) -> bool:
    """Whether a model decides by itself how long it thinks; older ones want a budget."""
    found = _VERSION.search(model)
    return found is not None and (int(found[1]), int(found[2] or 0)) >= (4, 6)


def thinking_field(request: ChatRequest) -> tuple[Fields | None, int]:
    """The field, and the budget in it; neither before a forced call, nor where the conversation lacks thoughts that
    would have to be in it: Anthropic refuses both."""
    thinking = request.thinking
    if thinking.enabled is False:
        return {"type": "disabled"}, 0
    forced = bool(request.tools) and request.tool_choice.mode == "required"
    if thinking.enabled is None or forced or _lacks_thoughts(request.messages):
        return None, 0
    shown: Fields = {} if thinking.shown is None else {"display": "summarized" if thinking.shown else "omitted"}
    if adapts(request.model):
        return {"type": "adaptive"} | shown, 0
    budget = thinking.tokens_max or BUDGETS.get(thinking.effort or "medium", BUDGET_MIN)
    if request.generation.max_tokens is not None:
        budget = min(budget, request.generation.max_tokens - 1)
    return ({"type": "enabled", "budget_tokens": budget} | shown, budget) if budget >= BUDGET_MIN else (None, 0)


def _lacks_thoughts(messages: Sequence[Message]) -> bool:
    """Whether the last answer waits for results of its calls and its thoughts are gone: Anthropic wants them back."""
    if not messages or messages[-1].role != "tool":
        return False
    asked = next((message for message in reversed(messages) if message.role == "assistant"), None)
    return asked is not None and not list(_thoughts(asked.thoughts))


def _output_config(request: ChatRequest) -> Fields | None:
    config: Fields = {}
    effort = request.thinking.effort
    if effort is not None and effort != "none" and adapts(request.model):
        config["effort"] = _EFFORTS.get(effort, effort)
    if (schema := schema_only(request.generation.constraint)) is not None:
        config["format"] = {"type": "json_schema", "schema": schema}
    return config or None


# Messages


def _turns(messages: Iterable[Message]) -> Iterator[Fields]:
    """Results of tools stand in one message of the user, together with what the user says then."""
    results: list[Any] = []
    for message in messages:
        if message.role == "tool":
            results.append(_result(message))
        elif message.role == "user":
            said: Any = message.content
            if results or not isinstance(said, str):
                said = [*results, *_blocks(message.parts)]
            results = []
            yield {"role": "user", "content": said}
        elif message.role == "assistant":
            if results:
                yield {"role": "user", "content": results}
                results = []
            if blocks := [*_thoughts(message.thoughts), *_blocks(message.parts), *map(_call, message.tool_calls)]:
                yield {"role": "assistant", "content": blocks}
    if results:
        yield {"role": "user", "content": results}


def _blocks(parts: Iterable[Part]) -> list[Any]:
    """Anthropic takes no text that is empty."""
    return [_block(part) for part in parts if not (isinstance(part, TextPart) and not part.text)]


def _block(part: Part) -> Any:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text} | _cached(part.cache)
        case ImagePart():
            media_type = "image/jpeg" if part.media_type == "image/jpg" else part.media_type
            if media_type not in MEDIA_TYPES:
                raise invalid("messages", f"this model's provider takes no images of the type {media_type}")
            source = {"type": "base64", "media_type": media_type, "data": b64encode(part.data).decode()}
            return {"type": "image", "source": source} | _cached(part.cache)
        case ImageUrl():
            return {"type": "image", "source": {"type": "url", "url": part.url}} | _cached(part.cache)
        case DocumentPart():
            return _document(part)
        case NativePart():
            return own_source(part, NAME, "messages")


def _document(part: DocumentPart) -> Fields:
    if part.url is not None:
        source = {"type": "url", "url": part.url}
    elif part.media_type.startswith("text/"):
        source = {"type": "text", "media_type": "text/plain", "data": part.data.decode("utf-8", "replace")}
    elif part.media_type == "application/pdf":
        source = {"type": "base64", "media_type": part.media_type, "data": b64encode(part.data).decode()}
    else:
        raise invalid("messages", f"this model's provider takes no documents of the type {part.media_type}")
    more = {"title": part.title, "context": part.context, "citations": {"enabled": True} if part.cite else None}
    given = {name: value for name, value in more.items() if value is not None}
    return {"type": "document", "source": source} | given | _cached(part.cache)


def _result(message: Message) -> Fields:
    plain = isinstance(message.content, str) or message.content is None
    fields: Fields = {"type": "tool_result", "tool_use_id": _id(message.tool_call_id or "")}
    fields["content"] = message.content or "" if plain else _blocks(message.parts)
    if message.is_error:
        fields["is_error"] = True
    return fields | _cached(message.cache)


def _thoughts(thoughts: Iterable[Thought]) -> Iterator[Fields]:
    """Those that Anthropic will know as its own."""
    for thought in thoughts:
        if thought.redacted is not None:
            yield {"type": "redacted_thinking", "data": thought.redacted}
        elif thought.is_anthropics:
            yield {"type": "thinking", "thinking": thought.text, "signature": thought.signature}


def _call(call: ToolCall) -> Fields:
    arguments = msgspec.Raw(call.arguments.encode() or b"{}")
    return {"type": "tool_use", "id": _id(call.id), "name": call.name, "input": arguments} | _cached(call.cache)


def _id(id: str) -> str:
    """Anthropic takes fewer letters in the ids of calls than others give."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", id)


def _cached(lifetime: CacheLifetime | None) -> Fields:
    if lifetime is None:
        return {}
    return {"cache_control": {"type": "ephemeral"} | ({"ttl": lifetime} if lifetime != "5m" else {})}


# Tools


def _tools(request: ChatRequest) -> Fields:
    choice = request.tool_choice
    tools = [*map(_tool, chosen(request)), *(own_source(part, NAME, "tools") for part in request.native_tools)]
    if not tools:
        return {}
    field: Fields = {"type": "any" if choice.mode == "required" else choice.mode}
    if choice.mode == "required" and len(choice.names) == 1:
        field = {"type": "tool", "name": choice.names[0]}
    if not choice.parallel and choice.mode != "none":
        field["disable_parallel_tool_use"] = True
    return {"tools": tools} | ({} if field == {"type": "auto"} else {"tool_choice": field})


def _tool(tool: Tool) -> Fields:
    fields: Fields = {"name": tool.name, "input_schema": _schema(tool.parameters)}
    if tool.description:
        fields["description"] = tool.description
    if tool.strict:
        fields["strict"] = True
    return fields | _cached(tool.cache)


def _schema(parameters: bytes) -> Any:
    """Anthropic insists on the type that a schema of parameters has anyway."""
    schema = msgspec.json.decode(parameters, type=dict[str, msgspec.Raw])
    return msgspec.Raw(parameters) if "type" in schema else {"type": "object", **schema}
