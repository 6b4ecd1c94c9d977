"""OpenAI's chat completions, completions and embeddings, passed on as they came."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from adapters.dialects import openai_wire as wire
from adapters.dialects.client import Style
from adapters.dialects.endings import OpenAIEnding
from adapters.dialects.failures import failure_in_stream
from adapters.dialects.openai_completions import MAX_TOKENS_DEFAULT
from adapters.dialects.openai_tools import invalid
from adapters.dialects.openai_usage import WireUsage, parse_usage, together
from adapters.dialects.passing import Addresses, Passing, Signs, decoded, strange
from adapters.dialects.plain import NOTHING, all_text, chosen, fields_of
from adapters.dialects.splicing import Parts, replace_one, splice
from adapters.errors import BrokeOff, InvalidRequest
from adapters.types import Head, Inbound, Usage

TAIL_BYTES = 4096
# Of so many pieces of a stream the last bytes are kept.
TAIL_PIECES = 16


_USAGE = re.compile(rb'"usage"\s*:\s*\{')
# Text that an event brings, be it of an answer, of a call or of a thought.
_SAID = re.compile(rb'"(?:text|content|reasoning_content|arguments|refusal)"\s*:\s*"[^"]')
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')

# These are no variables of templates. Older versions of vLLM serve nobody else while they tokenize for such a request.
_NO_ARGUMENTS = {"chat_template": wire.NO_TEMPLATES, "tokenize": "how prompts are read comes with the model"}

_encode = msgspec.json.Encoder().encode


class HeadFields(wire.RequestFields, kw_only=True):
    """What is read of any request. Engines such as vLLM would render a template that came with it."""

    model: wire.ModelName
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    n: wire.Count | None = None
    max_tokens: wire.Count | None = None
    prompt_cache_key: wire.SessionKey | None = None
    session_id: wire.SessionKey | None = None
    chat_template: Any = None
    chat_template_kwargs: Any = None


class ChatFields(HeadFields, kw_only=True):
    max_completion_tokens: wire.Count | None = None


class CompletionFields(HeadFields, kw_only=True):
    prompt: Any = None
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    best_of: wire.Count | None = None


class RoutedFields(msgspec.Struct):
    """The fields that may be replaced, once the head has been read."""

    stream_options: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET
    max_tokens: Any = msgspec.UNSET
    max_completion_tokens: Any = msgspec.UNSET


class Chunk(msgspec.Struct):
    """What may be looked at in a chunk, or in a whole answer."""

    usage: msgspec.Raw = NOTHING
    choices: list[msgspec.Raw] | None = None
    data: msgspec.Raw = NOTHING


class Whole(msgspec.Struct):
    """A whole answer that is as it should be."""

    choices: list[msgspec.Raw] | None = None
    data: msgspec.Raw = NOTHING
    usage: WireUsage | None = None


class Said(msgspec.Struct):
    """A message of which only its content is looked at."""

    content: msgspec.Raw = NOTHING


class TextPart(msgspec.Struct, tag="text", forbid_unknown_fields=True):
    """A part of a content that is nothing but text."""

    text: msgspec.Raw = NOTHING
    cache_control: msgspec.Raw = NOTHING


_said_decoder = msgspec.json.Decoder(list[Said])
_texts_decoder = msgspec.json.Decoder(list[TextPart])
_chat_decoder = msgspec.json.Decoder(ChatFields)
_completion_decoder = msgspec.json.Decoder(CompletionFields)
_embedding_decoder = msgspec.json.Decoder(HeadFields)
_routed_decoder = msgspec.json.Decoder(RoutedFields)
_chunk_decoder = msgspec.json.Decoder(Chunk)
_whole_decoder = msgspec.json.Decoder(Whole)
_usage_decoder = msgspec.json.Decoder(WireUsage | None)


def read_chat(body: bytes) -> Head:
    """The head of a chat completion."""
    fields, members = fields_of(_chat_decoder, body)
    head = _head(fields, fields.max_completion_tokens or fields.max_tokens)
    if members is None:
        return head
    return replace(head, members=members, plain=_is_plain(members.outline, members.values.get("messages", NOTHING)))


def _is_plain(body: bytes, messages: msgspec.Raw) -> bool:
    """Whether the content of every message in a body is text, in one piece or in parts."""
    if body.find(b"[", body.find(b"[") + 1) < 0 and bytes(memoryview(messages)[:1]) == b"[":
        return True  # The only list is that of the messages.
    try:
        return all_text([one.content for one in _said_decoder.decode(messages)], _texts_decoder)
    except (msgspec.DecodeError, RecursionError):
        return False


def read_completion(body: bytes) -> Head:
    """The head of a legacy completion; `n` counts what is generated for all of its prompts."""
    fields = wire.decode(_completion_decoder, body)
    prompt = fields.prompt
    several = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    max_tokens = MAX_TOKENS_DEFAULT if fields.max_tokens is None else fields.max_tokens
    tried = max(fields.best_of or 1, fields.n or 1) * (len(prompt) if several else 1)
    return replace(_head(fields, max_tokens), n=tried)


def read_embedding(body: bytes) -> Head:
    """The head of an embedding request, which has no answer in tokens."""
    fields = wire.decode(_embedding_decoder, body)
    if fields.stream:
        raise InvalidRequest("Invalid value for 'stream': embeddings come as a whole.", param="stream")
    return _head(fields, None)


def _head(fields: HeadFields, max_tokens: int | None) -> Head:
    wire.refuse_redirects(fields)
    if fields.chat_template is not None:
        raise invalid("chat_template", wire.NO_TEMPLATES)
    if isinstance(fields.chat_template_kwargs, dict):
        for name, reason in _NO_ARGUMENTS.items():
            if name in fields.chat_template_kwargs:
                raise invalid(f"chat_template_kwargs.{name}", reason)
    options = fields.stream_options
    if options and not fields.stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise InvalidRequest(message, param="stream_options")
    return Head(
        model=fields.model,
        stream=bool(fields.stream),
        max_tokens=max_tokens,
        n=fields.n or 1,
        session_key=fields.prompt_cache_key or fields.session_id or None,
        usage_wanted=options is not None and options.get("include_usage") is True,
    )


def rewrite(inbound: Inbound, model: str, style: Style) -> Parts:
    """The body with the target's model, with the usage asked for, and with a bound of the answer where there is one."""
    head = inbound.head
    want_usage = head.stream and not head.usage_wanted and style.usage_option
    if not want_usage and inbound.output_tokens_max is None:
        return replace_one(inbound.body, "model", _encode(model), head.members)
    replaced: dict[str, bytes] = {"model": _encode(model)}
    added: dict[str, bytes] = {}
    fields = _routed_decoder.decode(chosen(inbound, RoutedFields.__struct_fields__))
    if want_usage:
        options = fields.stream_options
        given = options if isinstance(options, dict) else {}
        place = added if options is msgspec.UNSET else replaced
        place["stream_options"] = _encode({**given, "include_usage": True})
    if inbound.output_tokens_max is not None:
        _bound(inbound.output_tokens_max, fields, style, replaced, added)
    return splice(inbound.body, replaced, added, head.members)


def _bound(
    tokens_max: int, fields: RoutedFields, style: Style, replaced: dict[str, bytes], added: dict[str, bytes]
) -> None:
    """Bound the answer in the field that the target knows; where the author wrote null, that is replaced."""
    written = {"max_tokens": fields.max_tokens, "max_completion_tokens": fields.max_completion_tokens}
    name = next((name for name, value in written.items() if value is not msgspec.UNSET), style.max_tokens)
    place = added if written[name] is msgspec.UNSET else replaced
    place[name] = b"%d" % tokens_max


def usage_of(body: bytes) -> Usage:
    """What a whole answer says that it used."""
    try:
        whole = _whole_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _usage_of_another(body)
    if whole.choices is None and whole.data is NOTHING:
        return _usage_of_another(body)
    return Usage() if whole.usage is None else parse_usage(whole.usage)


def _usage_of_another(body: bytes) -> Usage:
    """The same of an answer whose usage is not as it should be; raises what else it is."""
    chunk = decoded(_chunk_decoder, body)
    if chunk.choices is None and chunk.data is NOTHING:
        raise failure_in_stream(body) or strange()
    return _reported(chunk.usage)


def _reported(raw: msgspec.Raw) -> Usage:
    """A usage that makes no sense counts as none."""
    try:
        given = _usage_decoder.decode(raw)
        return Usage() if given is None else parse_usage(given)
    except msgspec.DecodeError:
        return Usage()


class ChunkWatch:
    """The chunks of one stream.

    The usage that the client did not ask for comes in a chunk of its own, which is left out. The opening and closing
    chunks of each choice hold no text, so that many are not counted.
    """

    def __init__(self, inbound: Inbound) -> None:
        self.usage = Usage()
        self.done = False
        self._hide_usage = not inbound.head.usage_wanted
        self._uncounted = 3 * inbound.head.n
        self._said = False
        self._tail: deque[bytes] = deque(maxlen=TAIL_PIECES)

    def passed(self, frames: bytes, events: int) -> tuple[bytes, int]:
        if self.done:
            return b"", 0
        # No line begins inside of a text.
        chunks = frames.count(b"\ndata: {") + frames.startswith(b"data: {")
        plain = frames.find(b'"error"') < 0 and chunks == events
        if not plain or (frames.find(b'"usage"') >= 0 and _USAGE.search(frames)):
            frames, events = self._looked_at(frames)
        self._tail.append(frames if len(frames) <= TAIL_BYTES else frames[-TAIL_BYTES:])
        if self._uncounted:
            skipped = min(self._uncounted, events)
            self._uncounted -= skipped
            events -= skipped
            if not events and not self._said and _SAID.search(frames):
                # From the first text on there is an output to be paid for.
                self._said, events = True, 1
                self._uncounted += 1
        return frames, events

    def _looked_at(self, frames: bytes) -> tuple[bytes, int]:
        """The frames to pass on, each looked at on its own."""
        kept: list[bytes] = []
        for frame in frames[:-2].split(b"\n\n"):
            payload = frame[frame.index(b"data: ") + 6 :]
            if payload == b"[DONE]":
                self.done = True
                break
            if self._wanted(payload):
                kept.append(frame + b"\n\n")
        return b"".join(kept), len(kept)

    def _wanted(self, payload: bytes) -> bool:
        chunk = decoded(_chunk_decoder, payload)
        if b'"error"' in payload and (failure := failure_in_stream(payload)) is not None:
            raise failure
        if bytes(chunk.usage) == b"null":
            return True
        self.usage = together(self.usage, _reported(chunk.usage))
        return bool(chunk.choices) or not self._hide_usage

    def end(self) -> bytes:
        """Some servers leave out the last event; one that has not finished an answer either broke off."""
        if not self.done and not _FINISHED.search(self._end_of_tail()):
            raise BrokeOff("The provider's answer broke off.")
        return b"data: [DONE]\n\n"

    def _end_of_tail(self) -> bytes:
        return b"".join(self._tail)[-TAIL_BYTES:]


# OpenAI's, and those of engines such as vLLM beside it.
_FETCHED = ("image_url", "video_url", "audio_url")


def _addresses(body: bytes) -> Iterator[str]:
    for message in msgspec.json.decode(body, type=_Shown).messages:
        for part in message.content if isinstance(message.content, list) else ():
            for name in _FETCHED if isinstance(part, dict) else ():
                # Some clients say of a text that it has no image.
                given = part.get(name) is not None or part.get("type") == name
                if given and not (url := _url_of(part.get(name))).startswith("data:"):
                    yield url


def _url_of(media: object) -> str:
    url = media.get("url") if isinstance(media, dict) else media
    return url if isinstance(url, str) else ""


class _ShownMessage(msgspec.Struct):
    content: Any = None


class _Shown(msgspec.Struct):
    """The part of a body that images can stand in."""

    messages: list[_ShownMessage] = []


_ADDRESSES = Addresses(tuple(b'"%b"' % name.encode() for name in _FETCHED), _addresses)
# What stands in a request that needs a capability.
_SIGNS = Signs(
    {
        "tools": (b'"tools"',),
        "tool_choice": (b'"tool_choice"',),
        "parallel_tools": (b'"parallel_tool_calls"',),
        "images": (b'"image_url"',),
        "audio": (b'"input_audio"',),
        "documents": (b'"file"',),
        "json_object": (b'"json_object"',),
        "json_schema": (b'"json_schema"', b'"guided_json"'),
        "grammars": (b'"grammar"', b'"structured_outputs"', b'"guided_'),
        "logprobs": (b'logprobs"',),
        "logit_bias": (b'"logit_bias"',),
        "reasoning": (b'"reasoning_effort"', b'"reasoning"'),
        "suffix": (b'"suffix"',),
        "echo": (b'"echo"',),
        "token_ids": (b'"prompt"', b'"input"'),
        "dimensions": (b'"dimensions"',),
    },
    said=("messages",),
    addresses=_ADDRESSES,
)
_NEUTRAL = frozenset(("model", "user", "safety_identifier", "prompt_cache_key", "session_id"))
_SPOILT = re.compile(rb'"finish_reason"\s*:\s*"(?:content_filter|error)"')

CHAT = Passing(
    kind="chat",
    read_head=read_chat,
    rewrite=rewrite,
    watch=ChunkWatch,
    usage_of=usage_of,
    may_need=_SIGNS.may_need,
    neutral=_NEUTRAL,
    spoilt=_SPOILT,
    inside=_ADDRESSES.inside,
    ending=OpenAIEnding,
)
COMPLETION = replace(CHAT, kind="completion", read_head=read_completion, inside=lambda inbound: False)
EMBEDDING = replace(CHAT, kind="embedding", read_head=read_embedding, inside=lambda inbound: False)
