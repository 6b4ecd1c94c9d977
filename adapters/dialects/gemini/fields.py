"""What Gemini's requests are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Text = Annotated[str, Meta(min_length=1, max_length=256)]


class Wire(msgspec.Struct, rename="camel"):
    """Names in JSON are in camel case."""


class Blob(Wire):
    mime_type: str
    data: str


class FileData(Wire):
    file_uri: str
    mime_type: str | None = None


class FunctionCall(Wire):
    name: Text
    id: str | None = None
    args: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))


class FunctionResponse(Wire):
    name: Text
    response: dict[str, msgspec.Raw]
    id: str | None = None


class WirePart(Wire):
    text: str | None = None
    thought: bool | None = None
    thought_signature: Annotated[str, Meta(max_length=1 << 20)] | None = None
    inline_data: Blob | None = None
    file_data: FileData | None = None
    function_call: FunctionCall | None = None
    function_response: FunctionResponse | None = None


class Content(Wire):
    parts: list[msgspec.Raw] = []
    role: str | None = None


class FunctionDeclaration(Wire):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}\Z")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    parameters_json_schema: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))


class WireTool(Wire):
    function_declarations: Annotated[list[FunctionDeclaration], Meta(max_length=512)] | None = None


class FunctionCallingConfig(Wire):
    mode: str = "AUTO"
    allowed_function_names: list[str] = []


class ToolConfig(Wire):
    function_calling_config: FunctionCallingConfig | None = None


class ThinkingConfig(Wire):
    include_thoughts: bool | None = None
    thinking_budget: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    thinking_level: str | None = None


class GenerationConfig(Wire):
    max_output_tokens: Count | None = None
    stop_sequences: Annotated[list[Text], Meta(max_length=64)] = []
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[float, Meta(ge=0, le=2**31 - 1)] | None = None
    candidate_count: Annotated[int, Meta(ge=1, le=128)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    response_logprobs: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_mime_type: str | None = None
    response_schema: dict[str, Any] | None = None
    response_json_schema: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    thinking_config: ThinkingConfig | None = None


class Body(Wire):
    contents: Annotated[list[Content], Meta(min_length=1, max_length=16_384)]
    system_instruction: Content | None = None
    tools: Annotated[list[msgspec.Raw], Meta(max_length=512)] = []
    tool_config: ToolConfig | None = None
    generation_config: GenerationConfig | None = None


_STRUCTS = (
    *(Blob, FileData, FunctionCall, FunctionResponse, WirePart, Content, FunctionDeclaration, WireTool),
    *(FunctionCallingConfig, ToolConfig, ThinkingConfig, GenerationConfig, Body),
)
_CAMEL: Mapping[str, str] = {
    name: told
    for struct in _STRUCTS
    for name, told in zip(struct.__struct_fields__, struct.__struct_encode_fields__, strict=True)
    if name != told
}
_SNAKE = re.compile(rb'"(?:%b)"\s*:' % "|".join(_CAMEL).encode())
# What holds names of the client's own.
_OPAQUE = ("args", "response", "parameters", "parametersJsonSchema", "responseSchema", "responseJsonSchema")


def camel_cased(body: bytes) -> bytes:
    """The body with all of its own names in camel case; Google takes them with underscores too, and so do its SDKs
    send some. Of no matter to bodies that are broken."""
    if _SNAKE.search(body) is None:
        return body
    try:
        return msgspec.json.encode(_renamed(msgspec.json.decode(body)))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return body


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(one) for one in value]
    if not isinstance(value, dict):
        return value
    named = {_CAMEL.get(name, name): inner for name, inner in value.items()}
    return {name: inner if name in _OPAQUE else _renamed(inner) for name, inner in named.items()}
