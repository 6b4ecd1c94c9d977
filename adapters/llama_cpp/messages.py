"""What the gateway and a worker process say to each other.

Frames on a socketpair: 4 bytes of little-endian length, then one msgpack value. Commands go down, reports come up. A
generation is prepared first (rendered, tokenised and checked, off the decode thread), then started when the fair queue
gives it a place; `id` is chosen by the gateway and never reused within a worker's life.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from adapters.types import (
    FinishReason,
    Generation,
    Message,
    SessionAction,
    SessionInfo,
    Tier,
    TokenLogprob,
    Tool,
    ToolChoice,
)

FRAME_BYTES_MAX = 64 * 1024 * 1024


class LoraFile(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter that requests may choose by name, at `scale` unless they say otherwise."""

    name: str
    path: str
    scale: float = 1.0


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker runs its model. `None` means: decide from the model and the machine.

    `context_tokens` bounds one request, `cache_tokens` is the size of the KV pool they all share, `parallel` the number
    of sequences computed together, `target_gap_ms` the longest gap a running stream should see while prompts are
    processed beside it, `tool_format` and `reasoning_format` name rows of tools.py and reasoning.py. memory.py says
    what becomes of `weights`. `flash_attention` is on where llama.cpp has it for the model and the device, unless it is
    "off"; "on" computes it elsewhere too.

    Idle conversations may occupy `session_ram_bytes` outside the pool and `session_disk_bytes` below `session_dir`
    (None: they are not written to disk), `session_count_max` of them in all. In memory they last `session_ttl_s` after
    their last use, on disk `session_disk_ttl_s`; there they are encrypted with the 32 bytes of `session_key` if given.
    What is computed for the beginnings in `public_prefixes` is shared with every tenant.
    `mmproj` is the projector file of a vision model, `image_cache_bytes` what the embeddings of its latest images may
    occupy.
    """

    context_tokens: int | None = None
    cache_tokens: int | None = None
    parallel: int = 8
    threads: int | None = None
    chunk_tokens: int = 512
    target_gap_ms: int = 200
    session_ram_bytes: int = 1 << 30
    session_ttl_s: int = 3600
    session_dir: str | None = None
    session_disk_bytes: int = 4 << 30
    session_disk_ttl_s: int = 7 * 86400
    session_count_max: int = 1024
    session_key: bytes | None = None
    public_prefixes: tuple[ChatPrompt | TextPrompt, ...] = ()
    kv_type: Literal["f16", "q8_0"] = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    batch_padding: Literal["auto", "on", "off"] = "auto"
    weights: Literal["auto", "copied", "mapped"] = "auto"
    embeddings: bool | None = None
    tool_format: str | None = None
    reasoning_format: str | None = None
    gpu_layers: int = 0
    lease_path: str | None = None
    loras: tuple[LoraFile, ...] = ()
    mmproj: str | None = None
    image_cache_bytes: int = 256 << 20


class ChatPrompt(msgspec.Struct, frozen=True, tag="chat"):
    """A conversation; `arguments` are values for its template's own switches."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    arguments: dict[str, str | bool | int] = {}


class TextPrompt(msgspec.Struct, frozen=True, tag="text"):
    """Plain text; with a `suffix` it becomes a fill-in-the-middle prompt. `special`: control tokens are recognised."""

    text: str
    suffix: str | None = None
    special: bool = True


class TokenPrompt(msgspec.Struct, frozen=True, tag="tokens"):
    tokens: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


class Load(msgspec.Struct, frozen=True, tag="load"):
    """First command, once: load the model; answered by `Progress`..., then `Ready` or `LoadFailed`."""

    path: str
    settings: EngineSettings


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Answered by `Prepared` or `Refused`. A prepared request holds its tokens until `Start` or `Cancel`."""

    id: int
    tenant: str
    prompt: Prompt
    generation: Generation = Generation()
    session_key: str | None = None
    echo: bool = False
    explain: bool = False


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Answered by `Delta`s inside `Step`s until every choice has its `finish`, or by `Refused`."""

    id: int


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Forget a prepared request or stop a running one; answered by `Cancelled` when its place is free again."""

    id: int


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """Embed all inputs; answered by `Embedded` or `Refused`."""

    id: int
    tenant: str
    inputs: tuple[str | tuple[int, ...], ...]


class Rerank(msgspec.Struct, frozen=True, tag="rerank"):
    """Compare all documents with the query; answered by `Reranked` or `Refused`."""

    id: int
    tenant: str
    query: str
    documents: tuple[str, ...]


class Inspect(msgspec.Struct, frozen=True, tag="inspect"):
    """Render and tokenise without generating; answered by `Inspected` or `Refused`."""

    id: int
    prompt: Prompt
    special: bool = True


class Detokenize(msgspec.Struct, frozen=True, tag="detokenize"):
    """Answered by `Inspected` or `Refused`."""

    id: int
    tokens: tuple[int, ...]


class ListSessions(msgspec.Struct, frozen=True, tag="list_sessions"):
    """Answered by `SessionList`; `tenant` None: of all tenants."""

    id: int
    tenant: str | None


class ChangeSession(msgspec.Struct, frozen=True, tag="change_session"):
    """Answered by `SessionChanged`; `key` is the session's key or id."""

    id: int
    tenant: str
    key: str
    action: SessionAction
    new_key: str | None = None


Command = Load | Prepare | Start | Cancel | Embed | Rerank | Inspect | Detokenize | ListSessions | ChangeSession


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the loaded model is. `reranks` says what its scores are, None when it has none; rates are first estimates
    measured at load with every slot taken, in microseconds per token."""

    description: str
    architecture: str
    parameters: int
    size_bytes: int
    vocabulary: int
    context_train: int
    context_tokens: int
    cache_tokens: int
    parallel: int
    threads: int
    embedding_dimensions: int
    generates: bool
    embeds: bool
    reranks: Literal["logit", "probability"] | None = None
    fim: bool
    chat_template: bool
    tool_format: str
    reasoning_format: str | None
    vision: bool = False
    prefill_us_per_token: float
    decode_us_per_token: float
    load_us: int


class Progress(msgspec.Struct, frozen=True, tag="progress", array_like=True):
    fraction: float


class Ready(msgspec.Struct, frozen=True, tag="ready", array_like=True):
    info: ModelInfo


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed", array_like=True):
    code: str
    message: str


class Prepared(msgspec.Struct, frozen=True, tag="prepared", array_like=True):
    """`max_tokens` is the effective bound on the output after clamping to the context; `thinking`: the prompt has begun
    the model's thoughts.

    For an explained chat, `message_ends` are the positions in the prompt's tokens at which its messages end; empty
    where the template does not let them be told.
    """

    id: int
    prompt_tokens: int
    max_tokens: int
    thinking: bool = False
    message_ends: tuple[int, ...] = ()


class Refused(msgspec.Struct, frozen=True, tag="refused", array_like=True):
    id: int
    code: str
    message: str
    param: str | None = None


class Cancelled(msgspec.Struct, frozen=True, tag="cancelled", array_like=True):
    id: int


class CacheReport(msgspec.Struct, frozen=True, array_like=True):
    """How a prompt met the session it was matched with; `diverged_at` -1: it continues the whole of it."""

    cached_tokens: int
    session_tokens: int
    diverged_at: int
    expected: str
    got: str
    tier: Tier | None
    restore_us: int
    recomputed_tokens: int


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What one step added to one choice of one request.

    `tokens` counts the tokens sampled since the previous delta, whether or not their text is out yet, and
    `reasoning_tokens` those of them that were thoughts. The first delta
    of a choice carries `cached_tokens` and `prefill_us` (>= 0; -1 otherwise), the last one `finish` and `decode_us`,
    and `stop_sequence` when one of these ended it.
    """

    id: int
    choice: int
    text: str = ""
    tokens: int = 0
    finish: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens: int = -1
    prefill_us: int = -1
    decode_us: int = 0
    reasoning_tokens: int = 0
    cache: CacheReport | None = None
    stop_sequence: str | None = None


class Busyness(msgspec.Struct, frozen=True, array_like=True):
    """How busy the worker is after a step; of images and guesses, what happened since the load, and what the cache of
    images holds."""

    running: int
    waiting: int
    cells_used: int
    cells_max: int
    prefill_us_per_token: float
    decode_us_per_token: float
    images_encoded: int = 0
    images_reused: int = 0
    image_cache_bytes: int = 0
    guesses_made: int = 0
    guesses_right: int = 0


class SessionCounters(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What became of kept conversations since the worker began, and what they occupy now.

    Hits count the requests that continued a conversation, by where it lay; `spilled` copies out of the context,
    `restored` ones back into it, `written` and `write_failed` the files. Files are `corrupt` when they cannot be read
    back, `mismatched` when they belong to other weights, settings, software or another key.
    """

    sessions: int = 0
    ram_bytes: int = 0
    disk_bytes: int = 0
    hits_cells: int = 0
    hits_ram: int = 0
    hits_disk: int = 0
    misses: int = 0
    spilled: int = 0
    restored: int = 0
    written: int = 0
    write_failed: int = 0
    corrupt: int = 0
    mismatched: int = 0
    expired: int = 0
    evicted: int = 0


class GrammarCounters(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What became of the grammars that requests asked for since the worker began: compiled, there already, or refused;
    and what compiling took. A request with tools asks for several, and then for none while its tools stay the same."""

    compiled: int = 0
    reused: int = 0
    refused: int = 0
    compile_us: int = 0


class Step(msgspec.Struct, frozen=True, tag="step", array_like=True):
    """Everything one engine step produced; sequences that gained nothing are absent. What `sessions` and `grammars`
    count is there when it has changed, `load` when others run or wait than was told, and now and then besides."""

    deltas: list[Delta]
    load: Busyness | None = None
    sessions: SessionCounters | None = None
    grammars: GrammarCounters | None = None


class Embedded(msgspec.Struct, frozen=True, tag="embedded", array_like=True):
    """`vectors`: one item per input, little-endian float32, L2-normalised."""

    id: int
    vectors: tuple[bytes, ...]
    prompt_tokens: int


class Reranked(msgspec.Struct, frozen=True, tag="reranked", array_like=True):
    """`scores`: one per document, as the model gives them."""

    id: int
    scores: tuple[float, ...]
    prompt_tokens: int


class Inspected(msgspec.Struct, frozen=True, tag="inspected", array_like=True):
    """`tokens`: int32 in the machine's order, of which nobody has to make numbers who only counts them; none of a
    `Detokenize`, whose answer is `text`, as a chat's prompt is."""

    id: int
    tokens: bytes
    text: str


class SessionList(msgspec.Struct, frozen=True, tag="session_list", array_like=True):
    id: int
    sessions: list[SessionInfo]


class SessionChanged(msgspec.Struct, frozen=True, tag="session_changed", array_like=True):
    """`info` None: the tenant has no such session."""

    id: int
    info: SessionInfo | None


Report = (
    Progress
    | Ready
    | LoadFailed
    | Prepared
    | Refused
    | Cancelled
    | Step
    | Embedded
    | Reranked
    | Inspected
    | SessionList
    | SessionChanged
)


class FrameError(ValueError):
    """The byte stream is not a sequence of frames."""


def frame(value: object, encoder: msgspec.msgpack.Encoder) -> bytearray:
    """`value` as one frame; raises FrameError where the other side would not take it."""
    buffer = bytearray(4)
    encoder.encode_into(value, buffer, 4)
    size = len(buffer) - 4
    if size > FRAME_BYTES_MAX:
        raise FrameError(f"frame of {size} bytes, at most {FRAME_BYTES_MAX} allowed")
    buffer[:4] = size.to_bytes(4, "little")
    return buffer


class FrameReader:
    """Cuts a byte stream into frames. Feed bytes in, iterate payloads out; keeps at most one partial frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterable[bytes]:
        """The complete payloads that `data` finishes; raises FrameError past FRAME_BYTES_MAX."""
        if not self._buffer and len(data) >= 4 and int.from_bytes(data[:4], "little") == len(data) - 4:
            return (data[4:],)  # Just one frame, as nearly always.
        return self._cut(data)

    def _cut(self, data: bytes) -> Iterator[bytes]:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= 4:
            size = int.from_bytes(buffer[start : start + 4], "little")
            if size > FRAME_BYTES_MAX:
                raise FrameError(f"frame of {size} bytes, at most {FRAME_BYTES_MAX} allowed")
            end = start + 4 + size
            if len(buffer) < end:
                break
            yield bytes(buffer[start + 4 : end])
            start = end
        del buffer[:start]
