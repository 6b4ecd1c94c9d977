"""OpenAI's model objects."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from adapters.types import ModelCard

OWNER = "inference-gateway"

_encode = msgspec.json.Encoder().encode


def render_one(name: str, created_s: int, card: ModelCard) -> bytes:
    """One model."""
    return _encode(_fields(name, created_s, card))


def render_list(models: Iterable[tuple[str, int, ModelCard]]) -> bytes:
    """Several, each as its name, its Unix time of creation and its card."""
    return _encode({"object": "list", "data": [_fields(*model) for model in models]})


def _fields(name: str, created_s: int, card: ModelCard) -> dict[str, object]:
    """OpenAI's four fields, and what clients that know more may use; what is not known is left out."""
    known = {
        "context_length": card.context_tokens,
        "parameters": card.parameters,
        "size_bytes": card.size_bytes,
        "description": card.description or None,
        "capabilities": (*card.kinds, "vision") if card.vision else card.kinds,
        "parent": card.parent,
    }
    fields: dict[str, object] = {"id": name, "object": "model", "created": created_s, "owned_by": OWNER}
    return fields | {key: value for key, value in known.items() if value is not None}
