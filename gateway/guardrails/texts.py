"""The texts of a request: what guardrails look at, and the request with other texts in their places.

Looked at are messages with their thoughts, tool calls and results, tools with their schemas, constraints of the answer,
prompts, inputs, documents that are text, and the client's name for its user. Not looked at are images, audio, documents
of other kinds, and what an address leads to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import msgspec
from msgspec.structs import replace

from adapters.said import Sort
from adapters.types import (
    ChatRequest,
    CompletionRequest,
    DocumentPart,
    EmbeddingRequest,
    Message,
    NativePart,
    Part,
    RerankRequest,
    TextPart,
    Thought,
    Tool,
    ToolCall,
)

Request = ChatRequest | CompletionRequest | EmbeddingRequest | RerankRequest
R = TypeVar("R", ChatRequest, CompletionRequest, EmbeddingRequest, RerankRequest)

Visit = Callable[[str, Sort], str]
Tokens = tuple[int, ...]
Spelled = Callable[[Tokens], str]


def texts_of(request: Request, spelled: Spelled) -> list[tuple[str, Sort]]:
    """Every text of a request with its sort; `spelled` says what token ids mean."""
    found: list[tuple[str, Sort]] = []

    def visit(text: str, sort: Sort) -> str:
        found.append((text, sort))
        return text

    _walk(request, visit, spelled)
    return found


def with_texts(request: R, texts: Sequence[str], spelled: Spelled) -> R:
    """The request with these texts in the places of those of `texts_of`."""
    following = iter(texts)
    return cast(R, _walk(request, lambda text, sort: next(following), spelled))


def token_ids(request: Request) -> list[Tokens]:
    """The prompts or inputs that came as token ids."""
    match request:
        case CompletionRequest(prompts=given) | EmbeddingRequest(inputs=given):
            return [one for one in given if isinstance(one, tuple)]
    return []


def _walk(request: Request, visit: Visit, spelled: Spelled) -> Request:
    def plain(text: str | None) -> str | None:
        return visit(text, "plain") if text else text

    def spell(one: str | Tokens) -> str | Tokens:
        if isinstance(one, str):
            return visit(one, "plain")
        before = spelled(one)
        after = visit(before, "plain")
        return one if after == before else after

    match request:
        case ChatRequest():
            return _chat(request, visit)
        case CompletionRequest():
            prompts = tuple(spell(one) for one in request.prompts)
            _fixed(request, visit)
            return replace(request, prompts=prompts, suffix=plain(request.suffix))
        case EmbeddingRequest():
            return replace(request, inputs=tuple(spell(one) for one in request.inputs))
        case RerankRequest():
            query = visit(request.query, "plain")
            return replace(request, query=query, documents=tuple(visit(one, "plain") for one in request.documents))


def _fixed(request: ChatRequest | CompletionRequest, visit: Visit) -> None:
    constraint = request.generation.constraint
    if constraint is not None and constraint.source:
        visit(constraint.source, "fixed")


def _chat(request: ChatRequest, visit: Visit) -> ChatRequest:
    _fixed(request, visit)
    return replace(
        request,
        messages=tuple(_message(message, visit) for message in request.messages),
        tools=tuple(_tool(tool, visit) for tool in request.tools),
        native_tools=tuple(_native(part, visit) for part in request.native_tools),
        end_user=visit(request.end_user, "plain") if request.end_user else request.end_user,
    )


def _message(message: Message, visit: Visit) -> Message:
    content = message.content
    if isinstance(content, tuple):
        content = tuple(_part(part, visit) for part in content)
    elif content:
        content = visit(content, "plain")
    if message.name:
        visit(message.name, "fixed")
    return replace(
        message,
        content=content,
        reasoning=visit(message.reasoning, "plain") if message.reasoning else message.reasoning,
        thoughts=tuple(_thought(thought, visit) for thought in message.thoughts),
        tool_calls=tuple(_call(call, visit) for call in message.tool_calls),
    )


def _part(part: Part, visit: Visit) -> Part:
    match part:
        case TextPart():
            return replace(part, text=visit(part.text, "plain"))
        case NativePart():
            return _native(part, visit)
        case DocumentPart():
            data = part.data
            if part.media_type.startswith("text/"):
                before = data.decode("utf-8", "replace")
                after = visit(before, "plain")
                data = data if after == before else after.encode()
            title = visit(part.title, "plain") if part.title else part.title
            context = visit(part.context, "plain") if part.context else part.context
            return replace(part, data=data, title=title, context=context)
    return part


def _thought(thought: Thought, visit: Visit) -> Thought:
    """A thought that was changed is no longer its maker's."""
    if not thought.text:
        return thought
    return replace(thought, text=visit(thought.text, "plain" if thought.signature is None else "fixed"))


def _call(call: ToolCall, visit: Visit) -> ToolCall:
    return replace(call, arguments=visit(call.arguments, "json")) if call.arguments else call


def _tool(tool: Tool, visit: Visit) -> Tool:
    description = visit(tool.description, "plain") if tool.description else tool.description
    return replace(tool, description=description, parameters=_json(tool.parameters, visit))


def _native(part: NativePart, visit: Visit) -> NativePart:
    return replace(part, source=_json(part.source, visit))


def _json(source: bytes, visit: Visit) -> bytes:
    """JSON text, shown without escapes that could hide what it says."""
    try:
        before = msgspec.json.encode(msgspec.json.decode(source)).decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        before = source.decode("utf-8", "replace")
    after = visit(before, "json")
    return source if after == before else after.encode()
