"""A target that plays a script instead of computing: for tests, demonstrations and load tests.

Its tokens are simple, so that a test can foresee them: a prompt has one for each byte of its text, an answer one for
each chunk. It costs next to nothing, so what is measured in front of it is the gateway.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import re
import secrets
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from adapters import errors
from adapters.types import (
    Caller,
    ChatRequest,
    ChoiceFinished,
    CompletionRequest,
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    FinishReason,
    Generation,
    Kind,
    ModelCard,
    Ranking,
    ReasoningDelta,
    RerankRequest,
    SessionAction,
    SessionInfo,
    Started,
    TextDelta,
    TokenCount,
    ToolCallDelta,
    Usage,
)

Seconds = Annotated[float, Meta(ge=0, le=3600)]
ANYWHERE = 1 << 62
FAILURES = {
    kind.code: kind
    for kind in (
        errors.InvalidRequest,
        errors.QueueFull,
        errors.Overloaded,
        errors.RateLimited,
        errors.ModelLoading,
        errors.ModelUnavailable,
        errors.EngineFailed,
        errors.Timeout,
    )
}


class ScriptError(ValueError):
    """A script that cannot be played; the message says why."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An error of adapters/errors.py by its code, raised after so many chunks or after the last; 0: before
    the answer begins."""

    code: Annotated[str, Meta(pattern=rf"^({'|'.join(FAILURES)})\Z")]
    message: str = "The script says so."
    after_chunks: Annotated[int, Meta(ge=0)] = 0
    retry_after_s: Seconds | None = None


class Call(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tool call; `arguments` is JSON text."""

    name: str
    arguments: str = "{}"


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer, to requests whose last text holds `match` (empty: to any).

    Its chunks are the words of `text` where they are not given. The first comes after `first_s`, each further one after
    another `gap_s`. `usage` is reported in the place of what was counted, whether it can be true or not.
    """

    match: str = ""
    text: str = ""
    chunks: tuple[str, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[Call, ...] = ()
    first_s: Seconds = 0
    gap_s: Seconds = 0
    usage: Usage | None = None
    error: Failure | None = None

    @property
    def pieces(self) -> tuple[str, ...]:
        return self.chunks or tuple(_words(self.text))


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a scripted model says: of the answers that match a request, each in its turn."""

    answers: Annotated[tuple[Answer, ...], Meta(min_length=1)]
    kinds: tuple[Kind, ...] = ("chat", "completion")
    context_tokens: Annotated[int, Meta(ge=1)] = 1 << 20
    dimensions: Annotated[int, Meta(ge=1, le=8)] = 8


def read_script(path: Path) -> Script:
    """The script in a YAML file. Raises ScriptError."""
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=Script)
    except OSError as error:
        raise ScriptError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ScriptError(f"{path}: no script: {' '.join(str(error).split())}") from None


class ScriptedStatus(msgspec.Struct, frozen=True):
    """A scripted model is always there."""

    state: str = "ready"
    progress: float = 1.0
    reason: str | None = None


class Scripted:
    """Chat, Embedder, Reranker, Tokenizer and Sessions, as the script has them."""

    def __init__(self, name: str, script: Script) -> None:
        self.name = name
        self.card = ModelCard(
            context_tokens=script.context_tokens, kinds=script.kinds, description="plays a script", vision=True
        )
        self._script = script
        self._turns = {answer.match: itertools.cycle(_same(script, answer.match)) for answer in script.answers}

    def status(self) -> ScriptedStatus:
        return ScriptedStatus()

    def chat(self, request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
        last = request.messages[-1].text if request.messages else ""
        return self._play(_rendered(request), last, 1, request.generation)

    def complete(self, request: CompletionRequest, caller: Caller) -> AsyncIterator[Event]:
        texts = [prompt if isinstance(prompt, str) else "?" * len(prompt) for prompt in request.prompts]
        return self._play("".join(texts), texts[-1] if texts else "", len(texts), request.generation)

    def _answer(self, last: str) -> Answer:
        """The next one in turn among those that match best: with the longest text to match."""
        fitting = [match for match in self._turns if match in last]
        if not fitting:
            raise errors.ModelUnavailable("No answer of the script matches the request.")
        return next(self._turns[max(fitting, key=len)])

    async def _play(self, prompt: str, last: str, prompts: int, asked: Generation) -> AsyncIterator[Event]:
        answer = self._answer(last)
        prompt_tokens = len(prompt.encode())
        room = self._script.context_tokens - prompt_tokens
        if room < 1:
            message = f"The prompt has {prompt_tokens} tokens, the context {self._script.context_tokens}."
            raise errors.InvalidRequest(message, code="context_length_exceeded")
        _fail(answer, 0)
        choices = prompts * asked.n
        deltas, reason = _deltas(answer, room if asked.max_tokens is None else min(asked.max_tokens, room), asked)
        await asyncio.sleep(answer.first_s)
        yield Started(prompt_tokens)
        for i, delta in enumerate(deltas):
            if i:
                # Also without a pause others have to get their turn between two chunks.
                await asyncio.sleep(answer.gap_s)
                _fail(answer, i)
            for choice in range(choices):
                yield _addressed(delta, choice)
        _fail(answer, ANYWHERE)
        for choice in range(choices):
            yield ChoiceFinished(choice, reason)
        counted = sum(type(delta) is ReasoningDelta for delta in deltas)
        usage = Usage(prompt_tokens, choices * len(deltas), 0, choices * counted)
        yield Finished(answer.usage or usage)

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        """A vector of length 1 from each text's digest: the same for the same text, unlike any other."""
        dimensions = request.dimensions or self._script.dimensions
        if dimensions > self._script.dimensions:
            raise errors.InvalidRequest("'dimensions' is above what the model has.", param="dimensions")
        await self._pause()
        vectors = tuple(_vector(str(one), dimensions) for one in request.inputs)
        tokens = sum(len(one.encode()) if isinstance(one, str) else len(one) for one in request.inputs)
        return Embeddings(vectors, dimensions, tokens)

    async def rerank(self, request: RerankRequest, caller: Caller) -> Ranking:
        """A document's score is the share of the query's words that it holds."""
        await self._pause()
        words = set(request.query.lower().split())
        scores = [len(words & set(one.lower().split())) / max(len(words), 1) for one in request.documents]
        size = sum(len((request.query + one).encode()) for one in request.documents)
        return Ranking(tuple(scores), size)

    async def _pause(self) -> None:
        answer = self._script.answers[0]
        await asyncio.sleep(answer.first_s)
        _fail(answer, 0)

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        return list(text.encode())

    async def detokenize(self, tokens: list[int]) -> str:
        return bytes(token & 255 for token in tokens).decode(errors="replace")

    async def count_tokens(self, request: ChatRequest) -> TokenCount:
        return TokenCount((await self.apply_template(request))[1])

    async def apply_template(self, request: ChatRequest) -> tuple[str, int]:
        prompt = _rendered(request)
        return prompt, len(prompt.encode())

    async def list_sessions(self, tenant: str | None) -> list[SessionInfo]:
        return []

    async def change_session(
        self, tenant: str, key: str, action: SessionAction, new_key: str | None = None
    ) -> SessionInfo | None:
        return None


def _same(script: Script, match: str) -> list[Answer]:
    return [answer for answer in script.answers if answer.match == match]


def _rendered(request: ChatRequest) -> str:
    return "".join(f"<{message.role}>{message.text}\n" for message in request.messages)


def _words(text: str) -> list[str]:
    """Pieces that end where a word does; together they are the text."""
    return re.findall(r"\s*\S+\s*\Z|\s*\S+|\s+", text)


def _deltas(answer: Answer, limit: int, asked: Generation) -> tuple[list[Event], FinishReason]:
    """What one choice gets, each delta one token, and why it ends. With `ignore_eos` the text goes on to the limit."""
    deltas: list[Event] = [ReasoningDelta(0, word) for word in _words(answer.reasoning)]
    deltas += [TextDelta(0, piece) for piece in answer.pieces]
    if asked.ignore_eos and asked.max_tokens is not None and answer.pieces:
        more: Iterator[Event] = itertools.cycle([TextDelta(0, piece) for piece in answer.pieces])
        return [*deltas, *itertools.islice(more, max(limit - len(deltas), 0))][:limit], "length"
    for index, call in enumerate(answer.tool_calls):
        deltas.append(ToolCallDelta(0, index, call.arguments, f"call_{secrets.token_hex(12)}", call.name))
    if len(deltas) > limit:
        return deltas[:limit], "length"
    return deltas, "tool_calls" if answer.tool_calls else "stop"


def _addressed(delta: Event, choice: int) -> Event:
    return delta if choice == 0 else msgspec.structs.replace(delta, choice=choice)


def _fail(answer: Answer, chunks: int) -> None:
    failure = answer.error
    if failure is not None and failure.after_chunks <= chunks:
        raise FAILURES[failure.code](failure.message, retry_after_s=failure.retry_after_s)


def _vector(text: str, dimensions: int) -> bytes:
    floats = [number / 2**31 - 1 for number in struct.unpack("<8I", hashlib.sha256(text.encode()).digest())]
    norm = math.hypot(*floats[:dimensions]) or 1.0
    return struct.pack(f"<{dimensions}f", *[number / norm for number in floats[:dimensions]])
