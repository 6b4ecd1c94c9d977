"""What requests of OpenAI's Responses API hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from adapters.dialects import openai_wire as wire
from adapters.dialects.openai_reasoning import Effort
from adapters.dialects.openai_tools import TOOLS_MAX, ToolName
from adapters.dialects.structured import SchemaName, absent

ITEMS_MAX = 8192

Id = Annotated[str, Meta(min_length=1, max_length=256)]


class Piece(msgspec.Struct):
    """A part of a message: text, an image or a file, or what an assistant said."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: Annotated[str, Meta(max_length=64)] | None = None
    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None
    filename: Annotated[str, Meta(max_length=512)] | None = None


class Item(msgspec.Struct):
    """A turn, a call, its result, or a thought; without a type it is a turn."""

    type: str = "message"
    role: str | None = None
    content: str | list[Piece] | None = None
    call_id: Id | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    arguments: str | None = None
    output: str | list[Piece] | None = None
    summary: list[Piece] | None = None
    encrypted_content: str | None = None


class WireFunction(msgspec.Struct):
    """A function beside which other types of tools may stand."""

    type: str
    name: ToolName | None = None
    description: str | None = None
    parameters: msgspec.Raw = msgspec.field(default_factory=absent)
    strict: bool | None = None


class Allowed(msgspec.Struct):
    type: str
    name: str | None = None


class Choice(Allowed):
    mode: str | None = None
    tools: Annotated[list[Allowed], Meta(min_length=1, max_length=TOOLS_MAX)] | None = None


class Format(msgspec.Struct):
    type: str
    name: SchemaName | None = None
    schema: msgspec.Raw = msgspec.field(default_factory=absent)
    strict: bool | None = None


class Text(msgspec.Struct):
    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class WireReasoning(msgspec.Struct):
    effort: Effort | None = None
    summary: str | None = None


class Body(wire.RequestFields, kw_only=True):
    """A request. The last fields need what was kept of earlier ones, which is the server's business. With any
    `truncation` a prompt that is too long is refused, as nobody here drops turns; the answer says `disabled`."""

    model: wire.ModelName
    input: str | Annotated[list[Item], Meta(max_length=ITEMS_MAX)] = []
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: wire.Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: wire.Share | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[WireFunction], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: str | Choice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: WireReasoning | None = None
    text: Text | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    prompt_cache_key: wire.SessionKey | None = None
    safety_identifier: Annotated[str, Meta(max_length=512)] | None = None
    store: bool | None = None
    previous_response_id: Id | None = None
    conversation: Any = None
    background: bool | None = None
    prompt: Any = None


class CompactBody(wire.RequestFields, kw_only=True):
    """A request to compact a conversation, which is only passed on."""

    model: wire.ModelName
    input: Any = None
    instructions: str | None = None
    prompt_cache_key: wire.SessionKey | None = None
    previous_response_id: Id | None = None
