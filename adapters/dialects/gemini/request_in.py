"""Gemini's requests in canonical form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from adapters.conversation import GEMINI
from adapters.dialects import openai_wire as wire
from adapters.dialects.gemini.fields import (
    Body,
    Content,
    FunctionCall,
    FunctionResponse,
    GenerationConfig,
    ThinkingConfig,
    WirePart,
    WireTool,
    camel_cased,
)
from adapters.dialects.openai_parts import check_images, parse_base64, parse_image
from adapters.dialects.openai_reasoning import switches
from adapters.dialects.openai_tools import invalid, json_object
from adapters.types import (
    ChatRequest,
    Constraint,
    DialectName,
    DocumentPart,
    Effort,
    Generation,
    ImageUrl,
    Message,
    NativePart,
    Part,
    Sampling,
    TextPart,
    Thinking,
    Thought,
    Tool,
    ToolCall,
    ToolChoice,
)

NAME: DialectName = "gemini"
# What Gemini takes in the place of a signature that nobody gave; it says nothing.
UNSIGNED = "skip_thought_signature_validator"
DOCUMENTS = ("application/pdf", "text/plain")

_KNOWN = frozenset(WirePart.__struct_encode_fields__)
_LEVELS: tuple[Effort, ...] = ("minimal", "low", "medium", "high", "xhigh")

_body = msgspec.json.Decoder(Body)
_part = msgspec.json.Decoder(WirePart)
_names = msgspec.json.Decoder(dict[str, msgspec.Raw])
_tool = msgspec.json.Decoder(WireTool)


def parse_request(body: bytes, model: str, *, stream: bool = True) -> wire.Inbound[ChatRequest]:
    """The request in canonical form; the model and whether to stream stand in its path.

    Raises `InvalidRequest` with the path of the field at fault.
    """
    fields = wire.decode(_body, camel_cased(body))
    messages = _system(fields.system_instruction)
    ids = _Ids()
    for index, content in enumerate(fields.contents):
        messages += _turn(content, f"contents[{index}]", ids)
    check_images(messages)
    tools, native = _tools(fields.tools)
    config = fields.generation_config or GenerationConfig()
    thinking = _thinking(config.thinking_config)
    budget = 0 if thinking.enabled is False else thinking.tokens_max
    request = ChatRequest(
        model=model,
        messages=tuple(messages),
        tools=tools,
        tool_choice=_choice(fields),
        template_arguments=switches(thinking.enabled, thinking.effort),
        generation=_generation(config, budget),
        thinking=thinking,
        native_tools=native,
    )
    return wire.Inbound(request, stream=stream, include_usage=True)


def _generation(config: GenerationConfig, budget: int | None) -> Generation:
    return Generation(
        max_tokens=config.max_output_tokens,
        stop=tuple(config.stop_sequences),
        n=config.candidate_count or 1,
        logprobs=(config.logprobs or 0) if config.response_logprobs else None,
        sampling=Sampling(
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=None if config.top_k is None else int(config.top_k),
            seed=config.seed,
            presence_penalty=config.presence_penalty or 0.0,
            frequency_penalty=config.frequency_penalty or 0.0,
        ),
        constraint=_constraint(config),
        reasoning_tokens_max=budget,
    )


def _constraint(config: GenerationConfig) -> Constraint | None:
    param = "generationConfig.responseJsonSchema"
    if config.response_mime_type in (None, "text/plain"):
        return None
    if config.response_mime_type != "application/json":
        raise invalid("generationConfig.responseMimeType", "expected 'text/plain' or 'application/json'")
    if (schema := bytes(config.response_json_schema)) != b"null":
        return Constraint("json_schema", schema.decode(), True, param)
    if config.response_schema is not None:
        param = "generationConfig.responseSchema"
        return Constraint("json_schema", _encoded(config.response_schema, param).decode(), True, param)
    return Constraint("json_object", param=param)


def _encoded(schema: Any, param: str) -> bytes:
    try:
        return msgspec.json.encode(json_schema(schema))
    except RecursionError:
        raise invalid(param, "it is nested too deeply") from None


def json_schema(schema: Any) -> Any:
    """Google's own kind of schema as a JSON Schema: types in small letters, `nullable` as a type."""
    if isinstance(schema, list):
        return [json_schema(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        name: value if name in ("enum", "example", "default") and not isinstance(value, dict) else json_schema(value)
        for name, value in schema.items()
    }
    if isinstance(kind := made.get("type"), str):
        made["type"] = kind.lower()
        if made.pop("nullable", False):
            made["type"] = [kind.lower(), "null"]
    made.pop("propertyOrdering", None)
    return made


def _thinking(config: ThinkingConfig | None) -> Thinking:
    if config is None:
        return Thinking()
    if config.thinking_budget == 0:
        return Thinking(False)
    level = None
    if config.thinking_level is not None:
        level = next((one for one in _LEVELS if one == config.thinking_level.lower()), None)
        if level is None:
            place = "generationConfig.thinkingConfig.thinkingLevel"
            raise invalid(place, "expected 'minimal', 'low', 'medium' or 'high'")
    budget = config.thinking_budget if (config.thinking_budget or -1) > 0 else None
    return Thinking(True, level, budget, None if config.include_thoughts else False)


# Messages


class _Ids:
    """Names for calls that have none: Gemini joins results to calls by the function's name and their order."""

    def __init__(self) -> None:
        self._made = 0
        self._open: list[tuple[str, str]] = []

    def of_call(self, call: FunctionCall) -> str:
        self._made += 1
        id = call.id or f"call_{self._made}"
        self._open.append((call.name, id))
        return id

    def of_result(self, result: FunctionResponse) -> str:
        place = next((at for at, (name, _) in enumerate(self._open) if name == result.name), None)
        known = self._open.pop(place)[1] if place is not None else f"call_{result.name}"
        return result.id or known


def _system(content: Content | None) -> list[Message]:
    if content is None:
        return []
    parts = [_wire_part(raw, f"systemInstruction.parts[{index}]")[0] for index, raw in enumerate(content.parts)]
    texts = [part.text for part in parts if part is not None and part.text is not None]
    return [Message("system", "\n".join(texts))] if texts else []


def _turn(content: Content, path: str, ids: _Ids) -> list[Message]:
    if content.role not in ("user", "model", "function", None):
        raise invalid(f"{path}.role", "expected 'user' or 'model'")
    given = [_wire_part(raw, f"{path}.parts[{index}]") for index, raw in enumerate(content.parts)]
    if content.role == "model":
        return [_answer(given, path, ids)]
    messages: list[Message] = []
    parts: list[Part] = []
    for index, (part, raw) in enumerate(given):
        if part is None or part.function_response is None:
            parts.append(_part_of(part, raw, f"{path}.parts[{index}]"))
            continue
        if parts:
            messages.append(Message("user", _content(parts)))
            parts = []
        messages.append(_result(part.function_response, ids))
    return [*messages, Message("user", _content(parts))] if parts else messages


def _wire_part(raw: msgspec.Raw, path: str) -> tuple[WirePart | None, msgspec.Raw]:
    """The part, None where it has fields that are not among the known."""
    names = wire.decode(_names, raw, path)
    return (wire.decode(_part, raw, path) if names.keys() <= _KNOWN else None), raw


def _answer(given: Sequence[tuple[WirePart | None, msgspec.Raw]], path: str, ids: _Ids) -> Message:
    thoughts: list[Thought] = []
    parts: list[Part] = []
    calls: list[ToolCall] = []
    for index, (part, raw) in enumerate(given):
        signature = signed(part.thought_signature) if part is not None else None
        if part is not None and part.thought:
            thoughts.append(Thought(part.text or "", signature))
        elif part is not None and part.function_call is not None:
            call = part.function_call
            json_object(bytes(call.args), f"{path}.parts[{index}].functionCall.args", "expected an object")
            calls.append(ToolCall(ids.of_call(call), call.name, bytes(call.args).decode(), signature))
        else:
            if signature is not None:
                thoughts.append(Thought("", signature))
            if part is None or part.text != "":
                parts.append(_part_of(part, raw, f"{path}.parts[{index}]"))
    reasoning = "\n".join(thought.text for thought in thoughts if thought.text) or None
    kept = tuple(thoughts) if any(thought.signature for thought in thoughts) else ()
    content = _content(parts) if parts else None if calls else ""
    return Message("assistant", content, tool_calls=tuple(calls), reasoning=reasoning, thoughts=kept)


def signed(signature: str | None) -> str | None:
    """A signature as canonical requests and events have it."""
    return GEMINI + signature if signature and signature != UNSIGNED else None


def own(signature: str | None) -> str | None:
    """The same as Gemini has it; None for one of another maker."""
    return signature.removeprefix(GEMINI) if signature is not None and signature.startswith(GEMINI) else None


def _result(result: FunctionResponse, ids: _Ids) -> Message:
    """A result has `output` or `error`; anything else in it is told as it is."""
    id, response = ids.of_result(result), result.response
    for name in ("output", "result", "error"):
        if response.keys() == {name}:
            raw = bytes(response[name])
            text = msgspec.json.decode(raw, type=str) if raw.startswith(b'"') else raw.decode()
            return Message("tool", text, tool_call_id=id, is_error=name == "error")
    return Message("tool", msgspec.json.encode(response).decode(), tool_call_id=id)


def _part_of(part: WirePart | None, raw: msgspec.Raw, path: str) -> Part:
    if part is None:
        return NativePart(NAME, bytes(raw))
    if part.text is not None:
        return TextPart(part.text)
    if (blob := part.inline_data) is not None:
        if blob.mime_type in DOCUMENTS:
            return DocumentPart(parse_base64(blob.data, path, "document"), blob.mime_type)
        if blob.mime_type.startswith("image/"):
            return parse_image(blob.mime_type, blob.data, path)
        return NativePart(NAME, bytes(raw))
    if (file := part.file_data) is not None and file.file_uri.startswith("https://"):
        if file.mime_type in DOCUMENTS:
            return DocumentPart(b"", file.mime_type, file.file_uri)
        if (file.mime_type or "image/").startswith("image/"):
            return ImageUrl(file.file_uri)
    if file is not None:
        return NativePart(NAME, bytes(raw))
    raise invalid(path, "expected a text, data or a function")


def _content(parts: Sequence[Part]) -> str | tuple[Part, ...]:
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return "\n".join(texts) if len(texts) == len(parts) else tuple(parts)


# Tools


def _tools(given: Sequence[msgspec.Raw]) -> tuple[tuple[Tool, ...], tuple[NativePart, ...]]:
    """The functions among the tools, and those that Google brings itself."""
    tools: list[Tool] = []
    native: list[NativePart] = []
    for index, raw in enumerate(given):
        path = f"tools[{index}]"
        if wire.decode(_names, raw, path).keys() - {"functionDeclarations"}:
            native.append(NativePart(NAME, bytes(raw)))
            continue
        for at, function in enumerate(wire.decode(_tool, raw, path).function_declarations or []):
            place = f"{path}.functionDeclarations[{at}]"
            parameters = bytes(function.parameters_json_schema)
            if parameters == b"null":
                parameters = _encoded(function.parameters or {"type": "object"}, f"{place}.parameters")
            json_object(parameters, f"{place}.parameters", "expected a JSON Schema object")
            if any(function.name == tool.name for tool in tools):
                raise invalid(f"{place}.name", f"there is another function {function.name!r}")
            tools.append(Tool(function.name, function.description or "", parameters))
    return tuple(tools), tuple(native)


def _choice(fields: Body) -> ToolChoice:
    config = fields.tool_config.function_calling_config if fields.tool_config is not None else None
    if config is None:
        return ToolChoice()
    names = tuple(config.allowed_function_names)
    match config.mode.upper():
        case "AUTO" | "MODE_UNSPECIFIED":
            return ToolChoice()
        case "VALIDATED":
            return ToolChoice("auto", names)
        case "ANY":
            return ToolChoice("required", names)
        case "NONE":
            return ToolChoice("none")
    raise invalid("toolConfig.functionCallingConfig.mode", "expected 'AUTO', 'ANY', 'VALIDATED' or 'NONE'")
