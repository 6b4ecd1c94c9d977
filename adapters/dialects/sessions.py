"""The gateway's own objects for kept conversations, in the manner of OpenAI's lists and objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from adapters.dialects.openai_wire import decode
from adapters.types import SessionInfo

_encode = msgspec.json.Encoder().encode


class Fork(msgspec.Struct):
    """What a fork may say: the key of the new session."""

    new_id: Annotated[str, Meta(min_length=1, max_length=512)] | None = None


_fork_decoder = msgspec.json.Decoder(Fork)


def parse_fork(body: bytes) -> str | None:
    """The key asked for, None where the choice is left to the gateway."""
    return decode(_fork_decoder, body).new_id


def render_one(model: str, info: SessionInfo) -> bytes:
    """One session of a model."""
    return _encode(_fields(model, info))


def render_list(sessions: Sequence[tuple[str, SessionInfo]], *, has_more: bool, unavailable: Sequence[str]) -> bytes:
    """A page of sessions, each with its model, and the models that could not be asked."""
    data = [_fields(*session) for session in sessions]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return _encode(
        {"object": "list", "data": data, **ends, "has_more": has_more, "unavailable_models": list(unavailable)}
    )


def render_deleted(model: str, info: SessionInfo) -> bytes:
    """A session as it was when it was erased."""
    return _encode({**_fields(model, info), "object": "session.deleted", "deleted": True})


def _fields(model: str, info: SessionInfo) -> dict[str, object]:
    """Times in Unix seconds, as OpenAI has them."""
    return {
        "id": info.id,
        "object": "session",
        "key": info.key,
        "model": model,
        "owner": info.tenant,
        "tokens": info.tokens,
        "tier": info.tier,
        "size_bytes": info.size_bytes,
        "created_at": info.created_us // 1_000_000,
        "last_used_at": info.used_us // 1_000_000,
        "pinned": info.pinned,
        "checkpoints": info.checkpoints,
    }
