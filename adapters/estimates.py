"""Tokens counted without a tokeniser, for providers that do not report them: about four bytes to a token."""

from __future__ import annotations

from adapters.types import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Event,
    ReasoningDelta,
    RefusalDelta,
    RerankRequest,
    TextDelta,
    TextPart,
    ToolCallDelta,
)

BYTES_PER_TOKEN = 4
MESSAGE_TOKENS = 4
PART_TOKENS = 800


def tokens_of(text: str) -> int:
    """Rounded up."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def prompt_tokens(request: ChatRequest | CompletionRequest | EmbeddingRequest | RerankRequest) -> int:
    """What a request has about."""
    match request:
        case ChatRequest():
            return _chat(request)
        case CompletionRequest(prompts=texts) | EmbeddingRequest(inputs=texts):
            return sum(tokens_of(one) if isinstance(one, str) else len(one) for one in texts)
        case RerankRequest():
            query = tokens_of(request.query)
            return sum(query + tokens_of(document) for document in request.documents)


def _chat(request: ChatRequest) -> int:
    count = sum(tokens_of(tool.name + tool.description + tool.parameters.decode()) for tool in request.tools)
    for message in request.messages:
        count += MESSAGE_TOKENS + tokens_of(message.text + (message.reasoning or ""))
        count += sum(tokens_of(call.name + call.arguments) for call in message.tool_calls)
        count += PART_TOKENS * sum(not isinstance(part, TextPart) for part in message.parts)
    return count


class Tally:
    """Counts the output of one stream: a piece is one token at least."""

    def __init__(self) -> None:
        self.tokens = 0
        self.reasoning_tokens = 0

    def add(self, event: Event) -> None:
        match event:
            case TextDelta() | RefusalDelta():
                self.tokens += max(1, tokens_of(event.text))
            case ReasoningDelta():
                count = max(1, tokens_of(event.text + (event.redacted or "")))
                self.tokens += count
                self.reasoning_tokens += count
            case ToolCallDelta():
                self.tokens += max(1, tokens_of(event.arguments + (event.name or "")))
