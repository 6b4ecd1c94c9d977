"""What Anthropic's requests are made of."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from adapters.dialects import openai_wire as wire
from adapters.dialects.structured import absent
from adapters.types import CacheLifetime, Effort

MESSAGES_MAX = 16_384
TOOLS_MAX = 512

Id = Annotated[str, Meta(min_length=1, max_length=256)]
Opaque = Annotated[str, Meta(max_length=1 << 20)]


class CacheControl(msgspec.Struct):
    type: Literal["ephemeral"]
    ttl: CacheLifetime | None = None


class Source(msgspec.Struct):
    """Where an image or a document comes from."""

    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class Citations(msgspec.Struct):
    enabled: bool | None = None


class Kind(msgspec.Struct):
    """What tells blocks and tools apart."""

    type: str | None = None


class TextBlock(msgspec.Struct):
    text: str
    type: str = "text"
    cache_control: CacheControl | None = None


class ImageBlock(msgspec.Struct):
    source: Source
    cache_control: CacheControl | None = None


class DocumentBlock(msgspec.Struct):
    source: Source
    title: str | None = None
    context: str | None = None
    citations: Citations | None = None
    cache_control: CacheControl | None = None


class ThinkingBlock(msgspec.Struct):
    thinking: str
    signature: Opaque = ""


class RedactedBlock(msgspec.Struct):
    data: Opaque


class ToolUseBlock(msgspec.Struct):
    id: Id
    name: Id
    input: msgspec.Raw = msgspec.Raw(b"{}")
    cache_control: CacheControl | None = None


class ToolResultBlock(msgspec.Struct):
    tool_use_id: Id
    content: str | list[msgspec.Raw] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


class WireMessage(msgspec.Struct):
    role: str
    content: str | list[msgspec.Raw]


class WireTool(msgspec.Struct):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,128}\Z")]
    input_schema: msgspec.Raw
    description: str | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None


class Choice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class WireThinking(msgspec.Struct):
    type: str
    budget_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    display: str | None = None


class Format(msgspec.Struct):
    type: str
    schema: msgspec.Raw = msgspec.field(default_factory=absent)


class OutputConfig(msgspec.Struct):
    effort: Effort | None = None
    format: Format | None = None


class Metadata(msgspec.Struct):
    user_id: wire.SessionKey | None = None


class CountBody(wire.RequestFields, kw_only=True):
    """What a prompt is made of."""

    model: wire.ModelName
    messages: Annotated[list[WireMessage], Meta(min_length=1, max_length=MESSAGES_MAX)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[msgspec.Raw], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: Choice | None = None
    thinking: WireThinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None


class Body(CountBody, kw_only=True):
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    stream: bool | None = None
    stop_sequences: Annotated[list[wire.StopText], Meta(max_length=64)] | None = None
    temperature: wire.Share | None = None
    top_p: wire.Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None
