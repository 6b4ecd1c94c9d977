"""Anthropic's messages, passed on as they came."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from adapters.dialects import openai_wire as wire
from adapters.dialects.anthropic_messages.ending import MessageEnding
from adapters.dialects.anthropic_messages.events_in import WireUsage, parse_usage
from adapters.dialects.anthropic_messages.fields import Metadata
from adapters.dialects.client import Style
from adapters.dialects.failures import failure_in_stream
from adapters.dialects.passing import Addresses, NamedWatch, Passing, Signs, decoded, strange
from adapters.dialects.plain import NOTHING, all_text, fields_of, objects
from adapters.dialects.splicing import Parts, rename, replace_one
from adapters.errors import UpstreamInvalid
from adapters.types import Head, Inbound, Usage

# What of a stream has to be looked at; anything else is shown as it comes.
_TOLD = (b'"usage"', b'"error"', b"message_stop")

_encode = msgspec.json.Encoder().encode


class _Head(wire.RequestFields, kw_only=True):
    """What is read of any request."""

    model: wire.ModelName
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    stream: bool | None = None
    metadata: Metadata | None = None


class _Begun(msgspec.Struct):
    usage: WireUsage | None = None


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    """A message of a request of which only its content is looked at."""

    content: msgspec.Raw
    role: msgspec.Raw = NOTHING


class _Text(msgspec.Struct, tag="text", forbid_unknown_fields=True):
    """A block that is nothing but text."""

    text: msgspec.Raw = NOTHING
    cache_control: msgspec.Raw = NOTHING


class _Event(msgspec.Struct):
    """What may be looked at in an event, or in a whole answer."""

    type: str = ""
    message: _Begun | None = None
    usage: WireUsage | None = None


_messages_decoder = msgspec.json.Decoder(list[_Message])
_texts_decoder = msgspec.json.Decoder(list[_Text])
_head_decoder = msgspec.json.Decoder(_Head)
_event_decoder = msgspec.json.Decoder(_Event)


def read_head(body: bytes) -> Head:
    """The head of a request."""
    fields, members = fields_of(_head_decoder, body)
    wire.refuse_redirects(fields)
    user = fields.metadata.user_id if fields.metadata is not None else None
    return Head(
        fields.model,
        bool(fields.stream),
        fields.max_tokens,
        session_key=user or None,
        usage_wanted=True,
        members=members,
        plain=members is not None and _is_plain(members.values),
    )


def _is_plain(members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether there is nothing but text in the messages and what stands before them."""
    try:
        said = [one.content for one in _messages_decoder.decode(members.get("messages", NOTHING))]
    except (msgspec.DecodeError, RecursionError):
        return False
    return all_text([members.get("system", NOTHING), *said], _texts_decoder)


def rewrite(inbound: Inbound, model: str, style: Style) -> Parts:
    """The body with the target's model; a bound of the answer is always there. Where the address says the model, the
    body says the version of the dialect instead."""
    if style.anthropic_version:
        return rename(inbound.body, "model", "anthropic_version", _encode(style.anthropic_version))
    return replace_one(inbound.body, "model", _encode(model), inbound.head.members)


def usage_of(body: bytes) -> Usage:
    """What a whole answer says that it used."""
    event = decoded(_event_decoder, body)
    if event.type != "message":
        raise failure_in_stream(body) or strange()
    return parse_usage(event.usage)


class Events:
    """The events of one stream. Each piece of an answer is one token at least."""

    def __init__(self) -> None:
        self.usage = Usage()
        self._reports: list[WireUsage | None] = []

    def ends(self, payload: bytes) -> bool:
        event = decoded(_event_decoder, payload)
        match event.type:
            case "error":
                raise failure_in_stream(payload) or UpstreamInvalid("The provider failed.")
            case "message_start" | "message_delta":
                self._reports += [event.message.usage if event.message is not None else None, event.usage]
                self.usage = parse_usage(*self._reports)
        return event.type == "message_stop"


def watch(inbound: Inbound) -> NamedWatch:
    return NamedWatch(_TOLD, b"event: content_block_delta\n", Events())


def _addresses(body: bytes) -> Iterator[str]:
    said = msgspec.json.decode(body, type=_Said)
    for one in objects([said.messages, said.system]):
        source = one.get("source")
        if isinstance(source, dict) and "url" in source:
            yield str(source["url"])


class _Said(msgspec.Struct):
    """The parts of a body that images can stand in."""

    messages: Any = None
    system: Any = None


_ADDRESSES = Addresses((b'"url"',), _addresses)
# What stands in a request that needs a capability.
_SIGNS = Signs(
    {
        "tools": (b'"tools"',),
        "tool_choice": (b'"tool_choice"',),
        "parallel_tools": (b'"disable_parallel_tool_use"',),
        "images": (b'"image"',),
        "documents": (b'"document"',),
        "json_schema": (b'"json_schema"',),
        "reasoning": (b'"thinking"', b'"effort"'),
    },
    said=("messages", "system"),
    addresses=_ADDRESSES,
)
_NEUTRAL = frozenset(("model", "metadata"))
_SPOILT = re.compile(rb'"stop_reason"\s*:\s*"refusal"')

MESSAGES = Passing(
    kind="chat",
    read_head=read_head,
    rewrite=rewrite,
    watch=watch,
    usage_of=usage_of,
    may_need=_SIGNS.may_need,
    neutral=_NEUTRAL,
    spoilt=_SPOILT,
    inside=_ADDRESSES.inside,
    ending=MessageEnding,
)
