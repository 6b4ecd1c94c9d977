"""What a request needs of the one who answers it, held against what a provider's row or an operator says it can."""

from __future__ import annotations

from collections.abc import Iterator

from adapters.dialects.passing import acts
from adapters.errors import InvalidRequest
from adapters.providers import Capability
from adapters.types import (
    ChatRequest,
    CompletionRequest,
    DocumentPart,
    EmbeddingRequest,
    Generation,
    ImagePart,
    ImageUrl,
    Inbound,
    NativePart,
    Part,
    RerankRequest,
)

Request = ChatRequest | CompletionRequest | EmbeddingRequest | RerankRequest
Need = tuple[Capability, str]

WORDS: dict[Capability, str] = {
    "tools": "tools",
    "tool_choice": "a forced call of a tool",
    "parallel_tools": "leaving out parallel calls of tools",
    "images": "images",
    "image_urls": "images named by a web address",
    "audio": "audio",
    "documents": "documents",
    "json_object": "answers in JSON (json_object)",
    "json_schema": "answers that match a JSON Schema",
    "grammars": "answers that match a regular expression, a choice or a grammar",
    "logprobs": "logprobs",
    "n": "several choices (n)",
    "logit_bias": "logit_bias",
    "reasoning": "control of its thinking",
    "suffix": "a suffix",
    "echo": "echo",
    "token_ids": "prompts of token ids",
    "dimensions": "a choice of dimensions",
}


def refusal(name: str, capabilities: frozenset[Capability], request: Request) -> InvalidRequest | None:
    """Why the model called `name`, which can do so much, cannot answer; None when it can."""
    for capability, param in needs(request):
        if capability not in capabilities:
            message = f"The model '{name}' does not support {WORDS[capability]}."
            return InvalidRequest(message, code="unsupported_parameter", param=param)
    return None


def repeatable(request: Request | Inbound) -> bool:
    """Whether it does no harm when two targets get a request: neither of them does more for it than answer."""
    match request:
        case Inbound():
            return not acts(request)
        case ChatRequest():
            return not request.native_tools
        case _:
            return True


def needs(request: Request) -> Iterator[Need]:
    """The capabilities that a request needs, each with the field that does."""
    match request:
        case ChatRequest():
            yield from _chat(request)
            yield from _generation(request.generation)
        case CompletionRequest():
            if request.suffix is not None:
                yield "suffix", "suffix"
            if request.echo:
                yield "echo", "echo"
            if any(not isinstance(prompt, str) for prompt in request.prompts):
                yield "token_ids", "prompt"
            yield from _generation(request.generation)
        case EmbeddingRequest():
            if request.dimensions is not None:
                yield "dimensions", "dimensions"
            if any(not isinstance(one, str) for one in request.inputs):
                yield "token_ids", "input"
        case RerankRequest():
            pass


def _chat(request: ChatRequest) -> Iterator[Need]:
    if request.tools:
        yield "tools", "tools"
        if request.tool_choice.mode == "required":
            yield "tool_choice", "tool_choice"
        if not request.tool_choice.parallel:
            yield "parallel_tools", "parallel_tool_calls"
    for i, message in enumerate(request.messages):
        for j, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
            if (capability := _part(part)) is not None:
                yield capability, f"messages[{i}].content[{j}]"


def _part(part: Part) -> Capability | None:
    match part:
        case ImagePart():
            return "images"
        case ImageUrl():
            return "image_urls"
        case DocumentPart(media_type=kind) if kind != "text/plain":
            return "documents"
        case NativePart(dialect="openai_chat", source=source):
            return "audio" if b'"input_audio"' in source[:40] else "documents"
    return None


def _generation(generation: Generation) -> Iterator[Need]:
    if generation.n > 1:
        yield "n", "n"
    if generation.logprobs is not None:
        yield "logprobs", "logprobs"
    if generation.sampling.logit_bias:
        yield "logit_bias", "logit_bias"
    if (constraint := generation.constraint) is not None:
        match constraint.kind:
            case "json_object" | "json_schema":
                yield constraint.kind, constraint.param
            case _:
                yield "grammars", constraint.param
