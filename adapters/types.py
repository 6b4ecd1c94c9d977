"""Canonical requests, events and protocols: every dialect parses to them, every adapter understands them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Literal, Protocol

import msgspec

from adapters.conversation import (
    CacheLifetime,
    DialectName,
    DocumentPart,
    ImagePart,
    ImageUrl,
    Message,
    NativePart,
    Part,
    Role,
    TextPart,
    Thought,
    Tool,
    ToolCall,
    ToolChoice,
)
from adapters.generation import Constraint, Effort, Generation, Lora, Sampling, Thinking
from adapters.members import Members

# What conversations are made of and how answers are generated belongs to the canonical types too, and is imported from
# here.
__all__ = [
    "CacheLifetime",
    "Constraint",
    "DialectName",
    "DocumentPart",
    "Effort",
    "Generation",
    "ImagePart",
    "ImageUrl",
    "Lora",
    "Message",
    "NativePart",
    "Part",
    "Role",
    "Sampling",
    "TextPart",
    "Thinking",
    "Thought",
    "Tool",
    "ToolCall",
    "ToolChoice",
]

Purpose = Literal["query", "document", "classification", "clustering"]
Kind = Literal["chat", "completion", "embedding", "rerank"]
# What requests in a dialect ask for, where that is not a chat.
KINDS: Mapping[DialectName, Kind] = {
    "openai_completions": "completion",
    "openai_embeddings": "embedding",
    "rerank": "rerank",
}
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
Tier = Literal["cells", "ram", "disk"]
SessionAction = Literal["pin", "unpin", "reset", "delete", "fork"]


class ChatRequest(msgspec.Struct, frozen=True):
    """A conversation to continue. A final assistant message is continued, not answered (assistant prefill).

    `template_arguments` are values of the chat template's own switches, such as `enable_thinking`, from an allow-list;
    a local engine goes by them and by `generation.reasoning_tokens_max`, a provider by `thinking`. `native_tools` are
    those that only a provider has. `end_user` is the client's own name for the person it asks for.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    template_arguments: dict[str, str | bool | int] = {}
    generation: Generation = Generation()
    thinking: Thinking = Thinking()
    native_tools: tuple[NativePart, ...] = ()
    end_user: str | None = None


class CompletionRequest(msgspec.Struct, frozen=True):
    """Raw prompts, each text or token ids. Choice index = prompt index * n + sample index."""

    model: str
    prompts: tuple[str | tuple[int, ...], ...]
    suffix: str | None = None
    echo: bool = False
    generation: Generation = Generation()


class EmbeddingRequest(msgspec.Struct, frozen=True):
    """Texts or token ids to embed; `dimensions` cuts and renormalises the vectors, `purpose` is what they are for where
    models want to know."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    purpose: Purpose | None = None


class RerankRequest(msgspec.Struct, frozen=True):
    """Documents to be compared with a query; `raw` asks for the scores as the model gives them."""

    model: str
    query: str
    documents: tuple[str, ...]
    raw: bool = False


class Caller(msgspec.Struct, frozen=True):
    """On whose behalf a request runs. Nothing of an engine is shared across two `tenant`s.

    `session_key` names the conversation (None: the longest common prefix decides), `weight` the tenant's share of a
    queue, `priority` orders requests of one tenant (higher first). `explain_cache` asks for `Started.cache`.
    `cache_control` is what the request says about answers that were given before.
    """

    request_id: str
    tenant: str
    session_key: str | None = None
    weight: float = 1.0
    priority: int = 0
    explain_cache: bool = False
    cache_control: str = ""


class Head(msgspec.Struct, frozen=True):
    """The few fields of a request that decide where it goes and what it may cost; the rest of its body stays unread.

    `max_tokens` bounds one of the `n` answers. `session_key` is the one the body names. `usage_wanted`: the client is
    to see the usage at the end of a stream. Of a large body `members` are what it consists of, so that it need not be
    read again; `plain`: its messages were looked at, and there is nothing but text in them.
    """

    model: str
    stream: bool = False
    max_tokens: int | None = None
    n: int = 1
    session_key: str | None = None
    usage_wanted: bool = False
    members: Members | None = None
    plain: bool = False


class Inbound(msgspec.Struct, frozen=True):
    """A request as it came: a body in a dialect, checked to be JSON, and its head.

    `output_tokens_max` bounds each answer of a request whose author set no bound, because no more is held for it.
    `headers` are those of the client that belong to the dialect.
    """

    dialect: DialectName
    body: bytes
    head: Head
    output_tokens_max: int | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def kind(self) -> Kind:
        return KINDS.get(self.dialect, "chat")


class TopLogprob(msgspec.Struct, frozen=True, array_like=True):
    token_id: int
    logprob: float
    raw: bytes


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A generated (or echoed) token with its natural-log probability; None for the first token of an echoed prompt."""

    token_id: int
    logprob: float | None
    raw: bytes
    top: tuple[TopLogprob, ...] = ()


class Usage(msgspec.Struct, frozen=True):
    """Tokens. `cached_tokens` of the prompt were not computed again, `reasoning_tokens` were spent on thinking.

    `cache_write_tokens` of the prompt were kept for later prompts, `cache_write_1h_tokens` of these for an hour. The
    prompt's tokens hold all of them, the completion's those of its audio and of thinking.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    prompt_audio_tokens: int = 0
    completion_audio_tokens: int = 0


class Timings(msgspec.Struct, frozen=True):
    """Where a request's time went, in microseconds."""

    queue_us: int = 0
    prefill_us: int = 0
    decode_us: int = 0


class Divergence(msgspec.Struct, frozen=True):
    """Where a prompt first differs from the session it was matched with.

    `token` is the position in the prompt, `message` the index of the message it belongs to (None: it lies behind the
    last one, or nobody knows). `expected` is how the session goes on from there, `got` how the prompt does: a few
    tokens each as text, empty where one of them has ended.
    """

    token: int
    message: int | None
    role: Role | None
    expected: str
    got: str


class CacheDiagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the session a prompt was matched with: where it was kept, what of it was used, what the rest cost.

    `tier` None: there was no session, so that all tokens were computed. `restore_us` went into bringing the session
    back, `recompute_us` into the `recomputed_tokens`. Without a `divergence` the prompt continues the whole session.
    """

    cached_tokens: int
    session_tokens: int
    recomputed_tokens: int
    recompute_us: int
    restore_us: int
    tier: Tier | None
    divergence: Divergence | None


class Served(msgspec.Struct, frozen=True):
    """Which target of a route answered, and the how many-th try that was."""

    target: str
    provider: str
    model: str
    attempts: int = 1


class Started(msgspec.Struct, frozen=True):
    """First event of every stream: the request was accepted and its first output is about to follow."""

    prompt_tokens: int
    cached_tokens: int = 0
    queue_us: int = 0
    prefill_us: int = 0
    cache: CacheDiagnosis | None = None
    served: Served | None = None


class TextDelta(msgspec.Struct, frozen=True):
    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class ReasoningDelta(msgspec.Struct, frozen=True):
    """A piece of what a choice thinks before it answers. `signature` and `redacted` are those of `Thought`: a signature
    ends its thought, a redacted one comes whole."""

    choice: int
    text: str
    signature: str | None = None
    redacted: str | None = None


class RefusalDelta(msgspec.Struct, frozen=True):
    """A piece of the words with which a choice declines to answer."""

    choice: int
    text: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A piece of the `index`-th tool call of a choice; `id`, `name` and `signature` come with its first piece only."""

    choice: int
    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    signature: str | None = None


class ChoiceFinished(msgspec.Struct, frozen=True):
    """The end of a choice. `malformed_call`: the model began a call that was none, which is in the text, or broke off
    in one. `stop_sequence` is the one of the request's that ended it, where that is known; `detail` the provider's own
    word, where `reason` says less."""

    choice: int
    reason: FinishReason
    malformed_call: bool = False
    stop_sequence: str | None = None
    detail: str | None = None


class Finished(msgspec.Struct, frozen=True):
    """Last event of every stream that did not raise, after each choice's `ChoiceFinished`.

    `estimated`: the usage was not reported, or not all of it, and counted instead.
    """

    usage: Usage
    timings: Timings = Timings()
    estimated: bool = False


Event = Started | TextDelta | ReasoningDelta | RefusalDelta | ToolCallDelta | ChoiceFinished | Finished


class Embeddings(msgspec.Struct, frozen=True):
    """`vectors` are little-endian float32 bytes, one item per input, all of `dimensions` floats."""

    vectors: tuple[bytes, ...]
    dimensions: int
    prompt_tokens: int
    served: Served | None = None


class Ranking(msgspec.Struct, frozen=True):
    """How well each document answers the query, in the order of the request: from 0 to 1, or raw."""

    scores: tuple[float, ...]
    prompt_tokens: int
    served: Served | None = None


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation whose computed history is kept for its next turn.

    `key` is the client's name for it, `id` the engine's, which those without a key have as well. `tier` is where the
    history lies and `size_bytes` what it takes there; times are Unix microseconds. A `pinned` one is never dropped to
    make room. `checkpoints` counts the states a model that cannot forget a suffix can go back to.
    """

    tenant: str
    key: str | None
    id: str
    tokens: int
    tier: Tier
    size_bytes: int
    created_us: int
    used_us: int
    pinned: bool
    checkpoints: int = 0


class ModelCard(msgspec.Struct, frozen=True):
    """What a target can do, as far as it is known; `parent` is the model that an adapter is applied to, `vision`
    says that it takes images, `image_urls` that it takes their addresses and fetches them itself."""

    context_tokens: int | None = None
    kinds: tuple[Kind, ...] = ("chat", "completion")
    parameters: int | None = None
    size_bytes: int | None = None
    description: str = ""
    parent: str | None = None
    vision: bool = False
    image_urls: bool = False


class Chat(Protocol):
    """A target that generates text.

    Both calls return a stream of `Started`, deltas, one `ChoiceFinished` per choice, then `Finished`; or they raise an
    `AdapterError` at any point. Closing the iterator cancels the work.
    """

    def chat(self, request: ChatRequest, caller: Caller) -> AsyncIterator[Event]: ...

    def complete(self, request: CompletionRequest, caller: Caller) -> AsyncIterator[Event]: ...


class Outlet(Protocol):
    """Takes a stream that is passed on as it comes; nothing was shown to the client before `begin`. No call waits."""

    def begin(self, content_type: str) -> None: ...

    def write(self, data: bytes, outputs: int) -> bool:
        """Whole events, framed as the client gets them, with at least `outputs` tokens in them.

        False asks for a pause until the function given to `when_drained` is called.
        """
        ...

    def when_drained(self, then: Callable[[], None]) -> None:
        """Call `then` once when more may be written; never, when the client has left."""
        ...


class Sink(Outlet, Protocol):
    """An outlet whose owner wants to know who answers."""

    def serving(self, served: Served) -> None:
        """A target of a route answers; said before `begin`, or else before a unary answer is there."""
        ...

    def started(self, started: Started) -> None:
        """How a stream began that is translated; said before `begin`."""
        ...


class Relayed(msgspec.Struct, frozen=True):
    """How a request that was passed on ended: what it used as far as the upstream says (0 where it does not), and the
    rest of the answer, to be sent once the usage is recorded.

    Of a unary answer that is all of it, and its sink was never touched; of a stream its last event. `outputs` are the
    tokens that the rest holds at least.
    """

    finished: Finished
    rest: bytes
    content_type: str
    outputs: int = 0


class Relay(Protocol):
    """A target that speaks some dialects itself and takes requests in them unharmed, unknown fields included."""

    def takes(self, inbound: Inbound) -> bool:
        """Whether a request can be passed on. One that may need what the target lacks is translated, which tells."""
        ...

    async def relay(self, inbound: Inbound, caller: Caller, sink: Sink) -> Relayed:
        """Pass a request on with only its routed fields replaced, and a streamed answer into `sink` as it comes.

        Raises an `AdapterError`; one that comes before `sink.begin` was called may be tried elsewhere.
        """
        ...


class Embedder(Protocol):
    """A target that turns texts into vectors."""

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings: ...


class Reranker(Protocol):
    """A target that says how well texts answer a query."""

    async def rerank(self, request: RerankRequest, caller: Caller) -> Ranking: ...


class TokenCount(msgspec.Struct, frozen=True):
    """How long a prompt is; where nobody who knows could be asked, that is an estimate and not `exact`."""

    tokens: int
    exact: bool = True


class Tokenizer(Protocol):
    """A target whose tokeniser and chat template can be asked."""

    async def count_tokens(self, request: ChatRequest) -> TokenCount: ...

    async def tokenize(self, text: str, *, special: bool) -> list[int]: ...

    async def detokenize(self, tokens: list[int]) -> str: ...

    async def apply_template(self, request: ChatRequest) -> tuple[str, int]:
        """The rendered prompt and its length in tokens."""
        ...


class Sessions(Protocol):
    """A target that keeps the computed history of conversations; one that does not has an empty list of them."""

    async def list_sessions(self, tenant: str | None) -> list[SessionInfo]:
        """Those of a tenant, or of all."""
        ...

    async def change_session(
        self, tenant: str, key: str, action: SessionAction, new_key: str | None = None
    ) -> SessionInfo | None:
        """Pin or unpin a session, forget its history (reset), erase it (delete), or copy it under `new_key` (fork).

        `key` is its key or its id. The session as it is then, of a fork the new one; None when the tenant has no such
        session.
        """
        ...
