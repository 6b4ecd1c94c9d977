"""What a chat request says about thinking: effort, a budget, and the switches of the model's own template."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from adapters.dialects import openai_wire as wire
from adapters.errors import InvalidRequest
from adapters.types import Thinking

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Budget = Annotated[int, Meta(ge=-1, le=2**31 - 1)]

_TEMPLATE_EFFORT: dict[str, str] = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
"""Templates know three efforts at most; a budget of nothing does the rest of `none`."""


class Reasoning(msgspec.Struct):
    """As OpenRouter spells it."""

    effort: Effort | None = None
    max_tokens: Budget | None = None
    enabled: bool | None = None
    exclude: bool | None = None


class TemplateArguments(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The switches of templates that a request may turn. Whatever else a template reads is ours to give."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    clear_thinking: bool | None = None
    preserve_thinking: bool | None = None
    thinking_budget: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    reasoning_effort: Annotated[str, Meta(pattern=r"^[a-z_]{1,16}\Z")] | None = None
    tools_in_user_message: bool | None = None
    date_string: Annotated[str, Meta(pattern=r"^[\w ,./:+-]{1,40}\Z")] | None = None


class ReasoningFields(wire.GenerationFields, kw_only=True):
    """The fields of a request; the budget goes by the names of llama-server, vLLM, Qwen and templates."""

    reasoning_effort: Effort | None = None
    reasoning: Reasoning | None = None
    include_reasoning: bool | None = None
    thinking_budget_tokens: Budget | None = None
    thinking_token_budget: Budget | None = None
    thinking_budget: Budget | None = None
    reasoning_budget: Budget | None = None
    chat_template_kwargs: TemplateArguments | None = None


def switches(enabled: bool | None, effort: Effort | None) -> dict[str, str | bool | int]:
    """Values for the switches of a model's template."""
    arguments: dict[str, str | bool | int] = {}
    if effort is not None:
        arguments["reasoning_effort"] = _TEMPLATE_EFFORT.get(effort, effort)
    if enabled is not None:
        arguments |= {"enable_thinking": enabled, "thinking": enabled}
    return arguments


def parse_thinking(fields: ReasoningFields) -> Thinking:
    """The same for a provider."""
    nested = fields.reasoning or Reasoning()
    effort = fields.reasoning_effort or nested.effort
    switch = fields.chat_template_kwargs.enable_thinking if fields.chat_template_kwargs is not None else None
    enabled = (switch if nested.enabled is None else nested.enabled) if effort is None else effort != "none"
    budget = _budget(fields, nested, thinks=True)
    shown = fields.include_reasoning if nested.exclude is None else not nested.exclude
    return Thinking(enabled, None if effort == "none" else effort, budget, shown)


def parse_reasoning(fields: ReasoningFields) -> tuple[dict[str, str | bool | int], int | None]:
    """Values for the template's switches, and after how many tokens thinking ends (None: never)."""
    nested = fields.reasoning or Reasoning()
    effort = fields.reasoning_effort or nested.effort
    on = nested.enabled if effort is None else effort != "none"
    own = fields.chat_template_kwargs or TemplateArguments()
    given = {name: value for name, value in msgspec.structs.asdict(own).items() if value is not None}
    arguments = switches(on, effort) | given
    if on is None:
        on = own.enable_thinking if own.thinking is None else own.thinking
    return arguments, _budget(fields, nested, thinks=on is not False)


def _budget(fields: ReasoningFields, nested: Reasoning, *, thinks: bool) -> int | None:
    names = ("thinking_budget_tokens", "thinking_token_budget", "thinking_budget", "reasoning_budget")
    given = {name: value for name in names if (value := getattr(fields, name)) is not None}
    if fields.chat_template_kwargs is not None and fields.chat_template_kwargs.thinking_budget is not None:
        given["chat_template_kwargs.thinking_budget"] = fields.chat_template_kwargs.thinking_budget
    if nested.max_tokens is not None:
        given["reasoning.max_tokens"] = nested.max_tokens
    if len(set(given.values())) > 1:
        *_, name = given
        raise InvalidRequest(f"Invalid value for '{name}': it differs from '{next(iter(given))}'.", param=name)
    budget = next(iter(given.values()), -1 if thinks else 0)
    return None if budget < 0 else budget
