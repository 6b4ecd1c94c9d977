"""OpenAI chat completions towards a provider: canonical requests to bodies.

`LOST` is what does not survive a translation, by name, because the dialect, or a provider of it, has no words for it.
Refused is what would change the answer: adapters (`lora`), and whatever the provider's row does not list.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from adapters.dialects.client import Style
from adapters.dialects.openai_thoughts import details_of
from adapters.dialects.openai_tools import call_fields, invalid
from adapters.dialects.unsayable import chosen
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

LOST: Mapping[str, str] = {
    "top_k": "and `min_p` and `ignore_eos`, where the provider has no fields for them",
    "developer": "becomes a system message, where the provider has no other",
    "names": "of speakers, where the provider takes none",
    "markers": "of what to cache, where the provider has none",
    "failed tools": "that the result is of one that did not work",
    "images in results": "follow them in a message of the user",
    "documents": "their context, and whether to cite them; of texts their titles",
    "thoughts": "where the provider does not want them back, and what they were signed with",
    "signatures of calls": "which only Gemini gives",
    "budget of thinking": "where only an effort can be asked for",
    "a narrowed choice": "of several tools leaves the others out",
    "letters of ids": "where the provider has its own",
}

_encode = msgspec.json.Encoder().encode


def render_request(request: ChatRequest, style: Style) -> bytes:
    """The body of a request for a stream; raises `InvalidRequest` for what the dialect cannot say."""
    tools = [_tool(tool, style) for tool in chosen(request)]
    tools += [_native(part, "tools") for part in request.native_tools]
    fields: Fields = {
        "model": request.model,
        "messages": list(_turns(request.messages, style)),
        **generation_fields(request.generation, style),
    }
    if tools:
        fields |= {"tools": tools} | _choice(request)
    if request.generation.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": request.generation.logprobs}
    fields |= _thinking(request, style)
    if request.end_user is not None:
        fields["user"] = request.end_user
    return _encode(fields)


def generation_fields(generation: Generation, style: Style) -> Fields:
    """What chat and legacy completions say alike, logprobs aside."""
    if generation.loras:
        raise invalid("lora", "this model takes no adapters")
    sampling = generation.sampling
    given: Fields = {
        style.max_tokens: generation.max_tokens,
        "stop": list(generation.stop) or None,
        "n": generation.n if generation.n > 1 else None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        style.seed: sampling.seed,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
    }
    if style.extra_sampling:
        given |= {"top_k": sampling.top_k, "min_p": sampling.min_p, "ignore_eos": generation.ignore_eos or None}
    fields: Fields = {name: value for name, value in given.items() if value is not None}
    fields["stream"] = True
    if style.usage_option:
        fields["stream_options"] = {"include_usage": True}
    if generation.constraint is not None:
        fields |= _constraint(generation.constraint, style)
    return fields


def _constraint(constraint: Constraint, style: Style) -> Fields:
    source: Any = constraint.source
    match constraint.kind:
        case "json_object":
            return {"response_format": {"type": "json_object"}}
        case "json_schema":
            named = {"name": "answer", "schema": msgspec.Raw(source.encode()), "strict": constraint.strict}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        case "lark" if style.grammars == "response_format":
            raise invalid(constraint.param, "this model takes grammars in GBNF only")
        case "choice":
            source = msgspec.json.decode(source)
    is_grammar = constraint.kind in ("lark", "gbnf")
    match style.grammars:
        case "structured_outputs":
            return {"structured_outputs": {"grammar" if is_grammar else constraint.kind: source}}
        case "grammar" if is_grammar:
            return {"grammar": source}
        case "response_format" if is_grammar:
            return {"response_format": {"type": "grammar", "grammar": source}}
    raise InvalidRequest(
        f"Invalid value for '{constraint.param}': this model cannot hold its answer to a {constraint.kind}.",
        code="unsupported_parameter",
        param=constraint.param,
    )


def _thinking(request: ChatRequest, style: Style) -> Fields:
    thinking = request.thinking
    effort = thinking.effort or (None if thinking.enabled is not False else "none")
    fields: Fields = {}
    if style.reasoning == "reasoning":
        given = {
            "effort": thinking.effort if thinking.tokens_max is None else None,
            "max_tokens": thinking.tokens_max,
            "enabled": thinking.enabled,
            "exclude": None if thinking.shown is None else not thinking.shown,
        }
        if reasoning := {name: value for name, value in given.items() if value is not None}:
            fields["reasoning"] = reasoning
    elif style.reasoning and effort is not None:
        fields["reasoning_effort"] = effort
    if style.template_arguments and request.template_arguments:
        fields["chat_template_kwargs"] = request.template_arguments
    return fields


def _choice(request: ChatRequest) -> Fields:
    choice = request.tool_choice
    fields: Fields = {} if choice.parallel else {"parallel_tool_calls": False}
    if choice.mode == "required" and len(choice.names) == 1:
        fields["tool_choice"] = {"type": "function", "function": {"name": choice.names[0]}}
    elif choice.mode != "auto":
        fields["tool_choice"] = choice.mode
    return fields


def _tool(tool: Tool, style: Style) -> Fields:
    function: Fields = {"name": tool.name, "parameters": msgspec.Raw(tool.parameters)}
    if tool.description:
        function["description"] = tool.description
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function} | _cached(tool.cache, style)


def _native(part: NativePart, param: str) -> Any:
    if part.dialect != "openai_chat":
        raise invalid(param, "this model's provider has no words for it")
    return msgspec.Raw(part.source)


def _cached(lifetime: str | None, style: Style) -> Fields:
    if lifetime is None or not style.cache_control:
        return {}
    control = {"type": "ephemeral"}
    return {"cache_control": control if lifetime == "5m" else {**control, "ttl": lifetime}}


def _turns(messages: Sequence[Message], style: Style) -> Iterator[Fields]:
    """The messages. Images out of results come behind all results of a turn, which nothing may come between."""
    aside: list[Part] = []
    for message in messages:
        if aside and message.role != "tool":
            yield {"role": "user", "content": _content(aside, style)}
            aside = []
        yield _message(message, style, aside)
    if aside:
        yield {"role": "user", "content": _content(aside, style)}


def _message(message: Message, style: Style, aside: list[Part]) -> Fields:
    """A message; what is no text in a tool's result is put `aside`."""
    role = "system" if message.role == "developer" and not style.developer_role else message.role
    fields: Fields = {"role": role}
    parts = message.content if isinstance(message.content, tuple) else None
    if parts is not None and message.role == "tool":
        aside += [part for part in parts if not isinstance(part, TextPart)]
        parts = tuple(part for part in parts if isinstance(part, TextPart)) or (TextPart(""),)
    fields["content"] = message.content if parts is None else _content(parts, style)
    if message.name is not None and style.names:
        fields["name"] = message.name
    if message.tool_calls:
        # Signatures of calls are Gemini's, which is not spoken to in this dialect.
        calls = [replace(call, id=_id(call.id, style), signature=None) for call in message.tool_calls]
        fields["tool_calls"] = [call_fields(call) for call in calls]
    if message.tool_call_id is not None:
        fields["tool_call_id"] = _id(message.tool_call_id, style)
    if message.role == "assistant":
        fields |= _thoughts(message, style)
    return fields


def _id(id: str, style: Style) -> str:
    """The id of a call, or another one in its place for those that do not take it; the same for the same."""
    if not style.short_ids or re.fullmatch(r"[a-zA-Z0-9]{9}", id):
        return id
    return hashlib.blake2b(id.encode(), digest_size=8).hexdigest()[:9]


def _content(parts: Sequence[Part], style: Style) -> Any:
    """One text without a marker stays text, which more providers understand."""
    if len(parts) == 1 and isinstance(part := parts[0], TextPart) and not (part.cache and style.cache_control):
        return part.text
    return [_part(part, style) for part in parts]


def _part(part: Part, style: Style) -> Any:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text} | _cached(part.cache, style)
        case ImagePart():
            image = {"url": _data_url(part.media_type, part.data)}
            return {"type": "image_url", "image_url": image} | _cached(part.cache, style)
        case ImageUrl():
            image = {"url": part.url} | ({} if part.detail is None else {"detail": part.detail})
            return {"type": "image_url", "image_url": image} | _cached(part.cache, style)
        case DocumentPart(media_type="text/plain", url=None):
            return {"type": "text", "text": part.data.decode("utf-8", "replace")} | _cached(part.cache, style)
        case DocumentPart(url=None):
            file = {"filename": part.title or "document.pdf", "file_data": _data_url(part.media_type, part.data)}
            return {"type": "file", "file": file} | _cached(part.cache, style)
        case DocumentPart():
            raise invalid("messages", "this model's provider takes no web addresses of documents")
        case NativePart():
            return _native(part, "messages")


def _data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{b64encode(data).decode()}"


def _thoughts(message: Message, style: Style) -> Fields:
    reasoning = message.reasoning or "".join(thought.text for thought in message.thoughts)
    if style.thoughts in ("reasoning_content", "reasoning"):
        return {style.thoughts: reasoning} if reasoning else {}
    if style.thoughts != "reasoning_details":
        return {}
    details = details_of(message.thoughts)
    return {"reasoning_details": details} if details else {"reasoning": reasoning} if reasoning else {}
