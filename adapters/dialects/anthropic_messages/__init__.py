"""Anthropic's Messages API.

`LOST` is what does not survive a translation, by name, because the other side has no words for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from adapters.dialects.anthropic_messages.events_out import (
    ChunkRenderer,
    render_answer,
    render_count,
    render_model,
    render_models,
)
from adapters.dialects.anthropic_messages.fields import Body, CountBody
from adapters.dialects.anthropic_messages.request_in import parse_count, parse_request

__all__ = [
    "LOST",
    "Body",
    "ChunkRenderer",
    "CountBody",
    "parse_count",
    "parse_request",
    "render_answer",
    "render_count",
    "render_model",
    "render_models",
]

LOST: Mapping[str, str] = {}
