"""The adapter for local GGUF models: a supervised worker process per model behind a queue that is fair to tenants."""

from __future__ import annotations

import asyncio
import math
import secrets
import struct
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from adapters.errors import AdapterError, Busy, InvalidRequest, ModelLoading, Overloaded
from adapters.llama_cpp.generation import Counters, Engine, TextGeneration, size_tokens
from adapters.llama_cpp.line import Line, Turn, take_turn
from adapters.llama_cpp.messages import (
    Busyness,
    ChangeSession,
    ChatPrompt,
    Command,
    Detokenize,
    Embed,
    Embedded,
    EngineSettings,
    Inspect,
    Inspected,
    ListSessions,
    ModelInfo,
    Prompt,
    Rerank,
    Reranked,
    SessionChanged,
    SessionCounters,
    SessionList,
    TextPrompt,
    TokenPrompt,
)
from adapters.llama_cpp.output import OutputParser
from adapters.llama_cpp.process import Answer, State, Timing, Worker
from adapters.llama_cpp.question import Question
from adapters.llama_cpp.queue import Entry, FairQueue, Rates
from adapters.llama_cpp.reasoning import named as reasoning_named
from adapters.llama_cpp.tools import named as format_named
from adapters.types import (
    Caller,
    ChatRequest,
    CompletionRequest,
    DocumentPart,
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    ImagePart,
    ImageUrl,
    Kind,
    Message,
    ModelCard,
    NativePart,
    Part,
    Ranking,
    RerankRequest,
    SessionAction,
    SessionInfo,
    TextPart,
    TokenCount,
    Usage,
)

__all__ = ["LlamaCpp", "Status"]

PREPARING_MAX = 8
PREPARING_DEPTH_MAX = 1000
PREPARE_US_PER_TOKEN = 2.0
PROMPTS_MAX = 256
EMBEDDING_MAX = 4
EMBED_TIMEOUT_S = 600.0
QUESTIONS_MAX = 64
QUESTION_TIMEOUT_S = 30.0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A model at this moment. `reason` says what went wrong last when it is not ready; it is for operators."""

    name: str
    state: State
    progress: float
    reason: str | None
    info: ModelInfo | None
    pid: int | None
    queue_depth: int
    running: int
    busyness: Busyness | None


class LlamaCpp:
    """Chat, Embedder, Reranker, Tokenizer and Sessions over one local model."""

    def __init__(
        self,
        name: str,
        path: str,
        settings: EngineSettings,
        *,
        queue_depth_max: int = 64,
        argv: Sequence[str] = (),
        timing: Timing | None = None,
    ) -> None:
        timing = timing or Timing()
        self.name = name
        self.counters = Counters()
        self._worker = Worker(path, settings, argv=argv, timing=timing, on_ready=self._on_ready, on_lost=self._on_lost)
        self._places = Line(FairQueue(1, queue_depth_max), timing.clock, self._rates)
        self._preparing = Line(
            FairQueue(PREPARING_MAX, PREPARING_DEPTH_MAX), timing.clock, lambda: Rates(PREPARE_US_PER_TOKEN, 0.0)
        )
        self._embedding = Line(FairQueue(EMBEDDING_MAX, queue_depth_max), timing.clock, self._rates)
        self._engine = Engine(self._worker, self._places, self._preparing, self.counters)
        self._questions = 0

    # Life

    async def start(self) -> None:
        """Load the model; returns when it is ready or its first load failed, which `status` tells apart."""
        self._worker.start()
        await self._worker.settled()

    async def close(self) -> None:
        """Stop the worker; requests in work fail."""
        await self._worker.stop()

    def check_ready(self) -> ModelInfo:
        """What the loaded model is; raises ModelLoading or ModelUnavailable when none is."""
        error = self._worker.unavailable()
        if error is not None:
            raise error
        assert self._worker.info is not None
        return self._worker.info

    def status(self) -> Status:
        worker = self._worker
        return Status(
            name=self.name,
            state=worker.state,
            progress=worker.progress,
            reason=worker.reason,
            info=worker.info,
            pid=worker.pid,
            queue_depth=self._places.queue.waiting + self._embedding.queue.waiting,
            running=self._places.queue.running + self._embedding.queue.running,
            busyness=worker.busyness,
        )

    def eta_s(self) -> float:
        """Seconds that a request which came now would wait for its turn; infinite while the model cannot serve."""
        if self._worker.unavailable() is not None:
            return math.inf
        return self._places.eta_s()

    @property
    def session_counters(self) -> SessionCounters:
        """What became of kept conversations since the start, over all lives of the worker."""
        return self._worker.sessions.value

    @property
    def card(self) -> ModelCard:
        """What is known of the model; little before its first load."""
        info = self._worker.info
        if info is None:
            return ModelCard()
        return ModelCard(
            context_tokens=info.context_tokens,
            kinds=_kinds(info),
            parameters=info.parameters,
            size_bytes=info.size_bytes,
            description=info.description,
            vision=info.vision,
        )

    def _on_ready(self, info: ModelInfo) -> None:
        self._places.queue.parallel = info.parallel

    def _on_lost(self) -> None:
        """Everybody in line is told at once; those the worker knew hear of it next."""
        self.counters.restarts += self._worker.state != "stopped"
        error = self._worker.unavailable()
        for line in (self._places, self._preparing, self._embedding):
            line.clear(error or ModelLoading("The engine was restarted.", retry_after_s=1.0))

    def _rates(self) -> Rates:
        """The rates with every slot taken; a step is taken to grow by half of itself with each further stream."""
        info, busyness = self._worker.info, self._worker.busyness
        if info is None:
            return Rates()
        if busyness is None:
            return Rates(info.prefill_us_per_token, info.decode_us_per_token)
        growth = (1 + info.parallel) / (1 + max(1, busyness.running))
        return Rates(busyness.prefill_us_per_token, busyness.decode_us_per_token * max(growth, 1.0))

    # Text

    def chat(self, request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
        try:
            info = self._check_generates()
            _check_parts(request, info)
        except AdapterError as error:
            return _failing(error)
        prompt = _chat_prompt(request)
        new_parser = _parser_of(info, prompt)
        return TextGeneration(self._engine, caller, [prompt], request.generation, new_parser=new_parser).events()

    def complete(self, request: CompletionRequest, caller: Caller) -> AsyncIterator[Event]:
        try:
            self._check_generates()
            if not 1 <= len(request.prompts) <= PROMPTS_MAX:
                raise InvalidRequest(f"Between 1 and {PROMPTS_MAX} prompts are possible.", param="prompt")
        except AdapterError as error:
            return _failing(error)
        prompts: list[Prompt] = [
            TextPrompt(prompt, request.suffix) if isinstance(prompt, str) else TokenPrompt(prompt)
            for prompt in request.prompts
        ]
        return TextGeneration(self._engine, caller, prompts, request.generation, echo=request.echo).events()

    def _check_generates(self) -> ModelInfo:
        info = self.check_ready()
        if not info.generates:
            raise InvalidRequest(f"The model {self.name!r} does not generate text.", param="model")
        return info

    # Embeddings

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        info = self.check_ready()
        if not info.embeds:
            raise InvalidRequest(f"The model {self.name!r} does not make embeddings.", param="model")
        whole = info.embedding_dimensions
        dimensions = whole if request.dimensions is None else request.dimensions
        if not 1 <= dimensions <= whole:
            raise InvalidRequest(f"'dimensions' must be between 1 and {whole}.", param="dimensions")
        size = sum(size_tokens(_embedding_prompt(one)) for one in request.inputs)
        embedded = await self._encode(lambda number: Embed(number, caller.tenant, request.inputs), size, caller)
        assert isinstance(embedded, Embedded)
        vectors = embedded.vectors
        if dimensions < whole:
            vectors = tuple(cut(vector, dimensions) for vector in vectors)
        return Embeddings(vectors, dimensions, embedded.prompt_tokens)

    async def rerank(self, request: RerankRequest, caller: Caller) -> Ranking:
        info = self.check_ready()
        if info.reranks is None:
            raise InvalidRequest(f"The model {self.name!r} does not rerank.", param="model")
        size = sum(size_tokens(TextPrompt(request.query + document)) for document in request.documents)
        reranked = await self._encode(
            lambda number: Rerank(number, caller.tenant, request.query, request.documents), size, caller
        )
        assert isinstance(reranked, Reranked)
        scores = reranked.scores
        if info.reranks == "logit" and not request.raw:
            scores = tuple(map(sigmoid, scores))
        return Ranking(scores, reranked.prompt_tokens)

    async def _encode(self, command: Callable[[int], Command], size: int, caller: Caller) -> Embedded | Reranked:
        """Have the worker compute about `size` tokens, when it is the caller's turn."""
        self.counters.requests += 1
        try:
            answer = await self._take_turn_and_ask(command, size, caller)
        except Busy:
            self.counters.rejected += 1
            raise
        except asyncio.CancelledError:
            self.counters.cancelled += 1
            raise
        self.counters.prompt_tokens += answer.prompt_tokens
        self.counters.embedded_tokens += answer.prompt_tokens
        return answer

    async def _take_turn_and_ask(
        self, command: Callable[[int], Command], size: int, caller: Caller
    ) -> Embedded | Reranked:
        turn = Turn()
        entry = Entry(
            tenant=caller.tenant,
            owner=turn,
            prompt_tokens=size,
            max_tokens=0,
            weight=caller.weight,
            priority=caller.priority,
        )
        await take_turn(self._embedding, entry, turn)
        try:
            question = Question(self._worker, lambda: self._embedding.leave(entry))
        except AdapterError:
            self._embedding.leave(entry)
            raise
        answer = await question.ask(command(question.id), EMBED_TIMEOUT_S)
        assert isinstance(answer, Embedded | Reranked)
        return answer

    # Tokeniser

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        answer = await self._inspect(lambda number: Inspect(number, TextPrompt(text), special))
        return list(answer.tokens)

    async def detokenize(self, tokens: list[int]) -> str:
        answer = await self._inspect(lambda number: Detokenize(number, tuple(tokens)))
        return answer.text

    async def count_tokens(self, request: ChatRequest) -> TokenCount:
        return TokenCount((await self.apply_template(request))[1])

    async def apply_template(self, request: ChatRequest) -> tuple[str, int]:
        _check_parts(request, self.check_ready())
        answer = await self._inspect(lambda number: Inspect(number, _chat_prompt(request)))
        return answer.text, len(answer.tokens)

    async def _inspect(self, command: Callable[[int], Command]) -> Inspected:
        answer = await self._ask(command)
        assert isinstance(answer, Inspected)
        return answer

    # Sessions

    async def list_sessions(self, tenant: str | None) -> list[SessionInfo]:
        if not self.check_ready().generates:
            return []
        answer = await self._ask(lambda number: ListSessions(number, tenant))
        assert isinstance(answer, SessionList)
        return answer.sessions

    async def change_session(
        self, tenant: str, key: str, action: SessionAction, new_key: str | None = None
    ) -> SessionInfo | None:
        if not self.check_ready().generates:
            return None
        answer = await self._ask(lambda number: ChangeSession(number, tenant, key, action, new_key))
        assert isinstance(answer, SessionChanged)
        return answer.info

    # Questions

    async def _ask(self, command: Callable[[int], Command]) -> Answer:
        self.check_ready()
        if self._questions >= QUESTIONS_MAX:
            raise Overloaded("Too many questions to the engine are waiting.", retry_after_s=1.0)
        question = Question(self._worker, self._answered)
        self._questions += 1
        return await question.ask(command(question.id), QUESTION_TIMEOUT_S)

    def _answered(self) -> None:
        self._questions -= 1


async def _failing(error: AdapterError) -> AsyncIterator[Event]:
    """A stream that raises at its first event, so that a refusal comes from the same place as any other failure."""
    raise error
    yield Finished(Usage())  # type: ignore[unreachable]  # What makes this function a generator.


def _chat_prompt(request: ChatRequest) -> ChatPrompt:
    tools = request.tools if request.tool_choice.mode != "none" else ()
    messages = tuple(map(_told, request.messages))
    return ChatPrompt(messages, tools, request.tool_choice, request.template_arguments)


def _told(message: Message) -> Message:
    """The message with its documents written out; what only a provider reads of it stays behind."""
    if not isinstance(message.content, tuple):
        return message
    parts = [TextPart(_document_text(part)) if isinstance(part, DocumentPart) else part for part in message.content]
    return msgspec.structs.replace(message, content=tuple(parts))


def _document_text(part: DocumentPart) -> str:
    return "\n".join(filter(None, (part.title, part.context, part.data.decode("utf-8", "replace"))))


def _parser_of(info: ModelInfo, prompt: ChatPrompt) -> Callable[[bool], OutputParser] | None:
    """What makes a choice's parser, given whether its prompt has begun to think; None where all text is content."""
    choice = prompt.tool_choice
    tools = tuple(tool for tool in prompt.tools if tool.name in choice.names or not choice.names)
    tool_format = format_named(info.tool_format)
    reasoning = reasoning_named(info.reasoning_format) if info.reasoning_format else None
    if not tools and reasoning is None and not tool_format.skips:
        return None
    return lambda thinking: OutputParser(
        tool_format, reasoning, _new_call_id, tools, parallel=choice.parallel, thinking=thinking
    )


def _check_parts(request: ChatRequest, info: ModelInfo) -> None:
    """Only a vision model takes images, and only those that are here; no model here takes what is neither."""
    if request.native_tools:
        raise InvalidRequest("Invalid value for 'tools': this model only takes functions.", param="tools")
    for i, message in enumerate(request.messages):
        for j, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
            if (reason := _part_problem(part, info)) is not None:
                param = f"messages[{i}].content[{j}]"
                raise InvalidRequest(f"Invalid value for '{param}': {reason}.", param=param)


def _part_problem(part: Part, info: ModelInfo) -> str | None:
    match part:
        case TextPart():
            return None
        case ImagePart():
            return None if info.vision else "this model does not take images"
        case ImageUrl():
            return "images have to be data: URLs here"
        case DocumentPart():
            is_text = part.media_type == "text/plain" and part.url is None
            return None if is_text else "this model only takes documents that are text"
        case NativePart():
            return "this model does not take parts of this type"


def _new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _embedding_prompt(one: str | tuple[int, ...]) -> Prompt:
    return TextPrompt(one) if isinstance(one, str) else TokenPrompt(one)


def _kinds(info: ModelInfo) -> tuple[Kind, ...]:
    if info.generates:
        return ("chat", "completion")
    return ("embedding",) if info.embeds else ("rerank",)


def sigmoid(logit: float) -> float:
    """Between 0 and 1, without an overflow for logits far below zero."""
    return 0.5 * (1 + math.tanh(logit / 2))


def cut(vector: bytes, dimensions: int) -> bytes:
    """The first `dimensions` floats of a vector, with length 1 again (a zero vector stays zero)."""
    floats = struct.unpack(f"<{dimensions}f", vector[: 4 * dimensions])
    norm = math.hypot(*floats) or 1.0
    return struct.pack(f"<{dimensions}f", *[value / norm for value in floats])
