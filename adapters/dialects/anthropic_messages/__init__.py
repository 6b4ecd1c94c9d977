"""Anthropic's Messages API.

`LOST` is what does not survive a translation, by name, because the other side has no words for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from adapters.dialects.anthropic_messages.events_in import EventParser
from adapters.dialects.anthropic_messages.events_out import (
    ChunkRenderer,
    render_answer,
    render_count,
    render_model,
    render_models,
)
from adapters.dialects.anthropic_messages.fields import Body, CountBody
from adapters.dialects.anthropic_messages.request_in import parse_count, parse_request
from adapters.dialects.anthropic_messages.request_out import render_request

__all__ = [
    "LOST",
    "Body",
    "ChunkRenderer",
    "CountBody",
    "EventParser",
    "parse_count",
    "parse_request",
    "render_answer",
    "render_count",
    "render_model",
    "render_models",
    "render_request",
]

LOST: Mapping[str, str] = {
    "seed": "how the answer is drawn cannot be repeated",
    "penalties": "presence and frequency penalties",
    "min_p": "and `ignore_eos`",
    "temperature over 1": "becomes 1; while the model thinks there is none, and no `top_p` and `top_k`",
    "top_p beside temperature": "models take one of them",
    "developer": "becomes a system message",
    "later system messages": "all of them come first, as one",
    "names": "of speakers",
    "unsigned thoughts": "and those of others: Anthropic only takes its own back",
    "signatures of calls": "which only Gemini gives",
    "detail of images": "how closely to look at them",
    "texts without a marker": "of one message become one; empty ones vanish",
    "forced thinking": "before a call that is forced there is none",
    "order of an answer": "thoughts come first, then words, then calls",
    "letters of ids": "other than letters, digits, `_` and `-` become `_`",
    "budget of thinking": "for models that decide themselves; for others an effort becomes a budget",
    "a narrowed choice": "of several tools leaves the others out",
    "audio tokens": "in the usage",
    "citations": "and results of tools that Anthropic runs itself",
}
