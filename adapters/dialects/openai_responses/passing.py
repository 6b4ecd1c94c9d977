"""Requests of the Responses API, passed on as they came: nothing is kept, neither here nor where they are answered."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from adapters.dialects import openai_wire as wire
from adapters.dialects.client import Style
from adapters.dialects.openai_responses.ending import ResponseEnding
from adapters.dialects.openai_responses.events_in import ENDS, failed
from adapters.dialects.openai_responses.fields import Id
from adapters.dialects.openai_responses.request_in import parse_compaction, refuse_kept
from adapters.dialects.openai_responses.request_out import ENCRYPTED, thoughtful
from adapters.dialects.openai_usage import WireUsage, parse_usage
from adapters.dialects.passing import Addresses, NamedWatch, Passing, Signs, decoded, strange
from adapters.dialects.plain import NOTHING, all_text, chosen, fields_of, objects
from adapters.dialects.splicing import Parts, replace_one, splice
from adapters.types import Head, Inbound, Usage

# What of a stream has to be looked at; anything else is shown as it comes.
_TOLD = (*(b'"%b"' % kind.encode() for kind in ENDS), b"[DONE]")

_None = Annotated[list[msgspec.Raw], Meta(max_length=0)]

_encode = msgspec.json.Encoder().encode


class _Head(wire.RequestFields, kw_only=True):
    """What is read of any request."""

    model: wire.ModelName
    stream: bool | None = None
    max_output_tokens: wire.Count | None = None
    prompt_cache_key: wire.SessionKey | None = None
    store: bool | None = None
    previous_response_id: Id | None = None
    conversation: Any = None
    background: bool | None = None


class _Routed(msgspec.Struct):
    """The fields that may be replaced, once the head has been read."""

    max_output_tokens: Any = msgspec.UNSET
    store: Any = msgspec.UNSET
    include: Any = msgspec.UNSET


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    """A message of which only its content is looked at, and no item of another kind."""

    content: msgspec.Raw
    type: Literal["message"] = "message"
    role: msgspec.Raw = NOTHING
    id: msgspec.Raw = NOTHING
    status: msgspec.Raw = NOTHING
    phase: msgspec.Raw = NOTHING


class _InputText(msgspec.Struct, tag="input_text", forbid_unknown_fields=True):
    """A part that is nothing but text."""

    text: msgspec.Raw = NOTHING


class _OutputText(msgspec.Struct, tag="output_text", forbid_unknown_fields=True):
    """The same of an earlier answer."""

    text: msgspec.Raw = NOTHING
    annotations: _None = []
    logprobs: _None = []


class _Response(msgspec.Struct):
    """What is looked at in an answer."""

    object: str = ""
    error: msgspec.Raw = msgspec.Raw(b"null")
    usage: WireUsage | None = None


class _Event(msgspec.Struct):
    type: str = ""
    response: _Response | None = None


_items_decoder = msgspec.json.Decoder(list[_Message])
_texts_decoder = msgspec.json.Decoder(list[_InputText | _OutputText])
_head_decoder = msgspec.json.Decoder(_Head)
_routed_decoder = msgspec.json.Decoder(_Routed)
_response_decoder = msgspec.json.Decoder(_Response)
_event_decoder = msgspec.json.Decoder(_Event)


def read_head(body: bytes) -> Head:
    """The head of a request; one that needs what was kept is refused."""
    fields, members = fields_of(_head_decoder, body)
    wire.refuse_redirects(fields)
    refuse_kept(fields.store, fields.previous_response_id, fields.conversation, fields.background)
    return Head(
        fields.model,
        bool(fields.stream),
        fields.max_output_tokens,
        session_key=fields.prompt_cache_key or None,
        usage_wanted=True,
        members=members,
        plain=members is not None and _is_plain(members.values.get("input", NOTHING)),
    )


def _is_plain(given: msgspec.Raw) -> bool:
    """Whether an input is text, or messages that are."""
    if bytes(memoryview(given)[:1]) != b"[":
        return all_text([given], _texts_decoder)
    try:
        return all_text([one.content for one in _items_decoder.decode(given)], _texts_decoder)
    except (msgspec.DecodeError, RecursionError):
        return False


def read_compaction(body: bytes) -> Head:
    """The head of a request to compact a conversation."""
    fields = parse_compaction(body)
    return Head(fields.model, session_key=fields.prompt_cache_key or None, usage_wanted=True)


def rewrite_compaction(inbound: Inbound, model: str, style: Style) -> Parts:
    """The body with the target's model."""
    return replace_one(inbound.body, "model", _encode(model))


def rewrite(inbound: Inbound, model: str, style: Style) -> Parts:
    """The body with the target's model, with a bound of the answer where there is one, and never without `store`, which
    would mean that the provider keeps what nobody can ask for or erase.

    Who left it out will send the answer's thoughts back and expect them to be known; so they are asked for encrypted.
    """
    fields = _routed_decoder.decode(chosen(inbound, _Routed.__struct_fields__))
    replaced: dict[str, bytes] = {"model": _encode(model)}
    added: dict[str, bytes] = {}
    wanted = [("store", fields.store, b"false")] if fields.store in (msgspec.UNSET, None) else []
    if wanted and style.thoughtful and thoughtful(model, style):
        asked = fields.include if isinstance(fields.include, list) else []
        if ENCRYPTED not in asked:
            wanted.append(("include", fields.include, _encode([*asked, ENCRYPTED])))
    if inbound.output_tokens_max is not None:
        wanted.append(("max_output_tokens", fields.max_output_tokens, b"%d" % inbound.output_tokens_max))
    for name, given, value in wanted:
        (added if given is msgspec.UNSET else replaced)[name] = value
    return splice(inbound.body, replaced, added, inbound.head.members)


def usage_of(body: bytes) -> Usage:
    """What a whole answer says that it used."""
    answer = decoded(_response_decoder, body)
    if bytes(answer.error) != b"null":
        raise failed(answer.error)
    if answer.object not in ("response", "response.compaction"):
        raise strange()
    return Usage() if answer.usage is None else parse_usage(answer.usage)


class Events:
    """The events of one stream. Each delta is one token at least."""

    usage = Usage()

    def ends(self, payload: bytes) -> bool:
        event = decoded(_event_decoder, payload)
        if event.type not in ENDS:
            return False
        if event.type == "error" or event.response is None:
            raise failed(payload)
        if event.type == "response.failed":
            raise failed(event.response.error)
        self.usage = Usage() if event.response.usage is None else parse_usage(event.response.usage)
        return True


def watch(inbound: Inbound) -> NamedWatch:
    return NamedWatch(_TOLD, b'.delta"', Events())


_FETCHED = ("image_url", "file_url", "video_url", "audio_url")


def _addresses(body: bytes) -> Iterator[str]:
    for one in objects(msgspec.json.decode(body, type=_Said).input):
        for name in _FETCHED:
            url = one.get(name)
            if url is not None and not str(url).startswith("data:"):
                yield str(url)


class _Said(msgspec.Struct):
    """The part of a body that images can stand in."""

    input: Any = None


_ADDRESSES = Addresses((b'_url"',), _addresses)
# What stands in a request that needs a capability.
_SIGNS = Signs(
    {
        "tools": (b'"tools"',),
        "tool_choice": (b'"tool_choice"',),
        "parallel_tools": (b'"parallel_tool_calls"',),
        "images": (b'"input_image"',),
        "audio": (b'"input_audio"',),
        "documents": (b'"input_file"',),
        "json_object": (b'"json_object"',),
        "json_schema": (b'"json_schema"',),
        "grammars": (b'"grammar"',),
        "logprobs": (b'"top_logprobs"', b'logprobs"'),
        "reasoning": (b'"reasoning"',),
    },
    said=("input",),
    addresses=_ADDRESSES,
)
# An answer repeats for whom it is.
_NEUTRAL = frozenset(("model",))
_SPOILT = re.compile(rb'"reason"\s*:\s*"content_filter"')

RESPONSES = Passing(
    kind="chat",
    read_head=read_head,
    rewrite=rewrite,
    watch=watch,
    usage_of=usage_of,
    may_need=_SIGNS.may_need,
    neutral=_NEUTRAL,
    spoilt=_SPOILT,
    inside=_ADDRESSES.inside,
    ending=ResponseEnding,
)
COMPACTION = replace(RESPONSES, read_head=read_compaction, rewrite=rewrite_compaction)
