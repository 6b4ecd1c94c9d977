"""llama-server's tokeniser endpoints, with the names vLLM uses for the same fields; and counting in OpenAI's manner."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from adapters.dialects import openai_wire as wire
from adapters.dialects.openai_chat import WireMessage, parse_messages
from adapters.dialects.openai_tools import TOOLS_MAX, WireTool, parse_tools
from adapters.errors import InvalidRequest
from adapters.types import ChatRequest

_encode = msgspec.json.Encoder().encode


class ModelFields(wire.RequestFields, kw_only=True):
    """The model may be left out where there is only one."""

    model: wire.ModelName | None = None


class TokenizeBody(ModelFields, kw_only=True):
    content: str | None = None
    prompt: str | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(ModelFields, kw_only=True):
    tokens: wire.Tokens


class ConversationBody(ModelFields, kw_only=True):
    messages: Annotated[list[WireMessage], Meta(min_length=1, max_length=4096)]
    tools: Annotated[list[WireTool], Meta(max_length=TOOLS_MAX)] | None = None


class CountBody(ModelFields, kw_only=True):
    messages: Annotated[list[WireMessage], Meta(min_length=1, max_length=4096)] | None = None
    tools: Annotated[list[WireTool], Meta(max_length=TOOLS_MAX)] | None = None
    input: str | None = None


class TextInput(msgspec.Struct, frozen=True):
    """A text to tokenise; `special` adds what the model puts around every text. `model` None: the only one."""

    model: str | None
    text: str
    special: bool = False


class TokensInput(msgspec.Struct, frozen=True):
    """Token ids to turn back into text."""

    model: str | None
    tokens: list[int]


_tokenize = msgspec.json.Decoder(TokenizeBody)
_detokenize = msgspec.json.Decoder(DetokenizeBody)
_conversation = msgspec.json.Decoder(ConversationBody)
_count = msgspec.json.Decoder(CountBody)


def parse_tokenize(body: bytes) -> TextInput:
    """What `/tokenize` takes; raises `InvalidRequest`."""
    fields = wire.decode(_tokenize, body)
    wire.refuse_redirects(fields)
    text = fields.prompt if fields.content is None else fields.content
    if text is None:
        raise InvalidRequest("Missing required parameter: 'content'.", param="content")
    if fields.with_pieces:
        raise InvalidRequest("Invalid value for 'with_pieces': only token ids are returned.", param="with_pieces")
    if fields.parse_special is False:
        message = "Invalid value for 'parse_special': control tokens are always recognised."
        raise InvalidRequest(message, param="parse_special")
    return TextInput(fields.model, text, bool(fields.add_special or fields.add_special_tokens))


def parse_detokenize(body: bytes) -> TokensInput:
    """What `/detokenize` takes; raises `InvalidRequest`."""
    fields = wire.decode(_detokenize, body)
    wire.refuse_redirects(fields)
    return TokensInput(fields.model, fields.tokens)


def parse_conversation(body: bytes) -> ChatRequest:
    """What `/apply-template` takes; the model's name is empty when it was left out. Raises `InvalidRequest`."""
    fields = wire.decode(_conversation, body)
    wire.refuse_redirects(fields)
    return _chat(fields.model, fields.messages, fields.tools)


def parse_count(body: bytes) -> ChatRequest | TextInput:
    """What is to be counted: a conversation or a text; raises `InvalidRequest`."""
    fields = wire.decode(_count, body)
    wire.refuse_redirects(fields)
    if fields.messages is not None:
        return _chat(fields.model, fields.messages, fields.tools)
    if fields.input is None:
        raise InvalidRequest("Missing required parameter: 'messages' or 'input'.", param="messages")
    return TextInput(fields.model, fields.input, special=True)


def _chat(model: str | None, messages: list[WireMessage], tools: list[WireTool] | None) -> ChatRequest:
    return ChatRequest(model or "", parse_messages(messages), parse_tools(tools or []))


def render_tokens(tokens: list[int]) -> bytes:
    return _encode({"tokens": tokens})


def render_content(text: str) -> bytes:
    return _encode({"content": text})


def render_prompt(prompt: str) -> bytes:
    return _encode({"prompt": prompt})


def render_count(input_tokens: int) -> bytes:
    return _encode({"object": "response.input_tokens", "input_tokens": input_tokens})
