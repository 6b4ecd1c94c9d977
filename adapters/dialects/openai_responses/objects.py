"""The objects of the Responses API: a response with all of its fields, and the items of its output."""

from __future__ import annotations

from typing import Any

import msgspec

from adapters.conversation import OPENAI
from adapters.dialects import openai_wire as wire
from adapters.dialects.openai_responses.request_in import ResponsesInbound
from adapters.types import ChatRequest, Constraint, FinishReason, Tool, ToolCall, Usage

Fields = dict[str, Any]

INCOMPLETE: dict[FinishReason, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}


def response(head: wire.ResponseHead, inbound: ResponsesInbound, status: str, output: list[Fields]) -> Fields:
    """The response so far; SDKs expect every field."""
    request = inbound.request
    generation, sampling = request.generation, request.generation.sampling
    return {
        "id": head.id,
        "object": "response",
        "created_at": head.created,
        "status": status,
        "background": inbound.background,
        "error": None,
        "incomplete_details": None,
        "instructions": inbound.instructions,
        "max_output_tokens": generation.max_tokens,
        "max_tool_calls": None,
        "model": head.model,
        "output": output,
        "parallel_tool_calls": request.tool_choice.parallel,
        "previous_response_id": inbound.previous_response_id,
        "prompt_cache_key": inbound.session_key,
        "reasoning": {"effort": request.thinking.effort, "summary": inbound.summary},
        "safety_identifier": request.end_user,
        "service_tier": "default",
        "store": bool(inbound.store),
        "temperature": 1.0 if sampling.temperature is None else sampling.temperature,
        "text": {"format": _format(generation.constraint, inbound), "verbosity": inbound.verbosity or "medium"},
        "tool_choice": _choice(request),
        "tools": [_tool(tool) for tool in request.tools],
        "top_logprobs": generation.logprobs or 0,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": inbound.metadata,
    }


def ended(fields: Fields, reason: FinishReason | None, usage: Usage) -> Fields:
    """A response at its end."""
    incomplete = INCOMPLETE.get(reason) if reason is not None else None
    return fields | {
        "status": "completed" if incomplete is None else "incomplete",
        "incomplete_details": None if incomplete is None else {"reason": incomplete},
        "usage": usage_fields(usage),
    }


def usage_fields(usage: Usage) -> Fields:
    """OpenAI's usage under the names of this API."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def reasoning_item(id: str, text: str, signature: str | None, shown: bool) -> Fields:
    """A thought; what only its provider can read comes along when the client asked for it."""
    encrypted = signature.removeprefix(OPENAI) if shown and signature and signature.startswith(OPENAI) else None
    summary = [{"type": "summary_text", "text": text}] if text else []
    return {"id": id, "type": "reasoning", "summary": summary, "encrypted_content": encrypted, "status": "completed"}


def message_item(id: str, content: list[Fields], status: str = "completed") -> Fields:
    return {"id": id, "type": "message", "status": status, "role": "assistant", "content": content}


def text_part(text: str, logprobs: list[Fields] | None = None) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def refusal_part(text: str) -> Fields:
    return {"type": "refusal", "refusal": text}


def call_item(id: str, call: ToolCall, status: str = "completed") -> Fields:
    return {
        "id": id,
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def _format(constraint: Constraint | None, inbound: ResponsesInbound) -> Fields:
    match constraint:
        case Constraint(kind="json_schema"):
            schema = msgspec.Raw(constraint.source.encode())
            name = inbound.format_name or "answer"
            return {"type": "json_schema", "name": name, "schema": schema, "strict": constraint.strict}
        case Constraint(kind="json_object"):
            return {"type": "json_object"}
    return {"type": "text"}


def _choice(request: ChatRequest) -> Any:
    choice = request.tool_choice
    if not choice.names:
        return choice.mode
    if choice.mode == "required" and len(choice.names) == 1:
        return {"type": "function", "name": choice.names[0]}
    allowed = [{"type": "function", "name": name} for name in choice.names]
    return {"type": "allowed_tools", "mode": choice.mode, "tools": allowed}


def _tool(tool: Tool) -> Fields:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description or None,
        "parameters": msgspec.Raw(tool.parameters),
        "strict": tool.strict,
    }
