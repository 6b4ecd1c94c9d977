"""What requests of the Converse API are made of. A block is an object of one field, whose name says what it is."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from adapters.types import CacheLifetime, Effort

Id = Annotated[str, Meta(min_length=1, max_length=256)]


class Wire(msgspec.Struct, rename="camel"):
    """Names in JSON are in camel case."""


class Empty(Wire):
    pass


class CachePoint(Wire):
    ttl: CacheLifetime = "5m"


class Source(Wire):
    bytes: str | None = None
    text: str | None = None


class Image(Wire):
    format: str
    source: Source


class Citations(Wire):
    enabled: bool = False


class Document(Wire):
    name: str
    source: Source
    format: str = "txt"
    context: str | None = None
    citations: Citations | None = None


class ToolUse(Wire):
    tool_use_id: Id
    name: Id
    input: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))


class ToolResult(Wire):
    tool_use_id: Id
    content: list[msgspec.Raw]
    status: str | None = None


class ReasoningText(Wire):
    text: str
    signature: str | None = None


class Reasoning(Wire):
    reasoning_text: ReasoningText | None = None
    redacted_content: str | None = None


class Block(Wire):
    """One of them; what has another name stays as it came."""

    text: str | None = None
    image: Image | None = None
    document: Document | None = None
    tool_use: ToolUse | None = None
    tool_result: ToolResult | None = None
    reasoning_content: Reasoning | None = None
    cache_point: CachePoint | None = None
    json: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b""))


class WireMessage(Wire):
    role: str
    content: list[msgspec.Raw]


class InputSchema(Wire):
    json: msgspec.Raw


class ToolSpec(Wire):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
    input_schema: InputSchema
    description: str | None = None
    strict: bool | None = None


class WireTool(Wire):
    tool_spec: ToolSpec | None = None
    cache_point: CachePoint | None = None


class NamedTool(Wire):
    name: str


class Choice(Wire):
    auto: Empty | None = None
    any: Empty | None = None
    tool: NamedTool | None = None


class ToolConfig(Wire):
    tools: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=512)]
    tool_choice: Choice | None = None


class InferenceConfig(Wire):
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop_sequences: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=64)] = []


class Thinking(msgspec.Struct):
    """As Anthropic has it, in the fields that only its models take."""

    type: str
    budget_tokens: int | None = None
    display: str | None = None


class Additional(msgspec.Struct):
    thinking: Thinking | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None


class JsonSchema(Wire):
    schema: str


class Structure(Wire):
    json_schema: JsonSchema | None = None


class TextFormat(Wire):
    type: str
    structure: Structure


class OutputConfig(Wire):
    text_format: TextFormat | None = None
    effort: Effort | None = None


class Body(Wire):
    messages: Annotated[list[WireMessage], Meta(min_length=1, max_length=16_384)]
    system: list[msgspec.Raw] = []
    inference_config: InferenceConfig | None = None
    tool_config: ToolConfig | None = None
    additional_model_request_fields: Additional | None = None
    output_config: OutputConfig | None = None
