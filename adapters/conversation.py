"""What a conversation is made of: messages and their parts, tools and their calls."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["system", "developer", "user", "assistant", "tool"]
CacheLifetime = Literal["5m", "1h"]
DialectName = Literal[
    "openai_chat",
    "openai_completions",
    "openai_responses",
    "openai_compaction",
    "openai_embeddings",
    "anthropic_messages",
    "gemini",
    "gemini_embeddings",
    "vertex_embeddings",
    "cohere_embeddings",
    "bedrock_embeddings",
    "bedrock_converse",
    "rerank",
]


class ToolCall(msgspec.Struct, frozen=True):
    """One call an assistant made; `arguments` is JSON text exactly as the model wrote it.

    `signature` is the maker's proof of the thought behind the call, as in `Thought`; `cache` as in `TextPart`.
    """

    id: str
    name: str
    arguments: str
    signature: str | None = None
    cache: CacheLifetime | None = None


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """With `cache`, the client asks the provider to keep its work on the prompt up to the end of this part so long."""

    text: str
    cache: CacheLifetime | None = None


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    """An encoded image (PNG, JPEG, ...) as it came, already fetched; `media_type` is what its sender called it."""

    data: bytes
    media_type: str
    cache: CacheLifetime | None = None


class ImageUrl(msgspec.Struct, frozen=True, tag="image_url"):
    """An image that somebody has yet to fetch; no local engine takes one. `detail` is how closely to look at it."""

    url: str
    detail: str | None = None
    cache: CacheLifetime | None = None


class DocumentPart(msgspec.Struct, frozen=True, tag="document"):
    """A document as it came, such as a PDF; local engines only take text.

    `url` names one that is not here, and then `data` is empty. `context` is told to the model and not quoted; `cite`
    asks for citations.
    """

    data: bytes
    media_type: str
    url: str | None = None
    title: str | None = None
    context: str | None = None
    cite: bool = False
    cache: CacheLifetime | None = None


class NativePart(msgspec.Struct, frozen=True, tag="native"):
    """A part of a message or a tool that only its own dialect has words for, as JSON text. Others refuse it."""

    dialect: DialectName
    source: bytes


Part = TextPart | ImagePart | ImageUrl | DocumentPart | NativePart


# What signatures begin with that only Google or OpenAI can read.
GEMINI = "gemini:"
OPENAI = "openai:"


class Thought(msgspec.Struct, frozen=True):
    """What an assistant thought before it answered, in one of several pieces.

    `signature` is opaque: its maker checks with it that the thought is its own and unchanged. Those of Gemini and
    OpenAI say so, so that nobody else is sent one; all others are Anthropic's. `redacted` is a thought that only its
    maker can read, and then `text` is empty.
    """

    text: str
    signature: str | None = None
    redacted: str | None = None

    @property
    def is_anthropics(self) -> bool:
        """Whether Anthropic will know it as its own by its signature."""
        return self.signature is not None and not self.signature.startswith((GEMINI, OPENAI))


class Message(msgspec.Struct, frozen=True):
    """One turn. `content` is text (parts already joined), parts where one is more than that, None only beside tool
    calls.

    `reasoning` is what the assistant thought before this answer, where the client kept it; `thoughts` the same in
    pieces, where one of them is signed or redacted. `is_error` says that the tool failed whose result this is, `cache`
    of a result as in `TextPart`.
    """

    role: Role
    content: str | tuple[Part, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None
    thoughts: tuple[Thought, ...] = ()
    is_error: bool = False
    cache: CacheLifetime | None = None

    @property
    def text(self) -> str:
        """The text of the content, its parts joined by line ends; empty where there is none."""
        if isinstance(self.content, tuple):
            return "\n".join(part.text for part in self.content if isinstance(part, TextPart))
        return self.content or ""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The content in parts; none where there is no text."""
        if isinstance(self.content, tuple):
            return self.content
        return (TextPart(self.content),) if self.content else ()


class Tool(msgspec.Struct, frozen=True):
    """A function the model may call; `parameters` is its JSON Schema as JSON text. `cache` as in `TextPart`.

    Bytes and not `msgspec.Raw`: raw JSON inside a msgpack frame would not be a frame any more.
    """

    name: str
    description: str = ""
    parameters: bytes = b"{}"
    strict: bool = False
    cache: CacheLifetime | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    """Whether tools may or must be called, and which: `names` empty means all. A named function is `required` with it.

    The prompt shows the model all tools of a request, so that a narrowed choice keeps the cached prefix.
    """

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] = ()
    parallel: bool = True
