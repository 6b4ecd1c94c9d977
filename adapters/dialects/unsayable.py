"""What no dialect but OpenAI's has words for, refused with the field that asks for it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from adapters.errors import InvalidRequest
from adapters.types import ChatRequest, Constraint, DialectName, NativePart, Tool


def unsupported(param: str, reason: str) -> InvalidRequest:
    """A refusal of something that another model could do."""
    return InvalidRequest(f"Invalid value for '{param}': {reason}.", code="unsupported_parameter", param=param)


def check_sayable(request: ChatRequest, *, choices: bool = False, logprobs: bool = False) -> None:
    """Raises for what would change the answer and cannot be asked for; `choices` and `logprobs` say what can."""
    generation = request.generation
    if generation.loras:
        raise unsupported("lora", "this model takes no adapters")
    if generation.n > 1 and not choices:
        raise unsupported("n", "this model gives one answer at a time")
    if generation.logprobs is not None and not logprobs:
        raise unsupported("logprobs", "this model does not tell probabilities")
    if generation.sampling.logit_bias:
        raise unsupported("logit_bias", "this model takes none")


def own_source(part: NativePart, dialect: DialectName, param: str) -> msgspec.Raw:
    """A part in the words of `dialect`; raises where it came in another."""
    if part.dialect != dialect:
        raise unsupported(param, "this model's provider has no words for a part of this type")
    return msgspec.Raw(part.source)


def schema_only(constraint: Constraint | None) -> msgspec.Raw | None:
    """The JSON Schema that an answer must match; raises for any other constraint."""
    if constraint is None:
        return None
    if constraint.kind != "json_schema":
        raise unsupported(constraint.param, f"this model cannot hold its answer to a {constraint.kind}")
    return msgspec.Raw(constraint.source.encode())


def chosen(request: ChatRequest) -> Sequence[Tool]:
    """The tools that a choice leaves: all of them, unless it narrows them down to several."""
    names, mode = request.tool_choice.names, request.tool_choice.mode
    if not names or (mode == "required" and len(names) == 1):
        return request.tools
    return [tool for tool in request.tools if tool.name in names]
