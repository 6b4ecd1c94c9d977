"""The adapter for local GGUF models: a supervised worker process per model behind a queue that is fair to tenants."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing

import msgspec
from msgspec.structs import replace

from adapters.errors import AdapterError, Busy, InvalidRequest, ModelLoading, Overloaded
from adapters.llama_cpp.asked import chat_prompt, check_parts, embedding_prompt, parser_of
from adapters.llama_cpp.asleep import Asleep
from adapters.llama_cpp.generation import TextGeneration, size_tokens
from adapters.llama_cpp.line import Line, Turn, take_turn
from adapters.llama_cpp.messages import (
    Busyness,
    ChangeSession,
    Command,
    Detokenize,
    Embed,
    Embedded,
    EngineSettings,
    GrammarCounters,
    Inspect,
    Inspected,
    ListSessions,
    Load,
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
from adapters.llama_cpp.part import Counters, Engine
from adapters.llama_cpp.process import Answer, State, Timing, Worker, resident_bytes
from adapters.llama_cpp.question import Question
from adapters.llama_cpp.queue import Entry, FairQueue, Rates
from adapters.llama_cpp.resident import Resident
from adapters.types import (
    Caller,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    Kind,
    ModelCard,
    Ranking,
    RerankRequest,
    SessionAction,
    SessionInfo,
    TokenCount,
    Usage,
)

__all__ = ["LlamaCpp", "Status"]

PREPARING_MAX = 8
PREPARING_DEPTH_MAX = 1000
PREPARE_US_PER_TOKEN = 2.0
PROMPTS_MAX = 256
# An int32.
TOKEN_BYTES = 4
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
    eta_s: float = math.inf
    sessions: SessionCounters = SessionCounters()
    grammars: GrammarCounters = GrammarCounters()


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
        self.door: Resident | None = None
        self._facts = ModelCard()
        self.counters = Counters()
        self._worker = Worker(path, settings, argv=argv, timing=timing, on_ready=self._on_ready, on_lost=self._on_lost)
        self._places = Line(FairQueue(1, queue_depth_max), timing.clock, self._rates)
        self._preparing = Line(
            FairQueue(PREPARING_MAX, PREPARING_DEPTH_MAX), timing.clock, lambda: Rates(PREPARE_US_PER_TOKEN, 0.0)
        )
        self._embedding = Line(FairQueue(EMBEDDING_MAX, queue_depth_max), timing.clock, self._rates)
        self._engine = Engine(self._worker, self._places, self._preparing, self.counters, self._enter)
        self._questions = 0
        self._asleep = Asleep(settings)

    # Life

    async def start(self) -> None:
        """Load the model; returns when it is ready or its first load failed, which `status` tells apart."""
        self._worker.start()
        await self._worker.settled()

    async def close(self) -> None:
        """Stop the worker; requests in work fail."""
        await self._worker.stop()

    # Life, when a pool decides about it

    async def load(self) -> bool:
        """Load the model, whatever failed before; False when it is not there in the end."""
        if self._worker.state == "failed":
            await self._worker.stop()
        self._worker.reset()
        self._worker.start()
        await self._worker.decided()
        return self._worker.state == "ready"

    async def sleep(self) -> None:
        """As `close`; conversations are on disk when this returns."""
        await self._worker.stop()

    def locate(self, path: str, mmproj: str | None = None) -> None:
        """Where its files lie, from the next load on; a projector that was chosen for it stays."""
        load = self._worker.load
        settings = replace(load.settings, mmproj=load.settings.mmproj or mmproj)
        self._worker.load = replace(load, path=path, settings=settings)

    def learn(self, facts: ModelCard) -> None:
        """What its file says of it, which is known before its first load."""
        self._facts = facts

    @property
    def files(self) -> Load:
        """What is to be loaded, and how."""
        return self._worker.load

    def resident_bytes(self) -> int:
        """What its process takes in memory now; 0 without one."""
        return 0 if self._worker.pid is None else resident_bytes(self._worker.pid)

    @property
    def busy(self) -> bool:
        lines = (self._places.queue, self._preparing.queue, self._embedding.queue)
        return self._worker.sinks > 0 or any(queue.waiting or queue.running for queue in lines)

    @property
    def failed(self) -> bool:
        return self._worker.state == "failed"

    def absence(self) -> AdapterError | None:
        """Why it cannot be asked now; None when it can."""
        return self._worker.unavailable()

    def left_s(self) -> float:
        """Seconds until it will be loaded, or until what runs now will be done."""
        if self._worker.state != "ready":
            return self._worker.ready_in_s()
        return self._places.done_s()

    def check_ready(self) -> ModelInfo:
        """What the loaded model is; raises ModelLoading or ModelUnavailable when none is."""
        error = self._worker.unavailable()
        if error is not None:
            raise error
        assert self._worker.info is not None
        return self._worker.info

    def status(self) -> Status:
        worker, door = self._worker, self.door
        out = door is not None and (worker.state == "stopped" or door.place == "going")
        return Status(
            name=self.name,
            state=door.state if door is not None and out else worker.state,
            progress=door.progress if door is not None and out else worker.progress,
            reason=door.trouble if door is not None and out else worker.reason,
            info=worker.info,
            pid=worker.pid,
            queue_depth=self._places.queue.waiting + self._embedding.queue.waiting,
            running=self._places.queue.running + self._embedding.queue.running,
            busyness=worker.busyness,
            eta_s=self.eta_s(),
            sessions=worker.sessions.value,
            grammars=worker.grammars.value,
        )

    def eta_s(self) -> float:
        """Seconds that a request which came now would wait for its turn; infinite while the model cannot serve."""
        if self.door is not None and not self.door.open:
            return self.door.eta_s()
        return math.inf if self._worker.unavailable() is not None else self._places.eta_s()

    @property
    def session_counters(self) -> SessionCounters:
        """What became of kept conversations since the start, over all lives of the worker."""
        return self._worker.sessions.value

    @property
    def card(self) -> ModelCard:
        """What is known of the model; before its first load as much as its file says."""
        info = self._worker.info
        if info is None:
            return self._facts
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
        self._think()

    def _on_lost(self) -> None:
        """Everybody in line is told at once; those the worker knew hear of it next."""
        self.counters.restarts += self._worker.state != "stopped"
        error = self._worker.unavailable()
        for line in (self._places, self._preparing, self._embedding):
            line.clear(error or ModelLoading("The engine was restarted.", retry_after_s=1.0))
        self._think()

    def _think(self) -> None:
        if self.door is not None:
            self.door.think()

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
        def begin() -> TextGeneration:
            info = self._check_generates()
            check_parts(request, info)
            prompt = chat_prompt(request)
            new_parser = parser_of(info, prompt)
            return TextGeneration(self._engine, caller, [prompt], request.generation, new_parser=new_parser)

        return self._events(begin, caller)

    def complete(self, request: CompletionRequest, caller: Caller) -> AsyncIterator[Event]:
        def begin() -> TextGeneration:
            self._check_generates()
            if not 1 <= len(request.prompts) <= PROMPTS_MAX:
                raise InvalidRequest(f"Between 1 and {PROMPTS_MAX} prompts are possible.", param="prompt")
            prompts: list[Prompt] = [
                TextPrompt(prompt, request.suffix) if isinstance(prompt, str) else TokenPrompt(prompt)
                for prompt in request.prompts
            ]
            return TextGeneration(self._engine, caller, prompts, request.generation, echo=request.echo)

        return self._events(begin, caller)

    def _events(self, begin: Callable[[], TextGeneration], caller: Caller) -> AsyncIterator[Event]:
        """A stream, which may have to wait for the model first. No await lies between the door and its beginning."""
        if self.door is not None and not self.door.enter_now():
            return self._events_later(self.door, begin, caller)
        try:
            return begin()
        except AdapterError as error:
            return _failing(error)

    async def _events_later(
        self, door: Resident, begin: Callable[[], TextGeneration], caller: Caller
    ) -> AsyncIterator[Event]:
        await door.enter(caller.tenant)
        async with aclosing(begin()) as events:
            async for event in events:
                yield event

    async def _enter(self, tenant: str = "") -> ModelInfo:
        """What the model is, once it is there; it cannot go before the caller awaits something else."""
        if self.door is not None:
            await self.door.enter(tenant)
        return self.check_ready()

    def _check_generates(self) -> ModelInfo:
        info = self.check_ready()
        if not info.generates:
            raise InvalidRequest(f"The model {self.name!r} does not generate text.", param="model")
        return info

    # Embeddings

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        info = await self._enter(caller.tenant)
        if not info.embeds:
            raise InvalidRequest(f"The model {self.name!r} does not make embeddings.", param="model")
        whole = info.embedding_dimensions
        dimensions = whole if request.dimensions is None else request.dimensions
        if not 1 <= dimensions <= whole:
            raise InvalidRequest(f"'dimensions' must be between 1 and {whole}.", param="dimensions")
        size = sum(size_tokens(embedding_prompt(one)) for one in request.inputs)
        embedded = await self._encode(lambda number: Embed(number, caller.tenant, request.inputs), size, caller)
        assert isinstance(embedded, Embedded)
        vectors = embedded.vectors
        if dimensions < whole:
            vectors = tuple(cut(vector, dimensions) for vector in vectors)
        return Embeddings(vectors, dimensions, embedded.prompt_tokens)

    async def rerank(self, request: RerankRequest, caller: Caller) -> Ranking:
        info = await self._enter(caller.tenant)
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
        try:
            entry = await self._turn(size, caller)
        except ModelLoading:  # Who waits when the worker dies waits for the next one.
            await self._enter(caller.tenant)
            entry = await self._turn(size, caller)
        try:
            question = Question(self._worker, lambda: self._embedding.leave(entry))
        except AdapterError:
            self._embedding.leave(entry)
            raise
        answer = await question.ask(command(question.id), EMBED_TIMEOUT_S)
        assert isinstance(answer, Embedded | Reranked)
        return answer

    async def _turn(self, size: int, caller: Caller) -> Entry:
        """A place for about `size` tokens, taken."""
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
        return entry

    # Tokeniser

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        await self._enter()
        answer = await self._inspect(lambda number: Inspect(number, TextPrompt(text), special))
        return memoryview(answer.tokens).cast("i").tolist()

    async def detokenize(self, tokens: list[int]) -> str:
        await self._enter()
        answer = await self._inspect(lambda number: Detokenize(number, tuple(tokens)))
        return answer.text

    async def count_tokens(self, request: ChatRequest) -> TokenCount:
        return TokenCount((await self.apply_template(request))[1])

    async def apply_template(self, request: ChatRequest) -> tuple[str, int]:
        check_parts(request, await self._enter())
        answer = await self._inspect(lambda number: Inspect(number, chat_prompt(request)))
        return answer.text, len(answer.tokens) // TOKEN_BYTES

    async def _inspect(self, command: Callable[[int], Command]) -> Inspected:
        answer = await self._ask(command)
        assert isinstance(answer, Inspected)
        return answer

    # Sessions

    async def list_sessions(self, tenant: str | None) -> list[SessionInfo]:
        if self._worker.unavailable() is not None:
            return await self._asleep.listed(tenant)
        if not self.check_ready().generates:
            return []
        answer = await self._ask(lambda number: ListSessions(number, tenant))
        assert isinstance(answer, SessionList)
        return answer.sessions

    async def change_session(
        self, tenant: str, key: str, action: SessionAction, new_key: str | None = None
    ) -> SessionInfo | None:
        if action in ("delete", "reset") and self._worker.unavailable() is not None:
            return await self._asleep.erase(tenant, key)
        if not (await self._enter(tenant)).generates:
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
