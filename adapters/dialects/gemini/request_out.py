"""Canonical requests in Gemini's words."""

from __future__ import annotations

import mimetypes
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from adapters.dialects.client import Style
from adapters.dialects.gemini.request_in import NAME, UNSIGNED, own
from adapters.dialects.openai_tools import invalid
from adapters.dialects.unsayable import check_sayable, chosen, own_source, unsupported
from adapters.types import (
    ChatRequest,
    Constraint,
    DocumentPart,
    Effort,
    ImagePart,
    ImageUrl,
    Message,
    NativePart,
    Part,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
)

Fields = dict[str, Any]

STOPS_MAX = 5
# What an effort is worth in tokens to models that only know budgets.
BUDGETS: Mapping[Effort, int] = {
    "minimal": 512,
    "low": 1024,
    "medium": 8192,
    "high": 24_576,
    "xhigh": 24_576,
    "max": 24_576,
}
_LEVELS: Mapping[Effort, str] = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_VERSION = re.compile(r"gemini-(\d+)")

_encode = msgspec.json.Encoder().encode


def render_request(request: ChatRequest, style: Style | None = None) -> bytes:
    """The body of a request, whose model and wish for a stream stand in its path; raises `InvalidRequest` for what the
    dialect cannot say."""
    check_sayable(request, choices=True, logprobs=True)
    system = [part for message in request.messages if message.role in ("system", "developer") for part in message.parts]
    fields: Fields = {
        "contents": _contents(request),
        "systemInstruction": {"parts": [_part(part) for part in system]} if system else None,
        "generationConfig": _config(request) or None,
        **_tools(request),
    }
    return _encode({name: value for name, value in fields.items() if value is not None})


def levels(model: str) -> bool:
    """Whether a model thinks by levels and signs its calls, as those from Gemini 3 on; older ones think by budgets."""
    found = _VERSION.search(model)
    return found is not None and int(found[1]) >= 3


def _config(request: ChatRequest) -> Fields:
    generation, sampling = request.generation, request.generation.sampling
    if len(generation.stop) > STOPS_MAX:
        raise unsupported("stop", f"this model takes at most {STOPS_MAX}")
    given: Fields = {
        "maxOutputTokens": generation.max_tokens,
        "stopSequences": list(generation.stop) or None,
        "candidateCount": generation.n if generation.n > 1 else None,
        "temperature": sampling.temperature,
        "topP": sampling.top_p,
        "topK": sampling.top_k,
        "seed": sampling.seed,
        "presencePenalty": sampling.presence_penalty or None,
        "frequencyPenalty": sampling.frequency_penalty or None,
        "responseLogprobs": True if generation.logprobs is not None else None,
        "logprobs": generation.logprobs or None,
        "thinkingConfig": _thinking(request.thinking, request.model),
        **_constraint(generation.constraint),
    }
    return {name: value for name, value in given.items() if value is not None}


def _constraint(constraint: Constraint | None) -> Fields:
    if constraint is None:
        return {}
    fields: Fields = {"responseMimeType": "application/json"}
    match constraint.kind:
        case "json_object":
            return fields
        case "json_schema":
            return fields | {"responseJsonSchema": msgspec.Raw(constraint.source.encode())}
    raise unsupported(constraint.param, f"this model cannot hold its answer to a {constraint.kind}")


def _thinking(thinking: Thinking, model: str) -> Fields | None:
    """Models that think by levels cannot leave it."""
    if thinking.enabled is None:
        return None
    if levels(model):
        least = "minimal" if "flash" in model else "low"
        off = thinking.enabled is False
        level = least if off else _LEVELS.get(thinking.effort, least) if thinking.effort else None
        fields: Fields = {} if level is None else {"thinkingLevel": level}
        return fields if off else fields | _shown(thinking)
    if thinking.enabled is False:
        return {"thinkingBudget": 0}
    budget = thinking.tokens_max or (BUDGETS.get(thinking.effort, -1) if thinking.effort is not None else -1)
    return {"thinkingBudget": budget} | _shown(thinking)


def _shown(thinking: Thinking) -> Fields:
    return {} if thinking.shown is False else {"includeThoughts": True}


# Contents


def _contents(request: ChatRequest) -> list[Fields]:
    """Results of tools that belong together stand in one content, with their images behind them."""
    contents: list[Fields] = []
    names: dict[str, str] = {}
    before = ""
    for message in request.messages:
        match message.role:
            case "user":
                parts = [_part(part) for part in _said(message.parts)]
            case "assistant":
                names |= {call.id: call.name for call in message.tool_calls}
                parts = _answer(message, levels(request.model))
            case "tool":
                parts = _result(message, names)
                if before == "tool":
                    contents[-1]["parts"] += parts
                    continue
            case _:
                continue
        if parts:
            contents.append({"role": "model" if message.role == "assistant" else "user", "parts": parts})
            before = message.role
    return contents


def _said(parts: Iterable[Part]) -> list[Part]:
    """Gemini takes no text that is empty."""
    return [part for part in parts if not (isinstance(part, TextPart) and not part.text)]


def _answer(message: Message, signs: bool) -> list[Any]:
    parts: list[Any] = []
    for thought in message.thoughts:
        if (signature := own(thought.signature)) is not None:
            kept: Fields = {"text": thought.text, "thoughtSignature": signature}
            parts.append(kept | {"thought": True} if thought.text else kept)
    parts += [_part(part) for part in _said(message.parts)]
    for index, call in enumerate(message.tool_calls):
        signature = own(call.signature) or (UNSIGNED if signs and index == 0 else None)
        parts.append(_call(call) | ({} if signature is None else {"thoughtSignature": signature}))
    return parts


def _call(call: ToolCall) -> Fields:
    arguments = msgspec.Raw(call.arguments.encode() or b"{}")
    return {"functionCall": {"id": call.id, "name": call.name, "args": arguments}}


def _result(message: Message, names: Mapping[str, str]) -> list[Any]:
    id = message.tool_call_id or ""
    name = names.get(id) or message.name or "unknown"
    response = {"error" if message.is_error else "output": _told(message.text)}
    images = [part for part in message.parts if not isinstance(part, TextPart)]
    return [{"functionResponse": {"id": id, "name": name, "response": response}}, *map(_part, images)]


def _told(text: str) -> Any:
    """JSON as JSON, which models read more easily than the same in a text."""
    if text[:1] in ("{", "["):
        try:
            msgspec.json.decode(text)
            return msgspec.Raw(text.encode())
        except (msgspec.DecodeError, RecursionError):
            pass
    return text


def _part(part: Part) -> Any:
    match part:
        case TextPart():
            return {"text": part.text}
        case ImagePart():
            return {"inlineData": {"mimeType": part.media_type, "data": b64encode(part.data).decode()}}
        case ImageUrl():
            kind = mimetypes.guess_type(part.url.partition("?")[0])[0] or "image/jpeg"
            return {"fileData": {"mimeType": kind, "fileUri": part.url}}
        case DocumentPart(url=str()):
            return {"fileData": {"mimeType": part.media_type, "fileUri": part.url}}
        case DocumentPart():
            return {"inlineData": {"mimeType": part.media_type, "data": b64encode(part.data).decode()}}
        case NativePart():
            return own_source(part, NAME, "messages")


# Tools


def _tools(request: ChatRequest) -> Fields:
    given = chosen(request) if request.tool_choice.mode == "auto" else request.tools
    functions = [_function(tool) for tool in given]
    tools: list[Any] = [{"functionDeclarations": functions}] if functions else []
    tools += [own_source(part, NAME, "tools") for part in request.native_tools]
    if not tools:
        return {}
    return {"tools": tools} | _choice(request)


def _choice(request: ChatRequest) -> Fields:
    choice = request.tool_choice
    if choice.mode == "auto":
        return {}
    config: Fields = {"mode": "ANY" if choice.mode == "required" else "NONE"}
    if choice.names:
        config["allowedFunctionNames"] = list(choice.names)
    return {"toolConfig": {"functionCallingConfig": config}}


def _function(tool: Tool) -> Fields:
    if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}", tool.name):
        raise invalid("tools", f"this model takes no tool with the name {tool.name[:64]!r}")
    fields: Fields = {"name": tool.name, "parametersJsonSchema": msgspec.Raw(tool.parameters)}
    return fields | ({"description": tool.description} if tool.description else {})
