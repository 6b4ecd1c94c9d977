"""Anthropic's messages, passed on as they came."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from adapters.dialects import openai_wire as wire
from adapters.dialects.anthropic_messages.events_in import WireUsage, parse_usage
from adapters.dialects.anthropic_messages.fields import Metadata
from adapters.dialects.client import Style
from adapters.dialects.failures import failure_in_stream
from adapters.dialects.passing import Passing
from adapters.dialects.splicing import Parts, rename, splice
from adapters.errors import BrokeOff, UpstreamInvalid
from adapters.types import Head, Inbound, Usage

# What stands in a request that needs a capability.
SIGNS: Mapping[str, tuple[bytes, ...]] = {
    "tools": (b'"tools"',),
    "tool_choice": (b'"tool_choice"',),
    "parallel_tools": (b'"disable_parallel_tool_use"',),
    "images": (b'"image"',),
    "documents": (b'"document"',),
    "json_schema": (b'"json_schema"',),
    "reasoning": (b'"thinking"', b'"effort"'),
}
# What of a stream has to be looked at; anything else is shown as it comes.
_TOLD = (b'"usage"', b'"error"', b"message_stop")

_encode = msgspec.json.Encoder().encode


class _Head(wire.RequestFields, kw_only=True):
    """What is read of any request."""

    model: wire.ModelName
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    stream: bool | None = None
    metadata: Metadata | None = None


class _Message(msgspec.Struct):
    usage: WireUsage | None = None


class _Event(msgspec.Struct):
    """What may be looked at in an event, or in a whole answer."""

    type: str = ""
    message: _Message | None = None
    usage: WireUsage | None = None


_head_decoder = msgspec.json.Decoder(_Head)
_event_decoder = msgspec.json.Decoder(_Event)


def read_head(body: bytes) -> Head:
    """The head of a request."""
    fields = wire.decode(_head_decoder, body)
    wire.refuse_redirects(fields)
    user = fields.metadata.user_id if fields.metadata is not None else None
    return Head(fields.model, bool(fields.stream), fields.max_tokens, session_key=user or None, usage_wanted=True)


def rewrite(inbound: Inbound, model: str, style: Style) -> Parts:
    """The body with the target's model; a bound of the answer is always there. Where the address says the model, the
    body says the version of the dialect instead."""
    if style.anthropic_version:
        return rename(inbound.body, "model", "anthropic_version", _encode(style.anthropic_version))
    return splice(inbound.body, {"model": _encode(model)}, {})


def usage_of(body: bytes) -> Usage:
    """What a whole answer says that it used."""
    event = _decoded(body)
    if event.type != "message":
        raise failure_in_stream(body) or UpstreamInvalid("The provider's answer is not what was agreed on.")
    return parse_usage(event.usage)


def _decoded(payload: bytes) -> _Event:
    try:
        return _event_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamInvalid("The provider's answer is not what was agreed on.") from None


class EventWatch:
    """The events of one stream. Each piece of an answer is one token at least."""

    def __init__(self, inbound: Inbound) -> None:
        self.usage = Usage()
        self.done = False
        self._reports: list[WireUsage | None] = []
        self._last = b""

    def passed(self, frames: bytes, events: int) -> tuple[bytes, int]:
        if self.done:
            return b"", 0
        if any(sign in frames for sign in _TOLD):
            frames = b"".join(frame + b"\n\n" for frame in frames[:-2].split(b"\n\n") if self._wanted(frame))
        return frames, frames.count(b"event: content_block_delta\n")

    def _wanted(self, frame: bytes) -> bool:
        if self.done:
            return False
        payload = frame[frame.index(b"data: ") + 6 :]
        event = _decoded(payload)
        match event.type:
            case "error":
                raise failure_in_stream(payload) or UpstreamInvalid("The provider failed.")
            case "message_start" | "message_delta":
                self._reports += [event.message.usage if event.message is not None else None, event.usage]
                self.usage = parse_usage(*self._reports)
            case "message_stop":
                self.done, self._last = True, frame + b"\n\n"
        return not self.done

    def end(self) -> bytes:
        if not self.done:
            raise BrokeOff("The provider's answer broke off.")
        return self._last


def may_need(inbound: Inbound, capabilities: Collection[str]) -> bool:
    """Goes by the bytes of names and values anywhere in the body; escaped ones count as any. Addresses of images and
    documents are looked for where there may be one."""
    body, escaped = inbound.body, b"\\u00" in inbound.body
    if "image_urls" in capabilities and (escaped or b'"url"' in body) and _names_images(body):
        return True
    signs = [sign for capability in capabilities for sign in SIGNS.get(capability, ())]
    return bool(signs) and (escaped or any(sign in body for sign in signs))


def _names_images(body: bytes) -> bool:
    """Whether anything said is to be fetched; what is not as it should be counts as that."""
    try:
        said = msgspec.json.decode(body, type=_Said)
    except (msgspec.DecodeError, RecursionError):
        return True
    return _fetched(said.messages) or _fetched(said.system)


def _fetched(node: Any) -> bool:
    if isinstance(node, list):
        return any(map(_fetched, node))
    if not isinstance(node, dict):
        return False
    source = node.get("source")
    return (isinstance(source, dict) and "url" in source) or any(map(_fetched, node.values()))


class _Said(msgspec.Struct):
    """The parts of a body that images can stand in."""

    messages: Any = None
    system: Any = None


_NEUTRAL = frozenset(("model", "metadata"))
_SPOILT = re.compile(rb'"stop_reason"\s*:\s*"refusal"')

MESSAGES = Passing("chat", read_head, rewrite, EventWatch, usage_of, may_need, _NEUTRAL, _SPOILT)
